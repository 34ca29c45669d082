// What all CPU kernels stand on: their namespace, the types of numbers and the loops over threads.
// wide.h and lanes.h have the vectors: 64 bytes on every ISA, and as many lanes as are asked for.
// bfloat16 and float16 are storage types, computed in float.
//
// Included by kernels that are compiled once per ISA: everything lives in that ISA's namespace and
// has internal linkage, so that no copy for a newer CPU can be linked into code for an older one.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#define NNOPS_INLINE static inline __attribute__((always_inline))

// NNOPS_ISA is cpu_default, cpu_avx2 or cpu_avx512; the build defines it.
#define NNOPS_BEGIN_KERNELS \
  namespace nnops {         \
  namespace NNOPS_ISA {     \
  namespace {
#define NNOPS_END_KERNELS \
  }                       \
  }                       \
  }

NNOPS_BEGIN_KERNELS

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;

// The type that arithmetic on T is done in.
template <typename T>
struct AccumulateType {
  using type = T;
};
template <>
struct AccumulateType<bfloat16> {
  using type = float;
};
template <>
struct AccumulateType<float16> {
  using type = float;
};
template <typename T>
using acc_t = typename AccumulateType<T>::type;

// Of a vector of 64 bytes.
template <typename T>
constexpr int64_t kLanes = 64 / sizeof(T);

// --- scalar conversions -------------------------------------------------------------------------

template <typename T>
NNOPS_INLINE acc_t<T> to_acc(T value) {
  return value;
}
template <>
inline __attribute__((always_inline)) float to_acc<bfloat16>(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result = 0;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
template <>
inline __attribute__((always_inline)) float to_acc<float16>(float16 value) {
  return static_cast<float>(value);
}

template <typename T>
NNOPS_INLINE T from_acc(acc_t<T> value) {
  return static_cast<T>(value);
}
// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
inline __attribute__((always_inline)) bfloat16 from_acc<bfloat16>(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return bfloat16{0x7fc0};
  return bfloat16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// --- sizes --------------------------------------------------------------------------------------

NNOPS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
NNOPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
NNOPS_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
NNOPS_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// [begin, end)
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool empty() const { return begin == end; }
};

// --- loops --------------------------------------------------------------------------------------

template <typename T>
constexpr bool kIsFloating = false;
template <>
constexpr bool kIsFloating<float> = true;
template <>
constexpr bool kIsFloating<double> = true;
template <>
constexpr bool kIsFloating<bfloat16> = true;
template <>
constexpr bool kIsFloating<float16> = true;

// Asks for the cache lines of source[0 .. n); the addresses need not be valid.
template <typename T>
NNOPS_INLINE void prefetch_span(const T* source, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(source + i, 0, 2);
}

// The same for what will be written.
template <typename T>
NNOPS_INLINE void prefetch_written_span(const T* target, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(target + i, 1, 2);
}

// Splits [0, n) into chunks of fixed size and runs body(begin, end) on each, on `threads` threads.
template <typename Body>
NNOPS_INLINE void parallel_chunks(int64_t n, int64_t chunk, int threads, Body body) {
  const int64_t chunks = divide_up(n, chunk);
  const auto run = [&](int64_t i) __attribute__((always_inline)) {
    const int64_t begin = i * chunk;
    body(begin, begin + chunk < n ? begin + chunk : n);
  };
  if (threads > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < chunks; ++i) run(i);
  } else {
    // A region of one thread costs half a microsecond, as much as a small call.
    for (int64_t i = 0; i < chunks; ++i) run(i);
  }
}

// Runs body() on each of `threads` threads, which share the loops in it that are marked `omp for`.
// For one thread there is a region only within another one, whose threads are not ours to share.
template <typename Body>
NNOPS_INLINE void in_parallel(int threads, Body body) {
  if (threads > 1 || omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
    body();
  } else {
    body();
  }
}

// Index of the calling thread in its parallel region, 0 outside of one.
NNOPS_INLINE int64_t thread_index() { return omp_get_thread_num(); }

// Elements a chunk of an elementwise loop; a multiple of every vector width.
constexpr int64_t kElementwiseChunk = 16384;

NNOPS_END_KERNELS
