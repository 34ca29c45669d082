// relu on the CPU: y = max(x, 0), elementwise over dense memory.
//
// A NaN stays NaN and -0.0 stays -0.0. backward works from the output: the gradient passes
// where y is positive or NaN. Parallel over fixed chunks; no accumulation.
#include "ops/relu.h"

#include "cpu/simd.h"

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

}  // namespace

extern const ReluKernels relu_kernels = {NNOPS_ALL_DTYPES(relu_forward),
                                         NNOPS_ALL_DTYPES(relu_backward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
