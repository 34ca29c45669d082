// conv2d with a ReLU and a max-pool behind it: the contract between csrc/ops/fused_conv2d.cpp and
// the kernels. No torch headers.
//
//   output = max_pool2d(relu(conv2d(input))), without the ReLU or without the pool as `g` says.
//
// The kernels are those of the three operators, called on pieces of the output that stay in the
// cache: a few images, or a band of rows of one. The convolution's output exists for one piece at
// a time, and the results are those of the operators one by one, bit for bit.
#pragma once

#include "ops/conv2d.h"
#include "ops/max_pool2d.h"
#include "ops/relu.h"

namespace nnops {

struct FusedConv2dGeometry {
  // Of the whole call. Its output is packed, in the order of the real one.
  Conv2dGeometry conv;
  bool relu;
  bool pools;
  Pool2dGeometry pool;  // where `pools`
};

struct FusedConv2dCall {
  FusedConv2dGeometry g;
  // The algorithms chosen for the whole call.
  void (*conv)(void* output, const void* input, const void* weight, const void* bias,
               const Conv2dGeometry& geometry, void* workspace, int threads);
  int64_t (*conv_workspace)(const Conv2dGeometry& geometry, int threads);  // or null: none
  ReluKernels::Forward relu;
  MaxPool2dKernels::Forward pool;
  int64_t packed_bytes;  // of the weight
  int64_t together;      // images that `conv` computes as fast as one
  bool unpacked;         // the weight is packed anew each time that `conv` is called
  void* output;          // packed
  uint8_t* offsets;      // packed as the output, or null: not recorded. Of a dead ReLU kNoOffset
  const void* input;
  const void* weight;
  const void* bias;   // or null
  uint8_t* left_out;  // null, or one byte an image: set where `conv` left the image out
};

struct FusedConv2dKernels {
  using WorkspaceBytes = int64_t (*)(const FusedConv2dCall& call, int threads);
  using Run = void (*)(const FusedConv2dCall& call, void* workspace, int threads);
  PerDType<WorkspaceBytes> workspace_bytes;
  PerDType<Run> run;
};
NNOPS_DECLARE_KERNELS(FusedConv2dKernels, fused_conv2d_kernels)

}  // namespace nnops
