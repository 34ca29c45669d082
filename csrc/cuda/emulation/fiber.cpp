#include "cuda/emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace nnops::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // its frames are larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

constexpr size_t kColours = 61;  // prime: neighbours in a warp and in a column of warps differ
constexpr size_t kColourBytes = 64;

#if defined(__SANITIZE_ADDRESS__)
// What entered() needs to know of the fiber that the last switch went to.
thread_local void* arriving_fake_stack = nullptr;
#endif

}  // namespace

#if !defined(NNOPS_EMULATION_UCONTEXT)

// Keeps the registers of the caller on its stack, its stack pointer in *from, and goes on with
// those that lie on `to`. The jump, unlike a return, is one that the CPU predicts.
extern "C" void nnops_emulation_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl nnops_emulation_switch
.hidden nnops_emulation_switch
.type nnops_emulation_switch, @function
nnops_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size nnops_emulation_switch, . - nnops_emulation_switch
)");

#endif

Fiber::Fiber(void (*entry)(), int number)
    : entry_(entry), offset_(static_cast<size_t>(number) % kColours * kColourBytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory) + page;
  stack_bytes_ = kStackBytes;
  restart();
}

Fiber::~Fiber() {
  if (entry_ == nullptr) return;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(stack_ - page, page + stack_bytes_);
}

void Fiber::restart() {
#if defined(__SANITIZE_ADDRESS__)
  // An abandoned fiber leaves the red zones of its frames behind.
  ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes_);
  fake_stack_ = nullptr;
#endif
#if defined(NNOPS_EMULATION_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_ - offset_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry_, 0);
#else
  // Six registers, the address to go on at, and a return address of null for `entry`, which finds
  // its stack pointer 8 bytes below a multiple of 16 as after a call.
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes_ - offset_ - 24);
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry_);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#endif
}

void Fiber::change(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  if (from.stack_ == nullptr && from.stack_bytes_ == 0) {  // the stack of the OS thread
    pthread_attr_t attributes;
    void* stack;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &from.stack_bytes_);
    pthread_attr_destroy(&attributes);
    from.stack_ = static_cast<char*>(stack);
  }
  arriving_fake_stack = to.fake_stack_;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
#if defined(NNOPS_EMULATION_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  nnops_emulation_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
  entered();
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(arriving_fake_stack, nullptr, nullptr);
#endif
}

}  // namespace nnops::emulation
