// conv2d forward and backward_input in float32: vectors whose lanes are images of the batch. For
// small maps of few channels: nothing is padded but the number of images.
//
// The sum and its order are those of pixel_pass.h, and so are the bits.
//
// Layout. kImages images (a strip) are transposed, a band of rows at a time, to
//   kept[outer channel][row][column][image]
// of which one vector is a pixel in all of them. A tile (lane_tile.h) is some written channels of
// some neighbouring pixels of a row; tiles at a row's ends have few pixels. Taps that read nothing
// but padding, in all pixels of a tile, are left out. The sums of a band and a tile's channels,
// [channel][row][column][image], are transposed back into row-major planes. Weights are packed as
//   [group][tile][chain][kh][outer][kw][channel of the tile]
// and behind them stands whether all are finite: if not, padding is multiplied as everywhere else.
//
// Parallel over (strips, groups, bands) and, where those are few, over parts of the tiles; bands
// become as small as it takes to share them evenly.
#pragma once

#include "ops/conv2d.h"

namespace nnops {
namespace NNOPS_ISA {

struct ImageLanes {
  // A strip: the lanes of a vector. Fewer images take as long.
  static constexpr int64_t kImages = 16;

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

}  // namespace NNOPS_ISA
}  // namespace nnops
