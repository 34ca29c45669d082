// nnops::conv2d and its gradients: checks, geometry, allocation, choice of the algorithm.
//
// Shapes: input (N, C, H, W), weight (OC, C/groups, KH, KW), bias (OC), output (N, OC, OH, OW) with
//   OH = (H + pad_top + pad_bottom - dilation_h (KH - 1) - 1) / stride_h + 1, OW alike.
// `padding` holds (height, width), the same on both sides, or (top, bottom, left, right).
// Images may have any strides; outputs are channels_last if one of the inputs is, else row-major.
#include "ops/conv2d.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/tf32.h"
#include "core/threads.h"
#include "ops/conv2d_partition.h"
#include "ops/conv2d_precision.h"
#include "ops/conv2d_winograd.h"
#include "ops/packed_weights.h"

namespace nnops {
namespace {

constexpr KernelTable<Conv2dKernels> kTable = NNOPS_KERNEL_TABLE(conv2d_kernels);

// Products below which another thread does not pay: so two threads share calls that take one about
// 45 us (AVX-512), and then 32. Calls of 25 us gain nothing.
constexpr int64_t kGrainProducts = int64_t{1} << 20;

using IntList = std::vector<int64_t>;

// The algorithms of each pass. Where they round differently, a choice may depend on the dtype and
// the geometry of one image only: never on the batch, the threads or the ISA.
template <typename Pass>
using Candidate = Algorithm<Conv2dKernels, Pass, Conv2dGeometry>;

std::string floating_only(const Conv2dGeometry&, DType dtype) {
  return dtype <= DType::kFloat16 ? "" : "it computes floating dtypes only";
}
std::string everything(const Conv2dGeometry&, DType) { return ""; }
std::string first_reason(const std::string& first, const std::string& second) {
  return first.empty() ? second : first;
}

// Of a float vector in the kernels, on every ISA.
constexpr int64_t kLanes = 16;

// pixel_rows and expanded_planes give the same bits: this is a matter of speed alone. Vectors along
// `written` channels waste what is missing to a multiple of kLanes, vectors along pixels the same
// at an image's end; images in channels_last order need no transposition along channels.
std::string rows_pay(int64_t written, int64_t pixels, bool channels_last, int64_t kernel_width) {
  if (channels_last && written >= kLanes / 2) return "";
  if (written < kLanes) return "too few channels to have vectors along them";
  // With one kernel column the planes are copied as they are, which is cheaper than to transpose
  // the sums.
  const int64_t allowance = kernel_width == 1 ? 7 : 9;
  const int64_t padded = (written + kLanes - 1) / kLanes * kLanes;
  const int64_t padded_pixels = (pixels + kLanes - 1) / kLanes * kLanes;
  return padded * pixels * 8 < padded_pixels * written * allowance
             ? ""
             : "more of a vector along channels would be padding than of one along pixels";
}

// Whether sums over `outer` channels are one chain.
bool is_one_chain(const Conv2dGeometry& g, int64_t outer) {
  constexpr int64_t kMost = kConv2dLongestChain;
  return g.kh <= kMost && g.kw <= kMost && outer <= kMost && outer * g.kh * g.kw <= kMost;
}

// Sums of a single chain go straight to row-major images where vectors go along pixels, and would
// be transposed on the way out where they go along channels. Worth it for rows of nearly whole
// vectors, or else, if planes can be expanded cheaply, for short sums or few channels.
std::string rows_pay_in_forward(const Conv2dGeometry& g, DType dtype) {
  constexpr int64_t kShort = 80;
  const int64_t written = g.oc / g.groups;
  const int64_t terms = g.c / g.groups * g.kh * g.kw;
  const int64_t width = (g.ow + kLanes - 1) / kLanes * kLanes;
  const bool whole = g.ow >= 2 * kLanes && width * 8 <= g.ow * 9;
  const bool cheap = g.stride_w == 1 && (terms <= kShort || written <= kLanes);
  if (dtype <= DType::kFloat64 && g.output.w == 1 && is_one_chain(g, g.c / g.groups) &&
      (whole || cheap)) {
    return "the sums of one chain go straight to rows of pixels";
  }
  return rows_pay(written, g.oh * g.ow, g.output.c == 1, g.kw);
}

// The depthwise algorithms of forward and backward_input give the same bits too, as their sums are
// one chain.
std::string one_input_channel(const Conv2dGeometry& g, DType dtype) {
  if (g.c != g.groups) return "more than one input channel a group";
  if (!is_one_chain(g, 1)) return "too many taps";
  return floating_only(g, dtype);
}
std::string one_channel_each_way(const Conv2dGeometry& g, DType dtype) {
  if (g.oc != g.groups) return "more than one output channel a group";
  return one_input_channel(g, dtype);
}
std::string stride_one_or_two(const Conv2dGeometry& g) {
  return g.stride_h == g.stride_w && g.stride_h <= 2 ? "" : "the strides are not both 1 or both 2";
}
std::string channels_last_images(const Conv2dGeometry& g) {
  return g.input.c == 1 && g.output.c == 1 ? "" : "not both images are channels_last";
}
// Groups whose channels are spread out over the lanes of vectors; outer: channels a sum goes over.
std::string can_spread_groups(const Conv2dGeometry& g, int64_t outer) {
  if (!is_one_chain(g, outer)) return "a sum is more than one chain";
  if (g.dilation_h != 1 || g.dilation_w != 1) return "the kernel is dilated";
  return first_reason(channels_last_images(g), stride_one_or_two(g));
}
std::string spreading_groups_pays(const Conv2dGeometry& g) {
  if (g.c < kLanes / 2 || g.oc < kLanes / 2) return "too few channels to have vectors along them";
  // At stride 2 most of what is spread out is read by few outputs.
  const int64_t most = std::max(g.c, g.oc) / g.groups;
  return most < (g.stride_h == 1 ? kLanes : kLanes / 2)
             ? ""
             : "a group has enough channels for vectors of its own";
}
// Small images are computed with the channels side by side, in the cache.
std::string fits_transposed(const Conv2dGeometry& g) {
  constexpr int64_t kMostPixels = 1024;
  if (g.c < 8) return "too few channels to have vectors along them";
  return g.h * g.w + g.oh * g.ow <= kMostPixels ? "" : "rows are long enough to go along them";
}

template <const WinogradForm& kForm>
std::string is_winograd_forward(const Conv2dGeometry& g, DType dtype) {
  return winograd_forward_supports(kForm, g, dtype);
}
template <const WinogradForm& kForm>
std::string forward_pays(const Conv2dGeometry& g, DType) {
  return winograd_forward_pays(kForm, g);
}
template <const WinogradForm& kForm>
std::string is_winograd_backward_input(const Conv2dGeometry& g, DType dtype) {
  return winograd_backward_input_supports(kForm, g, dtype);
}
template <const WinogradForm& kForm>
std::string backward_input_pays(const Conv2dGeometry& g, DType) {
  return winograd_backward_input_pays(kForm, g);
}
template <const WinogradForm& kForm>
std::string is_winograd_backward_weight(const Conv2dGeometry& g, DType dtype) {
  return winograd_backward_weight_supports(kForm, g, dtype);
}
template <const WinogradForm& kForm>
std::string backward_weight_pays(const Conv2dGeometry& g, DType) {
  return winograd_backward_weight_pays(kForm, g);
}

constexpr Candidate<Conv2dForward> kForwardCpu[] = {
    {"depthwise_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(channels_last_images(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::forward_depthwise_channels},
    {"depthwise_transposed",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.output.w != 1 ? "the output is not row-major" : one_channel_each_way(g, dtype);
     },
     &Conv2dKernels::forward_depthwise_transposed,
     [](const Conv2dGeometry& g, DType) { return fits_transposed(g); }},
    {"depthwise_rows",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.output.w != 1 ? "the output is not row-major" : one_input_channel(g, dtype);
     },
     &Conv2dKernels::forward_depthwise_rows},
    {"grouped_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(floating_only(g, dtype), can_spread_groups(g, g.c / g.groups));
     },
     &Conv2dKernels::forward_grouped_channels,
     [](const Conv2dGeometry& g, DType) { return spreading_groups_pays(g); }},
    {"winograd_4x4_3x3", is_winograd_forward<k4x4Of3x3>, &Conv2dKernels::forward_winograd_4x4_3x3,
     forward_pays<k4x4Of3x3>},
    {"winograd_2x2_5x5", is_winograd_forward<k2x2Of5x5>, &Conv2dKernels::forward_winograd_2x2_5x5,
     forward_pays<k2x2Of5x5>},
    {"winograd_2x2_3x3", is_winograd_forward<k2x2Of3x3>, &Conv2dKernels::forward_winograd_2x2_3x3,
     forward_pays<k2x2Of3x3>},
    {"pixel_rows", floating_only, &Conv2dKernels::forward_pixel_rows, rows_pay_in_forward},
    {"expanded_planes", floating_only, &Conv2dKernels::forward_expanded_planes},
    {"reference", everything, &Conv2dKernels::forward_reference},
};
constexpr Candidate<Conv2dBackwardInput> kBackwardInputCpu[] = {
    {"depthwise_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(channels_last_images(g),
                           first_reason(stride_one_or_two(g), one_channel_each_way(g, dtype)));
     },
     &Conv2dKernels::backward_input_depthwise_channels},
    {"depthwise_transposed",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.input.w != 1 ? "the gradient is not row-major"
                             : first_reason(stride_one_or_two(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::backward_input_depthwise_transposed,
     [](const Conv2dGeometry& g, DType) { return fits_transposed(g); }},
    {"depthwise_rows",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.input.w != 1 ? "the gradient is not row-major"
                             : first_reason(stride_one_or_two(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::backward_input_depthwise_rows},
    {"grouped_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(floating_only(g, dtype), can_spread_groups(g, g.oc / g.groups));
     },
     &Conv2dKernels::backward_input_grouped_channels,
     [](const Conv2dGeometry& g, DType) { return spreading_groups_pays(g); }},
    {"winograd_4x4_3x3", is_winograd_backward_input<k4x4Of3x3>,
     &Conv2dKernels::backward_input_winograd_4x4_3x3, backward_input_pays<k4x4Of3x3>},
    {"winograd_2x2_5x5", is_winograd_backward_input<k2x2Of5x5>,
     &Conv2dKernels::backward_input_winograd_2x2_5x5, backward_input_pays<k2x2Of5x5>},
    {"winograd_2x2_3x3", is_winograd_backward_input<k2x2Of3x3>,
     &Conv2dKernels::backward_input_winograd_2x2_3x3, backward_input_pays<k2x2Of3x3>},
    {"pixel_rows", floating_only, &Conv2dKernels::backward_input_pixel_rows,
     [](const Conv2dGeometry& g, DType) {
       return rows_pay(g.c / g.groups, g.h * g.w, g.input.c == 1, g.kw);
     }},
    {"expanded_planes", floating_only, &Conv2dKernels::backward_input_expanded_planes},
    {"reference", everything, &Conv2dKernels::backward_input_reference},
};
constexpr Candidate<Conv2dBackwardWeight> kBackwardWeightCpu[] = {
    {"depthwise_channel_dots",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(channels_last_images(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::backward_weight_depthwise_channel_dots},
    {"depthwise_transposed", one_channel_each_way,
     &Conv2dKernels::backward_weight_depthwise_transposed,
     [](const Conv2dGeometry& g, DType) { return fits_transposed(g); }},
    {"depthwise_dots",
     [](const Conv2dGeometry& g, DType dtype) -> std::string {
       return g.c != g.groups ? "more than one input channel a group" : floating_only(g, dtype);
     },
     &Conv2dKernels::backward_weight_depthwise_dots,
     [](const Conv2dGeometry& g, DType) -> std::string {
       return g.oc / g.groups > 4 ? "enough output channels share an input channel" : "";
     }},
    {"winograd_4x4_3x3", is_winograd_backward_weight<k4x4Of3x3>,
     &Conv2dKernels::backward_weight_winograd_4x4_3x3, backward_weight_pays<k4x4Of3x3>},
    {"winograd_2x2_5x5", is_winograd_backward_weight<k2x2Of5x5>,
     &Conv2dKernels::backward_weight_winograd_2x2_5x5, backward_weight_pays<k2x2Of5x5>},
    {"winograd_2x2_3x3", is_winograd_backward_weight<k2x2Of3x3>,
     &Conv2dKernels::backward_weight_winograd_2x2_3x3, backward_weight_pays<k2x2Of3x3>},
    {"outer_products", floating_only, &Conv2dKernels::backward_weight_outer_products},
    {"reference", everything, &Conv2dKernels::backward_weight_reference},
};

// CUDA's implicit GEMMs count positions, and offsets within an image or the weight, in 32 bits; the
// sums of a block of threads are of at most so many terms.
std::string fits_32_bits(const Conv2dGeometry& g) {
  constexpr double kMost = 1 << 29;
  const auto most = [](std::initializer_list<int64_t> values) {
    return static_cast<double>(std::max(values));
  };
  const auto span = [](int64_t a, int64_t b) {
    return static_cast<double>(a) * static_cast<double>(b);
  };
  const int64_t channels = g.c / g.groups;
  const int64_t filters = g.oc / g.groups;
  const auto group_c = static_cast<double>(channels);
  const auto group_oc = static_cast<double>(filters);
  const double taps = span(g.kh, g.kw);
  // What the kernels step over outside of an image counts as well.
  const auto extent = [&](const Strides4& strides, int64_t c, double h, double w) {
    return static_cast<double>(strides.c) * static_cast<double>(c) +
           static_cast<double>(strides.h) * h + static_cast<double>(strides.w) * w;
  };
  const double reach_h = std::max(span(g.oh, g.stride_h), span(g.kh, g.dilation_h));
  const double reach_w = std::max(span(g.ow, g.stride_w), span(g.kw, g.dilation_w));
  const bool positions = most({g.n, g.c, g.oc, g.h, g.w, g.pad_top, g.pad_left}) < kMost &&
                         std::max(reach_h, reach_w) < kMost && span(g.h, g.w) < kMost &&
                         span(g.oh, g.ow) < kMost;
  const bool terms = taps * std::max(group_c, group_oc) < kMost;
  const auto at_least = [](int64_t size, double reach) {
    return std::max(static_cast<double>(size), reach);
  };
  const bool offsets =
      std::max({extent(g.input, g.c, at_least(g.h, reach_h), at_least(g.w, reach_w)),
                extent(g.output, g.oc, at_least(g.oh, reach_h), at_least(g.ow, reach_w)),
                extent(g.weight, channels, at_least(g.kh, 0), at_least(g.kw, 0))}) < 2 * kMost;
  // Blocks of threads, had they the smallest tile.
  const double pixels = static_cast<double>(g.n) * static_cast<double>(g.groups);
  const double blocks =
      std::max(pixels * (span(g.oh, g.ow) / 32 + 1) * (group_oc / 32 + 1),
               pixels * (span(g.h, g.w) / 32 + span(g.stride_h, g.stride_w)) * (group_c / 32 + 1));
  return positions && terms && offsets && blocks < kMost
             ? ""
             : "sizes or offsets need more than 32-bit indices";
}
std::string floating_and_fits_32_bits(const Conv2dGeometry& g, DType dtype) {
  return first_reason(floating_only(g, dtype), fits_32_bits(g));
}

// Sums of the direct algorithm, over `outer` channels of a group, are one chain.
std::string fits_direct(const Conv2dGeometry& g, DType dtype, int64_t outer) {
  if (!is_one_chain(g, outer)) return "a sum is more than one chain";
  return floating_and_fits_32_bits(g, dtype);
}
// With more channels in a group, a GEMM wastes less of its tiles than is lost without them.
std::string few_channels_in_groups(const Conv2dGeometry& g, DType) {
  constexpr int64_t kFew = 4;
  if (g.groups == 1) return "a single group";
  return g.c / g.groups <= kFew && (g.c == g.groups || g.oc / g.groups <= kFew)
             ? ""
             : "a group has enough channels for a GEMM";
}

// What the tensor cores multiply: float16 from sm_75 on, bfloat16 and TF32 from sm_80 on.
std::string tensor_cores_multiply(DType dtype) {
  if (dtype == DType::kFloat16) return "";
  const Conv2dKernels& kernels = *kTable.per_isa[static_cast<int>(Isa::kCuda)];
  const int architecture = kernels.tensor_core_architecture();
  if (architecture >= 80) return "";
  return concat("tensor cores of sm_", architecture, " do not multiply ",
                dtype == DType::kBFloat16 ? "bfloat16" : "TF32");
}
std::string tensor_cores(const Conv2dGeometry& g, DType dtype) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    return "it computes bfloat16 and float16 only";
  }
  return first_reason(fits_32_bits(g), tensor_cores_multiply(dtype));
}
// The operands rounded to TF32 are a loss that torch's users can forbid.
std::string tensor_cores_tf32(const Conv2dGeometry& g, DType dtype) {
  if (dtype != DType::kFloat32) return "it computes float32 only";
  std::string lack = first_reason(fits_32_bits(g), tensor_cores_multiply(dtype));
  if (!lack.empty()) return lack;
  if (conv_precision() == ConvPrecision::kHighest) return "the precision is 'highest'";
  return conv_may_use_tf32() ? "" : "torch.backends.cudnn.conv.fp32_precision does not allow TF32";
}
// The channels of a group and what else stands beside them fill the tiles of the matrix products;
// tensor cores are no faster where these are mostly empty.
std::string tiles_pay(int64_t channels, int64_t beside) {
  constexpr int64_t kLeast = 8;
  return std::min(channels, beside) >= kLeast ? "" : "a group has too few channels to fill a tile";
}
std::string forward_tiles_pay(const Conv2dGeometry& g, DType) {
  return tiles_pay(g.oc / g.groups, g.c / g.groups * g.kh * g.kw);
}
std::string backward_input_tiles_pay(const Conv2dGeometry& g, DType) {
  return tiles_pay(g.c / g.groups, g.oc / g.groups * g.kh * g.kw);
}
std::string backward_weight_tiles_pay(const Conv2dGeometry& g, DType dtype) {
  return forward_tiles_pay(g, dtype);
}

constexpr Candidate<Conv2dForward> kForwardCuda[] = {
    {"direct",
     [](const Conv2dGeometry& g, DType dtype) { return fits_direct(g, dtype, g.c / g.groups); },
     &Conv2dKernels::forward_direct, few_channels_in_groups},
    {"tensor_cores", tensor_cores, &Conv2dKernels::forward_tensor_cores, forward_tiles_pay},
    {"tensor_cores_tf32", tensor_cores_tf32, &Conv2dKernels::forward_tensor_cores,
     forward_tiles_pay},
    {"implicit_gemm", floating_and_fits_32_bits, &Conv2dKernels::forward_implicit_gemm},
    {"reference", everything, &Conv2dKernels::forward_reference},
};
constexpr Candidate<Conv2dBackwardInput> kBackwardInputCuda[] = {
    {"direct",
     [](const Conv2dGeometry& g, DType dtype) { return fits_direct(g, dtype, g.oc / g.groups); },
     &Conv2dKernels::backward_input_direct, few_channels_in_groups},
    {"tensor_cores", tensor_cores, &Conv2dKernels::backward_input_tensor_cores,
     backward_input_tiles_pay},
    {"tensor_cores_tf32", tensor_cores_tf32, &Conv2dKernels::backward_input_tensor_cores,
     backward_input_tiles_pay},
    {"implicit_gemm", floating_and_fits_32_bits, &Conv2dKernels::backward_input_implicit_gemm},
    {"reference", everything, &Conv2dKernels::backward_input_reference},
};
constexpr Candidate<Conv2dBackwardWeight> kBackwardWeightCuda[] = {
    {"direct", floating_and_fits_32_bits, &Conv2dKernels::backward_weight_direct,
     few_channels_in_groups},
    {"tensor_cores", tensor_cores, &Conv2dKernels::backward_weight_tensor_cores,
     backward_weight_tiles_pay},
    {"tensor_cores_tf32", tensor_cores_tf32, &Conv2dKernels::backward_weight_tensor_cores,
     backward_weight_tiles_pay},
    {"implicit_gemm", floating_and_fits_32_bits, &Conv2dKernels::backward_weight_implicit_gemm},
    {"reference", everything, &Conv2dKernels::backward_weight_reference},
};

template <typename Pass>
using Candidates = AlgorithmsByDevice<Candidate<Pass>>;
constexpr Candidates<Conv2dForward> kForward{kForwardCpu, kForwardCuda};
constexpr Candidates<Conv2dBackwardInput> kBackwardInput{kBackwardInputCpu, kBackwardInputCuda};
constexpr Candidates<Conv2dBackwardWeight> kBackwardWeight{kBackwardWeightCpu, kBackwardWeightCuda};

const RegisterAlgorithms kRegistered[] = {
    {"conv2d", names_of(kForward.cpu), names_of(kForward.cuda)},
    {"conv2d_backward_input", names_of(kBackwardInput.cpu), names_of(kBackwardInput.cuda)},
    {"conv2d_backward_weight", names_of(kBackwardWeight.cpu), names_of(kBackwardWeight.cuda)},
};

Strides4 strides_of(const Tensor& tensor) {
  const Sizes strides = tensor.strides();
  return {strides[0], strides[1], strides[2], strides[3]};
}

void check_list(const char* op, const char* name, const IntList& values, int64_t least) {
  NNOPS_CHECK(values.size() == 2, op, ": ", name,
              " must have two elements (height, width), but got ", name, '=', tuple_text(values));
  NNOPS_CHECK(values[0] >= least && values[1] >= least, op, ": ", name,
              least > 0 ? " must be positive" : " must not be negative", ", but got ", name, '=',
              tuple_text(values));
}

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

// The parameters that all four operators share, and the sizes that follow from them. The strides
// of the three tensors are left to the caller.
Conv2dGeometry make_geometry(const char* op, Sizes input, Sizes weight, const IntList& stride,
                             const IntList& padding, const IntList& dilation, int64_t groups) {
  check_list(op, "stride", stride, 1);
  check_list(op, "dilation", dilation, 1);
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

void check_image(const char* op, const char* name, const Tensor& tensor) {
  check_device(op, name, tensor);
  NNOPS_CHECK(tensor.dim() == 4, op, ": ", name,
              " must have 4 dimensions (3 for an unbatched image in nn.functional), but got sizes ",
              tuple_text(tensor.sizes()));
}

void check_output_sizes(const char* op, const Tensor& grad_output, const Conv2dGeometry& g) {
  const IntList expected{g.n, g.oc, g.oh, g.ow};
  const Sizes sizes = grad_output.sizes();
  NNOPS_CHECK(std::equal(expected.begin(), expected.end(), sizes.begin()), op,
              ": grad_output must have the sizes of the output, ", tuple_text(expected),
              ", but got ", tuple_text(sizes));
}

// How many threads have enough to do.
int64_t conv_grains(const Conv2dGeometry& g) {
  const int64_t group_c = g.c / g.groups;
  const auto products = static_cast<double>(g.n * g.oc) * static_cast<double>(g.oh * g.ow) *
                        static_cast<double>(group_c * g.kh * g.kw);
  constexpr double kMost = 0x1p62;
  // Where a pixel meets few weights, it costs what it costs an elementwise operator.
  const int64_t pixels = g.n * (g.c * g.h * g.w + g.oc * g.oh * g.ow);
  return std::max(static_cast<int64_t>(std::min(products, kMost)) / kGrainProducts,
                  pixels / kGrainElements);
}

// How an algorithm is called: on the images from `first_image` on, as many as the geometry has.
template <typename Algorithm>
struct AlgorithmCall {
  const Algorithm& algorithm;
  const Conv2dGeometry& g;
  int64_t first_image;
  void* workspace;
  int threads;
};

// Whether a pass computes image by image, or one sum over all.
enum class Images { kApart, kAddedUp };

template <typename Algorithm, typename Call>
void run_algorithm(const char* op, const DeviceScope& scope, const Candidate<Algorithm>& choice,
                   const Conv2dGeometry& g, DType dtype, Images images, int64_t first_image,
                   const Call& call, std::vector<int64_t>* left_out) {
  const Isa isa = scope.isa();
  const Algorithm& algorithm = active_kernels(kTable, isa).*choice.entry;
  const auto kernel = kernel_for(op, choice.name, algorithm.run, dtype, isa);
  if (g.n == 0) return;
  const int threads = thread_count(conv_grains(g), 1);
  const auto workspace_bytes = algorithm.workspace_bytes.entries[static_cast<int>(dtype)];
  const Scratch workspace(scope, workspace_bytes != nullptr ? workspace_bytes(g, threads) : 0);
  call(kernel, AlgorithmCall<Algorithm>{algorithm, g, first_image, workspace.data(), threads});
  if (!algorithm.flags_images) return;
  const auto* flags = static_cast<const uint8_t*>(workspace.data());
  for (int64_t n = 0; n < (images == Images::kAddedUp ? 1 : g.n); ++n) {
    if (flags[n] != 0) left_out->push_back(n);
  }
}

// Chooses the algorithm, gives it its workspace and calls it; then, for each image that it left
// out, the first algorithm that leaves out none.
template <typename Algorithm, typename Call>
void run(const char* op, const DeviceScope& scope, const Candidates<Algorithm>& candidates,
         const Conv2dGeometry& g, DType dtype, Images images, const Call& call) {
  const auto& list = candidates.of(scope.isa());
  std::vector<int64_t> left_out;
  run_algorithm(op, scope, choose_algorithm(op, list, g, dtype), g, dtype, images, 0, call,
                &left_out);
  if (left_out.empty()) return;
  Conv2dGeometry image = g;
  if (images == Images::kApart) image.n = 1;
  for (const auto& candidate : list) {
    const bool takes_all = !(active_kernels(kTable, scope.isa()).*candidate.entry).flags_images;
    if (!takes_all || !candidate.supports(image, dtype).empty()) continue;
    if (candidate.pays != nullptr && !candidate.pays(image, dtype).empty()) continue;
    for (const int64_t n : left_out) {
      run_algorithm(op, scope, candidate, image, dtype, images, n, call, nullptr);
    }
    return;
  }
}

// As `run`, but asks the algorithm how it would share its work.
template <typename Pass>
Partition partition(const char* op, const Candidates<Pass>& candidates, const Conv2dGeometry& g,
                    DType dtype, int threads) {
  const Isa isa = active_isa();
  const auto& choice = choose_algorithm(op, candidates.of(isa), g, dtype);
  const auto& algorithm = active_kernels(kTable, isa).*choice.entry;
  const auto tell = algorithm.partition.entries[static_cast<int>(dtype)];
  NNOPS_CHECK_NOT_IMPLEMENTED(tell != nullptr, "conv2d_partition: not implemented for ",
                              choice.name, " of ", isa_name(isa), " in ", dtype_name(dtype));
  Partition result{choice.name, useful_threads(conv_grains(g), 1, threads), {}};
  if (g.n == 0) return result;
  Conv2dPhaseVisitor visitor{};
  visitor.context = &result.phases;
  visitor.begin = [](void* context, const char* name, Conv2dPhaseVisitor::Unit unit,
                     Conv2dPhaseVisitor::Schedule schedule) {
    static_cast<std::vector<PartitionPhase>*>(context)->push_back(
        {name,
         unit == Conv2dPhaseVisitor::Unit::kProducts,
         schedule == Conv2dPhaseVisitor::Schedule::kDynamic,
         {}});
  };
  // Tasks at first, shared over the threads below.
  visitor.task = [](void* context, int64_t work) {
    static_cast<std::vector<PartitionPhase>*>(context)->back().work.push_back(work);
  };
  tell(g, result.threads, visitor);
  for (PartitionPhase& phase : result.phases) {
    phase.work = shared_work(phase.work, phase.dynamic, result.threads);
  }
  return result;
}

// The images of a tensor from number `n` on.
template <typename Pointer>
Pointer* from_image(Pointer* data, int64_t n, const Strides4& strides, DType dtype) {
  using Byte = std::conditional_t<std::is_const_v<Pointer>, const char, char>;
  return static_cast<Byte*>(data) + n * strides.n * element_size(dtype);
}

// The weight in the order that the algorithm wants; alive as long as `keeper`.
template <typename Algorithm>
const void* weight_for(const Algorithm& algorithm, const Tensor& weight, DType dtype,
                       const Conv2dGeometry& g, const Conv2dGeometry& packing,
                       std::shared_ptr<const Workspace>* keeper) {
  const void* data = weight.const_data_ptr();
  const auto pack = algorithm.pack.entries[static_cast<int>(dtype)];
  if (pack == nullptr) return data;
  PackingRequest request{};
  request.pack = pack;
  request.packed_bytes = algorithm.packed_bytes.entries[static_cast<int>(dtype)](packing);
  request.weight = data;
  request.weight_bytes = is_dense(weight) ? weight.numel() * element_size(dtype) : 0;
  request.packing = packing;
  request.pixels = g.n * g.oh * g.ow;
  // Winograd's transform of the weights costs so many times what it costs to put them in order.
  constexpr int64_t kTransforms = 16;
  if (algorithm.flags_images) request.pixels /= kTransforms;
  *keeper = packed_weights(request);
  return (*keeper)->data();
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              const IntList& stride, const IntList& padding, const IntList& dilation,
              int64_t groups, int64_t precision) {
  constexpr const char* kOp = "conv2d";
  const ConvPrecisionScope precision_scope(kOp, precision);
  check_image(kOp, "input", input);
  check_image(kOp, "weight", weight);
  check_same_type(kOp, "weight", weight, "input", input);
  const DeviceScope scope(input);
  const DType dtype = dtype_of(kOp, input);
  Conv2dGeometry g =
      make_geometry(kOp, input.sizes(), weight.sizes(), stride, padding, dilation, groups);
  std::optional<Tensor> shift;
  if (bias.has_value()) {
    check_same_type(kOp, "bias", *bias, "input", input);
    NNOPS_CHECK(bias->dim() == 1 && bias->size(0) == g.oc, kOp,
                ": bias must have one element per output channel, ", g.oc, ", but got sizes ",
                tuple_text(bias->sizes()));
    shift = torch::stable::contiguous(*bias);
  }
  const Tensor output =
      empty_image(IntList{g.n, g.oc, g.oh, g.ow},
                  suggests_channels_last(input) || suggests_channels_last(weight), dtype, input);
  g.input = strides_of(input);
  g.weight = strides_of(weight);
  g.output = strides_of(output);
  run(kOp, scope, kForward, g, dtype, Images::kApart, [&](auto kernel, const auto& run) {
    std::shared_ptr<const Workspace> keeper;
    const void* ordered =
        weight_for(run.algorithm, weight, dtype, g, forward_packing_geometry(g), &keeper);
    kernel(from_image(output.mutable_data_ptr(), run.first_image, g.output, dtype),
           from_image(input.const_data_ptr(), run.first_image, g.input, dtype), ordered,
           shift ? shift->const_data_ptr() : nullptr, run.g, run.workspace, run.threads);
  });
  return output;
}

// input_size: (height, width) of the input.
Tensor conv2d_backward_input(const Tensor& grad_output, const Tensor& weight,
                             const IntList& input_size, const IntList& stride,
                             const IntList& padding, const IntList& dilation, int64_t groups,
                             int64_t precision) {
  constexpr const char* kOp = "conv2d_backward_input";
  const ConvPrecisionScope precision_scope(kOp, precision);
  check_image(kOp, "grad_output", grad_output);
  check_image(kOp, "weight", weight);
  check_same_type(kOp, "weight", weight, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const DType dtype = dtype_of(kOp, grad_output);
  check_list(kOp, "input_size", input_size, 1);
  int64_t channels = 0;
  NNOPS_CHECK(groups > 0 && !__builtin_mul_overflow(weight.size(1), groups, &channels), kOp,
              ": groups must be positive, but got groups=", groups);
  const IntList sizes{grad_output.size(0), channels, input_size[0], input_size[1]};
  checked_numel(kOp, sizes);
  Conv2dGeometry g = make_geometry(kOp, sizes, weight.sizes(), stride, padding, dilation, groups);
  check_output_sizes(kOp, grad_output, g);
  const Tensor grad_input =
      empty_image(sizes, suggests_channels_last(grad_output) || suggests_channels_last(weight),
                  dtype, grad_output);
  g.input = strides_of(grad_input);
  g.weight = strides_of(weight);
  g.output = strides_of(grad_output);
  run(kOp, scope, kBackwardInput, g, dtype, Images::kApart, [&](auto kernel, const auto& run) {
    std::shared_ptr<const Workspace> keeper;
    const void* ordered =
        weight_for(run.algorithm, weight, dtype, g, backward_input_packing_geometry(g), &keeper);
    kernel(from_image(grad_input.mutable_data_ptr(), run.first_image, g.input, dtype),
           from_image(grad_output.const_data_ptr(), run.first_image, g.output, dtype), ordered,
           run.g, run.workspace, run.threads);
  });
  return grad_input;
}

// kernel_size: (height, width) of the weight.
Tensor conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                              const IntList& kernel_size, const IntList& stride,
                              const IntList& padding, const IntList& dilation, int64_t groups,
                              int64_t precision) {
  constexpr const char* kOp = "conv2d_backward_weight";
  const ConvPrecisionScope precision_scope(kOp, precision);
  check_image(kOp, "grad_output", grad_output);
  check_image(kOp, "input", input);
  check_same_type(kOp, "input", input, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const DType dtype = dtype_of(kOp, grad_output);
  check_list(kOp, "kernel_size", kernel_size, 1);
  NNOPS_CHECK(groups > 0 && input.size(1) % groups == 0, kOp,
              ": groups must divide the number of input channels, but got input of sizes ",
              tuple_text(input.sizes()), " and groups=", groups);
  const IntList sizes{grad_output.size(1), input.size(1) / groups, kernel_size[0], kernel_size[1]};
  checked_numel(kOp, sizes);
  Conv2dGeometry g = make_geometry(kOp, input.sizes(), sizes, stride, padding, dilation, groups);
  check_output_sizes(kOp, grad_output, g);
  Tensor grad_weight =
      empty_image(sizes, suggests_channels_last(grad_output) || suggests_channels_last(input),
                  dtype, grad_output);
  g.input = strides_of(input);
  g.weight = strides_of(grad_weight);
  g.output = strides_of(grad_output);
  if (g.n == 0) torch::stable::zero_(grad_weight);
  run(kOp, scope, kBackwardWeight, g, dtype, Images::kAddedUp, [&](auto kernel, const auto& run) {
    kernel(grad_weight.mutable_data_ptr(), grad_output.const_data_ptr(), input.const_data_ptr(), g,
           run.workspace, run.threads);
  });
  return grad_weight;
}

Tensor conv2d_backward_bias(const Tensor& grad_output) {
  constexpr const char* kOp = "conv2d_backward_bias";
  check_image(kOp, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const DType dtype = dtype_of(kOp, grad_output);
  Conv2dGeometry g{};
  g.n = grad_output.size(0);
  g.oc = grad_output.size(1);
  g.oh = grad_output.size(2);
  g.ow = grad_output.size(3);
  g.output = strides_of(grad_output);
  const Tensor grad_bias = empty_contiguous(IntList{g.oc}, dtype, grad_output);
  const auto kernel = kernel_for(kOp, "vector", active_kernels(kTable, scope.isa()).backward_bias,
                                 dtype, scope.isa());
  kernel(grad_bias.mutable_data_ptr(), grad_output.const_data_ptr(), g,
         thread_count(grad_output.numel(), kGrainElements));
  return grad_bias;
}

Strides4 strides_of(const Conv2dProblem::Image& image) {
  return {image.strides[0], image.strides[1], image.strides[2], image.strides[3]};
}

}  // namespace

Partition conv2d_partition(const std::string& op, const Conv2dProblem& problem, int threads) {
  NNOPS_CHECK_VALUE(threads > 0, "conv2d_partition: threads must be positive, but got ", threads);
  for (const auto* image : {&problem.input, &problem.weight, &problem.output}) {
    NNOPS_CHECK_VALUE(image->sizes.size() == 4 && image->strides.size() == 4,
                      "conv2d_partition: tensors must have 4 dimensions, but got sizes ",
                      tuple_text(image->sizes), " and strides ", tuple_text(image->strides));
  }
  Conv2dGeometry g =
      make_geometry(op.c_str(), problem.input.sizes, problem.weight.sizes, problem.stride,
                    problem.padding, problem.dilation, problem.groups);
  g.input = strides_of(problem.input);
  g.weight = strides_of(problem.weight);
  g.output = strides_of(problem.output);
  const auto of = [&](const auto& list) {
    return partition(op.c_str(), list, g, problem.dtype, threads);
  };
  if (op == "conv2d") return of(kForward);
  if (op == "conv2d_backward_input") return of(kBackwardInput);
  if (op == "conv2d_backward_weight") return of(kBackwardWeight);
  NNOPS_CHECK_VALUE(false, "conv2d_partition: no pass of conv2d is called '", op, "'");
  return {};
}

NNOPS_OPERATOR(conv2d,
               "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
               "int[] dilation, int groups, int precision=0) -> Tensor",
               conv2d)
NNOPS_OPERATOR(conv2d_backward_input,
               "(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, "
               "int[] padding, int[] dilation, int groups, int precision=0) -> Tensor",
               conv2d_backward_input)
NNOPS_OPERATOR(conv2d_backward_weight,
               "(Tensor grad_output, Tensor input, SymInt[] kernel_size, int[] stride, "
               "int[] padding, int[] dilation, int groups, int precision=0) -> Tensor",
               conv2d_backward_weight)
NNOPS_OPERATOR(conv2d_backward_bias, "(Tensor grad_output) -> Tensor", conv2d_backward_bias)

}  // namespace nnops
