#include "cuda/emulation/allocations.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

namespace nnops::emulation {
namespace {

std::mutex mutex;

std::map<const char*, size_t>& registered() {
  static std::map<const char*, size_t> allocations;
  return allocations;
}

// Of preload/allocations.cpp.
using Find = bool (*)(const void* address, const void** begin, size_t* bytes);
Find find_preloaded() {
  static const Find find = reinterpret_cast<Find>(dlsym(RTLD_DEFAULT, "nnops_find_allocation"));
  return find;
}

}  // namespace

void register_allocation(const void* begin, size_t bytes) {
  const std::lock_guard lock(mutex);
  registered()[static_cast<const char*>(begin)] = bytes;
}

void forget_allocation(const void* begin) {
  const std::lock_guard lock(mutex);
  registered().erase(static_cast<const char*>(begin));
}

Allocation find_allocation(const void* address) {
  const char* byte = static_cast<const char*>(address);
  {
    const std::lock_guard lock(mutex);
    auto after = registered().upper_bound(byte);
    if (after != registered().begin()) {
      const auto& [begin, bytes] = *--after;
      if (byte < begin + bytes) return {begin, bytes};
    }
  }
  Allocation found;
  const void* begin = nullptr;
  if (find_preloaded() != nullptr && find_preloaded()(address, &begin, &found.bytes)) {
    found.begin = static_cast<const char*>(begin);
  }
  return found;
}

bool allocations_are_known() {
  const std::lock_guard lock(mutex);
  return !registered().empty() || find_preloaded() != nullptr;
}

}  // namespace nnops::emulation
