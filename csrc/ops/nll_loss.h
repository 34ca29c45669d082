// nll_loss: the contract between csrc/ops/nll_loss.cpp and the kernels. No torch headers.
#pragma once

#include "core/kernel_table.h"
#include "ops/class_geometry.h"

namespace nnops {

struct NllLossKernels {
  // loss[r] = -weight[t] input[n, t, s], or their sum or weighted mean in loss[0]; total_weight[0]
  // is the sum of weight[t] over the rows that are not ignored. Returns the number of the first row
  // whose target is no class, or -1. `weight` may be null (all ones); `sums` has g.chunks entries.
  using Forward = int64_t (*)(void* loss, void* total_weight, const void* input, const void* target,
                              const void* weight, ClassSums* sums, const ClassGeometry& g,
                              int threads);
  // Fills grad_input, packed [batch, classes, spatial]. Returns what Forward returns.
  using Backward = int64_t (*)(void* grad_input, const void* grad_output, const void* target,
                               const void* weight, const void* total_weight, ClassSums* sums,
                               const ClassGeometry& g, int threads);
  PerDType<Forward> forward;
  PerDType<Backward> backward;
};
NNOPS_DECLARE_KERNELS(NllLossKernels, nll_loss_kernels)

}  // namespace nnops
