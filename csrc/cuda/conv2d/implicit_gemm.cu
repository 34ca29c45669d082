// forward and backward_input as implicit GEMMs on CUDA cores: the choice of the tile, the launches.
#include "cuda/conv2d/launchers.h"
#include "cuda/conv2d/pixel_gemm_launch.cuh"
#include "cuda/conv2d/tile_multiply_simt.cuh"

namespace nnops::cuda {
namespace {

template <typename T, typename Shape>
using Simt = SimtMultiply<T, Shape, TileOrder::kAlongK>;

// Tiles of 128 x 128, 128 x 64 and 64 x 32.
using LargeShape = SimtShape<16, 16, 8, 8>;
using MediumShape = SimtShape<16, 8, 8, 8>;
using SmallShape = SimtShape<16, 8, 4, 4>;
// float64 has one size, 64 x 64; so have the 16-bit types, 64 x 32, for which CUDA cores are
// not the fast way.
using DoubleShape = SimtShape<16, 8, 4, 8>;

// Blocks below which a smaller tile is worth its slower products: about as many as there are
// multiprocessors on a large GPU. The bits are the same in every tile.
constexpr int64_t kEnoughBlocks = 128;

template <typename T>
void run(T* written, const T* read, const T* weight, const PixelPass& pass, void* workspace,
         const AddBias<T>& epilogue) {
  const PixelGemm<T> gemm = prepare_pixel_gemm(written, read, weight, pass, workspace);
  const auto launch = [&](auto multiply) {
    launch_pixel_gemm<decltype(multiply), false>(gemm, epilogue);
  };
  if constexpr (std::is_same_v<T, float>) {
    const auto enough = [&](auto multiply) {
      using Multiply = decltype(multiply);
      return pixel_gemm_blocks(pass, Multiply::kTileM, Multiply::kTileN) >= kEnoughBlocks;
    };
    if (pass.rows > 64 && enough(Simt<T, LargeShape>{})) return launch(Simt<T, LargeShape>{});
    if (pass.rows > 32 && enough(Simt<T, MediumShape>{})) return launch(Simt<T, MediumShape>{});
    launch(Simt<T, SmallShape>{});
  } else {
    launch(Simt<T, std::conditional_t<std::is_same_v<T, double>, DoubleShape, SmallShape>>{});
  }
}

}  // namespace

template <typename T>
int64_t implicit_gemm_forward_workspace(const Conv2dGeometry& g, int) {
  return pixel_gemm_workspace<T>(forward_pass(g));
}
template <typename T>
int64_t implicit_gemm_backward_input_workspace(const Conv2dGeometry& g, int) {
  return pixel_gemm_workspace<T>(backward_pass(g));
}

template <typename T>
void implicit_gemm_forward(void* output, const void* input, const void* weight, const void* bias,
                           const Conv2dGeometry& g, void* workspace, int) {
  run(static_cast<T*>(output), static_cast<const T*>(input), static_cast<const T*>(weight),
      forward_pass(g), workspace, AddBias<T>{static_cast<const T*>(bias)});
}
template <typename T>
void implicit_gemm_backward_input(void* grad_input, const void* grad_output, const void* weight,
                                  const Conv2dGeometry& g, void* workspace, int) {
  run(static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
      static_cast<const T*>(weight), backward_pass(g), workspace, AddBias<T>{nullptr});
}

#define NNOPS_INSTANTIATE(T)                                                              \
  template int64_t implicit_gemm_forward_workspace<T>(const Conv2dGeometry&, int);        \
  template int64_t implicit_gemm_backward_input_workspace<T>(const Conv2dGeometry&, int); \
  template void implicit_gemm_forward<T>(void*, const void*, const void*, const void*,    \
                                         const Conv2dGeometry&, void*, int);              \
  template void implicit_gemm_backward_input<T>(void*, const void*, const void*,          \
                                                const Conv2dGeometry&, void*, int);
NNOPS_INSTANTIATE(float)
NNOPS_INSTANTIATE(double)
NNOPS_INSTANTIATE(bfloat16)
NNOPS_INSTANTIATE(float16)
#undef NNOPS_INSTANTIATE

}  // namespace nnops::cuda
