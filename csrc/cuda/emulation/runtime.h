// What the emulated primitives (device.h) ask of the emulator: launches, barriers, warp operations,
// shared memory, asynchronous copies. README.md says how it works.
//
// Everything here belongs to the calling OS thread: several may launch at the same time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// initial-exec: without it every use in a shared library is a call.
#define NNOPS_EMULATION_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
extern NNOPS_EMULATION_THREAD_LOCAL uint3 threadIdx;
extern NNOPS_EMULATION_THREAD_LOCAL uint3 blockIdx;
extern NNOPS_EMULATION_THREAD_LOCAL uint3 blockDim;
extern NNOPS_EMULATION_THREAD_LOCAL uint3 gridDim;
inline constexpr int warpSize = 32;

namespace nnops::emulation {

// File, line and column of a call in a kernel.
using Site = std::source_location;

// --- launches -----------------------------------------------------------------------------------

// What every emulated GPU offers. A launcher that wants more than 48 KiB asks
// shared_memory_limit().
inline constexpr size_t kStaticSharedLimit = 48 << 10;
inline constexpr size_t kSharedLimit = 99 << 10;  // of sm_86, sm_89 and sm_120
inline constexpr int kMultiprocessors = 4;        // few: small tests then fill more than one wave

// Runs `call(arguments)` once per thread of every block. std::runtime_error says what a kernel did
// wrong, where and by which thread.
void launch(const char* kernel, Site site, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
            void (*call)(const void* arguments), const void* arguments, size_t argument_bytes);

// --- threads working together -------------------------------------------------------------------

// Waits for all threads of the block; returns how many of them had predicate != 0.
unsigned block_barrier(const char* operation, bool predicate, Site site);

// Waits until all lanes of `mask` have called with the same mask, operation and site. The last one
// calls `combine` once with the operands of all of them (null for other lanes).
using Combine = void (*)(void* const operands[32], uint32_t mask);
void warp_operation(const char* operation, uint32_t mask, void* operands, Combine combine,
                    Site site);
// The same; makes what the lanes wrote before visible to each other. No other operation does.
void warp_barrier(uint32_t mask, Site site);

// Lanes that have neither exited nor wait: threads run one by one, so only the calling one is sure.
uint32_t active_lanes();

// Ends the launch with an error at `site`.
[[noreturn]] void fail(const char* message, Site site);

// --- shared memory ------------------------------------------------------------------------------

// One declaration in a kernel; its address tells instantiations apart.
struct SharedArray {
  const char* name;
  size_t bytes;
  Site site;
};
void* shared_array(const SharedArray& array);
void* dynamic_shared_array(const char* name, Site site);

// --- asynchronous copies ------------------------------------------------------------------------

// The bytes land when the thread waits for them, the last moment that CUDA allows; from now until
// then `shared` holds NaN, which shows a reader that is early, and a reader that is late.
void start_copy(void* shared, const void* global, unsigned bytes, bool valid, Site site);
void commit_copies();
void wait_for_copies(unsigned groups_in_flight);

}  // namespace nnops::emulation
