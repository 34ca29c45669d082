// relu on CUDA: the launches.
#include "cuda/relu.cuh"

#include "ops/relu.h"

namespace nnops::cuda {
namespace {

template <typename T>
void relu_forward(void* output, const void* input, int64_t n, int) {
  ReluForward<T> operation;
  operation.output = static_cast<T*>(output);
  operation.input = static_cast<const T*>(input);
  launch_map(operation, n, are_aligned(output, input));
}

template <typename T>
void relu_backward(void* grad_input, const void* grad_output, const void* output, int64_t n, int) {
  ReluBackward<T> operation;
  operation.output = static_cast<T*>(grad_input);
  operation.grad_output = static_cast<const T*>(grad_output);
  operation.relu_output = static_cast<const T*>(output);
  launch_map(operation, n, are_aligned(grad_input, grad_output, output));
}

template <typename T>
void relu_forward_with_mask(void* output, uint8_t* mask, const void* input, int64_t n, int) {
  ReluForwardWithMask<T> operation;
  operation.output = static_cast<T*>(output);
  operation.input = static_cast<const T*>(input);
  operation.mask = mask;
  launch_map(operation, n, are_aligned(output, input));
}

template <typename T>
void relu_mask_backward(void* grad_input, const void* grad_output, const uint8_t* mask, int64_t n,
                        int) {
  ReluMaskBackward<T> operation;
  operation.output = static_cast<T*>(grad_input);
  operation.grad_output = static_cast<const T*>(grad_output);
  operation.mask = mask;
  launch_map(operation, n, are_aligned(grad_input, grad_output));
}

}  // namespace

extern const ReluKernels relu_kernels = {
    NNOPS_ALL_DTYPES(relu_forward), NNOPS_ALL_DTYPES(relu_backward),
    NNOPS_FLOAT_DTYPES(relu_forward_with_mask), NNOPS_FLOAT_DTYPES(relu_mask_backward)};

}  // namespace nnops::cuda
