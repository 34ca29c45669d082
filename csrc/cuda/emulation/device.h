// CUDA C++ for g++: the part of the language that kernels may use, in CUDA's own spelling, and the
// wrappers of simt.h. What is missing here must not compile.
//
// Included by simt.h under NNOPS_CUDA_EMULATED; runtime.h says what stands behind it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/emulation/checks.h"
#include "cuda/emulation/runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// Accesses in these functions are those of the emulator, not of the kernel.
#define NNOPS_EMULATION_PRIMITIVE __attribute__((no_sanitize_thread)) inline

// --- vector types -------------------------------------------------------------------------------

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// --- integers, loads ----------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

// May answer from a cache that does not see what the launch writes.
template <typename T>
T __ldg(const T* pointer, nnops::emulation::Site site = std::source_location::current()) {
  nnops::emulation::check_constant_read(pointer, sizeof(T), site);
  return *pointer;
}

// --- block and warp -----------------------------------------------------------------------------

inline void __syncthreads(nnops::emulation::Site site = std::source_location::current()) {
  nnops::emulation::block_barrier("__syncthreads", false, site);
}
inline int __syncthreads_count(int predicate,
                               nnops::emulation::Site site = std::source_location::current()) {
  return static_cast<int>(
      nnops::emulation::block_barrier("__syncthreads_count", predicate != 0, site));
}
inline int __syncthreads_or(int predicate,
                            nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::block_barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate,
                             nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::block_barrier("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(uint32_t mask = 0xffffffff,
                       nnops::emulation::Site site = std::source_location::current()) {
  nnops::emulation::warp_barrier(mask, site);
}
inline uint32_t __activemask() { return nnops::emulation::active_lanes(); }

namespace nnops::emulation {

struct Vote {
  bool predicate;
  uint32_t result;
};

NNOPS_EMULATION_PRIMITIVE void combine_votes(void* const operands[32], uint32_t mask) {
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1 && static_cast<Vote*>(operands[lane])->predicate) result |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) static_cast<Vote*>(operands[lane])->result = result;
  }
}

NNOPS_EMULATION_PRIMITIVE uint32_t vote(const char* operation, uint32_t mask, bool predicate,
                                        Site site) {
  Vote vote{predicate, 0};
  warp_operation(operation, mask, &vote, combine_votes, site);
  return vote.result;
}

enum class Shuffle { kIndex, kUp, kDown, kXor };

struct ShuffleOperands {
  uint64_t bits;
  int argument;  // lane, delta or mask
  int width;
  Site site;
  uint64_t result;
};

// The lane that `lane` reads from; itself where CUDA says that the value does not change.
NNOPS_EMULATION_PRIMITIVE int shuffle_source(Shuffle kind, int lane, int argument, int width) {
  const int first = lane & ~(width - 1);
  int source = lane;
  switch (kind) {
    case Shuffle::kIndex:
      return first + (argument & (width - 1));
    case Shuffle::kUp:
      source = lane - argument;
      return source < first ? lane : source;
    case Shuffle::kDown:
      source = lane + argument;
      return source >= first + width ? lane : source;
    case Shuffle::kXor:
      source = lane ^ argument;
      return source >= first + width ? lane : source;
  }
  return source;
}

template <Shuffle kKind>
NNOPS_EMULATION_PRIMITIVE void combine_shuffle(void* const operands[32], uint32_t mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    ShuffleOperands& own = *static_cast<ShuffleOperands*>(operands[lane]);
    const int source = shuffle_source(kKind, lane, own.argument, own.width);
    if (operands[source] == nullptr) fail("a lane reads from one outside the mask", own.site);
    own.result = static_cast<ShuffleOperands*>(operands[source])->bits;
  }
}

template <Shuffle kKind, typename T>
NNOPS_EMULATION_PRIMITIVE T shuffle(const char* operation, uint32_t mask, T value, int argument,
                                    int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles numbers of 32 and 64 bits");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("the width of a shuffle must be a power of two up to 32", site);
  }
  ShuffleOperands own{0, argument, width, site, 0};
  std::memcpy(&own.bits, &value, sizeof(T));
  warp_operation(operation, mask, &own, combine_shuffle<kKind>, site);
  std::memcpy(&value, &own.result, sizeof(T));
  return value;
}

}  // namespace nnops::emulation

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(uint32_t mask, int predicate,
                      nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate,
                      nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::vote("__all_sync", mask, predicate != 0, site) == mask;
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32,
              nnops::emulation::Site site = std::source_location::current()) {
  using nnops::emulation::Shuffle;
  return nnops::emulation::shuffle<Shuffle::kIndex>("__shfl_sync", mask, value, lane, width, site);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 nnops::emulation::Site site = std::source_location::current()) {
  using nnops::emulation::Shuffle;
  return nnops::emulation::shuffle<Shuffle::kUp>("__shfl_up_sync", mask, value,
                                                 static_cast<int>(delta), width, site);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   nnops::emulation::Site site = std::source_location::current()) {
  using nnops::emulation::Shuffle;
  return nnops::emulation::shuffle<Shuffle::kDown>("__shfl_down_sync", mask, value,
                                                   static_cast<int>(delta), width, site);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                  nnops::emulation::Site site = std::source_location::current()) {
  using nnops::emulation::Shuffle;
  return nnops::emulation::shuffle<Shuffle::kXor>("__shfl_xor_sync", mask, value, lane_mask, width,
                                                  site);
}

// --- atomics ------------------------------------------------------------------------------------
// Threads of a launch run one by one, so a plain update is atomic.

namespace nnops::emulation {

template <typename T, typename Update>
NNOPS_EMULATION_PRIMITIVE T update_atomically(T* address, Site site, Update update) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
                    std::is_same_v<T, unsigned long long>,
                "floating-point atomics would make results depend on the order of threads");
  check_atomic(address, sizeof(T), site);
  const T before = *address;
  *address = update(before);
  return before;
}

}  // namespace nnops::emulation

// std::type_identity_t: as in CUDA, the pointer alone says the type.
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value,
            nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::update_atomically(address, site, [=](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value,
            nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::update_atomically(address, site,
                                             [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value,
            nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::update_atomically(address, site,
                                             [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value,
           nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::update_atomically(address, site, [=](T old) { return old | value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value,
             nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::update_atomically(address, site, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            nnops::emulation::Site site = std::source_location::current()) {
  return nnops::emulation::update_atomically(address, site,
                                             [=](T old) { return old == expected ? value : old; });
}

// --- shared memory and launches -----------------------------------------------------------------

#define NNOPS_SHARED(type, name, count)                                \
  static constexpr ::nnops::emulation::SharedArray name##_declaration{ \
      #name, sizeof(type) * (count), std::source_location::current()}; \
  auto& name = *static_cast<type(*)[count]>(::nnops::emulation::shared_array(name##_declaration))

#define NNOPS_SHARED_DYNAMIC(type, name) \
  type* const name = static_cast<type*>( \
      ::nnops::emulation::dynamic_shared_array(#name, std::source_location::current()))

#define NNOPS_LAUNCH(kernel, grid, block, dynamic_shared_bytes, ...)                               \
  ::nnops::emulation::launch_kernel(#kernel, std::source_location::current(), kernel, grid, block, \
                                    dynamic_shared_bytes __VA_OPT__(, ) __VA_ARGS__)

namespace nnops::emulation {

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, Site site, void (*kernel)(Parameters...), dim3 grid,
                   dim3 block, size_t dynamic_shared_bytes, Arguments&&... arguments) {
  // As in CUDA, arguments are converted to the parameters' types here and copied for each thread.
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call(kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
  launch(
      name, site, grid, block, dynamic_shared_bytes,
      [](const void* call) {
        std::apply(static_cast<const Call*>(call)->first, static_cast<const Call*>(call)->second);
      },
      &call, sizeof(call));
}

}  // namespace nnops::emulation

namespace nnops::cuda {

inline int multiprocessor_count() { return emulation::kMultiprocessors; }
// Of the device that is emulated. NNOPS_CUDA_EMULATED_CAPABILITY=75 makes launchers do without what
// sm_75 lacks; the emulator itself has it.
inline int compute_capability() {
  const char* value = std::getenv("NNOPS_CUDA_EMULATED_CAPABILITY");
  return value == nullptr ? 80 : std::atoi(value);
}
template <auto kKernel>
int architecture_of() {
  return compute_capability();
}
inline size_t shared_memory_limit() { return emulation::kSharedLimit; }

inline void copy_to_host(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
}
inline void set_zero(void* device, size_t bytes) { std::memset(device, 0, bytes); }

// --- asynchronous copies ------------------------------------------------------------------------

template <int kBytes>
void copy_async(void* shared, const void* global, bool valid,
                emulation::Site site = std::source_location::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulation::start_copy(shared, global, kBytes, valid, site);
}
inline void copy_async_commit() { emulation::commit_copies(); }
template <int kGroupsInFlight>
void copy_async_wait() {
  emulation::wait_for_copies(kGroupsInFlight);
}

}  // namespace nnops::cuda

#include "cuda/emulation/matrix.h"
