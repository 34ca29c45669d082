// What the emulator tells check mode (checks.cpp) about the course of a launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/emulation/checks.h"
#include "cuda/emulation/shared_memory.h"

namespace nnops::emulation {

// The running thread: its number in the block, -1 outside of kernels.
extern NNOPS_EMULATION_THREAD_LOCAL int running_thread;

#if defined(NNOPS_CUDA_CHECKED)

void check_launch_begins(const SharedMemory* shared, const void* arguments, size_t argument_bytes);
void check_launch_ends();
void check_block_begins();
void check_block_barrier();
void check_warp_barrier(uint32_t mask);
void check_copy_starts(const void* shared, size_t bytes, Site site);
void check_copy_lands(const void* shared, size_t bytes, Site site);

#else

inline void check_launch_begins(const SharedMemory*, const void*, size_t) {}
inline void check_launch_ends() {}
inline void check_block_begins() {}
inline void check_block_barrier() {}
inline void check_warp_barrier(uint32_t) {}
inline void check_copy_starts(const void*, size_t, Site) {}
inline void check_copy_lands(const void*, size_t, Site) {}

#endif

}  // namespace nnops::emulation
