// nnops::max_pool2d, with offsets or indices beside it, and their derivatives: checks, geometry,
// allocation and the call.
#include "ops/max_pool2d.h"

#include <algorithm>
#include <tuple>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "ops/image.h"
#include "ops/max_pool2d_call.h"

namespace nnops {
namespace {

using Ints = std::vector<int64_t>;

using BackwardChoice =
    Algorithm<MaxPool2dKernels, PerDType<MaxPool2dKernels::Backward>, Pool2dGeometry>;

// What "rows" and "channels" ask for alike: places inside a plane are kept in lanes of 32 bits.
std::string vector_reason(const Pool2dGeometry& g, DType dtype) {
  if (!is_floating(dtype)) return "only for floating dtypes";
  const bool narrow = g.h + g.pad_h <= INT32_MAX / g.w;
  return narrow ? "" : "only for planes below 2**31 elements";
}

std::string supports_rows(const Pool2dGeometry& g, DType dtype) {
  if (g.channels_last) return "only for row-major output";
  if (g.input_strides[3] != 1 && g.w > 1) return "only for input with contiguous rows";
  if (g.dilation_w != 1) return "only for dilation 1 along the rows";
  if (g.stride_w > 2) return "only for stride 1 and 2 along the rows";
  if (g.kernel_w < g.stride_w) return "only for windows without gaps along the rows";
  return vector_reason(g, dtype);
}

std::string supports_channels(const Pool2dGeometry& g, DType dtype) {
  if (!g.channels_last) return "only for channels_last output";
  if (g.input_strides[1] != 1) return "only for input with contiguous channels";
  return vector_reason(g, dtype);
}

std::string supports_all(const Pool2dGeometry&, DType) { return ""; }

std::string supports_whole_tiles(const Pool2dGeometry& g, DType) {
  const bool tiles = g.kernel_h == 2 && g.kernel_w == 2 && g.stride_h == 2 && g.stride_w == 2 &&
                     g.dilation_h == 1 && g.dilation_w == 1 && g.pad_h == 0 && g.pad_w == 0;
  if (!tiles) return "only for 2x2 windows of stride 2 without padding and dilation";
  return 2 * g.oh > g.h || 2 * g.ow > g.w ? "only without windows that hang over the end" : "";
}

// CUDA, forward and backward: threads take two rows of 16 bytes.
std::string supports_pairs(const Pool2dGeometry& g, DType dtype) {
  if (!is_floating(dtype)) return "only for floating dtypes";
  if (g.channels_last) return "only for row-major output";
  if (g.w % (16 / element_size(dtype)) != 0) return "only for rows of whole 16 bytes";
  return supports_whole_tiles(g, dtype);
}

constexpr MaxPool2dForwardChoice kForwardCpu[] = {
    {"rows", supports_rows, &MaxPool2dKernels::rows},
    {"channels", supports_channels, &MaxPool2dKernels::channels},
    {"tiles", supports_all, &MaxPool2dKernels::tiles},
};
constexpr MaxPool2dForwardChoice kForwardCuda[] = {
    {"pairs", supports_pairs, &MaxPool2dKernels::pairs},
    {"windows", supports_all, &MaxPool2dKernels::windows},
};

}  // namespace

constinit const AlgorithmsByDevice<MaxPool2dForwardChoice> kMaxPool2dForward{kForwardCpu,
                                                                             kForwardCuda};

namespace {

const RegisterAlgorithms kForwardNames("max_pool2d", names_of(kMaxPool2dForward.cpu),
                                       names_of(kMaxPool2dForward.cuda));

std::string supports_backward_shifts(const Pool2dGeometry& g, DType) {
  if (g.stride_h != 1 || g.stride_w != 1) return "only for stride 1";
  if (g.oh != g.h || g.ow != g.w) return "only for output of the input's size";
  constexpr int64_t kMostTaps = 64;  // each costs every element a comparison
  return g.kernel_h * g.kernel_w > kMostTaps ? "only for windows of at most 64 elements" : "";
}

std::string supports_backward_phases(const Pool2dGeometry& g, DType dtype) {
  if (g.channels_last) return "only for row-major gradients";
  if (g.kernel_h != 3 || g.kernel_w != 3) return "only for kernel 3x3";
  if (g.stride_h != 2 || g.stride_w != 2) return "only for stride 2";
  if (g.dilation_h != 1 || g.dilation_w != 1) return "only for dilation 1";
  // Two of them are scattered.
  if (g.n * g.c < 8) return "only for 8 planes or more";
  // Vectors of narrow rows are half empty; with padding scatter's checks cost more than that.
  const bool padded = g.pad_h > 0 || g.pad_w > 0;
  const int64_t least = dtype == DType::kFloat32 ? 6 : 8;
  if (g.ow < least && !padded)
    return "only for rows of at least 6 windows (8 but in float32), or with padding";
  if (g.oh * g.ow < g.ow + kPhaseReach) return "only for planes of a row and 16 windows or more";
  return g.ow > kMostPhaseColumns ? "only for rows of at most 512 windows" : "";
}

std::string supports_backward_channels(const Pool2dGeometry& g, DType) {
  if (!g.channels_last) return "only for channels_last gradients";
  return g.dilation_h != 1 || g.dilation_w != 1 ? "only for dilation 1" : "";
}

constexpr BackwardChoice kBackwardCpu[] = {
    {"tiles", supports_whole_tiles, &MaxPool2dKernels::backward_tiles},
    {"shifts", supports_backward_shifts, &MaxPool2dKernels::backward_shifts},
    {"phases", supports_backward_phases, &MaxPool2dKernels::backward_phases},
    {"channels", supports_backward_channels, &MaxPool2dKernels::backward_channels},
    {"scatter", supports_all, &MaxPool2dKernels::backward_scatter},
};
constexpr BackwardChoice kBackwardCuda[] = {
    {"pairs", supports_pairs, &MaxPool2dKernels::backward_pairs},
    {"gather", supports_all, &MaxPool2dKernels::backward_gather},
};
constexpr AlgorithmsByDevice<BackwardChoice> kBackward{kBackwardCpu, kBackwardCuda};
const RegisterAlgorithms kBackwardNames("max_pool2d_backward", names_of(kBackward.cpu),
                                        names_of(kBackward.cuda));

void set_strides(int64_t (&strides)[4], const Tensor& tensor) {
  const Sizes given = tensor.strides();
  const size_t missing = 4 - given.size();
  strides[0] = 0;
  for (size_t i = 0; i < given.size(); ++i) strides[missing + i] = given[i];
}

// (n, c, height, width) of a tensor with or without its batch dimension.
std::array<int64_t, 4> image_sizes(const Tensor& tensor) {
  const Sizes sizes = tensor.sizes();
  const size_t missing = 4 - sizes.size();
  std::array<int64_t, 4> result{1, 1, 1, 1};
  for (size_t i = 0; i < sizes.size(); ++i) result[missing + i] = sizes[i];
  return result;
}

void check_image(const char* op, const char* name, const Tensor& tensor) {
  check_device(op, name, tensor);
  const Sizes sizes = tensor.sizes();
  NNOPS_CHECK(sizes.size() == 3 || sizes.size() == 4, op, ": ", name,
              " must be (C, H, W) or (N, C, H, W), but got a tensor of sizes ", tuple_text(sizes));
  NNOPS_CHECK(std::find(sizes.end() - 3, sizes.end(), 0) == sizes.end(), op, ": ", name,
              " may be empty in its batch dimension only, but got a tensor of sizes ",
              tuple_text(sizes));
  checked_numel(op, sizes);
}

// What the window arithmetic may hold without overflow; only an expanded tensor can be larger.
void check_extent(const char* op, int64_t height, int64_t width) {
  constexpr int64_t kMost = int64_t{1} << 60;
  NNOPS_CHECK(height <= kMost && width <= kMost, op,
              ": height and width must be at most 2**60, but got ", pair_text(height, width));
}

struct Forward {
  Tensor output;
  Tensor record;
};

// `record_dtype` is the dtype of what is recorded beside the output, if anything.
Forward run_forward(
    const char* name, const Tensor& input, const Ints& kernel_size, const Ints& stride,
    const Ints& padding, const Ints& dilation, bool ceil_mode, std::optional<DType> record_dtype,
    PerDType<MaxPool2dKernels::Forward> MaxPool2dKernels::ForwardAlgorithm::* form) {
  constexpr const char* kOp = "max_pool2d";  // what the caller knows it by
  check_image(kOp, "input", input);
  const DeviceScope scope(input);
  Pool2dGeometry g = pool2d_window(kOp, kernel_size, stride, padding, dilation);
  const auto [n, c, h, w] = image_sizes(input);
  set_pool2d_sizes(kOp, g, n, c, h, w, ceil_mode);
  const DType dtype = dtype_of(kOp, input);
  if (record_dtype == DType::kUInt8) check_offset_window(name, g);

  const Ints sizes = resized(input, g.oh, g.ow);
  const int64_t count = checked_numel(kOp, sizes);
  g.channels_last = suggests_channels_last(input);
  Forward result{empty_image(sizes, g.channels_last, dtype, input), Tensor()};
  void* record = nullptr;
  if (record_dtype) {
    result.record = empty_image(sizes, g.channels_last, *record_dtype, input);
    record = result.record.mutable_data_ptr();
  }
  set_strides(g.input_strides, input);
  set_strides(g.output_strides, result.output);
  if (record_dtype != DType::kInt64 && !scope.on_cuda()) stack_planes(g);
  const MaxPool2dForwardChoice& choice =
      choose_algorithm(kOp, kMaxPool2dForward.of(scope.isa()), g, dtype);
  const auto kernel = kernel_for(name, choice.name,
                                 (active_kernels(kMaxPool2dTable, scope.isa()).*choice.entry).*form,
                                 dtype, scope.isa());
  if (count > 0) {
    kernel(result.output.mutable_data_ptr(), record, input.const_data_ptr(), g,
           thread_count(pool2d_work(g), kGrainElements));
  }
  return result;
}

Tensor max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                  const Ints& padding, const Ints& dilation, bool ceil_mode) {
  return run_forward("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode,
                     std::nullopt, &MaxPool2dKernels::ForwardAlgorithm::values)
      .output;
}

std::tuple<Tensor, Tensor> max_pool2d_with_offsets(const Tensor& input, const Ints& kernel_size,
                                                   const Ints& stride, const Ints& padding,
                                                   const Ints& dilation, bool ceil_mode) {
  Forward result =
      run_forward("max_pool2d_with_offsets", input, kernel_size, stride, padding, dilation,
                  ceil_mode, DType::kUInt8, &MaxPool2dKernels::ForwardAlgorithm::offsets);
  return {result.output, result.record};
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& input, const Ints& kernel_size,
                                                   const Ints& stride, const Ints& padding,
                                                   const Ints& dilation, bool ceil_mode) {
  Forward result =
      run_forward("max_pool2d_with_indices", input, kernel_size, stride, padding, dilation,
                  ceil_mode, DType::kInt64, &MaxPool2dKernels::ForwardAlgorithm::indices);
  return {result.output, result.record};
}

// The geometry of a problem that is known by its offsets and the height and width of its input;
// strides are left to the caller.
Pool2dGeometry offsets_geometry(const char* op, const Tensor& offsets, int64_t height,
                                int64_t width, const Ints& kernel_size, const Ints& stride,
                                const Ints& padding, const Ints& dilation) {
  check_image(op, "offsets", offsets);
  NNOPS_CHECK(dtype_of(op, offsets) == DType::kUInt8, op,
              ": offsets must be of dtype uint8, but got ", dtype_name(dtype_of(op, offsets)));
  Pool2dGeometry g = pool2d_window(op, kernel_size, stride, padding, dilation);
  check_offset_window(op, g);
  check_extent(op, height, width);
  const auto [n, c, oh, ow] = image_sizes(offsets);
  g.n = n;
  g.c = c;
  g.h = height;
  g.w = width;
  g.oh = oh;
  g.ow = ow;
  const auto fits = [](int64_t count, int64_t size, int64_t kernel, int64_t step, int64_t pad,
                       int64_t gap) {
    return count == pool2d_output_size(size, kernel, step, pad, gap, false) ||
           count == pool2d_output_size(size, kernel, step, pad, gap, true);
  };
  NNOPS_CHECK(height > 0 && width > 0 &&
                  fits(oh, height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h) &&
                  fits(ow, width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w),
              op, ": offsets of size ", pair_text(oh, ow), " do not belong to an input of size ",
              pair_text(height, width), " with kernel_size=", tuple_text(kernel_size),
              ", stride=", tuple_text(stride), ", padding=", tuple_text(padding),
              ", dilation=", tuple_text(dilation));
  g.channels_last = suggests_channels_last(offsets);
  return g;
}

void check_offsets_were_right(const char* op, int64_t wrong, const Tensor& offsets) {
  NNOPS_CHECK(wrong < 0, op, ": offsets must point into the window and the input, but got ",
              int64_t{static_cast<const uint8_t*>(on_host(offsets).const_data_ptr())[wrong]},
              " at position ", wrong, " of their memory");
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding,
                           const Ints& dilation) {
  constexpr const char* kOp = "max_pool2d_backward";
  NNOPS_CHECK(input_size.size() == 2, kOp, ": input_size must be (height, width), but got ",
              tuple_text(input_size));
  Pool2dGeometry g = offsets_geometry(kOp, offsets, input_size[0], input_size[1], kernel_size,
                                      stride, padding, dilation);
  check_device(kOp, "grad_output", grad_output);
  check_same_device(kOp, "grad_output", grad_output, "offsets", offsets);
  const DeviceScope scope(offsets);
  NNOPS_CHECK(same_sizes(grad_output, offsets), kOp,
              ": grad_output and offsets must have the same sizes, but got ",
              tuple_text(grad_output.sizes()), " and ", tuple_text(offsets.sizes()));
  const DType dtype = dtype_of(kOp, grad_output);
  const Ints sizes = resized(offsets, g.h, g.w);
  const int64_t count = checked_numel(kOp, sizes);
  Tensor grad_input = empty_image(sizes, g.channels_last, dtype, offsets);
  if (count == 0) return grad_input;

  const Tensor codes = packed_image(offsets, g.channels_last);
  const Tensor gy = packed_image(grad_output, g.channels_last);
  set_strides(g.input_strides, grad_input);
  set_strides(g.output_strides, codes);
  const BackwardChoice& choice = choose_algorithm(kOp, kBackward.of(scope.isa()), g, dtype);
  // The others split their work by planes.
  if (choice.entry == &MaxPool2dKernels::backward_tiles) stack_planes(g);
  const auto kernel =
      kernel_for(kOp, choice.name, active_kernels(kMaxPool2dTable, scope.isa()).*choice.entry,
                 dtype, scope.isa());
  const int threads = thread_count(count, kGrainElements);
  std::optional<SumScratch> scratch;
  if (choice.entry == &MaxPool2dKernels::backward_scatter ||
      choice.entry == &MaxPool2dKernels::backward_phases) {
    scratch.emplace(scope, dtype, threads, g.channels_last ? std::min(g.c, kChannelBlock) : 1, g.h,
                    g.w, offsets);
  }
  const int64_t wrong = kernel(grad_input.mutable_data_ptr(), gy.const_data_ptr(),
                               static_cast<const uint8_t*>(codes.const_data_ptr()),
                               scratch ? scratch->data() : nullptr, g, threads);
  check_offsets_were_right(kOp, wrong, codes);
  return grad_input;
}

Tensor max_pool2d_gather(const Tensor& input, const Tensor& offsets, const Ints& kernel_size,
                         const Ints& stride, const Ints& padding, const Ints& dilation) {
  constexpr const char* kOp = "max_pool2d_gather";
  check_image(kOp, "input", input);
  const DeviceScope scope(input);
  const auto [n, c, h, w] = image_sizes(input);
  Pool2dGeometry g = offsets_geometry(kOp, offsets, h, w, kernel_size, stride, padding, dilation);
  check_same_device(kOp, "offsets", offsets, "input", input);
  NNOPS_CHECK(input.dim() == offsets.dim() && n == g.n && c == g.c, kOp,
              ": input and offsets must have the same batch and channels, but got sizes ",
              tuple_text(input.sizes()), " and ", tuple_text(offsets.sizes()));
  const DType dtype = dtype_of(kOp, input);
  const auto kernel = kernel_for(
      kOp, "offsets", active_kernels(kMaxPool2dTable, scope.isa()).gather, dtype, scope.isa());
  Tensor output = empty_image(offsets.sizes(), g.channels_last, dtype, offsets);
  const int64_t count = offsets.numel();
  if (count == 0) return output;

  const Tensor codes = packed_image(offsets, g.channels_last);
  set_strides(g.input_strides, input);
  set_strides(g.output_strides, output);
  const int64_t wrong = kernel(output.mutable_data_ptr(), input.const_data_ptr(),
                               static_cast<const uint8_t*>(codes.const_data_ptr()), g,
                               thread_count(count, kGrainElements));
  check_offsets_were_right(kOp, wrong, codes);
  return output;
}

}  // namespace

#define NNOPS_WINDOW "int[] kernel_size, int[] stride, int[] padding, int[] dilation"

NNOPS_OPERATOR(max_pool2d, "(Tensor input, " NNOPS_WINDOW ", bool ceil_mode) -> Tensor", max_pool2d)
NNOPS_OPERATOR(max_pool2d_with_offsets,
               "(Tensor input, " NNOPS_WINDOW ", bool ceil_mode) -> (Tensor, Tensor)",
               max_pool2d_with_offsets)
NNOPS_OPERATOR(max_pool2d_with_indices,
               "(Tensor input, " NNOPS_WINDOW ", bool ceil_mode) -> (Tensor, Tensor)",
               max_pool2d_with_indices)
NNOPS_OPERATOR(max_pool2d_backward,
               "(Tensor grad_output, Tensor offsets, SymInt[] input_size, " NNOPS_WINDOW
               ") -> Tensor",
               max_pool2d_backward)
NNOPS_OPERATOR(max_pool2d_gather, "(Tensor input, Tensor offsets, " NNOPS_WINDOW ") -> Tensor",
               max_pool2d_gather)

#undef NNOPS_WINDOW

}  // namespace nnops
