// Launches of the reference.
#include "cuda/conv2d/reference.cuh"

#include "cuda/conv2d/launchers.h"

namespace nnops::cuda {

template <typename T>
void reference_forward(void* output, const void* input, const void* weight, const void* bias,
                       const Conv2dGeometry& g, void*, int) {
  NNOPS_LAUNCH((reference_forward_kernel<T>),
               grid_stride_blocks(g.n * g.oc * g.oh * g.ow, kReferenceThreads), kReferenceThreads,
               0, static_cast<T*>(output), static_cast<const T*>(input),
               static_cast<const T*>(weight), static_cast<const T*>(bias), g);
}

template <typename T>
void reference_backward_input(void* grad_input, const void* grad_output, const void* weight,
                              const Conv2dGeometry& g, void*, int) {
  NNOPS_LAUNCH((reference_backward_input_kernel<T>),
               grid_stride_blocks(g.n * g.c * g.h * g.w, kReferenceThreads), kReferenceThreads, 0,
               static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
               static_cast<const T*>(weight), g);
}

template <typename T>
void reference_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                               const Conv2dGeometry& g, void*, int) {
  NNOPS_LAUNCH((reference_backward_weight_kernel<T>),
               grid_stride_blocks(g.oc * (g.c / g.groups) * g.kh * g.kw, kReferenceThreads),
               kReferenceThreads, 0, static_cast<T*>(grad_weight),
               static_cast<const T*>(grad_output), static_cast<const T*>(input), g);
}

#define NNOPS_INSTANTIATE(T)                                                       \
  template void reference_forward<T>(void*, const void*, const void*, const void*, \
                                     const Conv2dGeometry&, void*, int);           \
  template void reference_backward_input<T>(void*, const void*, const void*,       \
                                            const Conv2dGeometry&, void*, int);    \
  template void reference_backward_weight<T>(void*, const void*, const void*,      \
                                             const Conv2dGeometry&, void*, int);
NNOPS_INSTANTIATE(float)
NNOPS_INSTANTIATE(double)
NNOPS_INSTANTIATE(bfloat16)
NNOPS_INSTANTIATE(float16)
NNOPS_INSTANTIATE(uint8_t)
NNOPS_INSTANTIATE(int8_t)
NNOPS_INSTANTIATE(int16_t)
NNOPS_INSTANTIATE(int32_t)
NNOPS_INSTANTIATE(int64_t)
#undef NNOPS_INSTANTIATE

}  // namespace nnops::cuda
