// What the operators of conv2d, alone or with others behind it, have in common: checks, geometry,
// and the weight in the order that an algorithm wants.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/tensor.h"
#include "ops/conv2d_algorithms.h"
#include "ops/packed_weights.h"

namespace nnops {

using IntList = std::vector<int64_t>;

Strides4 strides_of(const Tensor& tensor);

// RuntimeError unless `values` are two numbers, each at least `least`.
void check_conv2d_list(const char* op, const char* name, const IntList& values, int64_t least);
// RuntimeError unless `tensor` has four dimensions and lies where kernels are.
void check_conv2d_image(const char* op, const char* name, const Tensor& tensor);

// The parameters that all passes share, checked, and the sizes that follow from them. The strides
// of the three tensors are left to the caller.
Conv2dGeometry conv2d_geometry(const char* op, Sizes input, Sizes weight, const IntList& stride,
                               const IntList& padding, const IntList& dilation, int64_t groups);

// How many threads have enough to do.
int64_t conv2d_grains(const Conv2dGeometry& g);

// The arguments of forward, checked. The strides of the output are left to the caller, who makes
// it: channels_last if one of the inputs is, else row-major.
struct Conv2dForwardCall {
  Conv2dGeometry g;
  DType dtype;
  bool channels_last;
};
Conv2dForwardCall conv2d_forward_call(const char* op, const Tensor& input, const Tensor& weight,
                                      const std::optional<Tensor>& bias, const IntList& stride,
                                      const IntList& padding, const IntList& dilation,
                                      int64_t groups);

// The images of a tensor from number `n` on.
template <typename Pointer>
Pointer* from_image(Pointer* data, int64_t n, const Strides4& strides, DType dtype) {
  using Byte = std::conditional_t<std::is_const_v<Pointer>, const char, char>;
  return static_cast<Byte*>(data) + n * strides.n * element_size(dtype);
}

// A weight where it lies; `bytes` of the block of memory that it fills, 0 if it has gaps.
struct WeightMemory {
  const void* data;
  int64_t bytes;
};
inline int64_t filled_bytes(const Tensor& weight, DType dtype) {
  return is_dense(weight) ? weight.numel() * element_size(dtype) : 0;
}

// A weight in the order that a kernel wants, and the kernel that wants it so.
template <typename Function>
struct OrderedWeight {
  Function run;
  const void* data;
  bool transformed_in_run;                    // by each part of the work, for itself
  int64_t packed_bytes = 0;                   // of its packed form, whether or not it is used
  std::shared_ptr<const Workspace> keeper{};  // of `data`, or null
};
template <typename Function>
OrderedWeight<Function> ordered_weight(const Conv2dAlgorithm<Function>& algorithm,
                                       const WeightMemory& weight, DType dtype,
                                       const Conv2dGeometry& g, const Conv2dGeometry& packing) {
  const auto index = static_cast<int>(dtype);
  const Function run = algorithm.run.entries[index];
  const auto pack = algorithm.pack.entries[index];
  if (pack == nullptr) return {run, weight.data, false};
  PackingRequest request{};
  request.pack = pack;
  request.packed_bytes = algorithm.packed_bytes.entries[index](packing);
  request.weight = weight.data;
  request.weight_bytes = weight.bytes;
  request.packing = packing;
  request.pixels = g.n * g.oh * g.ow;
  const Function run_unpacked = algorithm.run_unpacked.entries[index];
  const bool transforms_in_run =
      run_unpacked != nullptr &&
      conv2d_transforms_in_cache(g.n * std::max(g.h * g.w, g.oh * g.ow), g.oc * (g.c / g.groups));
  auto packed = transforms_in_run ? kept_packed_weights(request) : packed_weights(request);
  if (packed == nullptr) return {run_unpacked, weight.data, true, request.packed_bytes};
  return {run, packed->data(), false, request.packed_bytes, packed};
}

// The first algorithm, of those that pay, that leaves out no image; `image` is what another one
// left out.
template <typename Algorithm>
const Conv2dCandidate<Algorithm>* algorithm_for_left_out(
    const Conv2dCandidates<Algorithm>& candidates, Isa isa, const Conv2dGeometry& image,
    DType dtype) {
  for (const auto& candidate : candidates.of(isa)) {
    if ((active_kernels(kConv2dTable, isa).*candidate.entry).flags_images) continue;
    if (!candidate.supports(image, dtype).empty()) continue;
    if (candidate.allowed != nullptr && !candidate.allowed(image, dtype).empty()) continue;
    if (candidate.pays != nullptr && !candidate.pays(image, dtype).empty()) continue;
    return &candidate;
  }
  return nullptr;
}

}  // namespace nnops
