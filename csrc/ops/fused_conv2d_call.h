// The forward pass of the fused convolutions, for operators of csrc/ops.
#pragma once

#include <optional>

#include "core/device_scope.h"
#include "ops/conv2d_call.h"
#include "ops/fused_conv2d.h"

namespace nnops {

// What stands behind the convolution.
struct Conv2dTail {
  bool relu = false;
  const Pool2dGeometry* window = nullptr;  // the pool's numbers (pool2d_window), or no pool
  bool ceil_mode = false;
  bool record = false;     // the offsets of the pool's maxima
  bool row_major = false;  // the output, whatever the inputs are
};

// A call, decided: the same for all tensors of these sizes, strides and this dtype, while the
// settings stay (precision, threads, ISA, autotuning).
struct FusedConv2dPlan {
  FusedConv2dCall call;  // without memory, and without what the weight's order decides
  const Conv2dForward* algorithm;
  DType dtype;
  bool channels_last;    // the output
  int64_t weight_bytes;  // filled_bytes
  int threads;

  IntList output_sizes() const;
};

// `op` is the name in messages. The precision is that of the calling thread.
FusedConv2dPlan plan_fused_conv2d(const char* op, const DeviceScope& scope, const Tensor& input,
                                  const Tensor& weight, const std::optional<Tensor>& bias,
                                  const IntList& stride, const IntList& padding,
                                  const IntList& dilation, int64_t groups, const Conv2dTail& tail);

struct FusedConv2dMemory {
  void* output;      // packed as the plan says
  uint8_t* offsets;  // the same, or null
  const void* input;
  const void* weight;
  const void* bias;  // contiguous, or null
};
void run_fused_conv2d(const FusedConv2dPlan& plan, const DeviceScope& scope,
                      const FusedConv2dMemory& memory);

}  // namespace nnops
