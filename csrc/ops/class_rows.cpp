#include "ops/class_rows.h"

#include <algorithm>

#include "core/check.h"

namespace nnops {
namespace {

constexpr int64_t kChunkValues = 16384;
constexpr int64_t kMostLanes = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The one stride that walks over dimensions `from`... in row-major order, or -1.
int64_t joint_stride(const Tensor& tensor, size_t from) {
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  int64_t innermost = 0;
  int64_t expected = -1;
  for (size_t i = sizes.size(); i-- > from;) {
    if (sizes[i] == 1) continue;
    if (expected < 0) {
      innermost = strides[i];
    } else if (strides[i] != expected) {
      return -1;
    }
    expected = strides[i] * sizes[i];
  }
  return innermost;
}

}  // namespace

std::vector<int64_t> row_sizes(Sizes input) {
  std::vector<int64_t> sizes(input.begin(), input.end());
  sizes.erase(sizes.begin() + (sizes.size() > 1 ? 1 : 0));
  return sizes;
}

Reduction check_reduction(const char* op, int64_t reduction) {
  NNOPS_CHECK_VALUE(reduction >= 0 && reduction <= 2, op,
                    ": reduction must be 0 (none), 1 (mean) or 2 (sum), but got ", reduction);
  return static_cast<Reduction>(reduction);
}

void check_index_target(const char* op, Sizes input, const Tensor& target) {
  check_device(op, "target", target);
  const Sizes sizes = target.sizes();
  const bool single = input.size() == 1;
  // The order of the checks is torch's, and decides which exception comes first.
  NNOPS_CHECK_VALUE(single || input[0] == (sizes.empty() ? 0 : sizes[0]), op,
                    ": input and target must have the same batch size, but got input of sizes ",
                    tuple_text(input), " and target of sizes ", tuple_text(sizes));
  const std::optional<DType> dtype = known_dtype(target);
  NNOPS_CHECK(dtype == DType::kInt64 || dtype == DType::kUInt8, op,
              ": target must hold class indices of dtype int64 or uint8, but got dtype ",
              dtype_text(target), " and sizes ", tuple_text(sizes), " for input of sizes ",
              tuple_text(input));
  if (single) {
    NNOPS_CHECK_VALUE(
        sizes.size() != 1 || sizes[0] == 1, op,
        ": target of an input of sizes (C) must be one class, but got input of sizes ",
        tuple_text(input), " and target of sizes ", tuple_text(sizes));
    NNOPS_CHECK(sizes.size() <= 1, op,
                ": target of an input of sizes (C) must have at most one dimension, but got input "
                "of sizes ",
                tuple_text(input), " and target of sizes ", tuple_text(sizes));
  } else {
    const std::vector<int64_t> rows = row_sizes(input);
    NNOPS_CHECK(std::equal(rows.begin(), rows.end(), sizes.begin(), sizes.end()), op,
                ": target must have the sizes of the input without its classes, ", tuple_text(rows),
                ", but got input of sizes ", tuple_text(input), " and target of sizes ",
                tuple_text(sizes));
  }
  check_device(op, "target", target);
}

std::optional<Tensor> check_weight(const char* op, const std::optional<Tensor>& weight,
                                   int64_t classes, const char* like_name, const Tensor& like) {
  if (!weight.has_value()) return std::nullopt;
  const Sizes sizes = weight->sizes();
  NNOPS_CHECK(sizes.size() == 1 && sizes[0] == classes, op,
              ": weight must have one dimension with an entry for each class, but got weight of "
              "sizes ",
              tuple_text(sizes), " for ", classes, " classes");
  check_same_type(op, "weight", *weight, like_name, like);
  if (weight->is_contiguous()) return weight;
  Tensor packed = empty_contiguous(sizes, dtype_of(op, *weight), *weight);
  torch::stable::copy_(packed, *weight);
  return packed;
}

void check_grad_output(const char* op, const Tensor& grad_output, Reduction reduction,
                       const std::vector<int64_t>& rows) {
  const Sizes sizes = grad_output.sizes();
  const bool fits = reduction == Reduction::kNone
                        ? std::equal(rows.begin(), rows.end(), sizes.begin(), sizes.end())
                        : sizes.empty();
  NNOPS_CHECK(fits, op, ": grad_output must have the sizes of the loss, ",
              tuple_text(reduction == Reduction::kNone ? rows : std::vector<int64_t>{}),
              ", but got ", tuple_text(sizes));
}

ClassGeometry class_geometry(const char* op, Sizes input) {
  ClassGeometry g;
  const bool single = input.size() == 1;
  const int64_t rows = checked_numel(op, row_sizes(input));
  g.batch = single || rows == 0 ? 1 : input[0];
  g.classes = input[single ? 0 : 1];
  g.spatial = rows / g.batch;
  return g;
}

ClassView class_view(const Tensor& tensor, bool class_dim, bool single) {
  const size_t leading = (single ? 0 : 1) + (class_dim ? 1 : 0);
  if (tensor.numel() > 0 && joint_stride(tensor, leading) < 0) {
    Tensor packed = empty_contiguous(tensor.sizes(), dtype_of("class_view", tensor), tensor);
    torch::stable::copy_(packed, tensor);
    return class_view(packed, class_dim, single);
  }
  ClassView view{tensor, {}};
  const Sizes strides = tensor.strides();
  if (!single) view.strides.n = strides[0];
  if (class_dim) view.strides.c = strides[single ? 0 : 1];
  view.strides.s = tensor.numel() > 0 ? joint_stride(tensor, leading) : 0;
  return view;
}

void batch_as_spatial(ClassGeometry& g) {
  if (g.spatial != 1) return;
  g.spatial = g.batch;
  g.batch = 1;
  for (ClassStrides* strides : {&g.input, &g.target, &g.grad_output, &g.grad_input}) {
    strides->s = strides->n;
    strides->n = 0;
  }
}

void set_chunks(ClassGeometry& g, int64_t values_per_row) {
  if (g.spatial == 0) return;
  const int64_t rows = std::max<int64_t>(kChunkValues / std::max<int64_t>(values_per_row, 1), 1);
  // Whole vectors of rows, except at the end.
  g.s_step = std::min(g.spatial, ceil_div(rows, kMostLanes) * kMostLanes);
  g.n_step = std::min(g.batch, std::max<int64_t>(rows / g.spatial, 1));
  g.s_chunks = ceil_div(g.spatial, g.s_step);
  g.chunks = ceil_div(g.batch, g.n_step) * g.s_chunks;
}

void throw_bad_target(const char* op, const Tensor& device_target, int64_t row, int64_t classes,
                      int64_t ignore_index) {
  const Tensor target = on_host(device_target);
  const Sizes sizes = target.sizes();
  const Sizes strides = target.strides();
  std::vector<int64_t> position(sizes.size());
  int64_t offset = 0;
  for (size_t i = sizes.size(); i-- > 0;) {
    position[i] = row % sizes[i];
    row /= sizes[i];
    offset += position[i] * strides[i];
  }
  const void* data = target.const_data_ptr();
  const int64_t value = known_dtype(target) == DType::kUInt8
                            ? static_cast<const uint8_t*>(data)[offset]
                            : static_cast<const int64_t*>(data)[offset];
  NNOPS_CHECK_INDEX(false, op, ": target must be a class in [0, ", classes,
                    ") or ignore_index=", ignore_index, ", but got ", value, " at position ",
                    tuple_text(position));
  __builtin_unreachable();
}

DType accumulate_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace nnops
