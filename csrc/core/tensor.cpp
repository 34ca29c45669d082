#include "core/tensor.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/isa.h"

namespace nnops {
namespace {

int32_t dtype_code(const Tensor& tensor) {
  int32_t code = 0;
  aoti_torch_get_dtype(tensor.get(), &code);
  return code;
}

constexpr auto kCpuDevice = static_cast<int32_t>(torch::headeronly::DeviceType::CPU);
constexpr auto kCudaDevice = static_cast<int32_t>(torch::headeronly::DeviceType::CUDA);

int32_t device_type(const Tensor& tensor) {
  int32_t type = 0;
  aoti_torch_get_device_type(tensor.get(), &type);
  return type;
}

// The emulator's memory is the CPU's.
constexpr bool kTakesCuda = kHaveCuda && !kCudaEmulated;

// torch's dtype code of each nnops DType, in the enum's order.
const std::array<int32_t, kDTypeCount>& dtype_codes() {
  static const std::array<int32_t, kDTypeCount> codes = {
      aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_bfloat16(),
      aoti_torch_dtype_float16(), aoti_torch_dtype_uint8(),   aoti_torch_dtype_int8(),
      aoti_torch_dtype_int16(),   aoti_torch_dtype_int32(),   aoti_torch_dtype_int64()};
  return codes;
}

// The dtype's name, null for one that nnops cannot even name.
const char* name_of_code(int32_t code) {
  const auto& codes = dtype_codes();
  for (int i = 0; i < kDTypeCount; ++i) {
    if (codes[i] == code) return dtype_name(static_cast<DType>(i));
  }
  if (code == aoti_torch_dtype_bool()) return "bool";
  if (code == aoti_torch_dtype_complex64()) return "complex64";
  if (code == aoti_torch_dtype_complex128()) return "complex128";
  return nullptr;
}

std::string dtype_text(int32_t code) {
  const char* name = name_of_code(code);
  return name != nullptr ? name : concat("of code ", code);
}

// Strides say nothing along dimensions of fewer than two elements.
bool has_strides(const Tensor& tensor, Sizes wanted) {
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && strides[i] != wanted[i]) return false;
  }
  return true;
}

void ask_for_huge_pages(const Tensor& tensor) {
  int64_t bytes = 0;
  aoti_torch_get_storage_size(tensor.get(), &bytes);
  advise_huge_pages(tensor.mutable_data_ptr(), bytes);
}

struct Device {
  int32_t type;
  int32_t index;
};
Device device_of(const Tensor& tensor) { return {device_type(tensor), tensor.get_device_index()}; }

Tensor allocate(Sizes sizes, Sizes strides, int32_t dtype_code, Device device) {
  AtenTensorHandle handle = nullptr;
  const AOTITorchError failed =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               dtype_code, device.type, device.index, &handle);
  NNOPS_CHECK(failed == AOTI_TORCH_SUCCESS, "empty: a tensor of sizes ", tuple_text(sizes),
              " and dtype ", dtype_text(dtype_code), " could not be allocated");
  Tensor tensor(handle);
  if (device.type == kCpuDevice) ask_for_huge_pages(tensor);
  return tensor;
}

}  // namespace

std::optional<DType> known_dtype(const Tensor& tensor) {
  const int32_t code = dtype_code(tensor);
  const auto& codes = dtype_codes();
  for (int i = 0; i < kDTypeCount; ++i) {
    if (codes[i] == code) return static_cast<DType>(i);
  }
  return std::nullopt;
}

std::string dtype_text(const Tensor& tensor) { return dtype_text(dtype_code(tensor)); }

DType dtype_of(const char* op, const Tensor& tensor) {
  const std::optional<DType> dtype = known_dtype(tensor);
  NNOPS_CHECK_NOT_IMPLEMENTED(dtype.has_value(), op, ": not implemented for dtype ",
                              dtype_text(tensor));
  return *dtype;
}

void check_device(const char* op, const char* name, const Tensor& tensor) {
  // torch passes None for a Tensor as a tensor without anything behind it.
  NNOPS_CHECK(tensor.defined(), op, ": ", name, " must be a tensor, but got None");
  const int32_t type = device_type(tensor);
  NNOPS_CHECK_NOT_IMPLEMENTED(type == kCpuDevice || (kTakesCuda && type == kCudaDevice), op, ": ",
                              name, " must be a ", kTakesCuda ? "CPU or CUDA" : "CPU",
                              " tensor, other devices are not implemented",
                              kTakesCuda || type != kCudaDevice ? "" : " in a build without CUDA");
  int32_t layout = 0;
  aoti_torch_get_layout(tensor.get(), &layout);
  NNOPS_CHECK_NOT_IMPLEMENTED(layout == aoti_torch_layout_strided(), op, ": ", name,
                              " must be a strided tensor, other layouts are not implemented");
  // The stable ABI converts no dtype that it does not know, and says so without naming us.
  const int32_t code = dtype_code(tensor);
  NNOPS_CHECK_NOT_IMPLEMENTED(name_of_code(code) != nullptr, op, ": ", name,
                              " must be of a plain number type, not implemented for dtype ",
                              dtype_text(code));
}

bool is_cuda(const Tensor& tensor) { return device_type(tensor) == kCudaDevice; }

void check_same_device(const char* op, const char* name, const Tensor& tensor,
                       const char* like_name, const Tensor& like) {
  if (!kTakesCuda) return;  // all that passed check_device are on the CPU
  const Device device = device_of(tensor);
  const Device like_device = device_of(like);
  const auto text = [](Device each) {
    return each.type == kCpuDevice ? std::string("cpu") : concat("cuda:", each.index);
  };
  const bool same = device.type == like_device.type &&
                    (device.type == kCpuDevice || device.index == like_device.index);
  NNOPS_CHECK(same, op, ": ", name, " and ", like_name, " must be on the same device, but got ",
              text(device), " and ", text(like_device));
}

void check_same_type(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                     const Tensor& like) {
  check_device(op, name, tensor);
  check_device(op, like_name, like);
  const int32_t code = dtype_code(tensor);
  const int32_t like_code = dtype_code(like);
  NNOPS_CHECK(code == like_code, op, ": ", name, " and ", like_name,
              " must have the same dtype, but got ", dtype_text(code), " and ",
              dtype_text(like_code));
  check_same_device(op, name, tensor, like_name, like);
}

int64_t checked_numel(const char* op, Sizes sizes) {
  constexpr int64_t kLargestElement = 8;
  int64_t bytes = kLargestElement;
  bool fits = true;
  // An empty tensor has strides too, which must not overflow either.
  for (const int64_t size : sizes) {
    fits = fits && !__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
  }
  NNOPS_CHECK(fits, op, ": a tensor of sizes ", tuple_text(sizes), " is too large to address");
  const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  return empty ? 0 : bytes / kLargestElement;
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  const Sizes x = a.sizes();
  const Sizes y = b.sizes();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

std::vector<int64_t> contiguous_strides(Sizes sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

std::vector<int64_t> channels_last_strides(Sizes sizes) {
  std::vector<int64_t> strides(4);
  int64_t stride = 1;
  for (const size_t i : {size_t{1}, size_t{3}, size_t{2}, size_t{0}}) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

bool suggests_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4) return false;
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t least = 0;
  for (const size_t i : {size_t{1}, size_t{3}, size_t{2}, size_t{0}}) {
    if (sizes[i] == 0) return false;
    if (strides[i] < least) return false;
    // A tensor of strides N11W or NC11 fits both orders; row-major wins, as in torch.
    if (i == 0 && least == strides[1]) return false;
    least = strides[i] * std::max<int64_t>(sizes[i], 1);
  }
  return true;
}

bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (sizes[a] < 2) return false;
    if (sizes[b] < 2) return true;
    return strides[a] < strides[b];
  });
  int64_t expected = 1;
  for (const size_t i : order) {
    if (sizes[i] < 2) break;
    if (strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

bool is_expanded(const Tensor& tensor) {
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && strides[i] == 0) return tensor.numel() > 0;
  }
  return false;
}

Tensor empty_strided(Sizes sizes, Sizes strides, DType dtype, const Tensor& like) {
  return allocate(sizes, strides, dtype_codes()[static_cast<int>(dtype)], device_of(like));
}

Tensor empty_as(const Tensor& like) {
  return allocate(like.sizes(), like.strides(), dtype_code(like), device_of(like));
}

Tensor empty_contiguous(Sizes sizes, DType dtype, const Tensor& like) {
  return empty_strided(sizes, contiguous_strides(sizes), dtype, like);
}

Tensor empty_image(Sizes sizes, bool channels_last, DType dtype, const Tensor& like) {
  return empty_strided(
      sizes, channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes), dtype, like);
}

Tensor empty_dense_like(const Tensor& tensor) {
  if (is_dense(tensor)) return empty_as(tensor);
  std::optional<Tensor> empty;
  try {
    empty = torch::stable::empty_like(tensor);
  } catch (const std::runtime_error&) {
    NNOPS_CHECK(false, "empty: a packed tensor of sizes ", tuple_text(tensor.sizes()),
                " could not be allocated");
  }
  if (!is_cuda(*empty)) ask_for_huge_pages(*empty);
  return *empty;
}

Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
std::optional<Tensor> packed(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return packed(*tensor);
}
const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

void append_signature(std::vector<int64_t>* signature, const Tensor& tensor) {
  const Device device = device_of(tensor);
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  signature->insert(signature->end(), {dtype_code(tensor), device.type, device.index,
                                       static_cast<int64_t>(sizes.size())});
  signature->insert(signature->end(), sizes.begin(), sizes.end());
  signature->insert(signature->end(), strides.begin(), strides.end());
}

Tensor on_host(const Tensor& tensor) {
  if (device_type(tensor) == kCpuDevice) return tensor;
  const Sizes sizes = tensor.sizes();
  Tensor copy =
      allocate(sizes, contiguous_strides(sizes), dtype_code(tensor), Device{kCpuDevice, 0});
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor dense(const Tensor& tensor) {
  if (is_dense(tensor)) return tensor;
  Tensor copy = empty_dense_like(tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor with_strides_of(const Tensor& tensor, const Tensor& like) {
  if (has_strides(tensor, like.strides())) return tensor;
  Tensor copy = empty_as(like);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor packed_image(const Tensor& tensor, bool channels_last) {
  const Sizes sizes = tensor.sizes();
  const std::vector<int64_t> strides =
      channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes);
  if (has_strides(tensor, strides)) return tensor;
  Tensor copy = empty_strided(sizes, strides, dtype_of("packed_image", tensor), tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

}  // namespace nnops
