// nnops::conv2d_relu, conv2d_max_pool2d and conv2d_max_pool2d_with_offsets: checks, geometry,
// allocation and the call.
//
// The shapes are those of conv2d and of max_pool2d behind it (ops/conv2d.cpp, ops/max_pool2d.cpp).
#include "ops/fused_conv2d.h"

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "ops/conv2d_precision.h"
#include "ops/conv2d_winners.h"
#include "ops/fused_conv2d_call.h"
#include "ops/max_pool2d_call.h"

namespace nnops {
namespace {

constexpr KernelTable<FusedConv2dKernels> kTable = NNOPS_KERNEL_TABLE(fused_conv2d_kernels);
constexpr KernelTable<ReluKernels> kReluTable = NNOPS_KERNEL_TABLE(relu_kernels);

// Packed (n, c, h, w) in row-major or channels_last order.
Strides4 packed_strides(int64_t c, int64_t h, int64_t w, bool channels_last) {
  if (channels_last) return {h * w * c, 1, w * c, c};
  return {c * h * w, h * w, w, 1};
}
void set_strides(int64_t (&strides)[4], const Strides4& from) {
  strides[0] = from.n;
  strides[1] = from.c;
  strides[2] = from.h;
  strides[3] = from.w;
}

// What the algorithm does in `call`, whose geometry is set; returns what keeps its weight alive.
std::shared_ptr<const Workspace> set_convolution(FusedConv2dCall& call,
                                                 const Conv2dForward& algorithm,
                                                 const WeightMemory& weight, DType dtype) {
  const Conv2dGeometry& g = call.g.conv;
  auto ordered = ordered_weight(algorithm, weight, dtype, g, forward_packing_geometry(g));
  call.conv = ordered.run;
  call.conv_workspace = algorithm.workspace_bytes.entries[static_cast<int>(dtype)];
  call.packed_bytes = ordered.packed_bytes;
  call.together = algorithm.images_together;
  call.unpacked = ordered.transformed_in_run;
  call.weight = ordered.data;
  return std::move(ordered.keeper);
}

void run_pieces(const FusedConv2dKernels& kernels, const FusedConv2dCall& call,
                const DeviceScope& scope, DType dtype, int threads) {
  const auto index = static_cast<int>(dtype);
  const Scratch workspace(scope, kernels.workspace_bytes.entries[index](call, threads));
  kernels.run.entries[index](call, workspace.data(), threads);
}

}  // namespace

IntList FusedConv2dPlan::output_sizes() const {
  const Conv2dGeometry& conv = call.g.conv;
  const Pool2dGeometry& pool = call.g.pool;
  return {conv.n, conv.oc, call.g.pools ? pool.oh : conv.oh, call.g.pools ? pool.ow : conv.ow};
}

FusedConv2dPlan plan_fused_conv2d(const char* op, const DeviceScope& scope, const Tensor& input,
                                  const Tensor& weight, const std::optional<Tensor>& bias,
                                  const IntList& stride, const IntList& padding,
                                  const IntList& dilation, int64_t groups, const Conv2dTail& tail) {
  const Conv2dForwardCall forward =
      conv2d_forward_call(op, input, weight, bias, stride, padding, dilation, groups);
  const Isa isa = scope.isa();
  FusedConv2dPlan plan{};
  plan.dtype = forward.dtype;
  plan.channels_last = forward.channels_last && !tail.row_major;
  plan.weight_bytes = filled_bytes(weight, plan.dtype);
  FusedConv2dGeometry& g = plan.call.g;
  Conv2dGeometry& conv = g.conv;
  conv = forward.g;
  conv.output = packed_strides(conv.oc, conv.oh, conv.ow, plan.channels_last);
  g.relu = tail.relu;
  g.pools = tail.window != nullptr;
  if (g.pools) {
    Pool2dGeometry& pool = g.pool;
    pool = *tail.window;
    set_pool2d_sizes(op, pool, conv.n, conv.oc, conv.oh, conv.ow, tail.ceil_mode);
    if (tail.record) check_offset_window(op, pool);
    pool.channels_last = plan.channels_last;
    set_strides(pool.input_strides, conv.output);
    set_strides(pool.output_strides, packed_strides(pool.c, pool.oh, pool.ow, plan.channels_last));
  }
  const auto& choice = choose_conv2d("conv2d", kConv2dForward, conv, plan.dtype, isa);
  plan.algorithm = &(active_kernels(kConv2dTable, isa).*choice.entry);
  kernel_for("conv2d", choice.name, plan.algorithm->run, plan.dtype, isa);
  plan.threads = thread_count(conv2d_grains(conv), 1);
  if (g.relu) {
    plan.call.relu =
        kernel_for("relu", "vector", active_kernels(kReluTable, isa).forward, plan.dtype, isa);
    record_threads(plan.threads);
  }
  if (g.pools) {
    const auto& pooling =
        choose_algorithm("max_pool2d", kMaxPool2dForward.of(isa), g.pool, plan.dtype);
    const auto& forms = active_kernels(kMaxPool2dTable, isa).*pooling.entry;
    plan.call.pool = kernel_for("max_pool2d", pooling.name,
                                tail.record ? forms.offsets : forms.values, plan.dtype, isa);
    record_threads(plan.threads);
  }
  return plan;
}

void run_fused_conv2d(const FusedConv2dPlan& plan, const DeviceScope& scope,
                      const FusedConv2dMemory& memory) {
  FusedConv2dCall call = plan.call;
  const Conv2dGeometry& conv = call.g.conv;
  if (conv.n == 0) return;
  call.output = memory.output;
  call.offsets = memory.offsets;
  call.input = memory.input;
  call.bias = memory.bias;
  const Isa isa = scope.isa();
  const DType dtype = plan.dtype;
  const WeightMemory weight{memory.weight, plan.weight_bytes};
  auto keeper = set_convolution(call, *plan.algorithm, weight, dtype);
  const bool may_leave_out = plan.algorithm->flags_images;
  std::vector<uint8_t> left_out(may_leave_out ? static_cast<size_t>(conv.n) : 0);
  call.left_out = may_leave_out ? left_out.data() : nullptr;
  const FusedConv2dKernels& kernels = active_kernels(kTable, isa);
  run_pieces(kernels, call, scope, dtype, plan.threads);

  FusedConv2dCall image = call;
  image.g.conv.n = image.g.pool.n = 1;
  image.left_out = nullptr;
  const IntList sizes = plan.output_sizes();
  bool chosen = false;
  for (size_t n = 0; n < left_out.size(); ++n) {
    if (left_out[n] == 0) continue;
    if (!chosen) {
      const auto* other = algorithm_for_left_out(kConv2dForward, isa, image.g.conv, dtype);
      const Conv2dForward& algorithm = active_kernels(kConv2dTable, isa).*other->entry;
      kernel_for("conv2d", other->name, algorithm.run, dtype, isa);
      keeper = set_convolution(image, algorithm, weight, dtype);
      chosen = true;
    }
    const auto first = static_cast<int64_t>(n);
    const int64_t written = first * sizes[1] * sizes[2] * sizes[3];
    image.input = from_image(call.input, first, conv.input, dtype);
    image.output = static_cast<char*>(call.output) + written * element_size(dtype);
    if (call.offsets != nullptr) image.offsets = call.offsets + written;
    run_pieces(kernels, image, scope, dtype, thread_count(conv2d_grains(image.g.conv), 1));
  }
}

namespace {

struct Result {
  Tensor output;
  Tensor offsets;  // where recorded
};
Result fused_conv2d(const char* op, const Tensor& input, const Tensor& weight,
                    const std::optional<Tensor>& bias, const IntList& stride,
                    const IntList& padding, const IntList& dilation, int64_t groups,
                    const Conv2dTail& tail) {
  check_device(op, "input", input);
  const DeviceScope scope(input);
  const FusedConv2dPlan plan =
      plan_fused_conv2d(op, scope, input, weight, bias, stride, padding, dilation, groups, tail);
  const IntList sizes = plan.output_sizes();
  Result result{empty_image(sizes, plan.channels_last, plan.dtype, input), Tensor()};
  const std::optional<Tensor> packed_bias = packed(bias);
  FusedConv2dMemory memory{};
  memory.output = result.output.mutable_data_ptr();
  if (tail.record) {
    result.offsets = empty_image(sizes, plan.channels_last, DType::kUInt8, input);
    memory.offsets = static_cast<uint8_t*>(result.offsets.mutable_data_ptr());
  }
  memory.input = input.const_data_ptr();
  memory.weight = weight.const_data_ptr();
  memory.bias = data_or_null(packed_bias);
  run_fused_conv2d(plan, scope, memory);
  return result;
}

Tensor conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const IntList& stride, const IntList& padding, const IntList& dilation,
                   int64_t groups, int64_t precision) {
  constexpr const char* kOp = "conv2d_relu";
  const ConvPrecisionScope precision_scope(kOp, precision);
  Conv2dTail tail;
  tail.relu = true;
  return fused_conv2d(kOp, input, weight, bias, stride, padding, dilation, groups, tail).output;
}

Tensor conv2d_max_pool2d(const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias, const IntList& stride,
                         const IntList& padding, const IntList& dilation, int64_t groups, bool relu,
                         const IntList& pool_kernel_size, const IntList& pool_stride,
                         const IntList& pool_padding, const IntList& pool_dilation, bool ceil_mode,
                         int64_t precision) {
  constexpr const char* kOp = "conv2d_max_pool2d";
  const ConvPrecisionScope precision_scope(kOp, precision);
  const Pool2dGeometry window =
      pool2d_window(kOp, pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  const Conv2dTail tail{relu, &window, ceil_mode, false};
  return fused_conv2d(kOp, input, weight, bias, stride, padding, dilation, groups, tail).output;
}

std::tuple<Tensor, Tensor> conv2d_max_pool2d_with_offsets(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const IntList& stride, const IntList& padding, const IntList& dilation, int64_t groups,
    bool relu, const IntList& pool_kernel_size, const IntList& pool_stride,
    const IntList& pool_padding, const IntList& pool_dilation, bool ceil_mode, int64_t precision) {
  constexpr const char* kOp = "conv2d_max_pool2d_with_offsets";
  const ConvPrecisionScope precision_scope(kOp, precision);
  const Pool2dGeometry window =
      pool2d_window(kOp, pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  const Conv2dTail tail{relu, &window, ceil_mode, true};
  Result result = fused_conv2d(kOp, input, weight, bias, stride, padding, dilation, groups, tail);
  return {result.output, result.offsets};
}

}  // namespace

#define NNOPS_CONV                                                                                \
  "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int " \
  "groups"
#define NNOPS_CONV_POOL                                                                \
  NNOPS_CONV                                                                           \
  ", bool relu, int[] pool_kernel_size, int[] pool_stride, int[] pool_padding, int[] " \
  "pool_dilation, bool ceil_mode"

NNOPS_OPERATOR(conv2d_relu, NNOPS_CONV ", int precision=0) -> Tensor", conv2d_relu)
NNOPS_OPERATOR(conv2d_max_pool2d, NNOPS_CONV_POOL ", int precision=0) -> Tensor", conv2d_max_pool2d)
NNOPS_OPERATOR(conv2d_max_pool2d_with_offsets,
               NNOPS_CONV_POOL ", int precision=0) -> (Tensor, Tensor)",
               conv2d_max_pool2d_with_offsets)

#undef NNOPS_CONV_POOL
#undef NNOPS_CONV

}  // namespace nnops
