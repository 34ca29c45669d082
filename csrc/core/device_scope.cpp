#include "core/device_scope.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "core/check.h"
#include "core/cuda.h"
#include "cuda/device.h"

namespace nnops {

// A call on CUDA tensors, while it runs.
struct CudaCall {
  Tensor like;  // of the call: where its scratch memory is to lie
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  void* stream = nullptr;
  std::vector<Tensor> scratch;
  CudaCall* outer = nullptr;
};

namespace {

thread_local CudaCall* t_call = nullptr;

#if defined(NNOPS_HAVE_CUDA) && !defined(NNOPS_CUDA_EMULATED)
using GetCurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// torch's function that tells a device's current stream. It lies in libtorch_cuda, which only
// torch's CUDA builds have: nnops is not linked against it, so that one binary serves the CPU
// builds too, but whoever has a CUDA tensor has it loaded. The stable ABI's own way
// (torch_stream_native_handle) is younger than the oldest torch that nnops runs under.
GetCurrentStream current_stream_function() {
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol =
        library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<GetCurrentStream>(symbol);
  }();
  NNOPS_CHECK(function != nullptr, "cuda: this torch does not tell its current CUDA stream");
  return function;
}
#endif

}  // namespace

CudaCall* DeviceScope::enter(const Tensor& tensor) {
  auto call = std::make_unique<CudaCall>(CudaCall{tensor, std::nullopt, nullptr, {}, t_call});
#if defined(NNOPS_HAVE_CUDA) && !defined(NNOPS_CUDA_EMULATED)
  const int32_t device = tensor.get_device_index();
  call->guard.emplace(device);
  // nnops has a CUDA runtime of its own, linked statically, which must agree with torch's.
  cuda::set_device(device);
  const AOTITorchError failed = current_stream_function()(device, &call->stream);
  NNOPS_CHECK(failed == AOTI_TORCH_SUCCESS, "cuda: torch has no current stream on device ", device);
#endif
  t_call = call.get();
  return call.release();
}

void DeviceScope::leave(CudaCall* call) {
  t_call = call->outer;
  delete call;
}

Scratch::Scratch(const DeviceScope& scope, int64_t bytes) : data_(nullptr) {
  if (bytes <= 0) return;
  if (scope.on_cuda()) {
    data_ = cuda_scratch(bytes);
  } else {
    data_ = workspace_.emplace(bytes).data();
  }
}

void check_cuda() {
#ifdef NNOPS_HAVE_CUDA
  cuda::check_launch();
#else
  throw_cuda_error("a launch", "this build has no CUDA kernels");
#endif
}

void* cuda_stream() { return t_call != nullptr ? t_call->stream : nullptr; }

void* cuda_scratch(int64_t bytes) {
  NNOPS_CHECK(t_call != nullptr, "cuda: scratch memory is for operator calls alone");
  const std::vector<int64_t> sizes{bytes};
  t_call->scratch.push_back(empty_contiguous(sizes, DType::kUInt8, t_call->like));
  return t_call->scratch.back().mutable_data_ptr();
}

void throw_cuda_error(const char* what, const char* error) {
  NNOPS_CHECK(false, "cuda: ", what, " failed: ", error);
  __builtin_unreachable();
}

}  // namespace nnops
