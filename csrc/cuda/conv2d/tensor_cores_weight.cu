// backward_weight as an implicit GEMM on tensor cores: the choice of the tile, the launches. float
// stands for TF32.
#include "cuda/conv2d/launchers.h"
#include "cuda/conv2d/tile_multiply_mma.cuh"
#include "cuda/conv2d/weight_gemm_launch.cuh"

namespace nnops::cuda {
namespace {

template <typename T, typename Shape>
using Mma = MmaMultiply<T, Shape, TileOrder::kAlongRows>;

// A warp's rows in TF32 are read from shared memory by elements, whose places take registers.
template <typename T>
using LargeShape = std::conditional_t<std::is_same_v<T, float>, MmaShape<128, 64, 32, 32>,
                                      MmaShape<128, 128, 64, 32>>;
using SmallShape = MmaShape<64, 64, 32, 32>;

// Calls body(multiply) with the multiply stage that suits the geometry.
template <typename T, typename Body>
auto with_tile(const Conv2dGeometry& g, Body body) {
  const bool large = g.oc / g.groups > 64 && g.c / g.groups * g.kh * g.kw > 64;
  return large ? body(Mma<T, LargeShape<T>>{}) : body(Mma<T, SmallShape>{});
}

}  // namespace

template <typename T>
int64_t tensor_cores_backward_weight_workspace(const Conv2dGeometry& g, int) {
  return with_tile<T>(g,
                      [&](auto multiply) { return weight_gemm_workspace<decltype(multiply)>(g); });
}

template <typename T>
void tensor_cores_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                  const Conv2dGeometry& g, void* workspace, int) {
  with_tile<T>(g, [&](auto multiply) {
    launch_weight_gemm<decltype(multiply)>(grad_weight, grad_output, input, g, workspace);
  });
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
