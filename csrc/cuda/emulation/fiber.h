// A fiber: a stack of its own and the place where it stopped. One CUDA thread runs on each.
//
// On x86-64 a switch saves the six registers that the ABI wants kept (3 ns); elsewhere, and with
// NNOPS_EMULATION_UCONTEXT, it is swapcontext, which also makes system calls.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#define NNOPS_EMULATION_UCONTEXT
#endif

#if defined(NNOPS_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace nnops::emulation {

class Fiber {
 public:
  // The context of the OS thread itself: it has no stack of its own and is only switched away from.
  Fiber() = default;
  // `number` spreads the stacks over the cache: at a distance of a power of two, all their tops
  // would share a few cache lines.
  Fiber(void (*entry)(), int number);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets where the fiber stopped: the next switch to it calls `entry`, which never returns.
  void restart();

  // Stops `from`, which must be running, and goes on where `to` stopped.
  static void change(Fiber& from, Fiber& to);
  // The first thing that `entry` must call.
  static void entered();

  // Whether `address` lies on this fiber's stack.
  bool holds(const void* address) const {
    const char* byte = static_cast<const char*>(address);
    return byte >= stack_ && byte < stack_ + stack_bytes_;
  }

 private:
  void (*entry_)() = nullptr;
  char* stack_ = nullptr;  // above a page that faults
  size_t stack_bytes_ = 0;
  size_t offset_ = 0;  // from the end of the stack to where it begins
#if defined(NNOPS_EMULATION_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace nnops::emulation
