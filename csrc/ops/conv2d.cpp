// nnops::conv2d and its gradients: checks, geometry, allocation and the call.
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
#include "core/threads.h"
#include "ops/conv2d_algorithms.h"
#include "ops/conv2d_partition.h"
#include "ops/conv2d_precision.h"
#include "ops/packed_weights.h"

namespace nnops {
namespace {

// Products below which another thread does not pay: so two threads share calls that take one about
// 45 us (AVX-512), and then 32. Calls of 25 us gain nothing.
constexpr int64_t kGrainProducts = int64_t{1} << 20;

using IntList = std::vector<int64_t>;

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
void run_algorithm(const char* op, const DeviceScope& scope,
                   const Conv2dCandidate<Algorithm>& choice, const Conv2dGeometry& g, DType dtype,
                   Images images, int64_t first_image, const Call& call,
                   std::vector<int64_t>* left_out) {
  const Isa isa = scope.isa();
  const Algorithm& algorithm = active_kernels(kConv2dTable, isa).*choice.entry;
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
void run(const char* op, const DeviceScope& scope, const Conv2dCandidates<Algorithm>& candidates,
         const Conv2dGeometry& g, DType dtype, Images images, const Call& call) {
  const auto& list = candidates.of(scope.isa());
  std::vector<int64_t> left_out;
  run_algorithm(op, scope, choose_algorithm(op, list, g, dtype), g, dtype, images, 0, call,
                &left_out);
  if (left_out.empty()) return;
  Conv2dGeometry image = g;
  if (images == Images::kApart) image.n = 1;
  for (const auto& candidate : list) {
    const bool takes_all =
        !(active_kernels(kConv2dTable, scope.isa()).*candidate.entry).flags_images;
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
Partition partition(const char* op, const Conv2dCandidates<Pass>& candidates,
                    const Conv2dGeometry& g, DType dtype, int threads) {
  const Isa isa = active_isa();
  const auto& choice = choose_algorithm(op, candidates.of(isa), g, dtype);
  const auto& algorithm = active_kernels(kConv2dTable, isa).*choice.entry;
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
  request.pixels = g.n * g.oh * g.ow / algorithm.packing_cost;
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
  run(kOp, scope, kConv2dForward, g, dtype, Images::kApart, [&](auto kernel, const auto& run) {
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
  run(kOp, scope, kConv2dBackwardInput, g, dtype, Images::kApart,
      [&](auto kernel, const auto& run) {
        std::shared_ptr<const Workspace> keeper;
        const void* ordered = weight_for(run.algorithm, weight, dtype, g,
                                         backward_input_packing_geometry(g), &keeper);
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
  run(kOp, scope, kConv2dBackwardWeight, g, dtype, Images::kAddedUp,
      [&](auto kernel, const auto& run) {
        kernel(grad_weight.mutable_data_ptr(), grad_output.const_data_ptr(), input.const_data_ptr(),
               g, run.workspace, run.threads);
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
  const auto kernel = kernel_for(
      kOp, "vector", active_kernels(kConv2dTable, scope.isa()).backward_bias, dtype, scope.isa());
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
  if (op == "conv2d") return of(kConv2dForward);
  if (op == "conv2d_backward_input") return of(kConv2dBackwardInput);
  if (op == "conv2d_backward_weight") return of(kConv2dBackwardWeight);
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
