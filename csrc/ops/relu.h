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
  PerDType<Forward> forward;
  PerDType<Backward> backward;
};
NNOPS_DECLARE_KERNELS(ReluKernels, relu_kernels)

}  // namespace nnops
