// forward and backward_input as implicit GEMMs on tensor cores: the choice of the tile, the
// launches. float stands for TF32.
#include "cuda/conv2d/launchers.h"
#include "cuda/conv2d/pack_image.cuh"
#include "cuda/conv2d/pixel_gemm_launch.cuh"
#include "cuda/conv2d/tile_multiply_mma.cuh"

namespace nnops::cuda {
namespace {

// The weights are rounded when they are packed.
template <typename T, typename Shape, bool kRoundedImage = false>
using Mma =
    MmaMultiply<T, Shape, TileOrder::kAlongK, kRoundedImage ? Unrounded::kNone : Unrounded::kA>;

using LargeShape = MmaShape<128, 128, 64, 64>;
using MediumShape = MmaShape<128, 64, 64, 32>;
using SmallShape = MmaShape<64, 32, 16, 32>;

// Whether a device has enough to do with tiles of this size: with too few blocks it gains more from
// a smaller tile than it loses. The bits are the same in every tile.
template <typename Shape>
bool suits(const PixelPass& pass) {
  return pass.rows > Shape::kTileN / 2 &&
         pixel_gemm_blocks(pass, Shape::kTileM, Shape::kTileN) >= multiprocessor_count();
}

// How often the GEMM reads an element of the image, about.
int64_t reads_of_image(const PixelPass& pass) {
  const int64_t of_pixel = pass.most_taps() * ceil_divide(pass.rows, LargeShape::kTileN);
  return of_pixel * pass.y.grid * pass.x.grid /
         larger<int64_t>(1, int64_t{pass.y.limit} * pass.x.limit);
}

// What is done to the image that a pass reads. Whether its order changes depends on the geometry of
// one image alone.
template <typename T>
struct ReadImage {
  PackedImage<T> packed;  // of h x w
  bool is_packed;

  explicit ReadImage(const PixelPass& pass)
      : packed{pass.images, int64_t{pass.outer} * pass.groups, pass.y.limit, pass.x.limit},
        is_packed(wants_packing<T>(pass.read, pass.outer, reads_of_image(pass)) ||
                  pays_to_round(pass)) {}

  PixelPass pass(const PixelPass& original) const {
    return is_packed ? packed.pass_of(original) : original;
  }
  int64_t bytes() const { return is_packed ? packed.bytes() : 0; }

 private:
  // In the large tile an element is rounded by two warps each time it is read.
  static bool pays_to_round(const PixelPass& pass) {
    constexpr int kLeastReads = 8;
    return kIsTf32<T> && channels_are_inner(pass) && pass.outer % kVectorWidth<T> == 0 &&
           reads_of_image(pass) >= kLeastReads && suits<LargeShape>(pass);
  }
};

template <typename T>
int64_t workspace_bytes(const PixelPass& pass) {
  const ReadImage<T> image(pass);
  return image.bytes() + pixel_gemm_workspace<T, kIsTf32<T>>(image.pass(pass));
}

template <typename T>
void run(T* written, const T* read, const T* weight, const PixelPass& original, void* workspace,
         const AddBias<T>& epilogue) {
  const ReadImage<T> image(original);
  if (image.is_packed) {
    launch_pack_image(image.packed, read, original.read, workspace);
    read = static_cast<const T*>(workspace);
  }
  const PixelPass pass = image.pass(original);
  const PixelGemm<T> gemm = prepare_pixel_gemm<kIsTf32<T>>(
      written, read, weight, pass, static_cast<char*>(workspace) + image.bytes());
  // Copies by elements take as long as the products of the large tile.
  const bool chunks = gemm.chunks_of_image && gemm.chunks_of_weights;
  if (chunks && suits<LargeShape>(pass)) {
    if constexpr (kIsTf32<T>) {
      if (image.is_packed) return launch_pixel_gemm<Mma<T, LargeShape, true>, true>(gemm, epilogue);
    }
    launch_pixel_gemm<Mma<T, LargeShape>, true>(gemm, epilogue);
  } else if (chunks && suits<MediumShape>(pass)) {
    launch_pixel_gemm<Mma<T, MediumShape>, true>(gemm, epilogue);
  } else if (suits<MediumShape>(pass)) {
    launch_pixel_gemm<Mma<T, MediumShape>, false>(gemm, epilogue);
  } else {
    launch_pixel_gemm<Mma<T, SmallShape>, false>(gemm, epilogue);
  }
}

}  // namespace

int tensor_core_architecture() {
  return architecture_of<&pixel_gemm<Mma<bfloat16, SmallShape>, AddBias<bfloat16>, false>>();
}

template <typename T>
int64_t tensor_cores_forward_workspace(const Conv2dGeometry& g, int) {
  return workspace_bytes<T>(forward_pass(g));
}
template <typename T>
int64_t tensor_cores_backward_input_workspace(const Conv2dGeometry& g, int) {
  return workspace_bytes<T>(backward_pass(g));
}

template <typename T>
void tensor_cores_forward(void* output, const void* input, const void* weight, const void* bias,
                          const Conv2dGeometry& g, void* workspace, int) {
  run(static_cast<T*>(output), static_cast<const T*>(input), static_cast<const T*>(weight),
      forward_pass(g), workspace, AddBias<T>{static_cast<const T*>(bias)});
}
template <typename T>
void tensor_cores_backward_input(void* grad_input, const void* grad_output, const void* weight,
                                 const Conv2dGeometry& g, void* workspace, int) {
  run(static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
      static_cast<const T*>(weight), backward_pass(g), workspace, AddBias<T>{nullptr});
}

#define NNOPS_INSTANTIATE(T)                                                             \
  template int64_t tensor_cores_forward_workspace<T>(const Conv2dGeometry&, int);        \
  template int64_t tensor_cores_backward_input_workspace<T>(const Conv2dGeometry&, int); \
  template void tensor_cores_forward<T>(void*, const void*, const void*, const void*,    \
                                        const Conv2dGeometry&, void*, int);              \
  template void tensor_cores_backward_input<T>(void*, const void*, const void*,          \
                                               const Conv2dGeometry&, void*, int);
NNOPS_INSTANTIATE(float)
NNOPS_INSTANTIATE(bfloat16)
NNOPS_INSTANTIATE(float16)
#undef NNOPS_INSTANTIATE

}  // namespace nnops::cuda
