// nnops::conv2d and its gradients: checks, geometry, allocation and the call.
//
// Shapes: input (N, C, H, W), weight (OC, C/groups, KH, KW), bias (OC), output (N, OC, OH, OW) with
//   OH = (H + pad_top + pad_bottom - dilation_h (KH - 1) - 1) / stride_h + 1, OW alike.
// `padding` holds (height, width), the same on both sides, or (top, bottom, left, right).
// Images may have any strides; outputs are channels_last if one of the inputs is, else row-major.
#include "ops/conv2d.h"

#include <algorithm>
#include <memory>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "ops/conv2d_algorithms.h"
#include "ops/conv2d_call.h"
#include "ops/conv2d_partition.h"
#include "ops/conv2d_precision.h"
#include "ops/conv2d_winners.h"

namespace nnops {
namespace {

constexpr KernelTable<Conv2dBiasKernels> kBiasTable = NNOPS_KERNEL_TABLE(conv2d_bias_kernels);

void check_output_sizes(const char* op, const Tensor& grad_output, const Conv2dGeometry& g) {
  const IntList expected{g.n, g.oc, g.oh, g.ow};
  const Sizes sizes = grad_output.sizes();
  NNOPS_CHECK(std::equal(expected.begin(), expected.end(), sizes.begin()), op,
              ": grad_output must have the sizes of the output, ", tuple_text(expected),
              ", but got ", tuple_text(sizes));
}

// How an algorithm is called: on the images from `first_image` on, as many as the geometry has.
template <typename Algorithm>
struct AlgorithmCall {
  const Algorithm& algorithm;
  typename Algorithm::Run kernel;
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
  const int threads = thread_count(conv2d_grains(g), 1);
  const auto workspace_bytes = algorithm.workspace_bytes.entries[static_cast<int>(dtype)];
  const Scratch workspace(scope, workspace_bytes != nullptr ? workspace_bytes(g, threads) : 0);
  call(AlgorithmCall<Algorithm>{algorithm, kernel, g, first_image, workspace.data(), threads});
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
  std::vector<int64_t> left_out;
  run_algorithm(op, scope, choose_conv2d(op, candidates, g, dtype, scope.isa()), g, dtype, images,
                0, call, &left_out);
  if (left_out.empty()) return;
  Conv2dGeometry image = g;
  if (images == Images::kApart) image.n = 1;
  const auto* other = algorithm_for_left_out(candidates, scope.isa(), image, dtype);
  for (const int64_t n : left_out) {
    run_algorithm(op, scope, *other, image, dtype, images, n, call, nullptr);
  }
}

// As `run`, but asks the algorithm how it would share its work.
template <typename Pass>
Partition partition(const char* op, const Conv2dCandidates<Pass>& candidates,
                    const Conv2dGeometry& g, DType dtype, int threads) {
  const Isa isa = active_isa();
  const auto& choice = choose_conv2d(op, candidates, g, dtype, isa, threads);
  const auto& algorithm = active_kernels(kConv2dTable, isa).*choice.entry;
  const auto tell = algorithm.partition.entries[static_cast<int>(dtype)];
  NNOPS_CHECK_NOT_IMPLEMENTED(tell != nullptr, "conv2d_partition: not implemented for ",
                              choice.name, " of ", isa_name(isa), " in ", dtype_name(dtype));
  Partition result{choice.name, useful_threads(conv2d_grains(g), 1, threads), {}};
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

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              const IntList& stride, const IntList& padding, const IntList& dilation,
              int64_t groups, int64_t precision) {
  constexpr const char* kOp = "conv2d";
  const ConvPrecisionScope precision_scope(kOp, precision);
  Conv2dForwardCall forward =
      conv2d_forward_call(kOp, input, weight, bias, stride, padding, dilation, groups);
  const std::optional<Tensor> packed_bias = packed(bias);
  const DeviceScope scope(input);
  Conv2dGeometry& g = forward.g;
  const DType dtype = forward.dtype;
  const Tensor output =
      empty_image(IntList{g.n, g.oc, g.oh, g.ow}, forward.channels_last, dtype, input);
  g.output = strides_of(output);
  run(kOp, scope, kConv2dForward, g, dtype, Images::kApart, [&](const auto& call) {
    const WeightMemory memory{weight.const_data_ptr(), filled_bytes(weight, dtype)};
    const auto ordered =
        ordered_weight(call.algorithm, memory, dtype, call.g, forward_packing_geometry(g));
    ordered.run(from_image(output.mutable_data_ptr(), call.first_image, g.output, dtype),
                from_image(input.const_data_ptr(), call.first_image, g.input, dtype), ordered.data,
                data_or_null(packed_bias), call.g, call.workspace, call.threads);
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
  check_conv2d_image(kOp, "grad_output", grad_output);
  check_conv2d_image(kOp, "weight", weight);
  check_same_type(kOp, "weight", weight, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const DType dtype = dtype_of(kOp, grad_output);
  check_conv2d_list(kOp, "input_size", input_size, 1);
  int64_t channels = 0;
  NNOPS_CHECK(groups > 0 && !__builtin_mul_overflow(weight.size(1), groups, &channels), kOp,
              ": groups must be positive, but got groups=", groups);
  const IntList sizes{grad_output.size(0), channels, input_size[0], input_size[1]};
  checked_numel(kOp, sizes);
  Conv2dGeometry g = conv2d_geometry(kOp, sizes, weight.sizes(), stride, padding, dilation, groups);
  check_output_sizes(kOp, grad_output, g);
  const Tensor grad_input =
      empty_image(sizes, suggests_channels_last(grad_output) || suggests_channels_last(weight),
                  dtype, grad_output);
  g.input = strides_of(grad_input);
  g.weight = strides_of(weight);
  g.output = strides_of(grad_output);
  run(kOp, scope, kConv2dBackwardInput, g, dtype, Images::kApart, [&](const auto& call) {
    const WeightMemory memory{weight.const_data_ptr(), filled_bytes(weight, dtype)};
    const auto ordered =
        ordered_weight(call.algorithm, memory, dtype, call.g, backward_input_packing_geometry(g));
    ordered.run(from_image(grad_input.mutable_data_ptr(), call.first_image, g.input, dtype),
                from_image(grad_output.const_data_ptr(), call.first_image, g.output, dtype),
                ordered.data, call.g, call.workspace, call.threads);
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
  check_conv2d_image(kOp, "grad_output", grad_output);
  check_conv2d_image(kOp, "input", input);
  check_same_type(kOp, "input", input, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const DType dtype = dtype_of(kOp, grad_output);
  check_conv2d_list(kOp, "kernel_size", kernel_size, 1);
  NNOPS_CHECK(groups > 0 && input.size(1) % groups == 0, kOp,
              ": groups must divide the number of input channels, but got input of sizes ",
              tuple_text(input.sizes()), " and groups=", groups);
  const IntList sizes{grad_output.size(1), input.size(1) / groups, kernel_size[0], kernel_size[1]};
  checked_numel(kOp, sizes);
  Conv2dGeometry g = conv2d_geometry(kOp, input.sizes(), sizes, stride, padding, dilation, groups);
  check_output_sizes(kOp, grad_output, g);
  Tensor grad_weight =
      empty_image(sizes, suggests_channels_last(grad_output) || suggests_channels_last(input),
                  dtype, grad_output);
  g.input = strides_of(input);
  g.weight = strides_of(grad_weight);
  g.output = strides_of(grad_output);
  if (g.n == 0) torch::stable::zero_(grad_weight);
  run(kOp, scope, kConv2dBackwardWeight, g, dtype, Images::kAddedUp, [&](const auto& call) {
    call.kernel(grad_weight.mutable_data_ptr(), grad_output.const_data_ptr(),
                input.const_data_ptr(), g, call.workspace, call.threads);
  });
  return grad_weight;
}

Tensor conv2d_backward_bias(const Tensor& grad_output) {
  constexpr const char* kOp = "conv2d_backward_bias";
  check_conv2d_image(kOp, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const DType dtype = dtype_of(kOp, grad_output);
  Conv2dGeometry g{};
  g.n = grad_output.size(0);
  g.oc = grad_output.size(1);
  g.oh = grad_output.size(2);
  g.ow = grad_output.size(3);
  g.output = strides_of(grad_output);
  const Tensor grad_bias = empty_contiguous(IntList{g.oc}, dtype, grad_output);
  const auto kernel = kernel_for(kOp, "vector", active_kernels(kBiasTable, scope.isa()).backward,
                                 dtype, scope.isa());
  kernel(grad_bias.mutable_data_ptr(), grad_output.const_data_ptr(), g,
         thread_count(grad_output.numel(), kGrainElements));
  return grad_bias;
}

Strides4 strides_of(const Conv2dProblem::Image& image) {
  return {image.strides[0], image.strides[1], image.strides[2], image.strides[3]};
}

}  // namespace

Conv2dGeometry geometry_of(const Conv2dProblem& problem) {
  for (const auto* image : {&problem.input, &problem.weight, &problem.output}) {
    NNOPS_CHECK_VALUE(image->sizes.size() == 4 && image->strides.size() == 4, problem.op,
                      ": tensors must have 4 dimensions, but got sizes ", tuple_text(image->sizes),
                      " and strides ", tuple_text(image->strides));
  }
  Conv2dGeometry g =
      conv2d_geometry(problem.op.c_str(), problem.input.sizes, problem.weight.sizes, problem.stride,
                      problem.padding, problem.dilation, problem.groups);
  g.input = strides_of(problem.input);
  g.weight = strides_of(problem.weight);
  g.output = strides_of(problem.output);
  return g;
}

Partition conv2d_partition(const Conv2dProblem& problem, int threads) {
  NNOPS_CHECK_VALUE(threads > 0, "conv2d_partition: threads must be positive, but got ", threads);
  const Conv2dGeometry g = geometry_of(problem);
  return with_candidates(problem.op, [&](const auto& candidates) {
    return partition(problem.op.c_str(), candidates, g, problem.dtype, threads);
  });
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
