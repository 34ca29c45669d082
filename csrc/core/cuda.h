// What the launchers of csrc/cuda ask of the call that runs them. No torch headers.
//
// A launcher runs inside the DeviceScope of its call (core/device_scope.h), on the calling thread.
#pragma once

#include <cstdint>

namespace nnops {

// The cudaStream_t of the running call: torch's current stream of the tensors' device. Null, which
// is the default stream, outside of a call and under emulation.
void* cuda_stream();

// Uninitialised device memory, aligned to 64 bytes, that lives until the running call ends: for
// partial results and for words by which a kernel answers. Under emulation it is host memory of
// exactly so many bytes.
void* cuda_scratch(int64_t bytes);

// RuntimeError in Python: `what` failed with `error`, CUDA's own text.
[[noreturn]] void throw_cuda_error(const char* what, const char* error);

}  // namespace nnops
