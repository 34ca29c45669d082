#include "core/huge_pages.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace nnops {
namespace {

// Two huge pages of 2 MB: whatever its address, memory of this size holds a whole one.
constexpr int64_t kLeastBytes = 4 << 20;
constexpr uintptr_t kPageBytes = 4096;

bool enabled_by_environment() {
  const char* value = std::getenv("NNOPS_HUGE_PAGES");
  return value == nullptr || std::string(value) != "0";
}

std::atomic<bool> g_enabled{enabled_by_environment()};

}  // namespace

bool huge_pages_enabled() { return g_enabled.load(std::memory_order_relaxed); }

void set_huge_pages_enabled(bool enabled) { g_enabled.store(enabled, std::memory_order_relaxed); }

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < kLeastBytes || !huge_pages_enabled()) return;
  // madvise takes whole pages; the few bytes before and behind them belong to others.
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kPageBytes * kPageBytes;
  // The answer is not looked at: without huge pages everything works as before.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace nnops
