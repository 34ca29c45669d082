// What the emulator (runtime.cpp) and check mode (checks.cpp) tell each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/emulation/checks.h"
#include "cuda/emulation/shared_memory.h"

namespace nnops::emulation {

// The running thread: its number in the block, -1 outside of kernels.
extern NNOPS_EMULATION_THREAD_LOCAL int running_thread;

// Whether `address` lies on the stack of the running fiber.
bool is_on_running_stack(const void* address);

std::string text(Site site);
std::string text(uint3 index);
// "(3, 0, 0)": threadIdx of a thread of the running block.
std::string thread_text(int thread);

// Ends the launch with an error of the running thread.
[[noreturn]] void fail(const std::string& message);

#if defined(NNOPS_CUDA_CHECKED)

void check_launch_begins(const char* kernel, const SharedMemory& shared, const void* arguments,
                         size_t argument_bytes);
void check_launch_ends();
void check_block_begins();
void check_array_declared(const void* begin, size_t bytes);
// The last thread has come to a barrier of the block, or the last lane of `mask` to __syncwarp.
void check_block_barrier();
void check_warp_barrier(uint32_t mask);
void check_copy_starts(const void* shared, size_t bytes, Site site);
void check_copy_lands(const void* shared, size_t bytes, Site site);

#else

inline void check_launch_begins(const char*, const SharedMemory&, const void*, size_t) {}
inline void check_launch_ends() {}
inline void check_block_begins() {}
inline void check_array_declared(const void*, size_t) {}
inline void check_block_barrier() {}
inline void check_warp_barrier(uint32_t) {}
inline void check_copy_starts(const void*, size_t, Site) {}
inline void check_copy_lands(const void*, size_t, Site) {}

#endif

}  // namespace nnops::emulation
