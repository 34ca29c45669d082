// nnops::template_op and nnops::template_op_backward: checks, allocation and the call.
//
// A complete small operator to copy when adding one: CONTRIBUTING.md walks through its five files.
#include "ops/template_op.h"

#include <cmath>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace nnops {
namespace {

constexpr KernelTable<TemplateOpKernels> kTable = NNOPS_KERNEL_TABLE(template_op_kernels);
const RegisterAlgorithms kAlgorithms("template_op", {"vector"});

void check_scale(const char* op, double scale) {
  NNOPS_CHECK_VALUE(std::isfinite(scale), op, ": scale must be finite, but got scale=", scale);
}

// input (*), any strides; returns (*) in the same dimension order.
Tensor template_op(const Tensor& input, double scale) {
  constexpr const char* kOp = "template_op";
  check_device(kOp, "input", input);
  const DeviceScope scope(input);
  check_scale(kOp, scale);
  const auto kernel = kernel_for(kOp, "vector", active_kernels(kTable, scope.isa()).forward,
                                 dtype_of(kOp, input), scope.isa());
  const Tensor x = dense(input);
  Tensor output = empty_as(x);
  const int64_t n = x.numel();
  if (n > 0) {
    kernel(output.mutable_data_ptr(), x.const_data_ptr(), scale, n,
           thread_count(n, kGrainElements));
  }
  return output;
}

// grad_output (*) and input (*), any strides; returns (*) in the dimension order of input.
Tensor template_op_backward(const Tensor& grad_output, const Tensor& input, double scale) {
  constexpr const char* kOp = "template_op_backward";
  check_device(kOp, "grad_output", grad_output);
  check_same_type(kOp, "input", input, "grad_output", grad_output);
  const DeviceScope scope(input);
  check_scale(kOp, scale);
  NNOPS_CHECK(same_sizes(grad_output, input), kOp,
              ": grad_output and input must have the same sizes, but got ",
              tuple_text(grad_output.sizes()), " and ", tuple_text(input.sizes()));
  const auto kernel = kernel_for(kOp, "vector", active_kernels(kTable, scope.isa()).backward,
                                 dtype_of(kOp, input), scope.isa());
  const Tensor x = dense(input);
  const Tensor gy = with_strides_of(grad_output, x);
  Tensor grad_input = empty_as(x);
  const int64_t n = x.numel();
  if (n > 0) {
    kernel(grad_input.mutable_data_ptr(), gy.const_data_ptr(), x.const_data_ptr(), scale, n,
           thread_count(n, kGrainElements));
  }
  return grad_input;
}

}  // namespace

NNOPS_OPERATOR(template_op, "(Tensor input, float scale) -> Tensor", template_op)
NNOPS_OPERATOR(template_op_backward, "(Tensor grad_output, Tensor input, float scale) -> Tensor",
               template_op_backward)

}  // namespace nnops
