// backward_weight as an implicit GEMM on tensor cores: the choice of the tile, the launches. float
// stands for TF32.
#include "cuda/conv2d/launchers.h"
#include "cuda/conv2d/pack_image.cuh"
#include "cuda/conv2d/tile_multiply_mma.cuh"
#include "cuda/conv2d/weight_gemm_launch.cuh"

namespace nnops::cuda {
namespace {

template <typename T, typename Shape, Unrounded kUnrounded = Unrounded::kBoth>
using Mma = MmaMultiply<T, Shape, TileOrder::kAlongRows, kUnrounded>;

using LargeShape = MmaShape<128, 128, 64, 64>;
using SmallShape = MmaShape<64, 64, 32, 32>;

// Whether the images fill the large tile. It is for images that have chunks or are given them:
// copies by elements would take longer than its products.
template <typename T>
bool fills_large_tile(const Conv2dGeometry& g) {
  constexpr int kWidth = kVectorWidth<T>;
  return g.c / g.groups % kWidth == 0 && g.oc / g.groups % kWidth == 0 && g.oc / g.groups > 64 &&
         WeightSplits::weight_columns(g) > 64;
}

// The two images, packed where that gives them chunks, or both because they are rounded for the
// large tile: before the partial sums in the workspace.
template <typename T>
struct PackedImages {
  PackedImage<T> output, input;
  bool are_rounded;
  bool packs_output, packs_input;
  Conv2dGeometry geometry;  // reading the packed ones

  explicit PackedImages(const Conv2dGeometry& g)
      : output{g.n, g.oc, g.oh, g.ow},
        input{g.n, g.c, g.h, g.w},
        are_rounded(kIsTf32<T> && g.kh * g.kw > 1 && fills_large_tile<T>(g)),
        packs_output(are_rounded || wants_packing<T>(g.output, g.oc / g.groups, g.kh * g.kw)),
        packs_input(are_rounded || wants_packing<T>(g.input, g.c / g.groups, g.kh * g.kw)),
        geometry(g) {
    if (packs_output) geometry.output = output.strides();
    if (packs_input) geometry.input = input.strides();
  }
  int64_t output_bytes() const { return packs_output ? output.bytes() : 0; }
  int64_t bytes() const { return output_bytes() + (packs_input ? input.bytes() : 0); }
};

template <typename T>
WeightSplits splits_of(const Conv2dGeometry& g) {
  return fills_large_tile<T>(g) ? WeightSplits::of(g, Mma<T, LargeShape>{})
                                : WeightSplits::of(g, Mma<T, SmallShape>{});
}

}  // namespace

template <typename T>
int64_t tensor_cores_backward_weight_workspace(const Conv2dGeometry& g, int) {
  return PackedImages<T>(g).bytes() + splits_of<T>(g).template bytes<float>(g);
}

template <typename T>
void tensor_cores_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                  const Conv2dGeometry& g, void* workspace, int) {
  const PackedImages<T> packed(g);
  char* partials = static_cast<char*>(workspace) + packed.bytes();
  if (packed.packs_output) {
    launch_pack_image(packed.output, static_cast<const T*>(grad_output), g.output, workspace);
    grad_output = workspace;
  }
  if (packed.packs_input) {
    void* place = static_cast<char*>(workspace) + packed.output_bytes();
    launch_pack_image(packed.input, static_cast<const T*>(input), g.input, place);
    input = place;
  }
  const Conv2dGeometry& read = packed.geometry;
  const WeightSplits splits = splits_of<T>(g);
  // An image that begins anywhere has none after all.
  constexpr int kWidth = kVectorWidth<T>;
  const bool chunks = has_runs<kWidth>(grad_output, g.n, read.output, g.oc / g.groups) &&
                      has_runs<kWidth>(input, g.n, read.input, g.c / g.groups);
  if (chunks && fills_large_tile<T>(g)) {
    if constexpr (kIsTf32<T>) {
      if (packed.are_rounded) {
        return launch_weight_gemm<Mma<T, LargeShape, Unrounded::kNone>, ChunkLoaders>(
            grad_weight, grad_output, input, read, splits, partials);
      }
    }
    launch_weight_gemm<Mma<T, LargeShape>, ChunkLoaders>(grad_weight, grad_output, input, read,
                                                         splits, partials);
  } else if (chunks) {
    launch_weight_gemm<Mma<T, SmallShape>, ChunkLoaders>(grad_weight, grad_output, input, read,
                                                         splits, partials);
  } else {
    launch_weight_gemm<Mma<T, SmallShape>, ImageLoaders>(grad_weight, grad_output, input, read,
                                                         splits, partials);
  }
}

#define NNOPS_INSTANTIATE(T)                                                              \
  template int64_t tensor_cores_backward_weight_workspace<T>(const Conv2dGeometry&, int); \
  template void tensor_cores_backward_weight<T>(void*, const void*, const void*,          \
                                                const Conv2dGeometry&, void*, int);
NNOPS_INSTANTIATE(float)
NNOPS_INSTANTIATE(bfloat16)
NNOPS_INSTANTIATE(float16)
#undef NNOPS_INSTANTIATE

}  // namespace nnops::cuda
