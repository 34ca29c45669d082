// cross_entropy: the contract between csrc/ops/cross_entropy.cpp and the kernels. No torch headers.
#pragma once

#include "core/kernel_table.h"
#include "ops/class_geometry.h"

namespace nnops {

// log_sum_exp is [2, rows] in the type of the arithmetic: the row's maximum m, then
// log(sum of exp(x - m)). Kept apart, because their sum would lose the second where m is large.
//
// Each kernel exists for class indices and for class probabilities as the target. `weight` may be
// null (all ones), `sums` has g.chunks entries, and the result is the number of the first row whose
// target is no class, or -1.
struct CrossEntropyKernels {
  using Forward = int64_t (*)(void* loss, void* log_sum_exp, void* total_weight, const void* input,
                              const void* target, const void* weight, ClassSums* sums,
                              const ClassGeometry& g, int threads);
  using Backward = int64_t (*)(void* grad_input, const void* grad_output, const void* input,
                               const void* target, const void* weight, const void* log_sum_exp,
                               const void* total_weight, ClassSums* sums, const ClassGeometry& g,
                               int threads);
  // Probabilities only.
  using BackwardTarget = void (*)(void* grad_target, const void* grad_output, const void* input,
                                  const void* weight, const void* log_sum_exp,
                                  const ClassGeometry& g, int threads);
  PerDType<Forward> forward_indices;
  PerDType<Forward> forward_probabilities;
  PerDType<Backward> backward_indices;
  PerDType<Backward> backward_probabilities;
  PerDType<BackwardTarget> backward_target;
};
NNOPS_DECLARE_KERNELS(CrossEntropyKernels, cross_entropy_kernels)

}  // namespace nnops
