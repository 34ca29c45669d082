// nnops::max_unpool2d, its adjoint, and the adjoint of max_pool2d_with_indices: checks, allocation
// and the call. All three move values between (N, C, positions) and the planes (N, C, H, W) by
// int64 indices h * W + w; they also know the sizes without N.
#include "ops/max_unpool2d.h"

#include <algorithm>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "ops/image.h"
#include "ops/max_pool2d.h"

namespace nnops {
namespace {

constexpr KernelTable<MaxUnpool2dKernels> kTable = NNOPS_KERNEL_TABLE(max_unpool2d_kernels);
const RegisterAlgorithms kAlgorithms("max_unpool2d", {"planes"});

using Ints = std::vector<int64_t>;

void check_image(const char* op, const char* name, const Tensor& tensor) {
  check_device(op, name, tensor);
  const int64_t dims = tensor.dim();
  NNOPS_CHECK(dims == 3 || dims == 4, op, ": ", name,
              " must be (C, H, W) or (N, C, H, W), but got a tensor of sizes ",
              tuple_text(tensor.sizes()));
}

void check_values(const char* op, const char* name, const Tensor& values, const Tensor& indices) {
  check_image(op, name, values);
  check_device(op, "indices", indices);
  check_same_device(op, "indices", indices, name, values);
  NNOPS_CHECK(dtype_of(op, indices) == DType::kInt64, op,
              ": indices must be of dtype int64, but got ", dtype_name(dtype_of(op, indices)));
  NNOPS_CHECK(same_sizes(values, indices), op, ": ", name,
              " and indices must have the same sizes, but got ", tuple_text(values.sizes()),
              " and ", tuple_text(indices.sizes()));
}

void check_plane_size(const char* op, const char* name, const Ints& size) {
  NNOPS_CHECK(size.size() == 2, op, ": ", name, " must be (height, width), but got ",
              tuple_text(size));
  NNOPS_CHECK(size[0] >= 0 && size[1] >= 0, op, ": ", name, " must be non-negative, but got ", name,
              "=", tuple_text(size));
}

IndexedPlanes geometry_of(const Tensor& values, int64_t height, int64_t width, bool channels_last) {
  const Sizes sizes = values.sizes();
  const size_t dims = sizes.size();
  return {dims == 4 ? sizes[0] : 1, sizes[dims - 3], sizes[dims - 2] * sizes[dims - 1],
          height * width, channels_last};
}

int threads_for(const IndexedPlanes& g) {
  return thread_count(g.n * g.c * (g.positions + g.plane), kGrainElements);
}

// IndexError would be Python's word, but torch says RuntimeError. `indices` are packed.
const int64_t* checked_indices(const char* op, const DeviceScope& scope, const Tensor& indices,
                               const IndexedPlanes& g, int64_t lowest, int64_t height,
                               int64_t width) {
  const int64_t* data = static_cast<const int64_t*>(indices.const_data_ptr());
  const int64_t count = indices.numel();
  const int64_t wrong =
      active_kernels(kTable, scope.isa())
          .find_invalid(data, count, lowest, g.plane, thread_count(count, kGrainElements));
  if (wrong >= 0) {
    const int64_t image = wrong / (g.c * g.positions);
    const int64_t rest = wrong % (g.c * g.positions);
    const int64_t value = static_cast<const int64_t*>(on_host(indices).const_data_ptr())[wrong];
    const int64_t channel = g.channels_last ? rest % g.c : rest / g.positions;
    NNOPS_CHECK(false, op, ": indices must be in [", lowest, ", ", g.plane, "), the places of a ",
                pair_text(height, width), " plane, but got ", value, " in plane ",
                pair_text(image, channel));
  }
  return data;
}

Tensor max_unpool2d(const Tensor& input, const Tensor& indices, const Ints& output_size) {
  constexpr const char* kOp = "max_unpool2d";
  check_values(kOp, "input", input, indices);
  const DeviceScope scope(input);
  check_plane_size(kOp, "output_size", output_size);
  const Sizes sizes = input.sizes();
  NNOPS_CHECK(std::find(sizes.begin() + 1, sizes.end(), 0) == sizes.end(), kOp,
              ": input may be empty in its first dimension only, but got a tensor of sizes ",
              tuple_text(sizes));
  const DType dtype = dtype_of(kOp, input);
  const auto kernel =
      kernel_for(kOp, "planes", active_kernels(kTable, scope.isa()).assign, dtype, scope.isa());
  const auto [height, width] = std::pair(output_size[0], output_size[1]);
  const Ints output_sizes = resized(input, height, width);
  const int64_t count = checked_numel(kOp, output_sizes);
  const bool channels_last = suggests_channels_last(input);
  Tensor output = empty_image(output_sizes, channels_last, dtype, input);
  if (count == 0) return output;

  const IndexedPlanes g = geometry_of(input, height, width, channels_last);
  const Tensor values = packed_image(input, channels_last);
  const Tensor places = packed_image(indices, channels_last);
  const int64_t* data = checked_indices(kOp, scope, places, g, 0, height, width);
  kernel(output.mutable_data_ptr(), values.const_data_ptr(), data, g, threads_for(g));
  return output;
}

Tensor max_unpool2d_backward(const Tensor& grad_output, const Tensor& indices) {
  constexpr const char* kOp = "max_unpool2d_backward";
  check_image(kOp, "grad_output", grad_output);
  check_device(kOp, "indices", indices);
  check_same_device(kOp, "indices", indices, "grad_output", grad_output);
  const DeviceScope scope(grad_output);
  NNOPS_CHECK(dtype_of(kOp, indices) == DType::kInt64, kOp,
              ": indices must be of dtype int64, but got ", dtype_name(dtype_of(kOp, indices)));
  const Sizes sizes = grad_output.sizes();
  const Sizes index_sizes = indices.sizes();
  NNOPS_CHECK(sizes.size() == index_sizes.size() &&
                  std::equal(sizes.begin(), sizes.end() - 2, index_sizes.begin()),
              kOp,
              ": grad_output and indices must have the same batch and channels, but got sizes ",
              tuple_text(sizes), " and ", tuple_text(index_sizes));
  const DType dtype = dtype_of(kOp, grad_output);
  const auto kernel =
      kernel_for(kOp, "planes", active_kernels(kTable, scope.isa()).gather, dtype, scope.isa());
  checked_numel(kOp, sizes);
  const int64_t count = checked_numel(kOp, index_sizes);
  const bool channels_last = suggests_channels_last(indices);
  Tensor grad_input = empty_image(index_sizes, channels_last, dtype, indices);
  if (count == 0) return grad_input;

  const int64_t height = sizes[sizes.size() - 2];
  const int64_t width = sizes[sizes.size() - 1];
  const IndexedPlanes g = geometry_of(indices, height, width, channels_last);
  if (g.plane == 0) {  // max_unpool2d to an empty plane threw every value away
    torch::stable::zero_(grad_input);
    return grad_input;
  }
  const Tensor planes = packed_image(grad_output, channels_last);
  const Tensor places = packed_image(indices, channels_last);
  const int64_t* data = checked_indices(kOp, scope, places, g, kNoIndex, height, width);
  kernel(grad_input.mutable_data_ptr(), planes.const_data_ptr(), data, g, threads_for(g));
  return grad_input;
}

Tensor max_pool2d_with_indices_backward(const Tensor& grad_output, const Tensor& indices,
                                        const Ints& input_size) {
  constexpr const char* kOp = "max_pool2d_with_indices_backward";
  check_values(kOp, "grad_output", grad_output, indices);
  const DeviceScope scope(grad_output);
  check_plane_size(kOp, "input_size", input_size);
  const DType dtype = dtype_of(kOp, grad_output);
  const auto kernel =
      kernel_for(kOp, "planes", active_kernels(kTable, scope.isa()).add, dtype, scope.isa());
  const auto [height, width] = std::pair(input_size[0], input_size[1]);
  checked_numel(kOp, indices.sizes());
  const Ints sizes = resized(indices, height, width);
  const int64_t count = checked_numel(kOp, sizes);
  const bool channels_last = suggests_channels_last(indices);
  Tensor grad_input = empty_image(sizes, channels_last, dtype, indices);
  if (count == 0) return grad_input;

  const IndexedPlanes g = geometry_of(indices, height, width, channels_last);
  const Tensor values = packed_image(grad_output, channels_last);
  const Tensor places = packed_image(indices, channels_last);
  const int64_t* data = checked_indices(kOp, scope, places, g, kNoIndex, height, width);
  const int threads = threads_for(g);
  const SumScratch scratch(scope, dtype, threads, channels_last ? std::min(g.c, kChannelBlock) : 1,
                           height, width, indices);
  kernel(grad_input.mutable_data_ptr(), values.const_data_ptr(), data, scratch.data(), g, threads);
  return grad_input;
}

}  // namespace

NNOPS_OPERATOR(max_unpool2d, "(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor",
               max_unpool2d)
NNOPS_OPERATOR(max_unpool2d_backward, "(Tensor grad_output, Tensor indices) -> Tensor",
               max_unpool2d_backward)
NNOPS_OPERATOR(max_pool2d_with_indices_backward,
               "(Tensor grad_output, Tensor indices, SymInt[] input_size) -> Tensor",
               max_pool2d_with_indices_backward)

}  // namespace nnops
