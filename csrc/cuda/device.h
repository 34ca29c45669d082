// The device itself, for csrc/core: no torch headers, and none of CUDA.
#pragma once

namespace nnops::cuda {

// Makes `device` the current one of this binary's CUDA runtime; throws as throw_cuda_error.
void set_device(int device);

// Launches an empty kernel on the current device and waits for it; throws as throw_cuda_error where
// there is no driver or no device, or where the binary holds no code for it.
void check_launch();

}  // namespace nnops::cuda
