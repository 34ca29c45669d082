// TF32: float32 with ten bits of mantissa, which tensor cores multiply.
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

// Whether tensor cores multiply T as TF32.
template <typename T>
inline constexpr bool kIsTf32 = std::is_same_v<T, float>;

NNOPS_DEVICE float rounded_to_tf32(float value) { return bits_as<float>(to_tf32(value)); }

}  // namespace nnops::cuda
