// conv2d of bfloat16 by dot products of pairs (bfloat16_pairs.h): the algorithms pair_rows, which
// is pixel_rows.h of pairs of channels, and pair_products, outer_products.h of pairs of pixels.
//
// The order of the sums is as in these, a pair at a time, in chains of at most 256 products. The
// bits are not those of the other algorithms: a pair brings together what is apart there.
//
// The functions are compiled for AVX512_BF16, in a file of their own beside those of the AVX-512
// level: to be called where core/isa.h's cpu_has_bfloat16_dots() says so.
#pragma once

#include "ops/conv2d.h"

namespace nnops {
namespace NNOPS_ISA {

struct PairRows {
  static void forward(void* output, const void* input, const void* packed, const void* bias,
                      const Conv2dGeometry& g, void* workspace, int threads);
  static int64_t forward_workspace(const Conv2dGeometry& g, int threads);
  static int64_t forward_packed(const Conv2dGeometry& g);
  static void forward_pack(void* packed, const void* weight, const Conv2dGeometry& g, int threads);
  static void forward_partition(const Conv2dGeometry& g, int threads,
                                const Conv2dPhaseVisitor& visitor);

  static void backward_input(void* grad_input, const void* grad_output, const void* packed,
                             const Conv2dGeometry& g, void* workspace, int threads);
  static int64_t backward_input_workspace(const Conv2dGeometry& g, int threads);
  static int64_t backward_input_packed(const Conv2dGeometry& g);
  static void backward_input_pack(void* packed, const void* weight, const Conv2dGeometry& g,
                                  int threads);
  static void backward_input_partition(const Conv2dGeometry& g, int threads,
                                       const Conv2dPhaseVisitor& visitor);
};

struct PairProducts {
  static void backward_weight(void* grad_weight, const void* grad_output, const void* input,
                              const Conv2dGeometry& g, void* workspace, int threads);
  static int64_t backward_weight_workspace(const Conv2dGeometry& g, int threads);
  static void backward_weight_partition(const Conv2dGeometry& g, int threads,
                                        const Conv2dPhaseVisitor& visitor);
};

}  // namespace NNOPS_ISA
}  // namespace nnops
