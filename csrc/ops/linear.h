// linear for a few rows of input: the contract between csrc/ops/linear.cpp, the chains of layers
// (layer_chain.cpp) and the kernels. No torch headers.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

// output[n, o] = bias[o] + sum over i of weight[o, i] input[n, i], all of them contiguous.
struct LinearGeometry {
  int64_t n, in, out;
  bool relu;  // max(output, 0); a NaN stays NaN
};

// Products below which another thread does not pay; they come with a byte of weights or four each.
inline constexpr int64_t kLinearGrain = int64_t{1} << 18;

struct LinearKernels {
  // bias: (out,), or null
  using Forward = void (*)(void* output, const void* input, const void* weight, const void* bias,
                           const LinearGeometry& geometry, int threads);
  // grad_input[n, i] = sum over o of grad_output[n, o] weight[o, i]
  using BackwardInput = void (*)(void* grad_input, const void* grad_output, const void* weight,
                                 const LinearGeometry& geometry, int threads);
  // grad_weight[o, i] = sum over n of grad_output[n, o] input[n, i]
  using BackwardWeight = void (*)(void* grad_weight, const void* grad_output, const void* input,
                                  const LinearGeometry& geometry, int threads);
  PerDType<Forward> forward;
  PerDType<BackwardInput> backward_input;
  PerDType<BackwardWeight> backward_weight;
};
NNOPS_DECLARE_CPU_KERNELS(LinearKernels, linear_kernels)

}  // namespace nnops
