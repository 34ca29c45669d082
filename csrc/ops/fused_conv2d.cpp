// nnops::conv2d_relu, conv2d_max_pool2d and conv2d_max_pool2d_with_offsets: checks, geometry,
// allocation and the call.
//
// The shapes are those of conv2d and of max_pool2d behind it (ops/conv2d.cpp, ops/max_pool2d.cpp).
#include "ops/fused_conv2d.h"

#include <memory>
#include <tuple>
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

// What an algorithm of conv2d does in `call`; `keeper` keeps its packed weight alive.
void set_convolution(FusedConv2dCall& call, const Conv2dCandidate<Conv2dForward>& choice,
                     const Tensor& weight, DType dtype, Isa isa,
                     std::shared_ptr<const Workspace>* keeper) {
  const Conv2dForward& algorithm = active_kernels(kConv2dTable, isa).*choice.entry;
  const Conv2dGeometry& g = call.g.conv;
  const Conv2dGeometry packing = forward_packing_geometry(g);
  call.conv = kernel_for("conv2d", choice.name, run_of(algorithm, g, dtype), dtype, isa);
  call.conv_workspace = algorithm.workspace_bytes.entries[static_cast<int>(dtype)];
  const auto packed_bytes = algorithm.packed_bytes.entries[static_cast<int>(dtype)];
  call.packed_bytes = packed_bytes != nullptr ? packed_bytes(packing) : 0;
  call.together = algorithm.images_together;
  call.unpacked = runs_unpacked(algorithm, g, dtype);
  call.weight = weight_for(algorithm, weight, dtype, g, packing, keeper);
}

void run_pieces(const FusedConv2dKernels& kernels, const FusedConv2dCall& call,
                const DeviceScope& scope, DType dtype) {
  const auto index = static_cast<int>(dtype);
  const int threads = thread_count(conv2d_grains(call.g.conv), 1);
  const Scratch workspace(scope, kernels.workspace_bytes.entries[index](call, threads));
  kernels.run.entries[index](call, workspace.data(), threads);
}

}  // namespace

FusedConv2dResult fused_conv2d(const char* op, const Tensor& input, const Tensor& weight,
                               const std::optional<Tensor>& bias, const IntList& stride,
                               const IntList& padding, const IntList& dilation, int64_t groups,
                               const Conv2dTail& tail) {
  const Conv2dForwardCall forward =
      conv2d_forward_call(op, input, weight, bias, stride, padding, dilation, groups);
  const DeviceScope scope(input);
  const Isa isa = scope.isa();
  const DType dtype = forward.dtype;
  FusedConv2dCall call{};
  Conv2dGeometry& conv = call.g.conv;
  Pool2dGeometry& pool = call.g.pool;
  conv = forward.g;
  conv.output = packed_strides(conv.oc, conv.oh, conv.ow, forward.channels_last);
  call.g.relu = tail.relu;
  call.g.pools = tail.window != nullptr;
  int64_t oh = conv.oh;
  int64_t ow = conv.ow;
  if (tail.window != nullptr) {
    pool = *tail.window;
    set_pool2d_sizes(op, pool, conv.n, conv.oc, conv.oh, conv.ow, tail.ceil_mode);
    if (tail.record) check_offset_window(op, pool);
    oh = pool.oh;
    ow = pool.ow;
    pool.channels_last = forward.channels_last;
    set_strides(pool.input_strides, conv.output);
    set_strides(pool.output_strides, packed_strides(pool.c, oh, ow, forward.channels_last));
  }
  const IntList sizes{conv.n, conv.oc, oh, ow};
  FusedConv2dResult result{empty_image(sizes, forward.channels_last, dtype, input), Tensor()};
  call.output = result.output.mutable_data_ptr();
  if (tail.record) {
    result.offsets = empty_image(sizes, forward.channels_last, DType::kUInt8, input);
    call.offsets = static_cast<uint8_t*>(result.offsets.mutable_data_ptr());
  }
  call.input = input.const_data_ptr();
  call.bias = forward.bias_data();
  std::shared_ptr<const Workspace> keeper;
  const auto& choice = choose_conv2d("conv2d", kConv2dForward, conv, dtype, isa);
  set_convolution(call, choice, weight, dtype, isa, &keeper);
  if (tail.relu) {
    call.relu = kernel_for("relu", "vector", active_kernels(kReluTable, isa).forward, dtype, isa);
  }
  if (tail.window != nullptr) {
    const auto& pooling = choose_algorithm("max_pool2d", kMaxPool2dForward.of(isa), pool, dtype);
    const auto& forms = active_kernels(kMaxPool2dTable, isa).*pooling.entry;
    call.pool = kernel_for("max_pool2d", pooling.name, tail.record ? forms.offsets : forms.values,
                           dtype, isa);
  }
  if (conv.n == 0) return result;
  const bool may_leave_out = (active_kernels(kConv2dTable, isa).*choice.entry).flags_images;
  std::vector<uint8_t> left_out(may_leave_out ? static_cast<size_t>(conv.n) : 0);
  call.left_out = may_leave_out ? left_out.data() : nullptr;
  const FusedConv2dKernels& kernels = active_kernels(kTable, isa);
  run_pieces(kernels, call, scope, dtype);

  FusedConv2dCall image = call;
  image.g.conv.n = image.g.pool.n = 1;
  image.left_out = nullptr;
  bool chosen = false;
  for (size_t n = 0; n < left_out.size(); ++n) {
    if (left_out[n] == 0) continue;
    if (!chosen) {
      const auto* other = algorithm_for_left_out(kConv2dForward, isa, image.g.conv, dtype);
      set_convolution(image, *other, weight, dtype, isa, &keeper);
      chosen = true;
    }
    const auto first = static_cast<int64_t>(n);
    const int64_t written = first * conv.oc * oh * ow;
    image.input = from_image(call.input, first, conv.input, dtype);
    image.output = static_cast<char*>(call.output) + written * element_size(dtype);
    if (tail.record) image.offsets = call.offsets + written;
    run_pieces(kernels, image, scope, dtype);
  }
  return result;
}

namespace {

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
  FusedConv2dResult result =
      fused_conv2d(kOp, input, weight, bias, stride, padding, dilation, groups, tail);
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
