#include "ops/max_pool2d_call.h"

#include <algorithm>

#include "core/check.h"

namespace nnops {
namespace {

using Ints = std::vector<int64_t>;

void check_pair(const char* op, const char* name, const Ints& pair, int64_t least) {
  constexpr int64_t kMost = INT32_MAX;
  NNOPS_CHECK(pair.size() == 2, op, ": ", name, " must have two elements, but got ",
              tuple_text(pair));
  for (const int64_t value : pair) {
    NNOPS_CHECK(value >= least, op, ": ", name, " must be ",
                least > 0 ? "positive" : "non-negative", ", but got ", name, "=", tuple_text(pair));
    NNOPS_CHECK(value <= kMost, op, ": ", name, " must be below 2**31, but got ", name, "=",
                tuple_text(pair));
  }
}

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace

Pool2dGeometry pool2d_window(const char* op, const Ints& kernel_size, const Ints& stride,
                             const Ints& padding, const Ints& dilation) {
  check_pair(op, "kernel_size", kernel_size, 1);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  NNOPS_CHECK(padding[0] <= kernel_size[0] / 2 && padding[1] <= kernel_size[1] / 2, op,
              ": padding must be at most half the kernel size, but got padding=",
              tuple_text(padding), ", kernel_size=", tuple_text(kernel_size));
  Pool2dGeometry geometry{};
  geometry.kernel_h = kernel_size[0];
  geometry.kernel_w = kernel_size[1];
  geometry.stride_h = stride[0];
  geometry.stride_w = stride[1];
  geometry.pad_h = padding[0];
  geometry.pad_w = padding[1];
  geometry.dilation_h = dilation[0];
  geometry.dilation_w = dilation[1];
  return geometry;
}

int64_t pool2d_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                           int64_t dilation, bool ceil_mode) {
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  const int64_t count = floor_divide(room + (ceil_mode ? stride - 1 : 0), stride) + 1;
  return ceil_mode && (count - 1) * stride >= size + pad ? count - 1 : count;
}

void set_pool2d_sizes(const char* op, Pool2dGeometry& g, int64_t n, int64_t c, int64_t h, int64_t w,
                      bool ceil_mode) {
  // What the window arithmetic may hold without overflow; only an expanded tensor can be larger.
  constexpr int64_t kMost = int64_t{1} << 60;
  NNOPS_CHECK(h <= kMost && w <= kMost, op, ": height and width must be at most 2**60, but got ",
              pair_text(h, w));
  g.n = n;
  g.c = c;
  g.h = h;
  g.w = w;
  g.oh = pool2d_output_size(h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, ceil_mode);
  g.ow = pool2d_output_size(w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, ceil_mode);
  NNOPS_CHECK(g.oh >= 1 && g.ow >= 1, op,
              ": the window must fit into the padded input, but got input size ", pair_text(h, w),
              ", kernel_size=", pair_text(g.kernel_h, g.kernel_w),
              ", padding=", pair_text(g.pad_h, g.pad_w),
              ", dilation=", pair_text(g.dilation_h, g.dilation_w));
}

void check_offset_window(const char* op, const Pool2dGeometry& g) {
  NNOPS_CHECK(g.kernel_h <= kLargestOffsetWindow && g.kernel_h * g.kernel_w <= kLargestOffsetWindow,
              op, ": kernel_size must be at most 255 elements, but got ",
              pair_text(g.kernel_h, g.kernel_w));
}

int64_t pool2d_work(const Pool2dGeometry& g) {
  const int64_t taps = std::min<int64_t>(g.kernel_h, 8) * std::min<int64_t>(g.kernel_w, 8);
  return g.n * g.c * g.oh * g.ow * std::min<int64_t>(taps, 8);
}

}  // namespace nnops
