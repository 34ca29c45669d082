#include "ops/conv2d_call.h"

#include <algorithm>

#include "core/check.h"
#include "core/threads.h"

namespace nnops {
namespace {

// Products below which another thread does not pay: so two threads share calls that take one about
// 45 us (AVX-512), and then 32. Calls of 25 us gain nothing.
constexpr int64_t kGrainProducts = int64_t{1} << 20;

// One dimension of the output; RuntimeError if the kernel does not fit.
int64_t output_size(const char* op, const char* dimension, int64_t size, int64_t before,
                    int64_t after, int64_t kernel, int64_t stride, int64_t dilation) {
  int64_t padded = 0;
  int64_t extent = 0;
  const bool overflow = __builtin_add_overflow(size, before, &padded) ||
                        __builtin_add_overflow(padded, after, &padded) ||
                        __builtin_mul_overflow(dilation, kernel - 1, &extent) ||
                        __builtin_add_overflow(extent, 1, &extent);
  NNOPS_CHECK(!overflow, op, ": padding and dilation must keep the ", dimension,
              " within 64 bits, but got size ", size, ", padding ", pair_text(before, after),
              ", kernel size ", kernel, ", dilation ", dilation);
  NNOPS_CHECK(extent <= padded, op, ": the dilated kernel must fit into the padded input, but in ",
              dimension, " got dilation * (kernel - 1) + 1 = ", extent, " over ", size,
              " padded to ", padded);
  return (padded - extent) / stride + 1;
}

}  // namespace

Strides4 strides_of(const Tensor& tensor) {
  const Sizes strides = tensor.strides();
  return {strides[0], strides[1], strides[2], strides[3]};
}

void check_conv2d_list(const char* op, const char* name, const IntList& values, int64_t least) {
  NNOPS_CHECK(values.size() == 2, op, ": ", name,
              " must have two elements (height, width), but got ", name, '=', tuple_text(values));
  NNOPS_CHECK(values[0] >= least && values[1] >= least, op, ": ", name,
              least > 0 ? " must be positive" : " must not be negative", ", but got ", name, '=',
              tuple_text(values));
}

Conv2dGeometry conv2d_geometry(const char* op, Sizes input, Sizes weight, const IntList& stride,
                               const IntList& padding, const IntList& dilation, int64_t groups) {
  check_conv2d_list(op, "stride", stride, 1);
  check_conv2d_list(op, "dilation", dilation, 1);
  NNOPS_CHECK(padding.size() == 2 || padding.size() == 4, op,
              ": padding must have two elements (height, width) or four (top, bottom, left, "
              "right), but got padding=",
              tuple_text(padding));
  NNOPS_CHECK(*std::min_element(padding.begin(), padding.end()) >= 0, op,
              ": padding must not be negative, but got padding=", tuple_text(padding));
  NNOPS_CHECK(groups > 0, op, ": groups must be positive, but got groups=", groups);
  NNOPS_CHECK(weight[0] > 0 && weight[1] > 0 && weight[2] > 0 && weight[3] > 0, op,
              ": weight must not be empty, but got sizes ", tuple_text(weight));
  NNOPS_CHECK(
      weight[0] % groups == 0, op,
      ": the number of output channels must be divisible by groups, but got weight of sizes ",
      tuple_text(weight), " and groups=", groups);
  int64_t channels = 0;
  NNOPS_CHECK(!__builtin_mul_overflow(weight[1], groups, &channels) && input[1] == channels, op,
              ": input must have weight.size(1) * groups channels, but got input of sizes ",
              tuple_text(input), ", weight of sizes ", tuple_text(weight), " and groups=", groups);
  NNOPS_CHECK(input[2] > 0 && input[3] > 0, op,
              ": height and width of input must be positive, but got sizes ", tuple_text(input));

  Conv2dGeometry g{};
  g.n = input[0];
  g.c = input[1];
  g.h = input[2];
  g.w = input[3];
  g.oc = weight[0];
  g.kh = weight[2];
  g.kw = weight[3];
  g.groups = groups;
  g.stride_h = stride[0];
  g.stride_w = stride[1];
  g.dilation_h = dilation[0];
  g.dilation_w = dilation[1];
  const bool four = padding.size() == 4;
  g.pad_top = padding[0];
  g.pad_left = padding[four ? 2 : 1];
  g.oh = output_size(op, "height", g.h, g.pad_top, padding[four ? 1 : 0], g.kh, g.stride_h,
                     g.dilation_h);
  g.ow = output_size(op, "width", g.w, g.pad_left, padding[four ? 3 : 1], g.kw, g.stride_w,
                     g.dilation_w);
  checked_numel(op, IntList{g.n, g.oc, g.oh, g.ow});
  // A stride that is never stepped and a dilation of a single tap mean nothing; kernels walk along
  // both, so they must not be as large as a caller likes.
  if (g.oh == 1) g.stride_h = 1;
  if (g.ow == 1) g.stride_w = 1;
  if (g.kh == 1) g.dilation_h = 1;
  if (g.kw == 1) g.dilation_w = 1;
  return g;
}

void check_conv2d_image(const char* op, const char* name, const Tensor& tensor) {
  check_device(op, name, tensor);
  NNOPS_CHECK(tensor.dim() == 4, op, ": ", name,
              " must have 4 dimensions (3 for an unbatched image in nn.functional), but got sizes ",
              tuple_text(tensor.sizes()));
}

int64_t conv2d_grains(const Conv2dGeometry& g) {
  const int64_t group_c = g.c / g.groups;
  const auto products = static_cast<double>(g.n * g.oc) * static_cast<double>(g.oh * g.ow) *
                        static_cast<double>(group_c * g.kh * g.kw);
  constexpr double kMost = 0x1p62;
  // Where a pixel meets few weights, it costs what it costs an elementwise operator.
  const int64_t pixels = g.n * (g.c * g.h * g.w + g.oc * g.oh * g.ow);
  return std::max(static_cast<int64_t>(std::min(products, kMost)) / kGrainProducts,
                  pixels / kGrainElements);
}

Conv2dForwardCall conv2d_forward_call(const char* op, const Tensor& input, const Tensor& weight,
                                      const std::optional<Tensor>& bias, const IntList& stride,
                                      const IntList& padding, const IntList& dilation,
                                      int64_t groups) {
  check_conv2d_image(op, "input", input);
  check_conv2d_image(op, "weight", weight);
  check_same_type(op, "weight", weight, "input", input);
  Conv2dForwardCall call{};
  call.dtype = dtype_of(op, input);
  Conv2dGeometry& g = call.g;
  g = conv2d_geometry(op, input.sizes(), weight.sizes(), stride, padding, dilation, groups);
  if (bias.has_value()) {
    check_same_type(op, "bias", *bias, "input", input);
    NNOPS_CHECK(bias->dim() == 1 && bias->size(0) == g.oc, op,
                ": bias must have one element per output channel, ", g.oc, ", but got sizes ",
                tuple_text(bias->sizes()));
  }
  call.channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  g.input = strides_of(input);
  g.weight = strides_of(weight);
  return call;
}

}  // namespace nnops
