// max_pool2d: the contract between csrc/ops/max_pool2d.cpp and the kernels. No torch headers.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

// One pooling problem. The window of output (oh, ow) holds the input elements
//   ih = oh * stride_h - pad_h + kh * dilation_h,  iw = ow * stride_w - pad_w + kw * dilation_w
// for 0 <= kh < kernel_h, 0 <= kw < kernel_w, as far as they lie inside the input. Kernel, stride,
// padding and dilation are below 2^31, so that no position overflows.
struct Pool2dGeometry {
  int64_t n, c, h, w, oh, ow;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  // In elements, in the order n, c, h, w. The input may have any strides where it is only read; a
  // gradient of it is packed. The output side (output, what is recorded beside it, their
  // gradients) is always packed: row-major, or channels_last.
  int64_t input_strides[4];
  int64_t output_strides[4];
  bool channels_last;
};

// Where the windows tile the height of every plane, the planes, which lie one behind the other,
// are one tall plane: a net's small maps become long runs of rows. Not for CUDA, whose threads go
// through all planes as one run anyway.
inline void stack_planes(Pool2dGeometry& g) {
  const bool tiles =
      g.pad_h == 0 && g.dilation_h == 1 && g.kernel_h == g.stride_h && g.oh * g.stride_h == g.h;
  const bool packed = !g.channels_last && g.input_strides[2] == g.w && g.input_strides[3] == 1 &&
                      g.input_strides[1] == g.h * g.w && g.input_strides[0] == g.c * g.h * g.w;
  if (!tiles || !packed) return;
  g.h *= g.n * g.c;
  g.oh *= g.n * g.c;
  g.n = 1;
  g.c = 1;
}

// An offset is the place kh * kernel_w + kw of the maximum inside its window, in one byte. The
// last value says that no element of the window lies inside the input.
inline constexpr int64_t kLargestOffsetWindow = 255;
inline constexpr uint8_t kNoOffset = 255;
// The same for indices, the flat places ih * w + iw of the maxima in their planes.
inline constexpr int64_t kNoIndex = -1;

// Channels that one thread handles at a time where channels are innermost in memory.
inline constexpr int64_t kChannelBlock = 64;

// Windows of one row that "phases" keeps three rows of, and how far beyond one row it may read.
inline constexpr int64_t kMostPhaseColumns = 512;
inline constexpr int64_t kPhaseReach = 16;

struct MaxPool2dKernels {
  // output: (n, c, oh, ow). record: null, uint8 offsets or int64 indices, sized as the output.
  using Forward = void (*)(void* output, void* record, const void* input,
                           const Pool2dGeometry& geometry, int threads);
  // One algorithm, in its three forms by what is recorded.
  struct ForwardAlgorithm {
    PerDType<Forward> values;
    PerDType<Forward> offsets;
    PerDType<Forward> indices;
  };
  // grad_input (n, c, h, w) = sum of grad_output over the windows whose offset points there, in
  // row-major order. scratch: for "scatter" and "phases" of bfloat16 and float16, threads * min(c,
  // kChannelBlock) * h * w floats for channels_last and threads * h * w otherwise; else null.
  // Returns the lowest position in memory of an offset that points outside of the window or the
  // input, or -1.
  using Backward = int64_t (*)(void* grad_input, const void* grad_output, const uint8_t* offsets,
                               float* scratch, const Pool2dGeometry& geometry, int threads);
  // output (n, c, oh, ow) = the input's elements at the offsets, 0 where there is none. Returns as
  // Backward does.
  using Gather = int64_t (*)(void* output, const void* input, const uint8_t* offsets,
                             const Pool2dGeometry& geometry, int threads);
  ForwardAlgorithm rows = {};
  ForwardAlgorithm channels = {};
  ForwardAlgorithm tiles = {};
  PerDType<Backward> backward_tiles = {};
  PerDType<Backward> backward_shifts = {};
  PerDType<Backward> backward_phases = {};
  PerDType<Backward> backward_channels = {};
  PerDType<Backward> backward_scatter = {};
  PerDType<Gather> gather = {};
  // CUDA's own. Its kernels do not look for wrong offsets: "backward" and "gather" answer -1; a
  // gradient whose offset points outside of the window or the input is added nowhere.
  ForwardAlgorithm pairs = {};
  ForwardAlgorithm windows = {};
  PerDType<Backward> backward_pairs = {};
  PerDType<Backward> backward_gather = {};
};
NNOPS_DECLARE_KERNELS(MaxPool2dKernels, max_pool2d_kernels)

}  // namespace nnops
