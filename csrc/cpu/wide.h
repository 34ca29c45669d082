// Wide<T>: 64 bytes of lanes, held in registers as long as the ISA has them. wide_math.h has exp
// and log.
//
// On AVX-512 a Wide is one vector of the compiler's, on AVX2 a Pair of two, on SSE2 a Pair of
// Pairs: 16 lanes of float or 8 of double everywhere, so that lane-wise sums have the same order,
// and the same bits, on every ISA. (A 64-byte vector of GCC's own has the lanes too, but where
// registers are shorter it goes through memory with every load and store, and its comparisons and
// selections are done lane by lane.) A selection is select(mask, a, b), as `?:` cannot be taught to
// a Pair.
#pragma once

#include "cpu/simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// As NNOPS_INLINE, for members that are not static, and behind the parameters of a lambda: one that
// is called twice is otherwise a call, with its vectors passed through memory.
#define NNOPS_INLINE_MEMBER inline __attribute__((always_inline))
#define NNOPS_INLINE_LAMBDA __attribute__((always_inline))

NNOPS_BEGIN_KERNELS

// --- the type -----------------------------------------------------------------------------------

template <typename Half>
struct Pair {
  Half lo;
  Half hi;
};
template <typename V>
constexpr bool kIsPair = false;
template <typename Half>
constexpr bool kIsPair<Pair<Half>> = true;
template <typename V>
using HalfOf = decltype(V::lo);

template <typename T, int kBytes>
struct VectorOfBytes {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <typename T, int kBytes>
using RawVector = typename VectorOfBytes<T, kBytes>::type;

template <typename T, int kBytes, bool kFits = (kBytes <= kRegisterBytes)>
struct Registers {
  using type = RawVector<T, kBytes>;
};
template <typename T, int kBytes>
struct Registers<T, kBytes, false> {
  using type = Pair<typename Registers<T, kBytes / 2>::type>;
};
template <typename T>
using Wide = typename Registers<T, 64>::type;

// The type of a raw vector's lanes, and of its comparisons (lanes of integers of the same size).
template <typename V>
using LaneOf = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;
template <typename V>
using MaskOf = decltype(std::declval<V>() < std::declval<V>());

template <typename T>
using WideMask = MaskOf<Wide<T>>;

template <typename V>
constexpr int64_t kLaneCount = sizeof(V) / sizeof(LaneOf<V>);
template <typename Half>
constexpr int64_t kLaneCount<Pair<Half>> = 2 * kLaneCount<Half>;

#define NNOPS_PAIR_OPERATOR(op)                                                              \
  template <typename Half>                                                                   \
  NNOPS_INLINE auto operator op(Pair<Half> a, Pair<Half> b) {                                \
    return Pair<decltype(a.lo op b.lo)>{a.lo op b.lo, a.hi op b.hi};                         \
  }                                                                                          \
  template <typename Half, typename S, typename = std::enable_if_t<std::is_arithmetic_v<S>>> \
  NNOPS_INLINE auto operator op(Pair<Half> a, S b) {                                         \
    return Pair<decltype(a.lo op b)>{a.lo op b, a.hi op b};                                  \
  }                                                                                          \
  template <typename Half, typename S, typename = std::enable_if_t<std::is_arithmetic_v<S>>> \
  NNOPS_INLINE auto operator op(S a, Pair<Half> b) {                                         \
    return Pair<decltype(a op b.lo)>{a op b.lo, a op b.hi};                                  \
  }
NNOPS_PAIR_OPERATOR(+)
NNOPS_PAIR_OPERATOR(-)
NNOPS_PAIR_OPERATOR(*)
NNOPS_PAIR_OPERATOR(/)
NNOPS_PAIR_OPERATOR(&)
NNOPS_PAIR_OPERATOR(|)
NNOPS_PAIR_OPERATOR(<)
NNOPS_PAIR_OPERATOR(>)
NNOPS_PAIR_OPERATOR(<=)
NNOPS_PAIR_OPERATOR(>=)
NNOPS_PAIR_OPERATOR(==)
NNOPS_PAIR_OPERATOR(!=)
#undef NNOPS_PAIR_OPERATOR

template <typename Half>
NNOPS_INLINE Pair<Half> operator-(Pair<Half> a) {
  return {-a.lo, -a.hi};
}
template <typename Half>
NNOPS_INLINE Pair<Half> operator~(Pair<Half> a) {
  return {~a.lo, ~a.hi};
}
template <typename Half>
NNOPS_INLINE Pair<Half>& operator+=(Pair<Half>& a, Pair<Half> b) {
  return a = a + b;
}
template <typename Half>
NNOPS_INLINE Pair<Half>& operator|=(Pair<Half>& a, Pair<Half> b) {
  return a = a | b;
}

// mask ? a : b, lane by lane.
template <typename M, typename V>
NNOPS_INLINE V select(M mask, V a, V b) {
  if constexpr (kIsPair<V>) {
    return {select(mask.lo, a.lo, b.lo), select(mask.hi, a.hi, b.hi)};
  } else {
    return mask ? a : b;
  }
}

template <typename V, typename T>
NNOPS_INLINE V splat(T value) {
  if constexpr (kIsPair<V>) {
    return {splat<HalfOf<V>>(value), splat<HalfOf<V>>(value)};
  } else {
    return static_cast<LaneOf<V>>(value) - V{};
  }
}

// --- load and store -----------------------------------------------------------------------------

// As many elements as V, of acc_t<T>, has lanes.
template <typename V, typename T>
NNOPS_INLINE V read(const T* pointer) {
  constexpr int kCount = sizeof(V) / sizeof(acc_t<T>);
  if constexpr (kIsPair<V>) {
    return {read<HalfOf<V>>(pointer), read<HalfOf<V>>(pointer + kCount / 2)};
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    RawVector<uint16_t, 2 * kCount> bits;
    std::memcpy(&bits, pointer, sizeof(bits));
    return reinterpret_cast<V>(__builtin_convertvector(bits, RawVector<uint32_t, sizeof(V)>) << 16);
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__AVX512F__)
    static_assert(sizeof(V) == 64);
    return reinterpret_cast<V>(
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pointer))));
#elif defined(__F16C__)
    return reinterpret_cast<V>(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pointer))));
#else
    float lanes[kCount];
    for (int i = 0; i < kCount; ++i) lanes[i] = static_cast<float>(pointer[i]);
    return read<V>(static_cast<const float*>(lanes));
#endif
  } else {
    V value;
    std::memcpy(&value, pointer, sizeof(value));
    return value;
  }
}

template <typename V, typename T>
NNOPS_INLINE void write(T* pointer, V value) {
  constexpr int kCount = sizeof(V) / sizeof(acc_t<T>);
  if constexpr (kIsPair<V>) {
    write(pointer, value.lo);
    write(pointer + kCount / 2, value.hi);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    // Round to nearest, ties to even; a NaN stays a quiet NaN.
    using Bits = RawVector<uint32_t, sizeof(V)>;
    const Bits bits = reinterpret_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits result = value != value ? 0x7fc0 - Bits{} : rounded;
    const auto narrow = __builtin_convertvector(result, RawVector<uint16_t, 2 * kCount>);
    std::memcpy(pointer, &narrow, sizeof(narrow));
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__AVX512F__)
    static_assert(sizeof(V) == 64);
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(pointer),
        _mm512_cvtps_ph(reinterpret_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pointer),
                     _mm256_cvtps_ph(reinterpret_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
    float lanes[kCount];
    write(lanes, value);
    for (int i = 0; i < kCount; ++i) pointer[i] = static_cast<float16>(lanes[i]);
#endif
  } else {
    std::memcpy(pointer, &value, sizeof(value));
  }
}

// All ones in the first `count` lanes (any number); V is the type of the values.
template <typename V>
NNOPS_INLINE MaskOf<V> first_lanes(int64_t count) {
  if constexpr (kIsPair<V>) {
    constexpr int64_t kHalf = kLaneCount<V> / 2;
    return {first_lanes<HalfOf<V>>(count), first_lanes<HalfOf<V>>(count - kHalf)};
  } else {
    using Index = LaneOf<MaskOf<V>>;
    Index lanes[kLaneCount<V>];
    for (int64_t i = 0; i < kLaneCount<V>; ++i) lanes[i] = static_cast<Index>(i);
    MaskOf<V> position;
    std::memcpy(&position, lanes, sizeof(position));
    return position < (static_cast<Index>(count) - MaskOf<V>{});
  }
}

// The first `count` lanes (0 < count <= all); the others are `fill` in the vector that is read and
// stay untouched in memory. Short rows of float are all tail, so these have masks: through a buffer
// a wide load would wait for the narrow stores before it.
template <typename V, typename T>
NNOPS_INLINE V read_first(const T* pointer, int64_t count, T fill = T{}) {
  if constexpr (std::is_same_v<T, float> && kRegisterBytes >= 32) {
    const V outside = splat<V>(fill);
#if defined(__AVX512F__)
    const auto lanes = static_cast<__mmask16>((1u << count) - 1);
    return reinterpret_cast<V>(
        _mm512_mask_loadu_ps(reinterpret_cast<__m512>(outside), lanes, pointer));
#elif defined(__AVX2__)
    const auto mask = first_lanes<V>(count);
    const V inside = {reinterpret_cast<HalfOf<V>>(
                          _mm256_maskload_ps(pointer, reinterpret_cast<__m256i>(mask.lo))),
                      reinterpret_cast<HalfOf<V>>(
                          _mm256_maskload_ps(pointer + 8, reinterpret_cast<__m256i>(mask.hi)))};
    return select(mask, inside, outside);
#endif
  } else {
    T buffer[kLaneCount<V>];
    for (T& lane : buffer) lane = fill;
    std::memcpy(buffer, pointer, static_cast<size_t>(count) * sizeof(T));
    return read<V>(static_cast<const T*>(buffer));
  }
}

template <typename V, typename T>
NNOPS_INLINE void write_first(T* pointer, V value, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const auto lanes = static_cast<__mmask16>((1u << count) - 1);
    _mm512_mask_storeu_ps(pointer, lanes, reinterpret_cast<__m512>(value));
    return;
  }
#endif
  if (count == kLaneCount<V>) return write(pointer, value);
  // In pieces of 8, 4, 2 and 1 lanes: their sizes are known to the compiler.
  T buffer[kLaneCount<V>];
  write(buffer, value);
  int64_t done = 0;
#pragma GCC unroll 8
  for (int64_t width = kLaneCount<V> / 2; width > 0; width /= 2) {
    if ((count & width) == 0) continue;
    std::memcpy(pointer + done, buffer + done, static_cast<size_t>(width) * sizeof(T));
    done += width;
  }
}

// --- reductions ---------------------------------------------------------------------------------

// Folds the upper half of the lanes onto the lower until one is left: the same order on every ISA.
// `join` takes vectors and scalars.
template <typename V, typename Join>
NNOPS_INLINE auto fold_lanes(V value, Join join) {
  if constexpr (kIsPair<V>) {
    return fold_lanes(join(value.lo, value.hi), join);
  } else if constexpr (kLaneCount<V> == 2) {
    LaneOf<V> lanes[2];
    std::memcpy(lanes, &value, sizeof(lanes));
    return join(lanes[0], lanes[1]);
  } else {
    RawVector<LaneOf<V>, sizeof(V) / 2> halves[2];
    std::memcpy(halves, &value, sizeof(halves));
    return fold_lanes(join(halves[0], halves[1]), join);
  }
}

template <typename V>
NNOPS_INLINE auto lane_sum(V value) {
  return fold_lanes(value, [](auto a, auto b) NNOPS_INLINE_LAMBDA { return a + b; });
}

// NaNs are passed over or not, as their lanes have it.
struct Larger {
  template <typename V>
  NNOPS_INLINE_MEMBER V operator()(V a, V b) const {
    if constexpr (std::is_arithmetic_v<V>) {
      return a > b ? a : b;
    } else {
      return select(a > b, a, b);
    }
  }
};
template <typename V>
NNOPS_INLINE auto lane_max(V value) {
  return fold_lanes(value, Larger{});
}

// The 16 lanes of a Wide<float> as two Wide<double>.
template <typename V>
NNOPS_INLINE auto to_double(V value) {
  if constexpr (kIsPair<V>) {
    using Part = decltype(to_double(value.lo));
    return Pair<Part>{to_double(value.lo), to_double(value.hi)};
  } else {
    using Part = RawVector<double, sizeof(V)>;
    RawVector<float, sizeof(V) / 2> halves[2];
    std::memcpy(halves, &value, sizeof(halves));
    return Pair<Part>{__builtin_convertvector(halves[0], Part),
                      __builtin_convertvector(halves[1], Part)};
  }
}

// --- abs -----------------------------------------------------------------------------------------

template <typename V>
NNOPS_INLINE V vabs(V x) {
  if constexpr (kIsPair<V>) {
    return {vabs(x.lo), vabs(x.hi)};
  } else {
    using Bits = MaskOf<V>;
    return reinterpret_cast<V>(reinterpret_cast<Bits>(x) &
                               std::numeric_limits<LaneOf<Bits>>::max());
  }
}

// --- runs ---------------------------------------------------------------------------------------

// output[i] = function(inputs[i]...) for i in [0, n); `function` takes and returns Wides of
// acc_t<T>. The output may be one of the inputs.
template <typename T, typename Function, typename... Inputs>
NNOPS_INLINE void map_wides(T* output, int64_t n, Function function, const Inputs*... inputs) {
  using V = Wide<acc_t<T>>;
  constexpr int64_t kWidth = kLaneCount<V>;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) write(output + i, function(read<V>(inputs + i)...));
  if (i < n) write_first(output + i, function(read_first<V>(inputs + i, n - i)...), n - i);
}

// target[i] = source[i] in arithmetic's type, for i in [0, n). Short spans are many in images: the
// last, partial vector is a whole one that overlaps the one before it.
template <typename T>
NNOPS_INLINE void copy_span(acc_t<T>* target, const T* source, int64_t n) {
  using A = acc_t<T>;
  using V = Wide<A>;
  constexpr int64_t kWidth = kLaneCount<V>;
  const auto copy = [&](int64_t i) NNOPS_INLINE_LAMBDA { write(target + i, read<V>(source + i)); };
  // Two pieces that overlap.
  [[maybe_unused]] const auto copy_ends = [&](auto piece) NNOPS_INLINE_LAMBDA {
    using Piece = decltype(piece);
    const int64_t last = n - static_cast<int64_t>(sizeof(Piece) / sizeof(A));
    write(target, read<Piece>(source));
    write(target + last, read<Piece>(source + last));
  };
  if (n >= kWidth) {
    for (int64_t i = 0; i + kWidth <= n; i += kWidth) copy(i);
    copy(n - kWidth);
    return;
  }
  if constexpr (std::is_same_v<T, A>) {
    if (n >= kWidth / 2) return copy_ends(typename Registers<A, 32>::type{});
    if (n >= kWidth / 4) return copy_ends(typename Registers<A, 16>::type{});
  }
  for (int64_t i = 0; i < n; ++i) target[i] = to_acc(source[i]);
}

// target[i] = source[i] + shift, for i in [0, n); the spans do not overlap.
template <typename T>
NNOPS_INLINE void add_to_span(T* target, const acc_t<T>* source, acc_t<T> shift, int64_t n) {
  using V = Wide<acc_t<T>>;
  constexpr int64_t kWidth = kLaneCount<V>;
  const V shifts = splat<V>(shift);
  const auto add = [&](int64_t i)
                       NNOPS_INLINE_LAMBDA { write(target + i, read<V>(source + i) + shifts); };
  if (n >= kWidth) {
    for (int64_t i = 0; i + kWidth <= n; i += kWidth) add(i);
    add(n - kWidth);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i] = from_acc<T>(source[i] + shift);
  }
}

NNOPS_END_KERNELS
