// The forward pass of the fused convolutions, for operators of csrc/ops.
#pragma once

#include <optional>

#include "ops/conv2d_call.h"
#include "ops/fused_conv2d.h"

namespace nnops {

// What stands behind the convolution.
struct Conv2dTail {
  bool relu = false;
  const Pool2dGeometry* window = nullptr;  // the pool's numbers (pool2d_window), or no pool
  bool ceil_mode = false;
  bool record = false;  // the offsets of the pool's maxima
};

struct FusedConv2dResult {
  Tensor output;
  Tensor offsets;  // where recorded
};

// `op` is the name in messages. The precision is that of the calling thread.
FusedConv2dResult fused_conv2d(const char* op, const Tensor& input, const Tensor& weight,
                               const std::optional<Tensor>& bias, const IntList& stride,
                               const IntList& padding, const IntList& dilation, int64_t groups,
                               const Conv2dTail& tail);

}  // namespace nnops
