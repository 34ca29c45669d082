// template_op on CUDA: the launches.
#include "cuda/template_op.cuh"

#include "ops/template_op.h"

namespace nnops::cuda {
namespace {

template <typename T>
void template_op_forward(void* output, const void* input, double scale, int64_t n, int) {
  TemplateOpForward<T> operation;
  operation.output = static_cast<T*>(output);
  operation.input = static_cast<const T*>(input);
  operation.scale = static_cast<acc_t<T>>(scale);
  launch_map(operation, n, are_aligned(output, input));
}

template <typename T>
void template_op_backward(void* grad_input, const void* grad_output, const void* input,
                          double scale, int64_t n, int) {
  TemplateOpBackward<T> operation;
  operation.output = static_cast<T*>(grad_input);
  operation.grad_output = static_cast<const T*>(grad_output);
  operation.input = static_cast<const T*>(input);
  operation.double_scale = static_cast<acc_t<T>>(2 * scale);
  launch_map(operation, n, are_aligned(grad_input, grad_output, input));
}

}  // namespace

extern const TemplateOpKernels template_op_kernels = {NNOPS_FLOAT_DTYPES(template_op_forward),
                                                      NNOPS_FLOAT_DTYPES(template_op_backward)};

}  // namespace nnops::cuda
