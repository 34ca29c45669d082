#include "ops/conv2d_winograd.h"

#include "core/check.h"
#include "core/dispatch.h"
#include "ops/conv2d_algorithms.h"
#include "ops/conv2d_precision.h"

namespace nnops {
namespace {

// A pass as Winograd's algorithms see it: sums over `outer` channels for `written` ones, of images
// of height x width pixels.
struct WinogradProblem {
  int64_t outer, written, height, width;
};
WinogradProblem forward_problem(const Conv2dGeometry& g) {
  return {g.c / g.groups, g.oc / g.groups, g.oh, g.ow};
}
WinogradProblem backward_input_problem(const Conv2dGeometry& g) {
  return {g.oc / g.groups, g.c / g.groups, g.h, g.w};
}

std::string has_form(const WinogradForm& form, const Conv2dGeometry& g, DType dtype,
                     const WinogradProblem& problem) {
  // For longer sums the bound on the error was not shown.
  constexpr int64_t kMostChannels = 2048;
  if (dtype == DType::kFloat64) return "float64 is computed directly";
  if (g.kh != form.taps || g.kw != form.taps) {
    return form.taps == 3 ? "the kernel is not 3x3" : "the kernel is not 5x5";
  }
  if (g.stride_h != 1 || g.stride_w != 1) return "the stride is not 1";
  if (g.dilation_h != 1 || g.dilation_w != 1) return "the kernel is dilated";
  if (problem.height < 4 || problem.width < 4) return "the image is smaller than a tile";
  if (problem.outer > kMostChannels) return "a sum goes over more than 2048 channels";
  return is_floating(dtype) ? "" : "it computes floating dtypes only";
}

// Of a channel that is read or written, in a tile: what its transforms cost, in products.
constexpr double kTransformCost = 9;
// A sum of products costs less than this share of a direct sum where it is chosen: the rest is room
// for what the model does not know.
constexpr double kLargestShare = 0.9;
// The same where direct sums are dot products of bfloat16, which cost half as much. Forms of four
// points are never faster than these.
constexpr double kLargestShareOfDots = 0.5;

double tiles_of(const WinogradForm& form, int64_t height, int64_t width) {
  const auto tiles = [&](int64_t size) { return (size + form.outputs - 1) / form.outputs; };
  return static_cast<double>(tiles(height)) * static_cast<double>(tiles(width));
}
double places_of(const WinogradForm& form) {
  return static_cast<double>(form.points() * form.points());
}
double padded(int64_t channels) { return static_cast<double>(whole_vectors(channels)); }
std::string costs_less(const WinogradForm& form, double winograd, double direct, bool has_dots) {
  if (has_dots && form.points() < 6) return "dot products of bfloat16 cost less";
  return winograd < (has_dots ? kLargestShareOfDots : kLargestShare) * direct
             ? ""
             : "a direct sum costs less";
}

// Costs of one image, in multiply-adds. Direct sums pad few channels to nothing, as their vectors
// can run along pixels; Winograd's run along channels. A tile costs its products and its
// transforms; weights are put in order or transformed for the images of a call, of which there may
// be one or many, as if for so many tiles or pixels.
constexpr double kWeightTiles = 3;
double direct_cost(const WinogradForm& form, const WinogradProblem& problem) {
  const auto [outer, written, height, width] = problem;
  const double pixels = static_cast<double>(height) * static_cast<double>(width);
  return static_cast<double>(outer) * static_cast<double>(written) *
         static_cast<double>(form.taps * form.taps) * (pixels + kWeightTiles);
}
double form_cost(const WinogradForm& form, const WinogradProblem& problem) {
  const auto [outer, written, height, width] = problem;
  const double products = static_cast<double>(outer) * padded(written);
  const double transforms = kTransformCost * (padded(outer) + padded(written));
  return places_of(form) *
         ((products + transforms) * tiles_of(form, height, width) + products * kWeightTiles);
}

std::string form_pays(const WinogradForm& form, const WinogradProblem& problem, bool has_dots) {
  const double cost = form_cost(form, problem);
  if (form.taps == 3 && form.outputs > 2 && form_cost(k2x2Of3x3, problem) <= cost) {
    return "winograd_2x2_3x3 costs less";
  }
  return costs_less(form, cost, direct_cost(form, problem), has_dots);
}

}  // namespace

std::string six_points_allowed(const Conv2dGeometry&, DType) {
  return conv_precision() == ConvPrecision::kHighest ? "the precision is 'highest'" : "";
}

std::string winograd_forward_supports(const WinogradForm& form, const Conv2dGeometry& g,
                                      DType dtype) {
  return has_form(form, g, dtype, forward_problem(g));
}
std::string winograd_forward_pays(const WinogradForm& form, const Conv2dGeometry& g, DType dtype) {
  return form_pays(form, forward_problem(g), bfloat16_dots(g, dtype).empty());
}
std::string winograd_backward_input_supports(const WinogradForm& form, const Conv2dGeometry& g,
                                             DType dtype) {
  return has_form(form, g, dtype, backward_input_problem(g));
}
std::string winograd_backward_input_pays(const WinogradForm& form, const Conv2dGeometry& g,
                                         DType dtype) {
  return form_pays(form, backward_input_problem(g), bfloat16_dots(g, dtype).empty());
}

// Sums over the batch have no image that is to be as in any batch: here the choice may depend on
// it. The sums of all tiles are written, read and transformed once a call.
std::string winograd_backward_weight_supports(const WinogradForm& form, const Conv2dGeometry& g,
                                              DType dtype) {
  constexpr int64_t kMostWidth = 1024;  // a row of tiles is the least that is transformed at a time
  if (g.ow > kMostWidth) return "a row has more than 1024 pixels";
  return has_form(form, g, dtype, {1, 1, g.oh, g.ow});
}
std::string winograd_backward_weight_pays(const WinogradForm& form, const Conv2dGeometry& g,
                                          DType dtype) {
  constexpr double kSumTiles = 100;
  constexpr int64_t kBlock = 128;  // channels whose products are computed together
  const auto blocks = [](int64_t channels) {
    const int64_t count = (channels + kBlock - 1) / kBlock;
    return static_cast<double>(count);
  };
  const int64_t outer = g.c / g.groups;
  const int64_t written = g.oc / g.groups;
  const double products = static_cast<double>(written) * padded(outer);
  const double images = static_cast<double>(g.n);
  const double pixels = static_cast<double>(g.oh) * static_cast<double>(g.ow);
  const double transforms =
      kTransformCost * (padded(outer) * blocks(written) + padded(written) * blocks(outer));
  const double direct = static_cast<double>(outer) * static_cast<double>(written) *
                        static_cast<double>(form.taps * form.taps) * images * pixels;
  const double winograd =
      places_of(form) *
      ((products + transforms) * images * tiles_of(form, g.oh, g.ow) + products * kSumTiles);
  return costs_less(form, winograd, direct, bfloat16_dots(g, dtype).empty());
}

}  // namespace nnops
