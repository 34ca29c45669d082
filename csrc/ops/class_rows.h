// What csrc/ops/nll_loss.cpp and cross_entropy.cpp share: checks, and the view of tensors as rows.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "ops/class_geometry.h"

namespace nnops {

// The sizes without the class dimension (the second, or the only one): those of the unreduced loss.
std::vector<int64_t> row_sizes(Sizes input);

Reduction check_reduction(const char* op, int64_t reduction);

// The class indices for an input of these sizes: rank, sizes (ValueError or RuntimeError, as
// torch), dtype int64 or uint8.
void check_index_target(const char* op, Sizes input, const Tensor& target);

// Defined: one dimension, one entry a class, dtype and device of `like`. Returns it packed.
std::optional<Tensor> check_weight(const char* op, const std::optional<Tensor>& weight,
                                   int64_t classes, const char* like_name, const Tensor& like);

// The gradient of the loss has the sizes of the loss.
void check_grad_output(const char* op, const Tensor& grad_output, Reduction reduction,
                       const std::vector<int64_t>& rows);

// batch, classes and spatial for an input of these sizes; [C] is one row. An input without rows has
// batch 1 and spatial 0.
ClassGeometry class_geometry(const char* op, Sizes input);

// The tensor, or a packed copy if its spatial dimensions cannot be seen as one, and its strides.
// `class_dim` says whether the tensor has the class dimension or one value a row; `single` whether
// the input has no batch dimension.
struct ClassView {
  Tensor tensor;
  ClassStrides strides;
};
ClassView class_view(const Tensor& tensor, bool class_dim, bool single);

// Where all rows have one spatial position, the batch takes the place of the spatial dimension, so
// that the lanes of a vector can be rows.
void batch_as_spatial(ClassGeometry& g);

// Cuts the rows into chunks of about 16384 values, `values_per_row` each.
void set_chunks(ClassGeometry& g, int64_t values_per_row);

// Of the scratch memory that kernels sum up in.
inline int64_t sums_bytes(const ClassGeometry& g) {
  return g.chunks * static_cast<int64_t>(sizeof(ClassSums));
}

// IndexError that names the target, its position and the number of classes; `row` from a kernel.
[[noreturn]] void throw_bad_target(const char* op, const Tensor& target, int64_t row,
                                   int64_t classes, int64_t ignore_index);

// The type that sums and logarithms are kept in: float64 for float64, else float32.
DType accumulate_dtype(DType dtype);

}  // namespace nnops
