// TF32: float32 with ten bits of mantissa, which tensor cores multiply.
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

NNOPS_DEVICE float rounded_to_tf32(float value) { return bits_as<float>(to_tf32(value)); }

}  // namespace nnops::cuda
