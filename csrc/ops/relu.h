// relu: the contract between csrc/ops/relu.cpp and the kernels. No torch headers.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

struct ReluKernels {
  // output[i] = input[i] < 0 ? 0 : input[i]. Both (n,), output may be input.
  using Forward = void (*)(void* output, const void* input, int64_t n, int threads);
  // grad_input[i] = output[i] <= 0 ? 0 : grad_output[i]. All (n,), grad_input may alias either.
  using Backward = void (*)(void* grad_input, const void* grad_output, const void* output,
                            int64_t n, int threads);
  // The same; bit i % 8 of mask[i / 8] tells whether the gradient passes: input[i] is positive or
  // NaN. mask: (ceil(n / 8),), its last bits beyond n are 0.
  using ForwardWithMask = void (*)(void* output, uint8_t* mask, const void* input, int64_t n,
                                   int threads);
  // grad_input[i] = bit i of mask ? grad_output[i] : 0. Both (n,).
  using MaskBackward = void (*)(void* grad_input, const void* grad_output, const uint8_t* mask,
                                int64_t n, int threads);
  PerDType<Forward> forward;
  PerDType<Backward> backward;
  // Of floating dtypes alone.
  PerDType<ForwardWithMask> forward_with_mask;
  PerDType<MaskBackward> mask_backward;
};
NNOPS_DECLARE_KERNELS(ReluKernels, relu_kernels)

}  // namespace nnops
