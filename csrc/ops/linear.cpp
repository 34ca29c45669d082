// nnops::_linear and its two gradients, for a few rows of input: checks, allocation and the call.
//
// They have private names only: they are on the CPU alone, and torch's matrix product is faster
// where rows are many. nnops/ops/linear.py says how they differentiate and when they are called.
#include "ops/linear.h"

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace nnops {
namespace {

constexpr KernelTable<LinearKernels> kTable = NNOPS_CPU_KERNEL_TABLE(linear_kernels);

void check_matrix(const char* op, const char* name, const Tensor& tensor) {
  NNOPS_CHECK(tensor.dim() == 2, op, ": ", name, " must be a matrix, but got sizes ",
              tuple_text(tensor.sizes()));
}

// Two matrices of one type, of which `inner_a` and `inner_b` are the sizes that must agree.
void check_product(const char* op, const char* name_a, const Tensor& a, int64_t inner_a,
                   const char* name_b, const Tensor& b, int64_t inner_b) {
  check_same_type(op, name_b, b, name_a, a);
  check_matrix(op, name_a, a);
  check_matrix(op, name_b, b);
  NNOPS_CHECK(a.size(inner_a) == b.size(inner_b), op, ": ", name_a, " of sizes ",
              tuple_text(a.sizes()), " does not fit ", name_b, " of sizes ", tuple_text(b.sizes()));
}

// What one kernel of the family needs to run.
template <typename Kernel>
struct Call {
  Kernel run;
  LinearGeometry g;
  DType dtype;
  int threads;
};
template <typename Kernel>
Call<Kernel> call_of(const char* op, const DeviceScope& scope, const Tensor& tensor,
                     PerDType<Kernel> LinearKernels::* kernels, int64_t n, int64_t in,
                     int64_t out) {
  NNOPS_CHECK_NOT_IMPLEMENTED(!scope.on_cuda(), op, ": not implemented on CUDA");
  const DType dtype = dtype_of(op, tensor);
  const Isa isa = scope.isa();
  return {kernel_for(op, "vector", active_kernels(kTable, isa).*kernels, dtype, isa),
          {n, in, out, false},
          dtype,
          thread_count(n * in * out, kLinearGrain)};
}

Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  constexpr const char* kOp = "_linear";
  check_product(kOp, "input", input, 1, "weight", weight, 1);
  const int64_t out = weight.size(0);
  if (bias.has_value()) {
    check_same_type(kOp, "bias", *bias, "input", input);
    NNOPS_CHECK(bias->dim() == 1 && bias->size(0) == out, kOp,
                ": bias must have one element per output, ", out, ", but got sizes ",
                tuple_text(bias->sizes()));
  }
  const DeviceScope scope(input);
  const auto call =
      call_of(kOp, scope, input, &LinearKernels::forward, input.size(0), input.size(1), out);
  const Tensor x = packed(input);
  const Tensor w = packed(weight);
  const std::optional<Tensor> b = packed(bias);
  Tensor output = empty_contiguous(std::vector<int64_t>{call.g.n, out}, call.dtype, input);
  call.run(output.mutable_data_ptr(), x.const_data_ptr(), w.const_data_ptr(), data_or_null(b),
           call.g, call.threads);
  return output;
}

Tensor linear_backward_input(const Tensor& grad_output, const Tensor& weight) {
  constexpr const char* kOp = "_linear_backward_input";
  check_product(kOp, "grad_output", grad_output, 1, "weight", weight, 0);
  const DeviceScope scope(weight);
  const auto call = call_of(kOp, scope, weight, &LinearKernels::backward_input, grad_output.size(0),
                            weight.size(1), weight.size(0));
  const Tensor gy = packed(grad_output);
  const Tensor w = packed(weight);
  Tensor grad_input =
      empty_contiguous(std::vector<int64_t>{call.g.n, call.g.in}, call.dtype, weight);
  call.run(grad_input.mutable_data_ptr(), gy.const_data_ptr(), w.const_data_ptr(), call.g,
           call.threads);
  return grad_input;
}

Tensor linear_backward_weight(const Tensor& grad_output, const Tensor& input) {
  constexpr const char* kOp = "_linear_backward_weight";
  check_product(kOp, "grad_output", grad_output, 0, "input", input, 0);
  const DeviceScope scope(input);
  const auto call = call_of(kOp, scope, input, &LinearKernels::backward_weight, input.size(0),
                            input.size(1), grad_output.size(1));
  const Tensor gy = packed(grad_output);
  const Tensor x = packed(input);
  Tensor grad_weight =
      empty_contiguous(std::vector<int64_t>{call.g.out, call.g.in}, call.dtype, input);
  call.run(grad_weight.mutable_data_ptr(), gy.const_data_ptr(), x.const_data_ptr(), call.g,
           call.threads);
  return grad_weight;
}

}  // namespace

NNOPS_PRIVATE_OPERATOR(linear, "(Tensor input, Tensor weight, Tensor? bias) -> Tensor", linear)
NNOPS_PRIVATE_OPERATOR(linear_backward_input, "(Tensor grad_output, Tensor weight) -> Tensor",
                       linear_backward_input)
NNOPS_PRIVATE_OPERATOR(linear_backward_weight, "(Tensor grad_output, Tensor input) -> Tensor",
                       linear_backward_weight)

}  // namespace nnops
