#include "ops/conv2d_algorithms.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "core/tf32.h"
#include "ops/conv2d_precision.h"
#include "ops/conv2d_winograd.h"

namespace nnops {
namespace {

std::string floating_only(const Conv2dGeometry&, DType dtype) {
  return dtype <= DType::kFloat16 ? "" : "it computes floating dtypes only";
}
std::string everything(const Conv2dGeometry&, DType) { return ""; }

constexpr int64_t kLanes = kConv2dLanes;

// Along one axis: pairs of an output position and a tap that meet inside of the input.
int64_t pairs_inside(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad,
                     int64_t dilation) {
  int64_t pairs = 0;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t to_zero = std::max<int64_t>(pad - tap * dilation, 0);
    const int64_t to_limit = std::max<int64_t>(size + pad - tap * dilation, 0);
    const int64_t first = (to_zero + stride - 1) / stride;
    const int64_t last = std::min(out_size, (to_limit + stride - 1) / stride);
    pairs += std::max<int64_t>(last - first, 0);
  }
  return pairs;
}
double row_pairs_inside(const Conv2dGeometry& g) {
  return static_cast<double>(pairs_inside(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h));
}

// What the choice between pixel_rows and expanded_planes asks of a pass.
struct RowsQuestion {
  int64_t outer, written;  // channels of a group
  int64_t pixels;          // written
  int64_t passes;          // that share what is copied along pixels, each for its share of them
  int64_t columns;         // of the kernel, in a pass
  bool channels_last;      // the written image
  double taps;             // of a written pixel
  double read;             // pixels that are copied for it, along pixels
  double seen;             // share of the kernel rows of all pixels that lie inside of the image
};

// Of images in channels_last order: vectors along channels need no transposition, while planes are
// expanded from transposed channels or, of very few, number by number. Products of vectors, of a
// written pixel and a read channel.
bool channels_pay(const RowsQuestion& q) {
  // Fewer channels, or blocks of fewer in longer sums, are not transposed.
  constexpr int64_t kFewest = 4;
  constexpr double kMostTaps = 32;
  // Of a number.
  constexpr double kTranspose = 0.25;
  constexpr double kGather = 2.7;
  constexpr double kCopy = 0.7;  // for each kernel column
  if (q.outer < kFewest) return q.written >= kLanes / 2;
  const double copy =
      (q.taps <= kMostTaps ? kTranspose : kGather) + kCopy * static_cast<double>(q.columns);
  const double along_channels =
      q.taps * static_cast<double>(whole_vectors(q.written)) * q.seen / kLanes;
  const double along_pixels = q.taps * static_cast<double>(q.written) / kLanes + copy * q.read;
  return along_channels <= along_pixels;
}

// pixel_rows and expanded_planes give the same bits: this is a matter of speed alone. Vectors along
// `written` channels waste what is missing to a multiple of kLanes, vectors along pixels the same
// at an image's end and kernel rows in the padding.
std::string rows_pay(const RowsQuestion& q, int64_t kernel_width, int64_t stride_w) {
  if (q.channels_last) {
    return channels_pay(q) ? "" : "too few channels to have vectors along them";
  }
  const int64_t vectors = whole_vectors(q.written);
  // With one kernel column the planes are copied as they are, which is cheaper than to transpose
  // the sums; so is to copy them once for several passes. With large strides each kernel column
  // gathers them anew.
  const double allowance = q.passes > 1                         ? 5
                           : kernel_width == 1                  ? 7
                           : kernel_width >= 3 && stride_w >= 3 ? 12
                                                                : 9;
  const int64_t along_pixels = whole_vectors(q.pixels / q.passes) * q.passes;
  return static_cast<double>(vectors * q.pixels) * q.seen * 8 <
                 static_cast<double>(along_pixels * q.written) * allowance
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
// vectors, or else for short sums, or, if planes can be expanded cheaply, few channels.
std::string rows_pay_in_forward(const Conv2dGeometry& g, DType dtype) {
  constexpr int64_t kShort = 80;
  constexpr int64_t kShortest = 48;
  const int64_t written = g.oc / g.groups;
  const int64_t terms = g.c / g.groups * g.kh * g.kw;
  const bool whole = g.ow >= 2 * kLanes && whole_vectors(g.ow) * 8 <= g.ow * 9;
  const bool cheap = g.stride_w == 1 ? terms <= kShort || written <= kLanes
                                     : terms <= kShortest && g.oh * g.ow >= 4 * kLanes;
  if (dtype <= DType::kFloat64 && g.output.w == 1 && is_one_chain(g, g.c / g.groups) &&
      (whole || cheap)) {
    return "the sums of one chain go straight to rows of pixels";
  }
  const auto taps = static_cast<double>(g.kh * g.kw);
  const auto stride = static_cast<double>(g.stride_h * g.stride_w);
  return rows_pay({g.c / g.groups, written, g.oh * g.ow, 1, g.kw, g.output.c == 1, taps,
                   std::min(stride, taps), row_pairs_inside(g) / static_cast<double>(g.oh * g.kh)},
                  g.kw, g.stride_w);
}
// Of positions modulo the stride, those that some tap reaches: a pass of backward_input each.
int64_t residues(int64_t stride, int64_t dilation, int64_t kernel) {
  return std::min(stride / std::gcd(stride, dilation), kernel);
}
std::string rows_pay_in_backward_input(const Conv2dGeometry& g, DType) {
  const auto stride = static_cast<double>(g.stride_h * g.stride_w);
  const double seen =
      row_pairs_inside(g) * static_cast<double>(g.stride_h) / static_cast<double>(g.h * g.kh);
  const int64_t width_residues = residues(g.stride_w, g.dilation_w, g.kw);
  const int64_t passes = residues(g.stride_h, g.dilation_h, g.kh) * width_residues;
  // Passes share their planes unless the kernel is dilated far beyond the stride.
  const bool share = g.dilation_h <= 2 * g.stride_h && g.dilation_w <= 2 * g.stride_w;
  return rows_pay({g.oc / g.groups, g.c / g.groups, g.h * g.w, passes,
                   (g.kw + width_residues - 1) / width_residues, g.input.c == 1,
                   static_cast<double>(g.kh * g.kw) / stride,
                   (share ? 1.0 : static_cast<double>(passes)) / stride, std::min(seen, 1.0)},
                  g.kw, 1);
}

// Vectors of pairs cost half of what vectors of numbers do, along channels or pixels: they may be
// empty by half, and a little more.
std::string pair_rows_pay(int64_t written) {
  return 3 * written >= kLanes ? "" : "too few channels to have vectors along them";
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
// How far `count` positions reach that are `distance` apart.
double span(int64_t count, int64_t distance) {
  return static_cast<double>(count - 1) * static_cast<double>(distance) + 1;
}
// Groups whose channels are spread out over the lanes of vectors: `outer` channels a sum goes over,
// rows of `width` pixels, the strides with which a pass reads.
std::string can_spread_groups(const Conv2dGeometry& g, int64_t outer, int64_t width,
                              int64_t stride_h, int64_t stride_w) {
  // What the smallest strip reads, in pixels of one vector: 4 MB.
  constexpr double kMostRead = 1 << 16;
  constexpr int64_t kRows = 4;
  constexpr int64_t kColumns = 256;
  if (!is_one_chain(g, outer)) return "a sum is more than one chain";
  if (outer > 1 && g.dilation_h != 1) return "the kernel is dilated, of more than one channel";
  const double rows = span(kRows, stride_h) + span(g.kh, g.dilation_h) - 1;
  const double columns = span(std::min(width, kColumns), stride_w) + span(g.kw, g.dilation_w) - 1;
  if (static_cast<double>(outer) * rows * columns > kMostRead) {
    return "what is spread out for a few rows leaves the cache";
  }
  return channels_last_images(g);
}
std::string can_spread_in_forward(const Conv2dGeometry& g) {
  return can_spread_groups(g, g.c / g.groups, g.ow, g.stride_h, g.stride_w);
}
std::string can_spread_in_backward_input(const Conv2dGeometry& g) {
  return can_spread_groups(g, g.oc / g.groups, g.w, 1, 1);
}
// Pixels at the edges are computed one by one. grouped_channels copies the padding instead, where
// it can and there are channels for its lanes.
std::string few_pixels_at_edges(const Conv2dGeometry& g, const std::string& cannot_spread) {
  constexpr int64_t kWide = 7;
  return g.kw < kWide || g.c < kLanes / 2 || !cannot_spread.empty()
             ? ""
             : "pixels at the edges are many";
}
// Groups of `outer` and `written` channels.
std::string spreading_groups_pays(const Conv2dGeometry& g, int64_t outer, int64_t written) {
  constexpr const char* kTooFew = "too few channels to have vectors along them";
  if (g.groups * written < kLanes / 2) return kTooFew;
  if (outer == 1 && written % kLanes != 0) return "";
  if (g.groups * outer < kLanes / 2) return kTooFew;
  if (written <= 2 && g.groups * written >= kLanes) return "";
  // With strides most of what is spread out is read by few outputs.
  return std::max(outer, written) < (g.stride_h * g.stride_w == 1 ? kLanes : kLanes / 2)
             ? ""
             : "a group has enough channels for vectors of its own";
}
// Of several output channels to an input channel, each one's dot products gather the strided
// pixels, or those of a channels_last image, anew for each kernel column.
std::string dots_pay(const Conv2dGeometry& g) {
  constexpr int64_t kMostFilters = 4;
  const int64_t filters = g.oc / g.groups;
  if (filters > kMostFilters) return "enough output channels share an input channel";
  const bool gathers = g.input.c == 1 ? g.stride_w > 1 || g.kw == 1 : g.stride_w > 2;
  return filters > 1 && gathers ? "outer products gather the pixels once for all output channels"
                                : "";
}
std::string fits_transposed(const Conv2dGeometry& g, int64_t most_pixels) {
  if (g.c < 8) return "too few channels to have vectors along them";
  return g.h * g.w + g.oh * g.ow <= most_pixels ? "" : "rows are long enough to go along them";
}
// Small images are computed with the channels side by side, in the cache; larger ones too where
// there is much to compute.
std::string weight_fits_transposed(const Conv2dGeometry& g) {
  constexpr int64_t kManyTaps = 20;
  return fits_transposed(g, g.kh * g.kw >= kManyTaps ? 2048 : 1024);
}
// Forward and backward_input: along rows only square kernels of 3, 5 and 7 taps a side are
// unrolled, and pixels at strides are gathered.
std::string image_fits_transposed(const Conv2dGeometry& g) {
  constexpr int64_t kSmall = 1024;
  const int64_t taps = g.kh * g.kw;
  const int64_t stride = std::max(g.stride_h, g.stride_w);
  if (whole_vectors(g.c) * 5 > g.c * 6) return fits_transposed(g, kSmall);
  if (stride > 2) return fits_transposed(g, 64 * kSmall);
  if (taps > 49 || (stride == 2 && taps >= 25)) return fits_transposed(g, 16 * kSmall);
  const bool unrolled = g.kh == g.kw && (g.kh == 3 || g.kh == 5 || g.kh == 7) &&
                        g.dilation_h == 1 && g.dilation_w == 1 && g.stride_h == g.stride_w;
  if (!unrolled) return fits_transposed(g, 8 * kSmall);
  const bool short_rows = whole_vectors(g.ow) * 3 > g.ow * 4;
  return fits_transposed(g, short_rows && taps >= 25 ? 2 * kSmall : kSmall);
}
// The outputs of several filters to an input channel share what is copied of it, but along rows of
// one filter at a time; the unrolled kernels make up for it.
std::string filters_pay_one_by_one(const Conv2dGeometry& g) {
  const int64_t filters = g.oc / g.groups;
  const bool square = g.kh == g.kw && g.dilation_h == 1 && g.dilation_w == 1 &&
                      g.stride_h == g.stride_w && g.stride_h <= 2;
  const int64_t most = g.kh * g.kw == 1      ? 4
                       : !square || g.kh > 5 ? 1
                       : g.kh == 5           ? 2
                       : g.stride_h == 2     ? 12
                                             : 64;
  return filters <= most ? "" : "enough output channels share an input channel";
}

double weights_of_group(const Conv2dGeometry& g) {
  const int64_t channels = g.c / g.groups;
  const int64_t filters = g.oc / g.groups;
  return static_cast<double>(filters) * static_cast<double>(channels) *
         static_cast<double>(g.kh * g.kw);
}
// Dot products of planes, with vectors along the rows of grad_output, want most lanes of these to
// be pixels, and the sums, a vector each, to stay in the cache. They spare outer products'
// transposing, which is little beside the products of many columns.
std::string plane_dots_support(const Conv2dGeometry& g, DType dtype) {
  constexpr double kMostSums = 1 << 16;
  if (g.kw > kConv2dLongestChain) return "too many columns of the kernel";
  if (weights_of_group(g) > kMostSums) return "the sums of a group's weights leave the cache";
  return floating_only(g, dtype);
}
std::string plane_dots_pay(const Conv2dGeometry& g, DType dtype) {
  constexpr int64_t kMostColumns = 48;
  constexpr double kMostSums = 4096;
  if (g.input.w != 1 || g.output.w != 1) return "rows of pixels are not dense in both images";
  if (element_size(dtype) < 4) return "grad_output must be widened, which can transpose it too";
  if (g.c / g.groups * g.kh * g.kw > kMostColumns) return "a filter has more than 48 numbers";
  if (weights_of_group(g) > kMostSums) return "a group has more than 4096 weights";
  return g.ow * 5 >= whole_vectors(g.ow) * 4 ? "" : "rows of grad_output leave vectors empty";
}

// How the images of a batch are lanes: `outer` channels are read for rows of `width` pixels, each
// `step` from the one before, and written with `strides`.
std::string can_be_lanes(const Conv2dGeometry& g, DType dtype, int64_t outer, int64_t width,
                         int64_t step, const Strides4& strides) {
  // With more, a chain of whole channels may be too long.
  constexpr int64_t kMostTaps = 64;
  // What is read for one row of 16 images, in pixels of all channels: 2 MB.
  constexpr double kMostRead = 1 << 15;
  if (dtype != DType::kFloat32) return "it computes float32 only";
  if (strides.w != 1 || strides.h != width) return "what it writes is not row-major";
  if (g.kh > kMostTaps || g.kw > kMostTaps || g.kh * g.kw > kMostTaps) {
    return "the kernel has more than 64 taps";
  }
  const double columns = span(width, step) + span(g.kw, g.dilation_w) - 1;
  return static_cast<double>(outer) * span(g.kh, g.dilation_h) * columns <= kMostRead
             ? ""
             : "what 16 images read for a row leaves the cache";
}
std::string image_lanes_forward_supports(const Conv2dGeometry& g, DType dtype) {
  return can_be_lanes(g, dtype, g.c / g.groups, g.ow, g.stride_w, g.output);
}
std::string image_lanes_backward_input_supports(const Conv2dGeometry& g, DType dtype) {
  if (g.stride_h != 1 || g.stride_w != 1) return "the stride is not 1";
  return can_be_lanes(g, dtype, g.oc / g.groups, g.w, 1, g.input);
}
// Large maps fill vectors along their pixels, many channels those along channels, and both leave
// the cache where 16 images come together. Lanes without an image cost what others do; padding
// costs nothing, but in the other direct algorithms, which compute all of the `padded` pairs of a
// pixel and a tap. As these give the same bits, the choice may look at the batch. A sum has
// `terms`, a written row `width` pixels.
std::string image_lanes_pay(const Conv2dGeometry& g, int64_t terms, int64_t width, double padded) {
  constexpr int64_t kMostPixels = 400;
  constexpr int64_t kMostNumbers = 1 << 14;  // of an image, read and written
  constexpr int64_t kMostWeights = 1 << 18;
  constexpr int64_t kFewTerms = 32;
  const int64_t pixels = std::max(g.h * g.w, g.oh * g.ow);
  if (pixels > kMostPixels) return "rows are long enough to go along them";
  if (g.c * g.h * g.w + g.oc * g.oh * g.ow >= kMostNumbers ||
      g.oc * (g.c / g.groups) * g.kh * g.kw > kMostWeights) {
    return "16 images and the weights leave the cache";
  }
  if (terms < kFewTerms && width % kLanes == 0) return "short sums, and rows of whole vectors";
  const auto inside =
      static_cast<double>(pairs_inside(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h) *
                          pairs_inside(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w));
  return static_cast<double>(whole_vectors(g.n)) * inside * 7 <=
                 static_cast<double>(g.n) * padded * 8
             ? ""
             : "too many lanes would have no image";
}
std::string image_lanes_pay_in_forward(const Conv2dGeometry& g, DType) {
  return image_lanes_pay(g, g.c / g.groups * g.kh * g.kw, g.ow,
                         static_cast<double>(g.oh * g.ow) * static_cast<double>(g.kh * g.kw));
}
std::string image_lanes_pay_in_backward_input(const Conv2dGeometry& g, DType) {
  return image_lanes_pay(g, g.oc / g.groups * g.kh * g.kw, g.w,
                         static_cast<double>(g.h * g.w) * static_cast<double>(g.kh * g.kw));
}

// A question of conv2d_winograd.h, asked for one form.
template <const WinogradForm& kForm, auto kQuestion>
std::string of_form(const Conv2dGeometry& g, DType dtype) {
  return kQuestion(kForm, g, dtype);
}

constexpr Conv2dCandidate<Conv2dForward> kForwardCpu[] = {
    {"depthwise_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(channels_last_images(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::forward_depthwise_channels,
     [](const Conv2dGeometry& g, DType) {
       return few_pixels_at_edges(g, can_spread_in_forward(g));
     }},
    {"depthwise_transposed",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.output.w != 1 ? "the output is not row-major" : one_channel_each_way(g, dtype);
     },
     &Conv2dKernels::forward_depthwise_transposed,
     [](const Conv2dGeometry& g, DType) { return image_fits_transposed(g); }},
    {"depthwise_rows",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.output.w != 1 ? "the output is not row-major" : one_input_channel(g, dtype);
     },
     &Conv2dKernels::forward_depthwise_rows,
     [](const Conv2dGeometry& g, DType) { return filters_pay_one_by_one(g); }},
    {"grouped_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(floating_only(g, dtype), can_spread_in_forward(g));
     },
     &Conv2dKernels::forward_grouped_channels,
     [](const Conv2dGeometry& g, DType) {
       return spreading_groups_pays(g, g.c / g.groups, g.oc / g.groups);
     }},
    {"winograd_4x4_3x3", of_form<k4x4Of3x3, winograd_forward_supports>,
     &Conv2dKernels::forward_winograd_4x4_3x3, of_form<k4x4Of3x3, winograd_forward_pays>,
     six_points_allowed},
    {"winograd_2x2_5x5", of_form<k2x2Of5x5, winograd_forward_supports>,
     &Conv2dKernels::forward_winograd_2x2_5x5, of_form<k2x2Of5x5, winograd_forward_pays>,
     six_points_allowed},
    {"winograd_2x2_3x3", of_form<k2x2Of3x3, winograd_forward_supports>,
     &Conv2dKernels::forward_winograd_2x2_3x3, of_form<k2x2Of3x3, winograd_forward_pays>},
    {"image_lanes", image_lanes_forward_supports, &Conv2dKernels::forward_image_lanes,
     image_lanes_pay_in_forward},
    {"pair_rows", bfloat16_dots, &Conv2dKernels::forward_pair_rows,
     [](const Conv2dGeometry& g, DType) { return pair_rows_pay(g.oc / g.groups); }},
    {"pixel_rows", floating_only, &Conv2dKernels::forward_pixel_rows, rows_pay_in_forward},
    {"expanded_planes", floating_only, &Conv2dKernels::forward_expanded_planes},
    {"reference", everything, &Conv2dKernels::forward_reference},
};
constexpr Conv2dCandidate<Conv2dBackwardInput> kBackwardInputCpu[] = {
    {"depthwise_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(channels_last_images(g),
                           first_reason(stride_one_or_two(g), one_channel_each_way(g, dtype)));
     },
     &Conv2dKernels::backward_input_depthwise_channels,
     [](const Conv2dGeometry& g, DType) {
       return few_pixels_at_edges(g, can_spread_in_backward_input(g));
     }},
    {"depthwise_transposed",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.input.w != 1 ? "the gradient is not row-major"
                             : first_reason(stride_one_or_two(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::backward_input_depthwise_transposed,
     [](const Conv2dGeometry& g, DType) { return image_fits_transposed(g); }},
    {"depthwise_rows",
     [](const Conv2dGeometry& g, DType dtype) {
       return g.input.w != 1 ? "the gradient is not row-major"
                             : first_reason(stride_one_or_two(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::backward_input_depthwise_rows},
    {"grouped_channels",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(floating_only(g, dtype), can_spread_in_backward_input(g));
     },
     &Conv2dKernels::backward_input_grouped_channels,
     [](const Conv2dGeometry& g, DType) {
       return spreading_groups_pays(g, g.oc / g.groups, g.c / g.groups);
     }},
    {"winograd_4x4_3x3", of_form<k4x4Of3x3, winograd_backward_input_supports>,
     &Conv2dKernels::backward_input_winograd_4x4_3x3,
     of_form<k4x4Of3x3, winograd_backward_input_pays>, six_points_allowed},
    {"winograd_2x2_5x5", of_form<k2x2Of5x5, winograd_backward_input_supports>,
     &Conv2dKernels::backward_input_winograd_2x2_5x5,
     of_form<k2x2Of5x5, winograd_backward_input_pays>, six_points_allowed},
    {"winograd_2x2_3x3", of_form<k2x2Of3x3, winograd_backward_input_supports>,
     &Conv2dKernels::backward_input_winograd_2x2_3x3,
     of_form<k2x2Of3x3, winograd_backward_input_pays>},
    {"image_lanes", image_lanes_backward_input_supports, &Conv2dKernels::backward_input_image_lanes,
     image_lanes_pay_in_backward_input},
    {"pair_rows", bfloat16_dots, &Conv2dKernels::backward_input_pair_rows,
     [](const Conv2dGeometry& g, DType) { return pair_rows_pay(g.c / g.groups); }},
    {"pixel_rows", floating_only, &Conv2dKernels::backward_input_pixel_rows,
     rows_pay_in_backward_input},
    {"expanded_planes", floating_only, &Conv2dKernels::backward_input_expanded_planes},
    {"reference", everything, &Conv2dKernels::backward_input_reference},
};
constexpr Conv2dCandidate<Conv2dBackwardWeight> kBackwardWeightCpu[] = {
    {"depthwise_channel_dots",
     [](const Conv2dGeometry& g, DType dtype) {
       return first_reason(channels_last_images(g), one_channel_each_way(g, dtype));
     },
     &Conv2dKernels::backward_weight_depthwise_channel_dots},
    {"depthwise_transposed", one_channel_each_way,
     &Conv2dKernels::backward_weight_depthwise_transposed,
     [](const Conv2dGeometry& g, DType) { return weight_fits_transposed(g); }},
    {"depthwise_dots",
     [](const Conv2dGeometry& g, DType dtype) -> std::string {
       if (g.c != g.groups) return "more than one input channel a group";
       if (g.kw > kConv2dLongestChain) return "too many columns of the kernel";
       return floating_only(g, dtype);
     },
     &Conv2dKernels::backward_weight_depthwise_dots,
     [](const Conv2dGeometry& g, DType) { return dots_pay(g); }},
    {"plane_dots", plane_dots_support, &Conv2dKernels::backward_weight_plane_dots, plane_dots_pay},
    {"winograd_4x4_3x3", of_form<k4x4Of3x3, winograd_backward_weight_supports>,
     &Conv2dKernels::backward_weight_winograd_4x4_3x3,
     of_form<k4x4Of3x3, winograd_backward_weight_pays>, six_points_allowed},
    {"winograd_2x2_5x5", of_form<k2x2Of5x5, winograd_backward_weight_supports>,
     &Conv2dKernels::backward_weight_winograd_2x2_5x5,
     of_form<k2x2Of5x5, winograd_backward_weight_pays>, six_points_allowed},
    {"winograd_2x2_3x3", of_form<k2x2Of3x3, winograd_backward_weight_supports>,
     &Conv2dKernels::backward_weight_winograd_2x2_3x3,
     of_form<k2x2Of3x3, winograd_backward_weight_pays>},
    {"pair_products", bfloat16_dots, &Conv2dKernels::backward_weight_pair_products},
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
  const Conv2dKernels& kernels = *kConv2dTable.per_isa[static_cast<int>(Isa::kCuda)];
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

constexpr Conv2dCandidate<Conv2dForward> kForwardCuda[] = {
    {"direct",
     [](const Conv2dGeometry& g, DType dtype) { return fits_direct(g, dtype, g.c / g.groups); },
     &Conv2dKernels::forward_direct, few_channels_in_groups},
    {"tensor_cores", tensor_cores, &Conv2dKernels::forward_tensor_cores, forward_tiles_pay},
    {"tensor_cores_tf32", tensor_cores_tf32, &Conv2dKernels::forward_tensor_cores,
     forward_tiles_pay},
    {"implicit_gemm", floating_and_fits_32_bits, &Conv2dKernels::forward_implicit_gemm},
    {"reference", everything, &Conv2dKernels::forward_reference},
};
constexpr Conv2dCandidate<Conv2dBackwardInput> kBackwardInputCuda[] = {
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
constexpr Conv2dCandidate<Conv2dBackwardWeight> kBackwardWeightCuda[] = {
    {"direct", floating_and_fits_32_bits, &Conv2dKernels::backward_weight_direct,
     few_channels_in_groups},
    {"tensor_cores", tensor_cores, &Conv2dKernels::backward_weight_tensor_cores,
     backward_weight_tiles_pay},
    {"tensor_cores_tf32", tensor_cores_tf32, &Conv2dKernels::backward_weight_tensor_cores,
     backward_weight_tiles_pay},
    {"implicit_gemm", floating_and_fits_32_bits, &Conv2dKernels::backward_weight_implicit_gemm},
    {"reference", everything, &Conv2dKernels::backward_weight_reference},
};

}  // namespace

std::string bfloat16_dots(const Conv2dGeometry&, DType dtype) {
  if (dtype != DType::kBFloat16) return "it computes bfloat16 only";
  if (active_isa() != Isa::kAvx512) return "the ISA level is not avx512";
  return cpu_has_bfloat16_dots() ? "" : "this CPU has no AVX512_BF16";
}

constinit const Conv2dCandidates<Conv2dForward> kConv2dForward{kForwardCpu, kForwardCuda};
constinit const Conv2dCandidates<Conv2dBackwardInput> kConv2dBackwardInput{kBackwardInputCpu,
                                                                           kBackwardInputCuda};
constinit const Conv2dCandidates<Conv2dBackwardWeight> kConv2dBackwardWeight{kBackwardWeightCpu,
                                                                             kBackwardWeightCuda};

namespace {

template <typename Pass>
RegisterAlgorithms registered(const char* op, const Conv2dCandidates<Pass>& candidates) {
  return {op, names_of(candidates.cpu), names_of(candidates.cuda)};
}
const RegisterAlgorithms kRegistered[] = {
    registered("conv2d", kConv2dForward),
    registered("conv2d_backward_input", kConv2dBackwardInput),
    registered("conv2d_backward_weight", kConv2dBackwardWeight),
};

}  // namespace

}  // namespace nnops
