// backward_weight as an implicit GEMM on CUDA cores: the choice of the tile, the launches.
#include "cuda/conv2d/launchers.h"
#include "cuda/conv2d/tile_multiply_simt.cuh"
#include "cuda/conv2d/weight_gemm_launch.cuh"

namespace nnops::cuda {
namespace {

template <typename T, typename Shape>
using Simt = SimtMultiply<T, Shape, TileOrder::kAlongRows>;

// Tiles of 128 x 64 and 32 x 64. float64 has one size, 64 x 64; so have the 16-bit types, 32 x 64,
// for which CUDA cores are not the fast way.
using LargeShape = SimtShape<16, 8, 8, 8>;
using SmallShape = SimtShape<8, 16, 4, 4>;
using DoubleShape = SimtShape<16, 8, 4, 8>;

// Calls body(multiply) with the multiply stage that suits the geometry.
template <typename T, typename Body>
auto with_tile(const Conv2dGeometry& g, Body body) {
  if constexpr (std::is_same_v<T, float>) {
    return g.oc / g.groups > 32 ? body(Simt<T, LargeShape>{}) : body(Simt<T, SmallShape>{});
  } else {
    return body(Simt<T, std::conditional_t<std::is_same_v<T, double>, DoubleShape, SmallShape>>{});
  }
}

}  // namespace

template <typename T>
int64_t implicit_gemm_backward_weight_workspace(const Conv2dGeometry& g, int) {
  return with_tile<T>(
      g, [&](auto multiply) { return WeightSplits::of(g, multiply).template bytes<acc_t<T>>(g); });
}

template <typename T>
void implicit_gemm_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                   const Conv2dGeometry& g, void* workspace, int) {
  with_tile<T>(g, [&](auto multiply) {
    launch_weight_gemm<decltype(multiply), ImageLoaders>(grad_weight, grad_output, input, g,
                                                         WeightSplits::of(g, multiply), workspace);
  });
}

#define NNOPS_INSTANTIATE(T)                                                               \
  template int64_t implicit_gemm_backward_weight_workspace<T>(const Conv2dGeometry&, int); \
  template void implicit_gemm_backward_weight<T>(void*, const void*, const void*,          \
                                                 const Conv2dGeometry&, void*, int);
NNOPS_INSTANTIATE(float)
NNOPS_INSTANTIATE(double)
NNOPS_INSTANTIATE(bfloat16)
NNOPS_INSTANTIATE(float16)
#undef NNOPS_INSTANTIATE

}  // namespace nnops::cuda
