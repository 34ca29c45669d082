// Where in the code an access to memory is: a return address, or the Site of a primitive.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "cuda/emulation/runtime.h"

namespace nnops::emulation {

// Kept in 32 bits, as a distance from a function of the emulator: what is known of a word of memory
// has five of them, and kernels are in the same module.
class Place {
 public:
  Place() = default;
  static Place code(const void* return_address) { return Place(return_address, 0); }
  static Place primitive(Site site) { return Place(std::bit_cast<const void*>(site), 1); }

  // "csrc/cuda/relu.cuh:31, inlined at csrc/cuda/relu.cuh:80"; asks the program addr2line.
  std::string text() const;
  int32_t key() const { return distance_; }

 private:
  Place(const void* address, int32_t kind)
      : distance_(static_cast<int32_t>((static_cast<const char*>(address) - anchor()) * 2 + kind)) {
  }
  static const char* anchor() { return reinterpret_cast<const char*>(&launch); }

  int32_t distance_ = 0;
};

}  // namespace nnops::emulation
