// What the forward operators of max_pool2d, alone or behind a convolution, have in common.
#pragma once

#include <vector>

#include "core/dispatch.h"
#include "ops/max_pool2d.h"

namespace nnops {

inline constexpr KernelTable<MaxPool2dKernels> kMaxPool2dTable =
    NNOPS_KERNEL_TABLE(max_pool2d_kernels);

using MaxPool2dForwardChoice =
    Algorithm<MaxPool2dKernels, MaxPool2dKernels::ForwardAlgorithm, Pool2dGeometry>;
extern const AlgorithmsByDevice<MaxPool2dForwardChoice> kMaxPool2dForward;

// The numbers of a window, checked; sizes and strides are left to the caller.
Pool2dGeometry pool2d_window(const char* op, const std::vector<int64_t>& kernel_size,
                             const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation);

// Windows along an axis. With ceil_mode the last one may hang over the end, if it begins inside
// the input or the padding before it.
int64_t pool2d_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                           int64_t dilation, bool ceil_mode);

// Sets the sizes: those of the input, and of the output, which must not be empty.
void set_pool2d_sizes(const char* op, Pool2dGeometry& g, int64_t n, int64_t c, int64_t h, int64_t w,
                      bool ceil_mode);

// RuntimeError for a window whose offsets do not fit into a byte.
void check_offset_window(const char* op, const Pool2dGeometry& g);

// Cheap operations of a kernel that visits every element of every window.
int64_t pool2d_work(const Pool2dGeometry& g);

}  // namespace nnops
