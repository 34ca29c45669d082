// l1, mse, smooth_l1, huber, kl_div, binary_cross_entropy (with and without logits): checks, memory
// order, allocation and the call, for values and for both derivatives.
//
// All operands have the input's sizes (weights broadcast to them) and one dtype; Python promotes
// and broadcasts before. `reduction` is 0 none, 1 mean, 2 sum.
#include "ops/pointwise_losses.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/elementwise.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace nnops {
namespace {

constexpr KernelTable<PointwiseLossKernels> kTable = NNOPS_KERNEL_TABLE(pointwise_loss_kernels);
const RegisterAlgorithms kAlgorithms[] = {
    {"l1_loss", {"vector"}},
    {"mse_loss", {"vector"}},
    {"smooth_l1_loss", {"vector"}},
    {"huber_loss", {"vector"}},
    {"kl_div", {"vector"}},
    {"binary_cross_entropy", {"vector"}},
    {"binary_cross_entropy_with_logits", {"vector"}},
};

using Weight = std::optional<Tensor>;

constexpr int64_t kNone = 0;
constexpr int64_t kMean = 1;
constexpr int64_t kSum = 2;

// Which operands give the unreduced result its memory order, as in torch; with two of them, the
// second decides where the first is broadcast.
enum class Order { kInput, kTarget, kInputThenTarget, kTargetThenInput };

// One call of one loss.
struct Problem {
  const char* op;
  PointwiseLossFunctions PointwiseLossKernels::* loss;
  int64_t reduction;
  double parameter = 0;
  const Weight* weight = nullptr;
  const Weight* pos_weight = nullptr;
};

const PointwiseLossFunctions& functions_of(const Problem& problem, const DeviceScope& scope) {
  return active_kernels(kTable, scope.isa()).*problem.loss;
}

void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  check_device(op, name, tensor);
  check_same_type(op, name, tensor, "input", input);
}

void check_reduction(const char* op, int64_t reduction) {
  NNOPS_CHECK_VALUE(reduction >= kNone && reduction <= kSum, op,
                    ": reduction must be 0 (none), 1 (mean) or 2 (sum), but got ", reduction);
}

void check_same_sizes(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  NNOPS_CHECK(same_sizes(tensor, input), op, ": ", name,
              " and input must have the same sizes, but got ", tuple_text(tensor.sizes()), " and ",
              tuple_text(input.sizes()));
}

// `weight`, which must broadcast to the sizes of the dense tensor `like`, in its memory order.
Tensor broadcast_weight(const char* op, const char* name, const Tensor& weight,
                        const Tensor& like) {
  check_like(op, name, weight, like);
  if (same_sizes(weight, like)) return with_strides_of(weight, like);
  const Sizes from = weight.sizes();
  const Sizes to = like.sizes();
  bool fits = from.size() <= to.size();
  for (size_t i = 0; fits && i < from.size(); ++i) {
    const int64_t size = from[from.size() - 1 - i];
    fits = size == 1 || size == to[to.size() - 1 - i];
  }
  NNOPS_CHECK(fits, op, ": ", name, " must broadcast to the sizes of input, but got ",
              tuple_text(from), " and ", tuple_text(to));
  Tensor copy = empty_as(like);
  torch::stable::copy_(copy, weight);
  return copy;
}

// The operands of a kernel call in the memory order of the dense tensor `like`, kept alive.
struct Operands {
  Tensor input;
  Tensor target;
  Weight weight;
  Weight pos_weight;
  PointwiseLossArguments arguments;

  Operands(const Problem& problem, const Tensor& x, const Tensor& t, const Tensor& like)
      : input(with_strides_of(x, like)), target(with_strides_of(t, like)), arguments{} {
    arguments.input = input.const_data_ptr();
    arguments.target = target.const_data_ptr();
    if (problem.weight != nullptr && problem.weight->has_value()) {
      weight = broadcast_weight(problem.op, "weight", **problem.weight, like);
      arguments.weight = weight->const_data_ptr();
    }
    if (problem.pos_weight != nullptr && problem.pos_weight->has_value()) {
      pos_weight = broadcast_weight(problem.op, "pos_weight", **problem.pos_weight, like);
      arguments.pos_weight = pos_weight->const_data_ptr();
    }
    arguments.n = input.numel();
    arguments.parameter = problem.parameter;
  }
};

Tensor empty_in_order(Order order, const Tensor& input, const Tensor& target, DType dtype) {
  if (order == Order::kInput) return empty_dense_like(input);
  if (order == Order::kTarget) return empty_dense_like(target);
  const auto strides = order == Order::kInputThenTarget ? elementwise_strides(input, target)
                                                        : elementwise_strides(target, input);
  return empty_strided(input.sizes(), strides, dtype, input);
}

void check_domain(const char* op, int outside) {
  NNOPS_CHECK((outside & kInputOutside) == 0, op,
              ": all elements of input should be between 0 and 1, but got a value outside, or NaN");
  NNOPS_CHECK(
      (outside & kTargetOutside) == 0, op,
      ": all elements of target should be between 0 and 1, but got a value outside, or NaN");
}

DType check_operands(const Problem& problem, const Tensor& input, const Tensor& target) {
  const char* op = problem.op;
  check_device(op, "input", input);
  check_like(op, "target", target, input);
  check_same_sizes(op, "target", target, input);
  check_reduction(op, problem.reduction);
  return dtype_of(op, input);
}

// What a reduced loss is computed with, beside its operands.
struct Reduction {
  Tensor output;
  Scratch block_sums;
  double divisor;
  int threads;

  Reduction(const Problem& problem, const Tensor& input, DType dtype, const DeviceScope& scope)
      : output(empty_contiguous({}, is_floating(dtype) ? dtype : DType::kInt64, input)),
        block_sums(scope, (input.numel() + kLossBlock - 1) / kLossBlock *
                              static_cast<int64_t>(sizeof(double))),
        divisor(problem.reduction == kMean ? static_cast<double>(input.numel()) : 1.0),
        threads(thread_count(input.numel(), kGrainElements)) {}
};

Tensor forward(const Problem& problem, const Tensor& input, const Tensor& target, Order order) {
  const char* op = problem.op;
  const DType dtype = check_operands(problem, input, target);
  const DeviceScope scope(input);
  const PointwiseLossFunctions& functions = functions_of(problem, scope);

  if (problem.reduction == kNone) {
    const auto kernel = kernel_for(op, "vector", functions.forward, dtype, scope.isa());
    Tensor output = empty_in_order(order, input, target, dtype);
    const Operands operands(problem, input, target, output);
    check_domain(op, kernel(output.mutable_data_ptr(), operands.arguments,
                            thread_count(input.numel(), kGrainElements)));
    return output;
  }

  const auto kernel = kernel_for(op, "vector", functions.reduce, dtype, scope.isa());
  NNOPS_CHECK(is_floating(dtype) || problem.reduction == kSum, op,
              ": reduction 'mean' needs a floating dtype, but got dtype ", dtype_name(dtype));
  const Operands operands(problem, input, target, dense(input));
  Reduction reduced(problem, input, dtype, scope);
  check_domain(op, kernel(reduced.output.mutable_data_ptr(), reduced.block_sums.data(),
                          operands.arguments, reduced.divisor, reduced.threads));
  return reduced.output;
}

// The reduced loss, and its gradient by the input where that of the loss is 1, in one pass.
std::tuple<Tensor, Tensor> forward_with_gradient(const Problem& problem, const Tensor& input,
                                                 const Tensor& target) {
  const char* op = problem.op;
  const DType dtype = check_operands(problem, input, target);
  NNOPS_CHECK_VALUE(problem.reduction != kNone, op, ": reduction must not be 0 (none)");
  const DeviceScope scope(input);
  const auto kernel = kernel_for(op, "vector", functions_of(problem, scope).reduce_with_gradient,
                                 dtype, scope.isa());
  Tensor gradient = empty_dense_like(input);
  const Operands operands(problem, input, target, gradient);
  Reduction reduced(problem, input, dtype, scope);
  check_domain(
      op, kernel(reduced.output.mutable_data_ptr(), gradient.mutable_data_ptr(),
                 reduced.block_sums.data(), operands.arguments, reduced.divisor, reduced.threads));
  return {reduced.output, gradient};
}

// `input` and `target` may be one tensor, for a derivative that reads only one of them.
Tensor backward(const Problem& problem,
                PerDType<PointwiseLossFunctions::Backward> PointwiseLossFunctions::* derivative,
                const Tensor& grad_output, const Tensor& input, const Tensor& target) {
  const char* op = problem.op;
  const DType dtype = check_operands(problem, input, target);
  check_like(op, "grad_output", grad_output, input);
  const int64_t n = input.numel();
  if (problem.reduction == kNone) {
    check_same_sizes(op, "grad_output", grad_output, input);
  } else {
    NNOPS_CHECK(grad_output.dim() == 0, op,
                ": grad_output of a reduced loss must have no dimensions, but got sizes ",
                tuple_text(grad_output.sizes()));
  }
  const DeviceScope scope(input);
  const auto kernel =
      kernel_for(op, "vector", functions_of(problem, scope).*derivative, dtype, scope.isa());
  Tensor gradient = empty_dense_like(input);
  const Operands operands(problem, input, target, gradient);
  if (n == 0) return gradient;
  const bool per_element = !is_single_value(grad_output);
  const Tensor g = per_element ? with_strides_of(grad_output, gradient) : grad_output;
  const double divisor = problem.reduction == kMean ? static_cast<double>(n) : 1.0;
  kernel(gradient.mutable_data_ptr(), g.const_data_ptr(), per_element, divisor, operands.arguments,
         thread_count(n, kGrainElements));
  return gradient;
}

Tensor backward_input(const Problem& problem, const Tensor& grad_output, const Tensor& input,
                      const Tensor& target) {
  return backward(problem, &PointwiseLossFunctions::backward, grad_output, input, target);
}

Tensor backward_target(const Problem& problem, const Tensor& grad_output, const Tensor& input,
                       const Tensor& target) {
  return backward(problem, &PointwiseLossFunctions::backward_target, grad_output, input, target);
}

// --- l1, mse ------------------------------------------------------------------------------------

Tensor l1_loss(const Tensor& input, const Tensor& target, int64_t reduction) {
  return forward({"l1_loss", &PointwiseLossKernels::l1, reduction}, input, target,
                 Order::kInputThenTarget);
}

std::tuple<Tensor, Tensor> l1_loss_with_gradient(const Tensor& input, const Tensor& target,
                                                 int64_t reduction) {
  return forward_with_gradient({"l1_loss", &PointwiseLossKernels::l1, reduction}, input, target);
}

Tensor l1_loss_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                        int64_t reduction) {
  return backward_input({"l1_loss_backward", &PointwiseLossKernels::l1, reduction}, grad_output,
                        input, target);
}

Tensor mse_loss(const Tensor& input, const Tensor& target, int64_t reduction) {
  return forward({"mse_loss", &PointwiseLossKernels::mse, reduction}, input, target,
                 Order::kInputThenTarget);
}

std::tuple<Tensor, Tensor> mse_loss_with_gradient(const Tensor& input, const Tensor& target,
                                                  int64_t reduction) {
  return forward_with_gradient({"mse_loss", &PointwiseLossKernels::mse, reduction}, input, target);
}

Tensor mse_loss_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                         int64_t reduction) {
  return backward_input({"mse_loss_backward", &PointwiseLossKernels::mse, reduction}, grad_output,
                        input, target);
}

// --- smooth_l1, huber ---------------------------------------------------------------------------

Problem smooth_l1_problem(const char* op, double beta, int64_t reduction) {
  NNOPS_CHECK(beta >= 0, op, ": beta must not be negative, but got beta=", beta);
  // Equal bit for bit, but a division less: by 1 it changes nothing, and takes longer than memory.
  const auto curved = beta == 1 ? &PointwiseLossKernels::huber : &PointwiseLossKernels::smooth_l1;
  return {op, beta == 0 ? &PointwiseLossKernels::l1 : curved, reduction, beta};
}

Tensor smooth_l1_loss(const Tensor& input, const Tensor& target, double beta, int64_t reduction) {
  return forward(smooth_l1_problem("smooth_l1_loss", beta, reduction), input, target,
                 Order::kInputThenTarget);
}

std::tuple<Tensor, Tensor> smooth_l1_loss_with_gradient(const Tensor& input, const Tensor& target,
                                                        double beta, int64_t reduction) {
  return forward_with_gradient(smooth_l1_problem("smooth_l1_loss", beta, reduction), input, target);
}

Tensor smooth_l1_loss_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                               double beta, int64_t reduction) {
  return backward_input(smooth_l1_problem("smooth_l1_loss_backward", beta, reduction), grad_output,
                        input, target);
}

Problem huber_problem(const char* op, double delta, int64_t reduction) {
  NNOPS_CHECK(delta > 0, op, ": delta must be positive, but got delta=", delta);
  return {op, &PointwiseLossKernels::huber, reduction, delta};
}

Tensor huber_loss(const Tensor& input, const Tensor& target, double delta, int64_t reduction) {
  return forward(huber_problem("huber_loss", delta, reduction), input, target, Order::kInput);
}

std::tuple<Tensor, Tensor> huber_loss_with_gradient(const Tensor& input, const Tensor& target,
                                                    double delta, int64_t reduction) {
  return forward_with_gradient(huber_problem("huber_loss", delta, reduction), input, target);
}

Tensor huber_loss_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                           double delta, int64_t reduction) {
  return backward_input(huber_problem("huber_loss_backward", delta, reduction), grad_output, input,
                        target);
}

// --- kl_div -------------------------------------------------------------------------------------

Problem kl_div_problem(const char* op, bool log_target, int64_t reduction) {
  return {op, log_target ? &PointwiseLossKernels::kl_div_log_target : &PointwiseLossKernels::kl_div,
          reduction};
}

Tensor kl_div(const Tensor& input, const Tensor& target, bool log_target, int64_t reduction) {
  return forward(kl_div_problem("kl_div", log_target, reduction), input, target,
                 Order::kTargetThenInput);
}

std::tuple<Tensor, Tensor> kl_div_with_gradient(const Tensor& input, const Tensor& target,
                                                bool log_target, int64_t reduction) {
  return forward_with_gradient(kl_div_problem("kl_div", log_target, reduction), input, target);
}

// The input's gradient does not depend on the input.
Tensor kl_div_backward(const Tensor& grad_output, const Tensor& target, bool log_target,
                       int64_t reduction) {
  return backward_input(kl_div_problem("kl_div_backward", log_target, reduction), grad_output,
                        target, target);
}

Tensor kl_div_backward_target(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                              bool log_target, int64_t reduction) {
  return backward_target(kl_div_problem("kl_div_backward_target", log_target, reduction),
                         grad_output, input, target);
}

// --- binary_cross_entropy -----------------------------------------------------------------------

void check_target_value_sizes(const char* op, const Tensor& input, const Tensor& target) {
  NNOPS_CHECK_VALUE(same_sizes(input, target), op,
                    ": target and input must have the same sizes, but got ",
                    tuple_text(target.sizes()), " and ", tuple_text(input.sizes()));
}

Problem bce_problem(const char* op, const Weight& weight, int64_t reduction) {
  return {op, &PointwiseLossKernels::bce, reduction, 0, &weight};
}

Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const Weight& weight,
                            int64_t reduction) {
  const Problem problem = bce_problem("binary_cross_entropy", weight, reduction);
  check_target_value_sizes(problem.op, input, target);
  return forward(problem, input, target, Order::kInput);
}

std::tuple<Tensor, Tensor> binary_cross_entropy_with_gradient(const Tensor& input,
                                                              const Tensor& target,
                                                              const Weight& weight,
                                                              int64_t reduction) {
  const Problem problem = bce_problem("binary_cross_entropy", weight, reduction);
  check_target_value_sizes(problem.op, input, target);
  return forward_with_gradient(problem, input, target);
}

Tensor binary_cross_entropy_backward(const Tensor& grad_output, const Tensor& input,
                                     const Tensor& target, const Weight& weight,
                                     int64_t reduction) {
  return backward_input(bce_problem("binary_cross_entropy_backward", weight, reduction),
                        grad_output, input, target);
}

// The loss is linear in the target, whose gradient therefore does not depend on it.
Tensor binary_cross_entropy_backward_target(const Tensor& grad_output, const Tensor& input,
                                            const Weight& weight, int64_t reduction) {
  return backward_target(bce_problem("binary_cross_entropy_backward_target", weight, reduction),
                         grad_output, input, input);
}

// --- binary_cross_entropy_with_logits -----------------------------------------------------------

// With `finite`, logits beyond this count as it: an infinite one then costs a number where the
// target disagrees and nothing where it agrees. 2^64 leaves weighted losses, their sums and means
// far from overflow; float16 ends before.
double largest_logit(bool finite, const Tensor& input) {
  if (!finite) return std::numeric_limits<double>::infinity();
  return known_dtype(input) == DType::kFloat16 ? 65504.0 : 0x1p64;
}

Problem bce_logits_problem(const char* op, const Tensor& input, const Weight& weight,
                           const Weight& pos_weight, bool finite, int64_t reduction) {
  const auto loss = pos_weight.has_value() ? &PointwiseLossKernels::bce_logits_pos_weight
                                           : &PointwiseLossKernels::bce_logits;
  return {op, loss, reduction, largest_logit(finite, input), &weight, &pos_weight};
}

Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target,
                                        const Weight& weight, const Weight& pos_weight, bool finite,
                                        int64_t reduction) {
  const Problem problem = bce_logits_problem("binary_cross_entropy_with_logits", input, weight,
                                             pos_weight, finite, reduction);
  check_target_value_sizes(problem.op, input, target);
  return forward(problem, input, target, Order::kTarget);
}

std::tuple<Tensor, Tensor> binary_cross_entropy_with_logits_with_gradient(
    const Tensor& input, const Tensor& target, const Weight& weight, const Weight& pos_weight,
    bool finite, int64_t reduction) {
  const Problem problem = bce_logits_problem("binary_cross_entropy_with_logits", input, weight,
                                             pos_weight, finite, reduction);
  check_target_value_sizes(problem.op, input, target);
  return forward_with_gradient(problem, input, target);
}

Tensor binary_cross_entropy_with_logits_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& target, const Weight& weight,
                                                 const Weight& pos_weight, bool finite,
                                                 int64_t reduction) {
  return backward_input(bce_logits_problem("binary_cross_entropy_with_logits_backward", input,
                                           weight, pos_weight, finite, reduction),
                        grad_output, input, target);
}

Tensor binary_cross_entropy_with_logits_backward_target(const Tensor& grad_output,
                                                        const Tensor& input, const Weight& weight,
                                                        const Weight& pos_weight, bool finite,
                                                        int64_t reduction) {
  return backward_target(bce_logits_problem("binary_cross_entropy_with_logits_backward_target",
                                            input, weight, pos_weight, finite, reduction),
                         grad_output, input, input);
}

}  // namespace

NNOPS_OPERATOR(l1_loss, "(Tensor input, Tensor target, int reduction) -> Tensor", l1_loss)
NNOPS_PRIVATE_OPERATOR(l1_loss_with_gradient,
                       "(Tensor input, Tensor target, int reduction) -> (Tensor, Tensor)",
                       l1_loss_with_gradient)
NNOPS_OPERATOR(l1_loss_backward,
               "(Tensor grad_output, Tensor input, Tensor target, int reduction) -> Tensor",
               l1_loss_backward)
NNOPS_OPERATOR(mse_loss, "(Tensor input, Tensor target, int reduction) -> Tensor", mse_loss)
NNOPS_PRIVATE_OPERATOR(mse_loss_with_gradient,
                       "(Tensor input, Tensor target, int reduction) -> (Tensor, Tensor)",
                       mse_loss_with_gradient)
NNOPS_OPERATOR(mse_loss_backward,
               "(Tensor grad_output, Tensor input, Tensor target, int reduction) -> Tensor",
               mse_loss_backward)
NNOPS_OPERATOR(smooth_l1_loss, "(Tensor input, Tensor target, float beta, int reduction) -> Tensor",
               smooth_l1_loss)
NNOPS_PRIVATE_OPERATOR(
    smooth_l1_loss_with_gradient,
    "(Tensor input, Tensor target, float beta, int reduction) -> (Tensor, Tensor)",
    smooth_l1_loss_with_gradient)
NNOPS_OPERATOR(
    smooth_l1_loss_backward,
    "(Tensor grad_output, Tensor input, Tensor target, float beta, int reduction) -> Tensor",
    smooth_l1_loss_backward)
NNOPS_OPERATOR(huber_loss, "(Tensor input, Tensor target, float delta, int reduction) -> Tensor",
               huber_loss)
NNOPS_PRIVATE_OPERATOR(
    huber_loss_with_gradient,
    "(Tensor input, Tensor target, float delta, int reduction) -> (Tensor, Tensor)",
    huber_loss_with_gradient)
NNOPS_OPERATOR(
    huber_loss_backward,
    "(Tensor grad_output, Tensor input, Tensor target, float delta, int reduction) -> Tensor",
    huber_loss_backward)
NNOPS_OPERATOR(kl_div, "(Tensor input, Tensor target, bool log_target, int reduction) -> Tensor",
               kl_div)
NNOPS_PRIVATE_OPERATOR(
    kl_div_with_gradient,
    "(Tensor input, Tensor target, bool log_target, int reduction) -> (Tensor, Tensor)",
    kl_div_with_gradient)
NNOPS_OPERATOR(kl_div_backward,
               "(Tensor grad_output, Tensor target, bool log_target, int reduction) -> Tensor",
               kl_div_backward)
NNOPS_OPERATOR(
    kl_div_backward_target,
    "(Tensor grad_output, Tensor input, Tensor target, bool log_target, int reduction) -> Tensor",
    kl_div_backward_target)
NNOPS_OPERATOR(binary_cross_entropy,
               "(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor",
               binary_cross_entropy)
NNOPS_PRIVATE_OPERATOR(
    binary_cross_entropy_with_gradient,
    "(Tensor input, Tensor target, Tensor? weight, int reduction) -> (Tensor, Tensor)",
    binary_cross_entropy_with_gradient)
NNOPS_OPERATOR(binary_cross_entropy_backward,
               "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, int reduction)"
               " -> Tensor",
               binary_cross_entropy_backward)
NNOPS_OPERATOR(binary_cross_entropy_backward_target,
               "(Tensor grad_output, Tensor input, Tensor? weight, int reduction) -> Tensor",
               binary_cross_entropy_backward_target)
NNOPS_OPERATOR(binary_cross_entropy_with_logits,
               "(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, bool finite,"
               " int reduction) -> Tensor",
               binary_cross_entropy_with_logits)
NNOPS_PRIVATE_OPERATOR(binary_cross_entropy_with_logits_with_gradient,
                       "(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight,"
                       " bool finite, int reduction) -> (Tensor, Tensor)",
                       binary_cross_entropy_with_logits_with_gradient)
NNOPS_OPERATOR(binary_cross_entropy_with_logits_backward,
               "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
               "Tensor? pos_weight, bool finite, int reduction) -> Tensor",
               binary_cross_entropy_with_logits_backward)
NNOPS_OPERATOR(binary_cross_entropy_with_logits_backward_target,
               "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? pos_weight, "
               "bool finite, int reduction) -> Tensor",
               binary_cross_entropy_with_logits_backward_target)

}  // namespace nnops
