// SIMD for the CPU kernels: GCC/Clang vector extensions behind one small set of names.
//
// A vector is 64 bytes on every ISA: 16 lanes of float, 8 of double (the compiler splits it where
// registers are shorter), so that lane-wise reductions have the same order, and the same bits,
// everywhere. bfloat16 and float16 are storage types: they load to and store from float vectors.
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

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef int32_t mask __attribute__((vector_size(64)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef int64_t mask __attribute__((vector_size(64)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
template <typename T>
using Mask = typename VectorOf<T>::mask;

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

// --- load and store -----------------------------------------------------------------------------

template <typename T>
NNOPS_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <typename T>
NNOPS_INLINE Vec<T> load(const T* pointer) {
  Vec<T> result;
  std::memcpy(&result, pointer, sizeof(result));
  return result;
}
template <typename T>
NNOPS_INLINE void store(T* pointer, Vec<T> value) {
  std::memcpy(pointer, &value, sizeof(value));
}

NNOPS_INLINE Vec<float> load(const bfloat16* pointer) {
  typedef uint16_t u16x16 __attribute__((vector_size(32)));
  typedef uint32_t u32x16 __attribute__((vector_size(64)));
  u16x16 bits;
  std::memcpy(&bits, pointer, sizeof(bits));
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, u32x16) << 16);
}
NNOPS_INLINE void store(bfloat16* pointer, Vec<float> value) {
  typedef uint16_t u16x16 __attribute__((vector_size(32)));
  typedef uint32_t u32x16 __attribute__((vector_size(64)));
  const u32x16 bits = reinterpret_cast<u32x16>(value);
  const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const u32x16 quiet = u32x16{} + 0x7fc0;
  const u16x16 result = __builtin_convertvector(value != value ? quiet : rounded, u16x16);
  std::memcpy(pointer, &result, sizeof(result));
}

NNOPS_INLINE Vec<float> load(const float16* pointer) {
  Vec<float> result;
#if defined(__AVX512F__)
  result = reinterpret_cast<Vec<float>>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pointer))));
#elif defined(__F16C__)
  for (int half = 0; half < 2; ++half) {
    const __m256 lanes =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pointer + 8 * half)));
    std::memcpy(reinterpret_cast<float*>(&result) + 8 * half, &lanes, sizeof(lanes));
  }
#else
  for (int i = 0; i < 16; ++i) result[i] = static_cast<float>(pointer[i]);
#endif
  return result;
}
NNOPS_INLINE void store(float16* pointer, Vec<float> value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(pointer),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (int half = 0; half < 2; ++half) {
    __m256 lanes;
    std::memcpy(&lanes, reinterpret_cast<const float*>(&value) + 8 * half, sizeof(lanes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pointer + 8 * half),
                     _mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  for (int i = 0; i < 16; ++i) pointer[i] = static_cast<float16>(value[i]);
#endif
}

// The first `count` lanes (0 < count < lanes); the others are `fill` in the loaded vector and stay
// untouched in memory.
template <typename T>
NNOPS_INLINE Vec<acc_t<T>> load_first(const T* pointer, int64_t count, T fill = T{}) {
  T buffer[kLanes<acc_t<T>>];
  for (T& lane : buffer) lane = fill;
  std::memcpy(buffer, pointer, static_cast<size_t>(count) * sizeof(T));
  return load(buffer);
}
template <typename T>
NNOPS_INLINE void store_first(T* pointer, Vec<acc_t<T>> value, int64_t count) {
  T buffer[kLanes<acc_t<T>>];
  store(buffer, value);
  std::memcpy(pointer, buffer, static_cast<size_t>(count) * sizeof(T));
}

// --- reductions ---------------------------------------------------------------------------------

// Pairwise, in the same order on every ISA.
template <typename V>
NNOPS_INLINE auto sum_lanes(V value) {
  using T = std::remove_reference_t<decltype(value[0])>;
  constexpr int kCount = sizeof(V) / sizeof(T);
  T lanes[kCount];
  std::memcpy(lanes, &value, sizeof(value));
  for (int width = kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// --- sizes --------------------------------------------------------------------------------------

NNOPS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
NNOPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

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

// output[i] = function(inputs[i]...) for i in [0, n); `function` takes and returns vectors of
// acc_t<T>. The output may be one of the inputs.
template <typename T, typename Function, typename... Inputs>
NNOPS_INLINE void map_vectors(T* output, int64_t n, Function function, const Inputs*... inputs) {
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(output + i, function(load(inputs + i)...));
  if (i < n) store_first(output + i, function(load_first(inputs + i, n - i)...), n - i);
}

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

// target[i] = source[i] in arithmetic's type, for i in [0, n). Short spans are many in images: the
// last, partial vector is a whole one that overlaps the one before it.
template <typename T>
NNOPS_INLINE void copy_span(acc_t<T>* target, const T* source, int64_t n) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kLanes<A>;
  if (n >= kWidth) {
    for (int64_t i = 0; i + kWidth <= n; i += kWidth) store(target + i, load(source + i));
    store(target + n - kWidth, load(source + n - kWidth));
  } else if (std::is_same_v<T, A> && n >= kWidth / 2) {
    std::memcpy(target, source, kWidth / 2 * sizeof(T));
    std::memcpy(target + n - kWidth / 2, source + n - kWidth / 2, kWidth / 2 * sizeof(T));
  } else if (std::is_same_v<T, A> && n >= kWidth / 4) {
    std::memcpy(target, source, kWidth / 4 * sizeof(T));
    std::memcpy(target + n - kWidth / 4, source + n - kWidth / 4, kWidth / 4 * sizeof(T));
  } else {
    for (int64_t i = 0; i < n; ++i) target[i] = to_acc(source[i]);
  }
}

// target[i] = source[i] + shift, for i in [0, n); the spans do not overlap.
template <typename T>
NNOPS_INLINE void add_to_span(T* target, const acc_t<T>* source, acc_t<T> shift, int64_t n) {
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  if (n >= kWidth) {
    const Vec<acc_t<T>> shifts = broadcast(shift);
    for (int64_t i = 0; i + kWidth <= n; i += kWidth) store(target + i, load(source + i) + shifts);
    store(target + n - kWidth, load(source + n - kWidth) + shifts);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i] = from_acc<T>(source[i] + shift);
  }
}

// Splits [0, n) into chunks of fixed size and runs body(begin, end) on each, on `threads` threads.
template <typename Body>
NNOPS_INLINE void parallel_chunks(int64_t n, int64_t chunk, int threads, Body body) {
  const int64_t chunks = (n + chunk - 1) / chunk;
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
