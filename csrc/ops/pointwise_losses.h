// The pointwise losses: the contract between csrc/ops/pointwise_losses.cpp and the kernels. No
// torch headers.
#pragma once

#include "core/kernel_table.h"
#include "math/pointwise_losses.h"

namespace nnops {

// All operands are (n,), of one dtype and in one memory order.
struct PointwiseLossArguments {
  const void* input;
  const void* target;
  const void* weight;      // null: 1
  const void* pos_weight;  // null unless the loss has one
  int64_t n;
  double parameter;  // beta, delta or the largest logit
};

// Bits of the kernels' answer: which operands hold values that the loss is not defined for.
inline constexpr int kInputOutside = 1;
inline constexpr int kTargetOutside = 2;

// Elements whose losses are summed before the sum is added to the total.
inline constexpr int64_t kLossBlock = 4096;

struct PointwiseLossFunctions {
  // output[i] = loss of element i. Output (n,).
  using Forward = int (*)(void* output, const PointwiseLossArguments& arguments, int threads);
  // output[0] = sum of the losses / divisor. `block_sums` is scratch of 8 bytes a block of
  // kLossBlock elements. Integers: sums wrap in int64, the output is int64, the divisor unused.
  using Reduce = int (*)(void* output, void* block_sums, const PointwiseLossArguments& arguments,
                         double divisor, int threads);
  // As Reduce, and gradient[i] = 1 / divisor * derivative of element i by the input. float32 and
  // float64 alone; null on CUDA.
  using ReduceWithGradient = int (*)(void* output, void* gradient, void* block_sums,
                                     const PointwiseLossArguments& arguments, double divisor,
                                     int threads);
  // gradient[i] = grad_output[per_element ? i : 0] / divisor * derivative of element i. The divisor
  // is 1 where the gradient is per element.
  using Backward = void (*)(void* gradient, const void* grad_output, bool per_element,
                            double divisor, const PointwiseLossArguments& arguments, int threads);
  PerDType<Forward> forward;
  PerDType<Reduce> reduce;
  PerDType<Backward> backward;
  // Null for losses of input - target.
  PerDType<Backward> backward_target;
  PerDType<ReduceWithGradient> reduce_with_gradient;
};

struct PointwiseLossKernels {
#define NNOPS_MEMBER(name, functor, dtypes) PointwiseLossFunctions name;
  NNOPS_POINTWISE_LOSSES(NNOPS_MEMBER)
#undef NNOPS_MEMBER
};
NNOPS_DECLARE_KERNELS(PointwiseLossKernels, pointwise_loss_kernels)

}  // namespace nnops
