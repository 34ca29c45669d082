// Where global memory begins and ends, for check mode.
//
// Tests register their buffers. In a Python process the library of preload/allocations.cpp knows
// what torch allocates, when it is in LD_PRELOAD.
#pragma once

#include <cstddef>

namespace nnops::emulation {

struct Allocation {
  const char* begin = nullptr;
  size_t bytes = 0;
};

void register_allocation(const void* begin, size_t bytes);
void forget_allocation(const void* begin);

// The one that holds `address`; null and 0 if there is none.
Allocation find_allocation(const void* address);
// Whether global memory is known at all; if not, any address may be some.
bool allocations_are_known();

}  // namespace nnops::emulation
