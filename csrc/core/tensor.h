// Tensor helpers of csrc/ops: dtype, layout and allocation on LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace nnops {

using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// The tensor's dtype; NotImplementedError for one that no nnops kernel knows (bool, complex, ...).
DType dtype_of(const char* op, const Tensor& tensor);

// The same without an exception, for checks of their own; and the dtype's name for messages.
std::optional<DType> known_dtype(const Tensor& tensor);
std::string dtype_text(const Tensor& tensor);

bool is_cuda(const Tensor& tensor);

// RuntimeError unless both tensors lie on the same device. Both have passed check_device.
void check_same_device(const char* op, const char* name, const Tensor& tensor,
                       const char* like_name, const Tensor& like);

// check_device for both tensors; RuntimeError unless they have the same dtype and the same device.
void check_same_type(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                     const Tensor& like);

// RuntimeError for an undefined tensor (None); NotImplementedError unless the tensor is strided and
// lies on a device that nnops has kernels for.
void check_device(const char* op, const char* name, const Tensor& tensor);

// The product of `sizes`; RuntimeError when it, times the size of the largest element type, does
// not fit into int64, or would not if the zeros among the sizes were ones (strides must fit too).
int64_t checked_numel(const char* op, Sizes sizes);

bool same_sizes(const Tensor& a, const Tensor& b);

// Strides of a packed tensor: row-major, or channels_last for four sizes (N, C, H, W).
std::vector<int64_t> contiguous_strides(Sizes sizes);
std::vector<int64_t> channels_last_strides(Sizes sizes);

// torch's rule for a 4-D tensor whose strides suggest channels_last (Tensor.suggest_memory_format).
bool suggests_channels_last(const Tensor& tensor);

// Whether the elements fill one block of memory without gaps or overlap, in any dimension order.
bool is_dense(const Tensor& tensor);

// Whether two elements certainly share memory: a dimension of stride 0 (an expanded tensor).
bool is_expanded(const Tensor& tensor);

// Uninitialised, on the device of `like`; large ones ask for huge pages.
Tensor empty_strided(Sizes sizes, Sizes strides, DType dtype, const Tensor& like);
// Like the dense tensor `like`: its sizes, strides and dtype.
Tensor empty_as(const Tensor& like);
// torch's preserve_format: packed, with the dimensions in the order of the strides of `tensor`.
Tensor empty_dense_like(const Tensor& tensor);
Tensor empty_contiguous(Sizes sizes, DType dtype, const Tensor& like);
// (N, C, H, W) in channels_last or row-major order.
Tensor empty_image(Sizes sizes, bool channels_last, DType dtype, const Tensor& like);

// `tensor` itself if it is packed in that order, else a packed copy.
Tensor packed_image(const Tensor& tensor, bool channels_last);

// `tensor` itself if it is packed in row-major order, else a copy that is.
Tensor packed(const Tensor& tensor);
std::optional<Tensor> packed(const std::optional<Tensor>& tensor);
// The memory of a tensor that may be missing; null if it is.
const void* data_or_null(const std::optional<Tensor>& tensor);

// Appends what a kernel can tell of the tensor but its memory: dtype, device, sizes and strides. It
// has passed check_device.
void append_signature(std::vector<int64_t>* signature, const Tensor& tensor);

// `tensor` itself if the CPU can read it, else a copy there. Waits for the device: for errors.
Tensor on_host(const Tensor& tensor);

// `tensor` itself if dense, else a dense copy with the same dimension order.
Tensor dense(const Tensor& tensor);
// `tensor` itself if its strides are those of the dense tensor `like` (same sizes), else a copy.
Tensor with_strides_of(const Tensor& tensor, const Tensor& like);

}  // namespace nnops
