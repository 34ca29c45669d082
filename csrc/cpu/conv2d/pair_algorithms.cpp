// conv2d in bfloat16 with AVX512_BF16: the functions of pair_algorithms.h.
#include "cpu/conv2d/pair_algorithms.h"

#include "cpu/conv2d/bfloat16_pairs.h"
#include "cpu/conv2d/outer_products.h"
#include "cpu/conv2d/pixel_rows.h"

NNOPS_BEGIN_KERNELS

template <typename T>
using PairOf = BfloatPair;
using ByPairs = ByPasses<RowsOf<PairOf>>;

}  // namespace

void PairRows::forward(void* output, const void* input, const void* packed, const void* bias,
                       const Conv2dGeometry& g, void* workspace, int threads) {
  ByPairs::forward<bfloat16>(output, input, packed, bias, g, workspace, threads);
}
int64_t PairRows::forward_workspace(const Conv2dGeometry& g, int threads) {
  return ByPairs::forward_workspace<bfloat16>(g, threads);
}
int64_t PairRows::forward_packed(const Conv2dGeometry& g) {
  return ByPairs::forward_packed<bfloat16>(g);
}
void PairRows::forward_pack(void* packed, const void* weight, const Conv2dGeometry& g,
                            int threads) {
  ByPairs::forward_pack<bfloat16>(packed, weight, g, threads);
}
void PairRows::forward_partition(const Conv2dGeometry& g, int threads,
                                 const Conv2dPhaseVisitor& visitor) {
  ByPairs::forward_partition<bfloat16>(g, threads, visitor);
}

void PairRows::backward_input(void* grad_input, const void* grad_output, const void* packed,
                              const Conv2dGeometry& g, void* workspace, int threads) {
  ByPairs::backward_input<bfloat16>(grad_input, grad_output, packed, g, workspace, threads);
}
int64_t PairRows::backward_input_workspace(const Conv2dGeometry& g, int threads) {
  return ByPairs::backward_input_workspace<bfloat16>(g, threads);
}
int64_t PairRows::backward_input_packed(const Conv2dGeometry& g) {
  return ByPairs::backward_input_packed<bfloat16>(g);
}
void PairRows::backward_input_pack(void* packed, const void* weight, const Conv2dGeometry& g,
                                   int threads) {
  ByPairs::backward_input_pack<bfloat16>(packed, weight, g, threads);
}
void PairRows::backward_input_partition(const Conv2dGeometry& g, int threads,
                                        const Conv2dPhaseVisitor& visitor) {
  ByPairs::backward_input_partition<bfloat16>(g, threads, visitor);
}

void PairProducts::backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                   const Conv2dGeometry& g, void* workspace, int threads) {
  outer_products_backward_weight<bfloat16, BfloatPair>(grad_weight, grad_output, input, g,
                                                       workspace, threads);
}
int64_t PairProducts::backward_weight_workspace(const Conv2dGeometry& g, int threads) {
  return outer_products_workspace<bfloat16, BfloatPair>(g, threads);
}
void PairProducts::backward_weight_partition(const Conv2dGeometry& g, int threads,
                                             const Conv2dPhaseVisitor& visitor) {
  outer_products_partition<bfloat16, BfloatPair>(g, threads, visitor);
}

}  // namespace NNOPS_ISA
}  // namespace nnops
