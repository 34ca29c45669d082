// cross_entropy on the CPU: softmax and negative log likelihood in one, without a tensor of
// log-probabilities.
//
// For a row r = (n, s) with logits x_i, m = max x_i and l = log(sum exp(x_i - m)):
//   log p_i = (x_i - m) - l         (l by log1p, which keeps the digits of a small loss)
//   loss_r  = -sum_i q_i log p_i,      Q = sum_i q_i
//   grad_i  = g_r (p_i Q - q_i)        g_r: gradient of the row's loss, over total weight for mean;
//                                      by expm1 for the row's own class, where p_i may be near 1
// with the effective target q, e the label smoothing and C classes:
//   class t:          q_i = (1 - e) w_t [i = t] + (e / C) w_i; nothing for an ignored row
//   probabilities t:  q_i = w_i ((1 - e) t_i + e / C), whose gradient is -g_r (1 - e) w_i log p_i
// m and l are kept for backward, in float32 for the half types, which compute in it.
//
// Two ways over the same rows, in blocks of as many rows as a vector has lanes: where the classes
// of a row lie side by side a vector runs along them (lane-wise partial results, then the lanes in
// a fixed order); else, or where classes are few, its lanes are rows, which also serves strides of
// any kind: logits that lie side by side are transposed, block by block. What a row needs once
// (log1p, expm1) is done for all rows of a block at a time. Parallel over fixed chunks of rows;
// sums of rows in double.
#include "ops/cross_entropy.h"

#include "cpu/cross_entropy/backward.h"
#include "cpu/cross_entropy/backward_target.h"
#include "cpu/cross_entropy/forward.h"

namespace nnops {
namespace NNOPS_ISA {

extern const CrossEntropyKernels cross_entropy_kernels = {
    NNOPS_FLOAT_DTYPES(forward_indices), NNOPS_FLOAT_DTYPES(forward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_indices), NNOPS_FLOAT_DTYPES(backward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_target)};

}  // namespace NNOPS_ISA
}  // namespace nnops
