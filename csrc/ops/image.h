// What the operators on (N, C, H, W) and (C, H, W) tensors share in csrc/ops.
#pragma once

#include <algorithm>

#include "core/device_scope.h"
#include "core/tensor.h"

namespace nnops {

// The sizes of `tensor`, with another height and width.
inline std::vector<int64_t> resized(const Tensor& tensor, int64_t height, int64_t width) {
  const Sizes sizes = tensor.sizes();
  std::vector<int64_t> result(sizes.begin(), sizes.end());
  result[result.size() - 2] = height;
  result[result.size() - 1] = width;
  return result;
}

// Where bfloat16 and float16 gradients are summed up: a float plane for each thread and each
// channel of the group that it works on. Other dtypes need none, and CUDA kernels ask for what they
// want themselves.
class SumScratch {
 public:
  SumScratch(const DeviceScope& scope, DType dtype, int threads, int64_t channels, int64_t height,
             int64_t width, const Tensor& like) {
    if (scope.on_cuda() || (dtype != DType::kBFloat16 && dtype != DType::kFloat16)) return;
    const std::vector<int64_t> sizes{threads * channels, height, width};
    planes_ = empty_contiguous(sizes, DType::kFloat32, like);
    data_ = static_cast<float*>(planes_.mutable_data_ptr());
  }

  float* data() const { return data_; }

 private:
  Tensor planes_;
  float* data_ = nullptr;
};

}  // namespace nnops
