// forward and backward_input as implicit GEMMs on tensor cores: the choice of the tile, the
// launches. float stands for TF32.
#include "cuda/conv2d/launchers.h"
#include "cuda/conv2d/pixel_gemm_launch.cuh"
#include "cuda/conv2d/tile_multiply_mma.cuh"

namespace nnops::cuda {
namespace {

template <typename T, typename Shape>
using Mma = MmaMultiply<T, Shape, TileOrder::kAlongK>;

using LargeShape = MmaShape<128, 128, 64, 32>;
using MediumShape = MmaShape<128, 64, 64, 32>;
using SmallShape = MmaShape<64, 32, 32, 16>;

template <typename T>
void run(T* written, const T* read, const T* weight, const PixelPass& pass, void* workspace,
         const AddBias<T>& epilogue) {
  const auto launch = [&](auto multiply) {
    launch_pixel_gemm<decltype(multiply)>(written, read, weight, pass, workspace, epilogue);
  };
  // A device that has too few blocks to do gains more from a smaller tile than it loses. The bits
  // are the same in every tile.
  const int64_t multiprocessors = multiprocessor_count();
  const auto enough = [&](auto multiply) {
    using Multiply = decltype(multiply);
    return pixel_gemm_blocks(pass, Multiply::kTileM, Multiply::kTileN) >= multiprocessors;
  };
  if (pass.rows > 64 && enough(Mma<T, LargeShape>{})) return launch(Mma<T, LargeShape>{});
  if (pass.rows > 32 && enough(Mma<T, MediumShape>{})) return launch(Mma<T, MediumShape>{});
  launch(Mma<T, SmallShape>{});
}

}  // namespace

int tensor_core_architecture() {
  return architecture_of<&pixel_gemm<Mma<bfloat16, SmallShape>, AddBias<bfloat16>>>();
}

template <typename T>
int64_t tensor_cores_forward_workspace(const Conv2dGeometry& g, int) {
  return pixel_gemm_workspace<T>(forward_pass(g));
}
template <typename T>
int64_t tensor_cores_backward_input_workspace(const Conv2dGeometry& g, int) {
  return pixel_gemm_workspace<T>(backward_pass(g));
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
