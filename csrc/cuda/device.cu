// The device itself: which one is current, and whether it runs anything.
#include "cuda/device.h"

#include "core/cuda.h"
#include "cuda/simt.h"

namespace nnops::cuda {
namespace {

__global__ void empty_kernel() {}

}  // namespace

void set_device([[maybe_unused]] int device) {
#if !defined(NNOPS_CUDA_EMULATED)
  check(cudaSetDevice(device), "cudaSetDevice");
#endif
}

void check_launch() {
  NNOPS_LAUNCH((empty_kernel), 1, 1, 0);
#if !defined(NNOPS_CUDA_EMULATED)
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
}

}  // namespace nnops::cuda
