// Where an operator call runs: on the CPU at the ISA level in use, or on a CUDA device.
//
// Every operator opens one scope, after its first check_device and before it asks for kernels or
// memory. For CPU tensors that costs one look at the tensor where CUDA is built, nothing otherwise.
// For CUDA tensors the scope makes their device the current one, finds torch's current stream of
// it, and owns the scratch memory that launchers ask for (core/cuda.h).
#pragma once

#include <memory>
#include <optional>

#include "core/isa.h"
#include "core/tensor.h"
#include "core/workspace.h"

namespace nnops {

struct CudaCall;

class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor)
      : call_(kHaveCuda && (kCudaEmulated || is_cuda(tensor)) ? enter(tensor) : nullptr) {}
  ~DeviceScope() {
    if (kHaveCuda && call_ != nullptr) leave(call_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  bool on_cuda() const { return kHaveCuda && call_ != nullptr; }
  Isa isa() const { return on_cuda() ? Isa::kCuda : active_isa(); }

 private:
  static CudaCall* enter(const Tensor& tensor);
  static void leave(CudaCall* call);

  CudaCall* call_;
};

// Scratch memory where the call runs: a Workspace on the CPU, device memory on CUDA. Uninitialised;
// data() is null where no bytes are asked for.
class Scratch {
 public:
  Scratch(const DeviceScope& scope, int64_t bytes);

  void* data() const { return data_; }

 private:
  std::optional<Workspace> workspace_;
  void* data_;
};

// Launches an empty kernel on the current device and waits for it; RuntimeError if that fails.
void check_cuda();

}  // namespace nnops
