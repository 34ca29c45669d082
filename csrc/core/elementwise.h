// The memory order of elementwise results, as torch's TensorIterator chooses it.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace nnops {

// Strides of the packed result of an elementwise function of `first` and `second`, which have the
// same sizes: the dimensions are ordered as in `first`; where `first` is broadcast (stride 0) they
// are ordered as in `second`; where that decides nothing either, row-major.
std::vector<int64_t> elementwise_strides(const Tensor& first, const Tensor& second);

// Whether all elements of `tensor` are one element of memory: a scalar, or one that was expanded.
bool is_single_value(const Tensor& tensor);

}  // namespace nnops
