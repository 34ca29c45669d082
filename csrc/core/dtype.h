// The element types that nnops's kernels know. No torch headers: kernels include this file.
#pragma once

#include <cstdint>

namespace nnops {

enum class DType : int32_t {
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
};
inline constexpr int kDTypeCount = 9;

constexpr int64_t element_size(DType dtype) {
  constexpr int64_t kSizes[kDTypeCount] = {4, 8, 2, 2, 1, 1, 2, 4, 8};
  return kSizes[static_cast<int>(dtype)];
}

// One entry a dtype, in the enum's order; null where the kernel does not exist.
template <typename Function>
struct PerDType {
  Function entries[kDTypeCount];
};

// Fills a PerDType from a function template: NNOPS_ALL_DTYPES(relu_forward).
#define NNOPS_FLOAT_DTYPES(function)                                           \
  {                                                                            \
    {                                                                          \
      function<float>, function<double>, function<bfloat16>, function<float16> \
    }                                                                          \
  }
#define NNOPS_ALL_DTYPES(function)                                                                 \
  {                                                                                                \
    {                                                                                              \
      function<float>, function<double>, function<bfloat16>, function<float16>, function<uint8_t>, \
          function<int8_t>, function<int16_t>, function<int32_t>, function<int64_t>                \
    }                                                                                              \
  }

}  // namespace nnops
