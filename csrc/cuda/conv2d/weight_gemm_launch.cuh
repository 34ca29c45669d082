// Prepares and launches the implicit GEMM of backward_weight, for any multiply stage.
#pragma once

#include "cuda/conv2d/weight_gemm.cuh"

namespace nnops::cuda {

// Blocks that the splits aim at: some for each place on a large GPU, so that the last ones to be
// done leave little of it idle, as long as a split has pixels enough to make up for its sums' way
// to memory and back; one or two for each place at the price of shorter splits. Splits that are
// added up at most, and pixels of one.
inline constexpr int64_t kWantedBlocks = 1024;
inline constexpr int64_t kLongSplitPixels = 4 * kConv2dLongestChain;
inline constexpr int64_t kLeastBlocks = 256;
inline constexpr int64_t kShortSplitPixels = kConv2dLongestChain;
inline constexpr int64_t kMostSplits = 256;
inline constexpr int64_t kMostSplitPixels = int64_t{1} << 24;

// How the pixels are cut, for tiles of Multiply. From the geometry alone: the bits follow from it.
struct WeightSplits {
  int64_t count, pixels;  // of a split; whole steps of the GEMM

  template <typename Multiply>
  static WeightSplits of(const Conv2dGeometry& g, Multiply) {
    const int64_t all = g.n * g.oh * g.ow;
    const int64_t blocks = ceil_divide<int64_t>(g.oc / g.groups, Multiply::kTileM) *
                           ceil_divide<int64_t>(weight_columns(g), Multiply::kTileN) * g.groups;
    const int64_t many = smaller(ceil_divide(kWantedBlocks, blocks), all / kLongSplitPixels);
    const int64_t some = smaller(ceil_divide(kLeastBlocks, blocks), all / kShortSplitPixels);
    const int64_t wanted = smaller(kMostSplits, larger<int64_t>(1, larger(many, some)));
    const int64_t length = smaller(ceil_divide(all, wanted), kMostSplitPixels);
    const int64_t pixels = ceil_divide<int64_t>(length, Multiply::kTileK) * Multiply::kTileK;
    return {ceil_divide(all, pixels), pixels};
  }
  // Elements of a gradient, in a group.
  static int64_t weight_columns(const Conv2dGeometry& g) { return g.c / g.groups * g.kh * g.kw; }

  // Of the partial sums, of type Accumulator.
  template <typename Accumulator>
  int64_t bytes(const Conv2dGeometry& g) const {
    if (count == 1) return 0;
    return count * g.oc * weight_columns(g) * static_cast<int64_t>(sizeof(Accumulator));
  }
};

template <typename Multiply, template <typename> class Loaders>
void launch_weight_gemm(void* grad_weight, const void* grad_output, const void* input,
                        const Conv2dGeometry& g, const WeightSplits& splits, void* workspace) {
  using T = typename Multiply::Element;
  WeightGemm<T> p{};
  static_cast<NarrowGeometry&>(p) = narrow_geometry(g);
  p.grad_weight = static_cast<T*>(grad_weight);
  p.grad_output = static_cast<const T*>(grad_output);
  p.input = static_cast<const T*>(input);
  p.partials = splits.count > 1 ? static_cast<acc_t<T>*>(workspace) : nullptr;
  p.split_pixels = splits.pixels;
  p.groups = static_cast<int>(g.groups);
  p.weight_strides = g.weight;
  p.chunks_of_output = has_runs<kVectorWidth<T>>(grad_output, g.n, g.output, p.group_oc);
  p.chunks_of_input = has_runs<kVectorWidth<T>>(input, g.n, g.input, p.group_c);
  p.tiles_m = static_cast<unsigned>(ceil_divide(p.group_oc, Multiply::kTileM));
  p.tiles_n = static_cast<unsigned>(ceil_divide(p.columns(), Multiply::kTileN));
  p.output_step = p.step_of(ChannelShares<Multiply, Multiply::kTileM>::step(p.chunks_of_output));
  p.input_step = p.step_of(ChannelShares<Multiply, Multiply::kTileN>::step(p.chunks_of_input));
  p.set_row_and_image_ends();
  const int64_t blocks = int64_t{p.tiles_m} * p.tiles_n * g.groups * splits.count;
  NNOPS_LAUNCH((weight_gemm<Multiply, Loaders>), static_cast<unsigned>(blocks), Multiply::kThreads,
               kTileBytes<Multiply>, p);
  if (splits.count > 1) {
    NNOPS_LAUNCH((add_splits<T>),
                 static_cast<unsigned>(ceil_divide<int64_t>(g.oc * p.columns(), kWarpSize)),
                 kAddSplitsWarps * kWarpSize, 0, p, static_cast<int>(splits.count));
  }
}

}  // namespace nnops::cuda
