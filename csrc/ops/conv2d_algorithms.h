// The algorithms of conv2d's passes, on the CPU and on CUDA, in the order in which they are asked:
// what each can compute, and when it pays. Where they round differently, a choice may depend on the
// dtype and the geometry of one image only: never on the batch, the threads or the ISA. The one
// exception are the dot products of bfloat16, for CPUs that have them. Autotuning, off by default,
// gives that up (conv2d_winners.h).
#pragma once

#include "core/dispatch.h"
#include "ops/conv2d.h"

namespace nnops {

inline constexpr KernelTable<Conv2dKernels> kConv2dTable = NNOPS_KERNEL_TABLE(conv2d_kernels);

template <typename Pass>
using Conv2dCandidate = Algorithm<Conv2dKernels, Pass, Conv2dGeometry>;
template <typename Pass>
using Conv2dCandidates = AlgorithmsByDevice<Conv2dCandidate<Pass>>;

extern const Conv2dCandidates<Conv2dForward> kConv2dForward;
extern const Conv2dCandidates<Conv2dBackwardInput> kConv2dBackwardInput;
extern const Conv2dCandidates<Conv2dBackwardWeight> kConv2dBackwardWeight;

// function(the candidates of the pass `op`); ValueError if conv2d has no such pass.
template <typename Function>
auto with_candidates(const std::string& op, const Function& function) {
  if (op == "conv2d") return function(kConv2dForward);
  if (op == "conv2d_backward_input") return function(kConv2dBackwardInput);
  NNOPS_CHECK_VALUE(op == "conv2d_backward_weight", "no pass of conv2d is called '", op, "'");
  return function(kConv2dBackwardWeight);
}

// "", or the reason why nothing can be computed by dot products of pairs of bfloat16. They round
// differently from all others, which have the same bits on every CPU.
std::string bfloat16_dots(const Conv2dGeometry& g, DType dtype);

// Of a float vector in the CPU's kernels, on every ISA.
inline constexpr int64_t kConv2dLanes = 16;
constexpr int64_t whole_vectors(int64_t count) {
  return (count + kConv2dLanes - 1) / kConv2dLanes * kConv2dLanes;
}

}  // namespace nnops
