// Prepares and launches the implicit GEMM of backward_weight, for any multiply stage.
#pragma once

#include "cuda/conv2d/weight_gemm.cuh"

namespace nnops::cuda {

// Blocks that the splits aim at, about two for each multiprocessor of a large GPU; pixels that a
// split has at least and at most.
inline constexpr int64_t kWantedBlocks = 256;
inline constexpr int64_t kLeastSplitPixels = 4 * kConv2dLongestChain;
inline constexpr int64_t kMostSplitPixels = int64_t{1} << 24;

template <typename Multiply>
struct WeightSplits {
  int64_t tiles_m, tiles_n;
  int64_t count, pixels;  // of a split; whole steps of the GEMM

  explicit WeightSplits(const Conv2dGeometry& g)
      : tiles_m(ceil_divide<int64_t>(g.oc / g.groups, Multiply::kTileM)),
        tiles_n(ceil_divide<int64_t>(g.c / g.groups * g.kh * g.kw, Multiply::kTileN)) {
    const int64_t all = g.n * g.oh * g.ow;
    const int64_t blocks = tiles_m * tiles_n * g.groups;
    const int64_t wanted =
        smaller(ceil_divide(kWantedBlocks, blocks), larger<int64_t>(1, all / kLeastSplitPixels));
    const int64_t length = smaller(ceil_divide(all, wanted), kMostSplitPixels);
    pixels = ceil_divide<int64_t>(length, Multiply::kTileK) * Multiply::kTileK;
    count = ceil_divide(all, pixels);
  }
};

template <typename Multiply>
int64_t weight_gemm_workspace(const Conv2dGeometry& g) {
  const WeightSplits<Multiply> splits(g);
  if (splits.count == 1) return 0;
  return splits.count * g.oc * (g.c / g.groups) * g.kh * g.kw *
         static_cast<int64_t>(sizeof(typename Multiply::Accumulator));
}

template <typename Multiply>
void launch_weight_gemm(void* grad_weight, const void* grad_output, const void* input,
                        const Conv2dGeometry& g, void* workspace) {
  using T = typename Multiply::Element;
  constexpr int kWidth = kVectorWidth<T>;
  const WeightSplits<Multiply> splits(g);
  // Chunks of channels that are neighbours in memory, in every pixel.
  const auto has_chunks = [&](const void* image, const Strides4& strides, int64_t group_channels) {
    return strides.c == 1 && group_channels % kWidth == 0 && are_aligned(image) &&
           (g.n == 1 || strides.n % kWidth == 0) && strides.h % kWidth == 0 &&
           strides.w % kWidth == 0;
  };
  WeightGemm<T> p{};
  static_cast<NarrowGeometry&>(p) = narrow_geometry(g);
  p.grad_weight = static_cast<T*>(grad_weight);
  p.grad_output = static_cast<const T*>(grad_output);
  p.input = static_cast<const T*>(input);
  p.partials = splits.count > 1 ? static_cast<acc_t<T>*>(workspace) : nullptr;
  p.split_pixels = splits.pixels;
  p.groups = static_cast<int>(g.groups);
  p.weight_strides = g.weight;
  p.chunks_of_output = has_chunks(grad_output, g.output, p.group_oc);
  p.chunks_of_input = has_chunks(input, g.input, p.group_c);
  p.tiles_m = static_cast<unsigned>(splits.tiles_m);
  p.tiles_n = static_cast<unsigned>(splits.tiles_n);
  const int64_t blocks = splits.tiles_m * splits.tiles_n * g.groups * splits.count;
  NNOPS_LAUNCH((weight_gemm<Multiply>), static_cast<unsigned>(blocks), Multiply::kThreads,
               kTileBytes<Multiply>, p);
  if (splits.count > 1) {
    constexpr int kThreads = 256;
    NNOPS_LAUNCH((add_splits<T>), grid_stride_blocks(g.oc * p.columns(), kThreads), kThreads, 0, p,
                 static_cast<int>(splits.count));
  }
}

}  // namespace nnops::cuda
