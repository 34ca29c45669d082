#include "core/huge_pages.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace nnops {
namespace {

// Two huge pages of 2 MB: whatever its address, memory of this size holds a whole one.
constexpr int64_t kLeastBytes = 4 << 20;
constexpr int64_t kPageBytes = 4096;

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
  const int64_t before = -reinterpret_cast<intptr_t>(data) & (kPageBytes - 1);
  const int64_t whole = (bytes - before) / kPageBytes * kPageBytes;
  // The answer is not looked at: without huge pages everything works as before.
  (void)madvise(static_cast<char*>(data) + before, static_cast<size_t>(whole), MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace nnops
