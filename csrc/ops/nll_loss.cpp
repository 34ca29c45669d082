// nnops::nll_loss and nnops::nll_loss_backward: checks, geometry, allocation and the call.
#include "ops/nll_loss.h"

#include <algorithm>
#include <tuple>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/threads.h"
#include "ops/class_rows.h"

namespace nnops {
namespace {

constexpr KernelTable<NllLossKernels> kTable = NNOPS_KERNEL_TABLE(nll_loss_kernels);
// Writing a zero costs about this fraction of what chunks are made for, a value that is computed.
constexpr int64_t kZerosPerValue = 8;

const RegisterAlgorithms kAlgorithms("nll_loss", {"gather"});

std::tuple<Tensor, Tensor> nll_loss(const Tensor& input, const Tensor& target,
                                    const std::optional<Tensor>& weight, int64_t reduction,
                                    int64_t ignore_index) {
  constexpr const char* kOp = "nll_loss";
  check_device(kOp, "input", input);
  const Sizes sizes = input.sizes();
  NNOPS_CHECK_VALUE(!sizes.empty(), kOp,
                    ": input must have at least one dimension, the classes, but got sizes ()");
  check_index_target(kOp, sizes, target);
  check_same_device(kOp, "target", target, "input", input);
  const DeviceScope scope(input);
  const bool single = sizes.size() == 1;
  ClassGeometry g = class_geometry(kOp, sizes);
  const std::optional<Tensor> w = check_weight(kOp, weight, g.classes, "input", input);
  g.reduction = check_reduction(kOp, reduction);
  g.ignore_index = ignore_index;
  const DType dtype = dtype_of(kOp, input);
  const auto kernel =
      kernel_for(kOp, "gather", active_kernels(kTable, scope.isa()).forward, dtype, scope.isa());

  const ClassView x = class_view(input, true, single);
  const ClassView t = class_view(target, false, single);
  g.input = x.strides;
  g.target = t.strides;
  g.byte_targets = known_dtype(target) == DType::kUInt8;
  if (!scope.on_cuda()) set_chunks(g, 1);

  const std::vector<int64_t> rows = row_sizes(sizes);
  Tensor loss =
      empty_contiguous(g.reduction == Reduction::kNone ? Sizes(rows) : Sizes(), dtype, input);
  Tensor total_weight = empty_contiguous(Sizes(), accumulate_dtype(dtype), input);
  const Scratch sums(scope, sums_bytes(g));
  const int64_t bad =
      kernel(loss.mutable_data_ptr(), total_weight.mutable_data_ptr(), x.tensor.const_data_ptr(),
             t.tensor.const_data_ptr(), data_or_null(w), static_cast<ClassSums*>(sums.data()), g,
             thread_count(g.batch * g.spatial, kGrainElements / 4));
  if (bad >= 0) throw_bad_target(kOp, target, bad, g.classes, ignore_index);
  return {std::move(loss), std::move(total_weight)};
}

Tensor nll_loss_backward(const Tensor& grad_output, const Tensor& target,
                         const std::optional<Tensor>& weight, const Tensor& total_weight,
                         const std::vector<int64_t>& input_size, int64_t reduction,
                         int64_t ignore_index) {
  constexpr const char* kOp = "nll_loss_backward";
  check_device(kOp, "grad_output", grad_output);
  check_device(kOp, "total_weight", total_weight);
  const Sizes sizes(input_size);
  NNOPS_CHECK_VALUE(!sizes.empty() && std::all_of(sizes.begin(), sizes.end(),
                                                  [](int64_t size) { return size >= 0; }),
                    kOp, ": input_size must be one or more sizes, but got ", tuple_text(sizes));
  check_index_target(kOp, sizes, target);
  check_same_device(kOp, "target", target, "grad_output", grad_output);
  check_same_device(kOp, "total_weight", total_weight, "grad_output", grad_output);
  checked_numel(kOp, sizes);
  const DeviceScope scope(grad_output);
  const bool single = sizes.size() == 1;
  ClassGeometry g = class_geometry(kOp, sizes);
  const std::optional<Tensor> w = check_weight(kOp, weight, g.classes, "grad_output", grad_output);
  g.reduction = check_reduction(kOp, reduction);
  g.ignore_index = ignore_index;
  check_grad_output(kOp, grad_output, g.reduction, row_sizes(sizes));
  const DType dtype = dtype_of(kOp, grad_output);
  NNOPS_CHECK(total_weight.numel() == 1 && dtype_of(kOp, total_weight) == accumulate_dtype(dtype),
              kOp, ": total_weight must be the one that nll_loss returned, but got sizes ",
              tuple_text(total_weight.sizes()), " and dtype ",
              dtype_name(dtype_of(kOp, total_weight)));
  const auto kernel =
      kernel_for(kOp, "gather", active_kernels(kTable, scope.isa()).backward, dtype, scope.isa());

  const ClassView t = class_view(target, false, single);
  g.target = t.strides;
  g.byte_targets = known_dtype(target) == DType::kUInt8;
  ClassView gy{grad_output, {}};
  if (g.reduction == Reduction::kNone) gy = class_view(grad_output, false, single);
  g.grad_output = gy.strides;
  // Zeros in long runs; nothing is added up, so that the chunks may be large.
  if (!scope.on_cuda()) set_chunks(g, (g.classes + kZerosPerValue - 1) / kZerosPerValue);

  Tensor grad_input = empty_contiguous(sizes, dtype, grad_output);
  const Scratch sums(scope, sums_bytes(g));
  const int64_t bad =
      kernel(grad_input.mutable_data_ptr(), gy.tensor.const_data_ptr(), t.tensor.const_data_ptr(),
             data_or_null(w), total_weight.const_data_ptr(), static_cast<ClassSums*>(sums.data()),
             g, thread_count(g.batch * g.spatial * g.classes, kGrainElements));
  if (bad >= 0) throw_bad_target(kOp, target, bad, g.classes, ignore_index);
  return grad_input;
}

}  // namespace

NNOPS_OPERATOR(nll_loss,
               "(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index)"
               " -> (Tensor, Tensor)",
               nll_loss)
NNOPS_OPERATOR(nll_loss_backward,
               "(Tensor grad_output, Tensor target, Tensor? weight, Tensor total_weight,"
               " SymInt[] input_size, int reduction, int ignore_index) -> Tensor",
               nll_loss_backward)

}  // namespace nnops
