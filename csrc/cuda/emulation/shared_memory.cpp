#include "cuda/emulation/shared_memory.h"

#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#endif

namespace nnops::emulation {
namespace {

// Arrays begin at bank 0. CUDA promises 16 bytes; its compiler begins the first array there too.
constexpr size_t kAlignment = 128;

}  // namespace

SharedMemory::SharedMemory()
    : memory_(static_cast<char*>(operator new(kBytes, std::align_val_t(kAlignment)))) {}

SharedMemory::~SharedMemory() { operator delete(memory_, std::align_val_t(kAlignment)); }

void SharedMemory::begin_launch(size_t dynamic_bytes) {
  arrays_.clear();
  static_bytes_ = 0;
  end_ = kRedZone;
  std::memset(memory_, 0xff, end_);
  ASAN_POISON_MEMORY_REGION(memory_, kBytes);
  ASAN_UNPOISON_MEMORY_REGION(memory_, end_);
  dynamic_ = dynamic_bytes == 0 ? nullptr : add("dynamic shared memory", nullptr, dynamic_bytes);
}

void SharedMemory::begin_block() {
  for (const Array& array : arrays_) std::memset(array.begin, 0xff, array.bytes);
}

const SharedMemory::Array* SharedMemory::overrun() const {
#if !defined(__SANITIZE_ADDRESS__)
  const char* zone = memory_;
  for (size_t i = 0; i <= arrays_.size() && !arrays_.empty(); ++i) {
    const bool last = i == arrays_.size();
    const char* zone_end = last ? memory_ + end_ : arrays_[i].begin;
    const size_t bytes = static_cast<size_t>(zone_end - zone);
    if (zone[0] != '\xff' || std::memcmp(zone, zone + 1, bytes - 1) != 0) {
      return &arrays_[i == 0 ? 0 : i - 1];
    }
    if (!last) zone = arrays_[i].begin + arrays_[i].bytes;
  }
#endif
  return nullptr;
}

void SharedMemory::end_launch() { ASAN_UNPOISON_MEMORY_REGION(memory_, kBytes); }

void* SharedMemory::declared(const SharedArray& declaration) {
  for (const Array& array : arrays_) {
    if (array.declaration == &declaration) return array.begin;
  }
  static_bytes_ += declaration.bytes;
  if (static_bytes_ > kStaticSharedLimit || arrays_.size() > kMaxArrays) return nullptr;
  return add(declaration.name, &declaration, declaration.bytes);
}

char* SharedMemory::add(const char* name, const SharedArray* declaration, size_t bytes) {
  char* begin = memory_ + end_;
  end_ += (bytes + kRedZone + kAlignment - 1) / kAlignment * kAlignment;
  ASAN_UNPOISON_MEMORY_REGION(begin, static_cast<size_t>(memory_ + end_ - begin));
  std::memset(begin, 0xff, static_cast<size_t>(memory_ + end_ - begin));
  ASAN_POISON_MEMORY_REGION(memory_, kBytes);
  arrays_.push_back({name, declaration, begin, bytes});
  for (const Array& array : arrays_) ASAN_UNPOISON_MEMORY_REGION(array.begin, array.bytes);
  return begin;
}

}  // namespace nnops::emulation
