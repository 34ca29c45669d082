// template_op: the contract between csrc/ops/template_op.cpp and the kernels. No torch headers.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

struct TemplateOpKernels {
  // output[i] = scale * input[i]^2. Both (n,), output may be input.
  using Forward = void (*)(void* output, const void* input, double scale, int64_t n, int threads);
  // grad_input[i] = 2 * scale * input[i] * grad_output[i]. All (n,), grad_input may alias either.
  using Backward = void (*)(void* grad_input, const void* grad_output, const void* input,
                            double scale, int64_t n, int threads);
  PerDType<Forward> forward;
  PerDType<Backward> backward;
};
NNOPS_DECLARE_KERNELS(TemplateOpKernels, template_op_kernels)

}  // namespace nnops
