// Huge pages for large fresh memory.
//
// The first write to a fresh page is a trap into the kernel, which clears it. With pages of 4 KB
// the traps cost more than the copying itself; with pages of 2 MB a large output is written about
// three times as fast. Linux gives them, where the system's setting is `madvise` or `always`, to
// memory that asks for them.
#pragma once

#include <cstdint>

namespace nnops {

// Asks for huge pages where [data, data + bytes) is large enough to gain; a hint that changes no
// result and never fails. Nothing on systems without it, or when switched off.
void advise_huge_pages(void* data, int64_t bytes);

// Whether the hint is given: true unless the environment variable NNOPS_HUGE_PAGES is 0.
bool huge_pages_enabled();
void set_huge_pages_enabled(bool enabled);

}  // namespace nnops
