// relu on the CPU: y = max(x, 0), elementwise over dense memory.
//
// A NaN stays NaN and -0.0 stays -0.0. backward works from the output: the gradient passes
// where y is positive or NaN; mask_backward from one bit an element that says so, a 32nd of the
// bytes. Parallel over fixed chunks, of whole bytes of the mask; no accumulation.
#include "ops/relu.h"

#include "cpu/bits.h"

NNOPS_BEGIN_KERNELS

// output[i] = function(inputs[i]...) for i in [begin, end). Vectors may overlap, so `function` must
// give the same when it sees its own results, as the output may be one of the inputs.
template <typename T, typename Function, typename... Inputs>
NNOPS_INLINE void map_lanes(T* output, int64_t begin, int64_t end, Function function,
                            const Inputs*... inputs) {
  const auto map = [=](auto lanes, int64_t i) __attribute__((always_inline)) {
    constexpr int kN = decltype(lanes)::kCount;
    store_lanes<kN>(output + i, function(load_lanes<kN>(inputs + i)...));
  };
  for_lanes<acc_t<T>>(begin, end, map, [=](int64_t i) { map(LaneCount<1>{}, i); });
}

template <typename T>
void relu_forward(void* output, const void* input, int64_t n, int threads) {
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    if constexpr (kIsFloating<T>) {
      map_lanes(y, begin, end, [](auto v) { return v < 0 ? decltype(v){} : v; }, x);
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
      map_lanes(gx, begin, end, [](auto g, auto v) { return v <= 0 ? decltype(g){} : g; }, gy, y);
    } else {
      for (int64_t i = begin; i < end; ++i) gx[i] = y[i] <= 0 ? T{0} : gy[i];
    }
  });
}

// Elements whose bits are written together.
constexpr int64_t kMaskGroup = 32;

template <typename T>
void relu_forward_with_mask(void* output, uint8_t* mask, const void* input, int64_t n,
                            int threads) {
  constexpr int kN = kMostLanes<T>;
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kMaskGroup <= end; i += kMaskGroup) {
      uint32_t bits = 0;
#pragma GCC unroll 8
      for (int64_t j = 0; j < kMaskGroup; j += kN) {
        const auto v = load_lanes<kN>(x + i + j);
        store_lanes<kN>(y + i + j, v < 0 ? decltype(v){} : v);
        bits |= lane_bits<acc_t<T>, kN>(~(v <= 0)) << j;
      }
      std::memcpy(mask + i / 8, &bits, sizeof(bits));
    }
    for (; i < end; i += 8) {
      uint8_t bits = 0;
      for (int64_t j = i; j < smaller(i + 8, end); ++j) {
        const acc_t<T> v = to_acc(x[j]);
        y[j] = v < 0 ? T{} : x[j];
        bits |= static_cast<uint8_t>(!(v <= 0)) << (j - i);
      }
      mask[i / 8] = bits;
    }
  });
}

template <typename T>
void relu_mask_backward(void* grad_input, const void* grad_output, const uint8_t* mask, int64_t n,
                        int threads) {
  constexpr int kN = kMostLanes<T>;
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kMaskGroup <= end; i += kMaskGroup) {
      uint32_t bits = 0;
      std::memcpy(&bits, mask + i / 8, sizeof(bits));
#pragma GCC unroll 8
      for (int64_t j = 0; j < kMaskGroup; j += kN) {
        const auto passes = mask_from_bits<acc_t<T>, kN>(bits >> j);
        const auto g = load_lanes<kN>(gy + i + j);
        store_lanes<kN>(gx + i + j, passes ? g : decltype(g){});
      }
    }
    for (; i < end; ++i) gx[i] = mask[i / 8] >> (i % 8) & 1 ? gy[i] : T{};
  });
}

}  // namespace

extern const ReluKernels relu_kernels = {
    NNOPS_ALL_DTYPES(relu_forward), NNOPS_ALL_DTYPES(relu_backward),
    NNOPS_FLOAT_DTYPES(relu_forward_with_mask), NNOPS_FLOAT_DTYPES(relu_mask_backward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
