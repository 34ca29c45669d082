// The shared arrays of a block, with red zones between them.
//
// When a block begins, everything is filled with bytes of 0xff, a NaN in every floating type. A red
// zone that has other bytes when the block ends was written to; AddressSanitizer and check mode
// see every access to one at once.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/emulation/runtime.h"

namespace nnops::emulation {

class SharedMemory {
 public:
  struct Array {
    const char* name;
    const SharedArray* declaration;  // null for the dynamic array
    char* begin;
    size_t bytes;
    bool holds(const void* address) const { return address >= begin && address < begin + bytes; }
  };

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void begin_launch(size_t dynamic_bytes);
  void begin_block();
  // The array before whose or behind whose end something was written; null for none.
  const Array* overrun() const;
  void end_launch();

  // Adds it when it is new. Null if the block had more static arrays than CUDA allows.
  void* declared(const SharedArray& declaration);
  void* dynamic() const { return dynamic_; }

  // Of this memory, red zones included.
  bool holds(const void* address) const { return address >= memory_ && address < memory_ + kBytes; }
  size_t offset(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - memory_);
  }
  // From the beginning to the end of the last red zone.
  size_t used() const { return end_; }
  const std::vector<Array>& arrays() const { return arrays_; }
  // The array that holds `address`; null for none.
  const Array* find(const void* address) const {
    for (const Array& array : arrays_) {
      if (array.holds(address)) return &array;
    }
    return nullptr;
  }

  static constexpr size_t kRedZone = 256;
  static constexpr size_t kMaxArrays = 32;
  static constexpr size_t kBytes =
      kStaticSharedLimit + kSharedLimit + (kMaxArrays + 1) * 2 * kRedZone;

 private:
  char* add(const char* name, const SharedArray* declaration, size_t bytes);

  char* memory_;
  size_t end_ = 0;  // of the last red zone
  size_t static_bytes_ = 0;
  char* dynamic_ = nullptr;
  std::vector<Array> arrays_;
};

}  // namespace nnops::emulation
