// What check mode is told besides the loads and stores that it sees by itself (checks.cpp); nothing
// in plain mode.
#pragma once

#include <cstddef>

#include "cuda/emulation/runtime.h"

namespace nnops::emulation {

// 0 to 31, of the running thread in its warp.
int lane_index();

#if defined(NNOPS_CUDA_CHECKED)

// Accesses of the running thread that the compiler cannot show: in primitives.
void check_read(const void* address, size_t bytes, Site site);
void check_atomic(const void* address, size_t bytes, Site site);
// In addition to a read: nobody may have written there in this launch.
void check_constant_read(const void* address, size_t bytes, Site site);

#else

inline void check_read(const void*, size_t, Site) {}
inline void check_atomic(const void*, size_t, Site) {}
inline void check_constant_read(const void*, size_t, Site) {}

#endif

}  // namespace nnops::emulation
