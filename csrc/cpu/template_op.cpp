// template_op on the CPU: y = scale * x^2, elementwise over dense memory.
//
// Floating dtypes; bfloat16 and float16 compute in float32. Parallel over fixed chunks; no
// accumulation, so that the number of threads cannot change a bit.
#include "ops/template_op.h"

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

template <typename T>
void template_op_forward(void* output, const void* input, double scale, int64_t n, int threads) {
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    using V = Wide<acc_t<T>>;
    const V s = splat<V>(scale);
    map_wides(y + begin, end - begin, [=](V v) { return s * v * v; }, x + begin);
  });
}

template <typename T>
void template_op_backward(void* grad_input, const void* grad_output, const void* input,
                          double scale, int64_t n, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  parallel_chunks(n, kElementwiseChunk, threads, [=](int64_t begin, int64_t end) {
    using V = Wide<acc_t<T>>;
    const V s = splat<V>(2 * scale);
    map_wides(gx + begin, end - begin, [=](V g, V v) { return s * v * g; }, gy + begin, x + begin);
  });
}

}  // namespace

extern const TemplateOpKernels template_op_kernels = {NNOPS_FLOAT_DTYPES(template_op_forward),
                                                      NNOPS_FLOAT_DTYPES(template_op_backward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
