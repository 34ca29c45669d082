// nnops::relu, nnops::relu_ and nnops::relu_backward: checks, allocation and the call.
#include "ops/relu.h"

#include "core/check.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace nnops {
namespace {

constexpr KernelTable<ReluKernels> kTable = NNOPS_KERNEL_TABLE(relu_kernels);
const RegisterAlgorithms kAlgorithms("relu", {"vector"});

// `output` and `input` are dense, of equal sizes and strides; they may be the same tensor.
void run_forward(const char* op, const Tensor& output, const Tensor& input) {
  const int64_t n = input.numel();
  const auto kernel = kernel_for(op, "vector", active_kernels(kTable).forward, dtype_of(op, input));
  if (n == 0) return;
  kernel(output.mutable_data_ptr(), input.const_data_ptr(), n, thread_count(n, kGrainElements));
}

Tensor relu(const Tensor& input) {
  check_device("relu", "input", input);
  const Tensor x = dense(input);
  Tensor output = empty_as(x);
  run_forward("relu", output, x);
  return output;
}

Tensor relu_(Tensor input) {
  check_device("relu_", "input", input);
  const Sizes sizes = input.sizes();
  const Sizes strides = input.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    NNOPS_CHECK(sizes[i] < 2 || strides[i] != 0 || input.numel() == 0,
                "relu_: the elements of input must not share memory, but got sizes ",
                tuple_text(sizes), " with strides ", tuple_text(strides));
  }
  if (is_dense(input)) {
    run_forward("relu_", input, input);
  } else {
    Tensor packed = dense(input);
    run_forward("relu_", packed, packed);
    torch::stable::copy_(input, packed);
  }
  return input;
}

Tensor relu_backward(const Tensor& grad_output, const Tensor& output) {
  constexpr const char* kOp = "relu_backward";
  check_device(kOp, "grad_output", grad_output);
  check_same_type(kOp, "output", output, "grad_output", grad_output);
  NNOPS_CHECK(same_sizes(grad_output, output), kOp,
              ": grad_output and output must have the same sizes, but got ",
              tuple_text(grad_output.sizes()), " and ", tuple_text(output.sizes()));
  const auto kernel =
      kernel_for(kOp, "vector", active_kernels(kTable).backward, dtype_of(kOp, output));
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

}  // namespace

NNOPS_OPERATOR(relu, "(Tensor input) -> Tensor", relu)
NNOPS_OPERATOR(relu_backward, "(Tensor grad_output, Tensor output) -> Tensor", relu_backward)

STABLE_TORCH_LIBRARY_FRAGMENT(nnops, library) {
  library.def("_relu_(Tensor(a!) input) -> Tensor(a!)");
}
STABLE_TORCH_LIBRARY_IMPL(nnops, CompositeExplicitAutograd, library) {
  library.impl("_relu_", TORCH_BOX(&relu_));
}

}  // namespace nnops
