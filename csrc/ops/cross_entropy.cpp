// nnops::cross_entropy, cross_entropy_backward and cross_entropy_backward_target: checks, geometry,
// allocation and the call.
#include "ops/cross_entropy.h"

#include <tuple>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/threads.h"
#include "ops/class_rows.h"

namespace nnops {
namespace {

constexpr KernelTable<CrossEntropyKernels> kTable = NNOPS_KERNEL_TABLE(cross_entropy_kernels);
const RegisterAlgorithms kAlgorithms("cross_entropy", {"class_vectors", "row_vectors"});

// An exponential costs about as much as this many of the operations that kGrainElements counts.
constexpr int64_t kGrain = kGrainElements / 4;

bool is_floating(const Tensor& tensor) {
  const std::optional<DType> dtype = known_dtype(tensor);
  return dtype.has_value() && is_floating(*dtype);
}

void check_smoothing(const char* op, double label_smoothing) {
  NNOPS_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op,
              ": label_smoothing must be in [0, 1], but got ", label_smoothing);
}

// A target of the input's sizes holds probabilities, any other class indices. Returns which.
bool check_target(const char* op, const Tensor& input, const Tensor& target, int64_t ignore_index) {
  check_device(op, "input", input);
  if (!same_sizes(input, target)) {
    NNOPS_CHECK_INDEX(input.dim() > 0, op,
                      ": input must have at least one dimension, the classes, but got sizes ()");
    check_index_target(op, input.sizes(), target);
    check_same_device(op, "target", target, "input", input);
    return false;
  }
  NNOPS_CHECK(is_floating(target), op, ": target of the input's sizes ", tuple_text(input.sizes()),
              " holds class probabilities and must be of floating dtype, but got dtype ",
              dtype_text(target));
  NNOPS_CHECK_INDEX(input.dim() > 0, op,
                    ": input must have at least one dimension, the classes, but got sizes ()");
  check_same_type(op, "target", target, "input", input);
  NNOPS_CHECK(ignore_index < 0, op,
              ": ignore_index must be negative, which means none, where target holds class "
              "probabilities, but got ",
              ignore_index);
  return true;
}

void check_log_sum_exp(const char* op, const Tensor& log_sum_exp, const Tensor& input) {
  check_device(op, "log_sum_exp", log_sum_exp);
  check_same_device(op, "log_sum_exp", log_sum_exp, "input", input);
  std::vector<int64_t> sizes = row_sizes(input.sizes());
  sizes.insert(sizes.begin(), 2);
  const Sizes actual = log_sum_exp.sizes();
  const DType dtype = accumulate_dtype(dtype_of(op, input));
  NNOPS_CHECK(std::equal(sizes.begin(), sizes.end(), actual.begin(), actual.end()) &&
                  dtype_of(op, log_sum_exp) == dtype && log_sum_exp.is_contiguous(),
              op, ": log_sum_exp must be the one that cross_entropy returned, packed, of sizes ",
              tuple_text(sizes), " and dtype ", dtype_name(dtype), ", but got sizes ",
              tuple_text(actual), " and dtype ", dtype_name(dtype_of(op, log_sum_exp)));
}

// The views of a call's tensors, and its geometry.
struct Problem {
  ClassGeometry g;
  ClassView input;
  ClassView target;
  ClassView grad_output;
  ClassView grad_input;
  const char* algorithm = "";
};

Problem view_input(const char* op, const Tensor& input, Reduction reduction,
                   double label_smoothing) {
  ClassGeometry g = class_geometry(op, input.sizes());
  g.reduction = reduction;
  g.label_smoothing = label_smoothing;
  ClassView view = class_view(input, true, input.dim() == 1);
  g.input = view.strides;
  Problem problem{g, view, {input, {}}, {input, {}}, {input, {}}};
  return problem;
}

void view_target(Problem& problem, const Tensor& target, bool probabilities, bool single,
                 int64_t ignore_index) {
  problem.target = class_view(target, probabilities, single);
  problem.g.target = problem.target.strides;
  problem.g.byte_targets = known_dtype(target) == DType::kUInt8;
  problem.g.ignore_index = ignore_index;
}

void view_gradients(Problem& problem, const Tensor& grad_output, const Tensor& grad_input,
                    bool single) {
  problem.grad_output = {grad_output, {}};
  if (problem.g.reduction == Reduction::kNone) {
    problem.grad_output = class_view(grad_output, false, single);
  }
  problem.g.grad_output = problem.grad_output.strides;
  problem.grad_input = class_view(grad_input, true, single);
  problem.g.grad_input = problem.grad_input.strides;
}

// With fewer classes what a row needs once costs more than to turn rows into lanes, which is done
// for logits and their gradients alone; with probabilities, fewer vectors along the classes pay. On
// CUDA, the same of the threads that share a row.
constexpr int64_t kLeastClassVector = 129;
constexpr int64_t kLeastProbabilityVector = 32;
constexpr int64_t kLeastClassesOfThreads = 5;

int64_t least_classes(bool probabilities) {
  return probabilities ? kLeastProbabilityVector : kLeastClassVector;
}

// Which way the vectors run; the last thing before the call.
void choose_vectors(Problem& problem, const DeviceScope& scope, int64_t least, bool probabilities,
                    bool gradient) {
  ClassGeometry& g = problem.g;
  g.class_vectors = g.classes >= (scope.on_cuda() ? kLeastClassesOfThreads : least) &&
                    g.input.c == 1 && (!probabilities || g.target.c == 1) &&
                    (!gradient || g.grad_input.c == 1);
  if (!g.class_vectors) batch_as_spatial(g);
  problem.algorithm = g.class_vectors ? "class_vectors" : "row_vectors";
  if (!scope.on_cuda()) set_chunks(g, g.classes);
}

int threads_for(const ClassGeometry& g) {
  return thread_count(g.batch * g.spatial * g.classes, kGrain);
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target,
                                                 const std::optional<Tensor>& weight,
                                                 int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing) {
  constexpr const char* kOp = "cross_entropy";
  const bool probabilities = check_target(kOp, input, target, ignore_index);
  const bool single = input.dim() == 1;
  const Reduction reduce = check_reduction(kOp, reduction);
  check_smoothing(kOp, label_smoothing);
  const DType dtype = dtype_of(kOp, input);
  const DeviceScope scope(input);
  Problem problem = view_input(kOp, input, reduce, label_smoothing);
  const std::optional<Tensor> w = check_weight(kOp, weight, problem.g.classes, "input", input);
  view_target(problem, target, probabilities, single, ignore_index);
  choose_vectors(problem, scope, least_classes(probabilities), probabilities, false);
  const ClassGeometry& g = problem.g;
  const CrossEntropyKernels& kernels = active_kernels(kTable, scope.isa());
  const auto kernel = kernel_for(
      kOp, problem.algorithm,
      probabilities ? kernels.forward_probabilities : kernels.forward_indices, dtype, scope.isa());

  std::vector<int64_t> rows = row_sizes(input.sizes());
  Tensor loss = empty_contiguous(reduce == Reduction::kNone ? Sizes(rows) : Sizes(), dtype, input);
  rows.insert(rows.begin(), 2);
  Tensor log_sum_exp = empty_contiguous(rows, accumulate_dtype(dtype), input);
  Tensor total_weight = empty_contiguous(Sizes(), accumulate_dtype(dtype), input);
  const Scratch sums(scope, sums_bytes(g));
  const int64_t bad = kernel(loss.mutable_data_ptr(), log_sum_exp.mutable_data_ptr(),
                             total_weight.mutable_data_ptr(), problem.input.tensor.const_data_ptr(),
                             problem.target.tensor.const_data_ptr(), data_or_null(w),
                             static_cast<ClassSums*>(sums.data()), g, threads_for(g));
  if (bad >= 0) throw_bad_target(kOp, target, bad, g.classes, ignore_index);
  return {std::move(loss), std::move(log_sum_exp), std::move(total_weight)};
}

Tensor cross_entropy_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const Tensor& log_sum_exp,
                              const Tensor& total_weight, int64_t reduction, int64_t ignore_index,
                              double label_smoothing) {
  constexpr const char* kOp = "cross_entropy_backward";
  const bool probabilities = check_target(kOp, input, target, ignore_index);
  const bool single = input.dim() == 1;
  const Reduction reduce = check_reduction(kOp, reduction);
  check_smoothing(kOp, label_smoothing);
  check_same_type(kOp, "grad_output", grad_output, "input", input);
  check_grad_output(kOp, grad_output, reduce, row_sizes(input.sizes()));
  check_log_sum_exp(kOp, log_sum_exp, input);
  const DType dtype = dtype_of(kOp, input);
  const DeviceScope scope(input);
  check_device(kOp, "total_weight", total_weight);
  check_same_device(kOp, "total_weight", total_weight, "input", input);
  NNOPS_CHECK(total_weight.numel() == 1 && dtype_of(kOp, total_weight) == accumulate_dtype(dtype),
              kOp, ": total_weight must be the one that cross_entropy returned, but got sizes ",
              tuple_text(total_weight.sizes()), " and dtype ",
              dtype_name(dtype_of(kOp, total_weight)));
  Problem problem = view_input(kOp, input, reduce, label_smoothing);
  const std::optional<Tensor> w = check_weight(kOp, weight, problem.g.classes, "input", input);
  view_target(problem, target, probabilities, single, ignore_index);
  Tensor grad_input = empty_dense_like(input);
  view_gradients(problem, grad_output, grad_input, single);
  choose_vectors(problem, scope, least_classes(probabilities), probabilities, true);
  const ClassGeometry& g = problem.g;
  const CrossEntropyKernels& kernels = active_kernels(kTable, scope.isa());
  const auto kernel =
      kernel_for(kOp, problem.algorithm,
                 probabilities ? kernels.backward_probabilities : kernels.backward_indices, dtype,
                 scope.isa());
  const Scratch sums(scope, sums_bytes(g));
  const int64_t bad = kernel(
      problem.grad_input.tensor.mutable_data_ptr(), problem.grad_output.tensor.const_data_ptr(),
      problem.input.tensor.const_data_ptr(), problem.target.tensor.const_data_ptr(),
      data_or_null(w), log_sum_exp.const_data_ptr(), total_weight.const_data_ptr(),
      static_cast<ClassSums*>(sums.data()), g, threads_for(g));
  if (bad >= 0) throw_bad_target(kOp, target, bad, g.classes, ignore_index);
  // Only where grad_input's strides let its spatial dimensions not be seen as one.
  if (problem.grad_input.tensor.get() != grad_input.get()) {
    torch::stable::copy_(grad_input, problem.grad_input.tensor);
  }
  return grad_input;
}

Tensor cross_entropy_backward_target(const Tensor& grad_output, const Tensor& input,
                                     const std::optional<Tensor>& weight, const Tensor& log_sum_exp,
                                     int64_t reduction, double label_smoothing) {
  constexpr const char* kOp = "cross_entropy_backward_target";
  check_device(kOp, "input", input);
  NNOPS_CHECK_INDEX(input.dim() > 0, kOp,
                    ": input must have at least one dimension, the classes, but got sizes ()");
  const bool single = input.dim() == 1;
  const Reduction reduce = check_reduction(kOp, reduction);
  check_smoothing(kOp, label_smoothing);
  check_same_type(kOp, "grad_output", grad_output, "input", input);
  check_grad_output(kOp, grad_output, reduce, row_sizes(input.sizes()));
  check_log_sum_exp(kOp, log_sum_exp, input);
  const DType dtype = dtype_of(kOp, input);
  const DeviceScope scope(input);
  Problem problem = view_input(kOp, input, reduce, label_smoothing);
  const std::optional<Tensor> w = check_weight(kOp, weight, problem.g.classes, "input", input);
  Tensor grad_target = empty_dense_like(input);
  view_gradients(problem, grad_output, grad_target, single);
  choose_vectors(problem, scope, kLeastProbabilityVector, false, true);
  const ClassGeometry& g = problem.g;
  const auto kernel =
      kernel_for(kOp, problem.algorithm, active_kernels(kTable, scope.isa()).backward_target, dtype,
                 scope.isa());
  kernel(problem.grad_input.tensor.mutable_data_ptr(), problem.grad_output.tensor.const_data_ptr(),
         problem.input.tensor.const_data_ptr(), data_or_null(w), log_sum_exp.const_data_ptr(), g,
         threads_for(g));
  if (problem.grad_input.tensor.get() != grad_target.get()) {
    torch::stable::copy_(grad_target, problem.grad_input.tensor);
  }
  return grad_target;
}

}  // namespace

NNOPS_OPERATOR(cross_entropy,
               "(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index,"
               " float label_smoothing) -> (Tensor, Tensor, Tensor)",
               cross_entropy)
NNOPS_OPERATOR(cross_entropy_backward,
               "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight,"
               " Tensor log_sum_exp, Tensor total_weight, int reduction, int ignore_index,"
               " float label_smoothing) -> Tensor",
               cross_entropy_backward)
NNOPS_OPERATOR(cross_entropy_backward_target,
               "(Tensor grad_output, Tensor input, Tensor? weight, Tensor log_sum_exp,"
               " int reduction, float label_smoothing) -> Tensor",
               cross_entropy_backward_target)

}  // namespace nnops
