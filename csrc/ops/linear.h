// The linear layers of a chain: the contract between csrc/ops/layer_chain.cpp and the kernel. No
// torch headers.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

// output[n, o] = bias[o] + sum over i of weight[o, i] input[n, i], all of them contiguous.
struct LinearGeometry {
  int64_t n, in, out;
  bool relu;  // max(output, 0); a NaN stays NaN
};

struct LinearKernels {
  // bias: (out,), or null
  using Forward = void (*)(void* output, const void* input, const void* weight, const void* bias,
                           const LinearGeometry& geometry, int threads);
  PerDType<Forward> forward;
};
NNOPS_DECLARE_CPU_KERNELS(LinearKernels, linear_kernels)

}  // namespace nnops
