// A library for LD_PRELOAD: remembers what posix_memalign returned, from which torch takes the
// memory of CPU tensors, so that check mode knows where an emulated GPU's buffers begin and end.
// It fills them with bytes of 0xff, NaN in every floating type, for whoever reads what none wrote.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cerrno>
#include <map>
#include <mutex>

// glibc's own names for what this library replaces.
extern "C" void* __libc_memalign(size_t alignment, size_t bytes);
extern "C" void __libc_free(void* memory);

namespace {

constexpr uintptr_t kAlignment = 64;  // of torch; others are not remembered
constexpr size_t kGap = 256;          // to the next allocation, that overruns do not end in it

// Never destroyed: memory is freed until the process ends.
std::mutex& mutex() {
  static std::mutex* mutex = new std::mutex;
  return *mutex;
}
std::map<const char*, size_t>& allocations() {
  static auto* allocations = new std::map<const char*, size_t>;
  return *allocations;
}

// The map itself allocates and frees.
thread_local bool busy __attribute__((tls_model("initial-exec"))) = false;

}  // namespace

extern "C" __attribute__((visibility("default"))) int posix_memalign(void** memory,
                                                                     size_t alignment,
                                                                     size_t bytes) {
  void* result = __libc_memalign(alignment, bytes + kGap);
  if (result == nullptr) return ENOMEM;
  *memory = result;
  if (alignment == kAlignment && !busy) {
    memset(result, 0xff, bytes + kGap);
    busy = true;
    {
      const std::lock_guard lock(mutex());
      allocations()[static_cast<const char*>(result)] = bytes;
    }
    busy = false;
  }
  return 0;
}

extern "C" __attribute__((visibility("default"))) void free(void* memory) noexcept {
  if (memory != nullptr && reinterpret_cast<uintptr_t>(memory) % kAlignment == 0 && !busy) {
    busy = true;
    {
      const std::lock_guard lock(mutex());
      allocations().erase(static_cast<const char*>(memory));
    }
    busy = false;
  }
  __libc_free(memory);
}

// The allocation that holds `address`; csrc/cuda/emulation/allocations.cpp finds this by name.
extern "C" __attribute__((visibility("default"))) bool nnops_find_allocation(const void* address,
                                                                             const void** begin,
                                                                             size_t* bytes) {
  const char* byte = static_cast<const char*>(address);
  busy = true;
  bool found = false;
  {
    const std::lock_guard lock(mutex());
    auto after = allocations().upper_bound(byte);
    if (after != allocations().begin()) {
      --after;
      found = byte < after->first + after->second;
      *begin = after->first;
      *bytes = after->second;
    }
  }
  busy = false;
  return found;
}
