// relu on the CPU: y = max(x, 0), elementwise over dense memory.
//
// A NaN stays NaN and -0.0 stays -0.0. backward works from the output: the gradient passes
// where y is positive or NaN; mask_backward from one bit an element that says so, a 32nd of the
// bytes. Parallel over fixed chunks, of whole bytes of the mask; no accumulation.
#include "ops/relu.h"

#include "cpu/bits.h"

NNOPS_BEGIN_KERNELS

template <typename T>
void relu_forward(void* output, const void* input, int64_t n, int threads) {
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    if constexpr (kIsFloating<T>) {
      using V = Vec<acc_t<T>>;
      map_vectors(y + begin, end - begin, [](V v) { return v < 0 ? V{} : v; }, x + begin);
    } else {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] > 0 ? x[i] : T{0};
    }
  });
}

template <typename T>
void relu_backward(void* grad_input, const void* grad_output, const void* output, int64_t n,
                   int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const T* y = static_cast<const T*>(output);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    if constexpr (kIsFloating<T>) {
      using V = Vec<acc_t<T>>;
      map_vectors(
          gx + begin, end - begin, [](V g, V v) { return v <= 0 ? V{} : g; }, gy + begin,
          y + begin);
    } else {
      for (int64_t i = begin; i < end; ++i) gx[i] = y[i] <= 0 ? T{0} : gy[i];
    }
  });
}

// One vector's bits of the mask: 2 bytes for 16 lanes, 1 for 8; fewer for the last elements.
NNOPS_INLINE void store_bits(uint8_t* mask, uint32_t bits, int64_t count) {
  const uint32_t known = bits & ((uint32_t{1} << count) - 1);
  std::memcpy(mask, &known, static_cast<size_t>((count + 7) / 8));
}
NNOPS_INLINE uint32_t load_bits(const uint8_t* mask, int64_t count) {
  uint32_t bits = 0;
  std::memcpy(&bits, mask, static_cast<size_t>((count + 7) / 8));
  return bits;
}

template <typename T>
void relu_forward_with_mask(void* output, uint8_t* mask, const void* input, int64_t n,
                            int threads) {
  using V = Vec<acc_t<T>>;
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) {
      const V v = load(x + i);
      store(y + i, v < 0 ? V{} : v);
      store_bits(mask + i / 8, lane_bits(~(v <= 0)), kWidth);
    }
    if (i < end) {
      const V v = load_first(x + i, end - i);
      store_first(y + i, v < 0 ? V{} : v, end - i);
      store_bits(mask + i / 8, lane_bits(~(v <= 0)), end - i);
    }
  });
}

template <typename T>
void relu_mask_backward(void* grad_input, const void* grad_output, const uint8_t* mask, int64_t n,
                        int threads) {
  using V = Vec<acc_t<T>>;
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) {
      const auto passes = mask_from_bits<acc_t<T>>(load_bits(mask + i / 8, kWidth));
      store(gx + i, passes ? load(gy + i) : V{});
    }
    if (i < end) {
      const auto passes = mask_from_bits<acc_t<T>>(load_bits(mask + i / 8, end - i));
      store_first(gx + i, passes ? load_first(gy + i, end - i) : V{}, end - i);
    }
  });
}

}  // namespace

extern const ReluKernels relu_kernels = {
    NNOPS_ALL_DTYPES(relu_forward), NNOPS_ALL_DTYPES(relu_backward),
    NNOPS_FLOAT_DTYPES(relu_forward_with_mask), NNOPS_FLOAT_DTYPES(relu_mask_backward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
