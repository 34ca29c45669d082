// nnops::relu, relu_ and relu_with_mask, and their derivatives: checks, allocation and the call.
#include "ops/relu.h"

#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace nnops {
namespace {

constexpr KernelTable<ReluKernels> kTable = NNOPS_KERNEL_TABLE(relu_kernels);
const RegisterAlgorithms kAlgorithms("relu", {"vector"});

// `output` and `input` are dense, of equal sizes and strides; they may be the same tensor.
void run_forward(const char* op, const DeviceScope& scope, const Tensor& output,
                 const Tensor& input) {
  const int64_t n = input.numel();
  const auto kernel = kernel_for(op, "vector", active_kernels(kTable, scope.isa()).forward,
                                 dtype_of(op, input), scope.isa());
  if (n == 0) return;
  kernel(output.mutable_data_ptr(), input.const_data_ptr(), n, thread_count(n, kGrainElements));
}

Tensor relu(const Tensor& input) {
  check_device("relu", "input", input);
  const DeviceScope scope(input);
  const Tensor x = dense(input);
  Tensor output = empty_as(x);
  run_forward("relu", scope, output, x);
  return output;
}

Tensor relu_(Tensor input) {
  check_device("relu_", "input", input);
  const DeviceScope scope(input);
  NNOPS_CHECK(!is_expanded(input),
              "relu_: input must not be an expanded tensor, whose elements share memory, but got "
              "sizes ",
              tuple_text(input.sizes()), " with strides ", tuple_text(input.strides()));
  if (is_dense(input)) {
    run_forward("relu_", scope, input, input);
  } else {
    Tensor packed = dense(input);
    run_forward("relu_", scope, packed, packed);
    torch::stable::copy_(input, packed);
  }
  return input;
}

Tensor relu_backward(const Tensor& grad_output, const Tensor& output) {
  constexpr const char* kOp = "relu_backward";
  check_device(kOp, "grad_output", grad_output);
  check_same_type(kOp, "output", output, "grad_output", grad_output);
  const DeviceScope scope(output);
  NNOPS_CHECK(same_sizes(grad_output, output), kOp,
              ": grad_output and output must have the same sizes, but got ",
              tuple_text(grad_output.sizes()), " and ", tuple_text(output.sizes()));
  const auto kernel = kernel_for(kOp, "vector", active_kernels(kTable, scope.isa()).backward,
                                 dtype_of(kOp, output), scope.isa());
  const Tensor y = dense(output);
  const Tensor gy = with_strides_of(grad_output, y);
  Tensor grad_input = empty_as(y);
  const int64_t n = y.numel();
  if (n > 0) {
    kernel(grad_input.mutable_data_ptr(), gy.const_data_ptr(), y.const_data_ptr(), n,
           thread_count(n, kGrainElements));
  }
  return grad_input;
}

std::tuple<Tensor, Tensor> relu_with_mask(const Tensor& input) {
  constexpr const char* kOp = "relu_with_mask";
  check_device(kOp, "input", input);
  const DeviceScope scope(input);
  const auto kernel =
      kernel_for(kOp, "vector", active_kernels(kTable, scope.isa()).forward_with_mask,
                 dtype_of(kOp, input), scope.isa());
  const Tensor x = dense(input);
  Tensor output = empty_as(x);
  const int64_t n = x.numel();
  Tensor mask = empty_contiguous(std::vector<int64_t>{(n + 7) / 8}, DType::kUInt8, x);
  if (n > 0) {
    kernel(output.mutable_data_ptr(), static_cast<uint8_t*>(mask.mutable_data_ptr()),
           x.const_data_ptr(), n, thread_count(n, kGrainElements));
  }
  return {output, mask};
}

// `strides` are those of the output, whose memory order the mask follows.
Tensor relu_mask_backward(const Tensor& grad_output, const Tensor& mask,
                          const std::vector<int64_t>& strides) {
  constexpr const char* kOp = "relu_mask_backward";
  check_device(kOp, "grad_output", grad_output);
  check_device(kOp, "mask", mask);
  check_same_device(kOp, "mask", mask, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  const int64_t n = grad_output.numel();
  NNOPS_CHECK(strides.size() == grad_output.sizes().size(), kOp,
              ": strides must have one element for each dimension of grad_output, but got ",
              tuple_text(strides), " for sizes ", tuple_text(grad_output.sizes()));
  NNOPS_CHECK(known_dtype(mask) == DType::kUInt8 && mask.is_contiguous() && mask.dim() == 1 &&
                  mask.numel() == (n + 7) / 8,
              kOp, ": mask must hold one bit for each of the ", n,
              " elements of grad_output, in contiguous uint8, but got dtype ", dtype_text(mask),
              " and sizes ", tuple_text(mask.sizes()));
  const auto kernel = kernel_for(kOp, "vector", active_kernels(kTable, scope.isa()).mask_backward,
                                 dtype_of(kOp, grad_output), scope.isa());
  Tensor grad_input =
      empty_strided(grad_output.sizes(), strides, dtype_of(kOp, grad_output), grad_output);
  NNOPS_CHECK(is_dense(grad_input), kOp, ": strides must be those of a dense tensor, but got ",
              tuple_text(strides), " for sizes ", tuple_text(grad_output.sizes()));
  const Tensor gy = with_strides_of(grad_output, grad_input);
  if (n > 0) {
    kernel(grad_input.mutable_data_ptr(), gy.const_data_ptr(),
           static_cast<const uint8_t*>(mask.const_data_ptr()), n, thread_count(n, kGrainElements));
  }
  return grad_input;
}

}  // namespace

NNOPS_OPERATOR(relu_with_mask, "(Tensor input) -> (Tensor, Tensor)", relu_with_mask)
NNOPS_OPERATOR(relu_mask_backward, "(Tensor grad_output, Tensor mask, SymInt[] strides) -> Tensor",
               relu_mask_backward)
NNOPS_OPERATOR(relu, "(Tensor input) -> Tensor", relu)
NNOPS_OPERATOR(relu_backward, "(Tensor grad_output, Tensor output) -> Tensor", relu_backward)

NNOPS_PRIVATE_OPERATOR(relu_, "(Tensor(a!) input) -> Tensor(a!)", relu_)

}  // namespace nnops
