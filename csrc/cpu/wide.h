// Wide<T>: 64 bytes of lanes, held in registers as long as the ISA has them, with exp and log.
//
// On AVX-512 a Wide is one vector of the compiler's, on AVX2 a Pair of two, on SSE2 a Pair of
// Pairs: 16 lanes of float or 8 of double everywhere, so that lane-wise sums have the same order,
// and the same bits, on every ISA. (A 64-byte vector of GCC's own has the lanes too, but where
// registers are shorter its comparisons and selections are done lane by lane, some ten times as
// slow.) A selection is select(mask, a, b), as `?:` cannot be taught to a Pair.
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
    if constexpr (sizeof(V) == 64) {
      return load(pointer);
    } else {
#if defined(__F16C__)
      return reinterpret_cast<V>(
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pointer))));
#else
      float lanes[kCount];
      for (int i = 0; i < kCount; ++i) lanes[i] = static_cast<float>(pointer[i]);
      return read<V>(static_cast<const float*>(lanes));
#endif
    }
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
    using Bits = RawVector<uint32_t, sizeof(V)>;
    const Bits bits = reinterpret_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits result = value != value ? 0x7fc0 - Bits{} : rounded;
    const auto narrow = __builtin_convertvector(result, RawVector<uint16_t, 2 * kCount>);
    std::memcpy(pointer, &narrow, sizeof(narrow));
  } else if constexpr (std::is_same_v<T, float16>) {
    if constexpr (sizeof(V) == 64) {
      store(pointer, value);
    } else {
#if defined(__F16C__)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pointer),
                       _mm256_cvtps_ph(reinterpret_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
      float lanes[kCount];
      write(lanes, value);
      for (int i = 0; i < kCount; ++i) pointer[i] = static_cast<float16>(lanes[i]);
#endif
    }
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

// --- abs, exp, log, log1p -----------------------------------------------------------------------
// float: stated errors are the largest seen over a dense sweep (tests/test_simd_math.py). The
// polynomials are minimax fits. double: the C library's functions, lane by lane.
//
// NNOPS_WIDE_FUNCTION(name, on_floats, on_double) defines name(V): on_floats takes raw vectors.

template <typename V, double (*kFunction)(double)>
NNOPS_INLINE V lane_by_lane(V x) {
  double lanes[kLaneCount<V>];
  std::memcpy(lanes, &x, sizeof(x));
  for (double& lane : lanes) lane = kFunction(lane);
  std::memcpy(&x, lanes, sizeof(x));
  return x;
}

#define NNOPS_WIDE_FUNCTION(name, on_floats, on_double)      \
  template <typename V>                                      \
  NNOPS_INLINE V name(V x) {                                 \
    if constexpr (kIsPair<V>) {                              \
      return {name(x.lo), name(x.hi)};                       \
    } else if constexpr (std::is_same_v<LaneOf<V>, float>) { \
      return on_floats(x);                                   \
    } else {                                                 \
      return lane_by_lane<V, on_double>(x);                  \
    }                                                        \
  }

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

// exp(x) = 2^n exp(r), x = n ln2 + r, |r| <= ln2 / 2. `shift` is 1.5 2^23 + 127 + k: adding it to
// x / ln2 rounds to an integer and leaves n + 127 + k, the exponent bits of 2^(n + k), in the low
// bits of `sum`. k keeps them in range.
template <typename V>
struct ExpParts {
  V sum;
  V n;
  V r;
  V tail;  // (exp(r) - 1 - r) / r, by a polynomial 3e-9 off (of exp(r))
};
template <typename V>
NNOPS_INLINE ExpParts<V> exp_parts(V x, V shift) {
  const V sum = x * 1.44269504088896341f + shift;
  const V n = sum - shift;
  V r = x - n * 0.693359375f;
  r = r - n * -2.12194440054690583e-4f;
  V p = splat<V>(1.381454011e-3f);
  p = p * r + 8.368745196e-3f;
  p = p * r + 4.166839079e-2f;
  p = p * r + 1.66665204e-1f;
  p = p * r + 4.999999343e-1f;
  return {sum, n, r, p * r};
}

// 2^n (exp(r)) as (2^(n + k) exp(r)) 2^-k, which rounds a subnormal result once. A NaN stays one.
template <typename V>
NNOPS_INLINE V scaled_exp(ExpParts<V> parts, V unshift) {
  const V scale = reinterpret_cast<V>(reinterpret_cast<MaskOf<V>>(parts.sum) << 23);
  return ((parts.tail * parts.r + parts.r + 1.0f) * scale) * unshift;
}

constexpr float kExpShift = 12582912.0f + 127.0f;

template <typename V>
NNOPS_INLINE V exp_of_floats(V x) {
  // Below -104 the result rounds to 0, above 89 it is infinite; a NaN passes both selections.
  x = x < -104.0f ? splat<V>(-104.0f) : x;
  x = x > 89.0f ? splat<V>(89.0f) : x;
  const auto negative = x < 0.0f;
  return scaled_exp(exp_parts(x, negative ? splat<V>(kExpShift + 64) : splat<V>(kExpShift - 64)),
                    negative ? splat<V>(0x1p-64f) : splat<V>(0x1p64f));
}
template <typename V>
NNOPS_INLINE V exp_of_nonpositive_floats(V x) {
  x = x < -104.0f ? splat<V>(-104.0f) : x;
  return scaled_exp(exp_parts(x, splat<V>(kExpShift + 64)), splat<V>(0x1p-64f));
}
template <typename V>
NNOPS_INLINE V expm1_of_nonpositive_floats(V x) {
  x = x < -104.0f ? splat<V>(-104.0f) : x;
  const ExpParts<V> parts = exp_parts(x, splat<V>(kExpShift + 64));
  const V exponential = scaled_exp(parts, splat<V>(0x1p-64f));
  return parts.n == 0.0f ? parts.tail * parts.r + parts.r : exponential - 1.0f;
}

// exp(x), at most 1.2 ulp off.
NNOPS_WIDE_FUNCTION(vexp, exp_of_floats, std::exp)
// The same bits where x <= 0 or NaN, for less.
NNOPS_WIDE_FUNCTION(vexp_nonpositive, exp_of_nonpositive_floats, std::exp)
// exp(x) - 1 for x <= 0 or NaN.
NNOPS_WIDE_FUNCTION(vexpm1_nonpositive, expm1_of_nonpositive_floats, std::expm1)

// 2^e (1 + f) = x for a positive normal x, with 1 + f in [sqrt(1/2), sqrt(2)).
template <typename V>
struct LogParts {
  V e;
  V f;
};
template <typename V>
NNOPS_INLINE LogParts<V> log_parts(V x) {
  using Bits = MaskOf<V>;
  const Bits bits = reinterpret_cast<Bits>(x);
  // Relative to sqrt(1/2) = 0x3f3504f3, so that 1 + f lies around 1.
  const Bits e = (bits - 0x3f3504f3) >> 23;
  return {__builtin_convertvector(e, V), reinterpret_cast<V>(bits - (e << 23)) - 1.0f};
}

// log(1 + f) - f = s (z p(z) - f) with s = f / (2 + f), z = s^2: log(1 + f) is 2 atanh(s), written
// so that its leading term is exact. In [-1/2, 1] the polynomial's error is 5e-9 of log(1 + f).
template <typename V>
NNOPS_INLINE V log1p_rest(V f) {
  const V s = f / (f + 2.0f);
  const V z = s * s;
  V p = splat<V>(2.802446398e-1f);
  p = p * z + 2.799914012e-1f;
  p = p * z + 4.002169911e-1f;
  p = p * z + 6.666641313e-1f;
  return s * (z * p - f);
}

// log(1 + f) + e ln2, ln2 in two parts.
template <typename V>
NNOPS_INLINE V add_exponent(V f, V rest, V e) {
  return e * 0.693359375f + (f + (rest + e * -2.12194440054690583e-4f));
}

template <typename V>
NNOPS_INLINE V log_of_finite_floats(V x) {
  const auto subnormal = x < std::numeric_limits<float>::min();
  // Adding 0 makes 0 of -0.
  const LogParts<V> parts = log_parts(subnormal ? x * 8388608.0f + 0.0f : x);
  const V e = subnormal ? parts.e - 23.0f : parts.e;
  return add_exponent(parts.f, log1p_rest(parts.f), e);
}
template <typename V>
NNOPS_INLINE V log_of_floats(V x) {
  const float infinity = std::numeric_limits<float>::infinity();
  const V result = x < infinity ? log_of_finite_floats(x) : x;  // a NaN is kept
  const V nan = splat<V>(std::numeric_limits<float>::quiet_NaN());
  return x > 0.0f ? result : (x == 0.0f ? splat<V>(-infinity) : nan);
}
template <typename V>
NNOPS_INLINE V log1m_of_unit_floats(V x) {
  const auto near = x <= 0.5f;
  const V others = 1.0f - x;  // exact where not near
  const LogParts<V> parts = log_parts(near ? splat<V>(1.0f) : others);
  const V f = near ? -x : parts.f;
  return add_exponent(f, log1p_rest(f), others == 0.0f ? splat<V>(-150.0f) : parts.e);
}
template <typename V>
NNOPS_INLINE V log1p_near_of_floats(V f) {
  return f + log1p_rest(f);
}
// The rounding error of 1 + u is put back to first order.
template <typename V>
NNOPS_INLINE V log1p_of_floats(V u) {
  const V v = u + 1.0f;
  const V correction = (u - (v - 1.0f)) / v;
  // At u = -1 and infinity the logarithm is infinite and the correction a NaN.
  const auto finite = (v > 0.0f) & (u < std::numeric_limits<float>::infinity());
  return log_of_floats(v) + (finite ? correction : V{});
}
static inline double log1m_of_double(double x) { return std::log1p(-x); }

// log(x), at most 1 ulp off, -inf at 0, NaN below.
NNOPS_WIDE_FUNCTION(vlog, log_of_floats, std::log)
// The same for a finite x >= 0, for less; at 0 some number below -100.
NNOPS_WIDE_FUNCTION(vlog_finite, log_of_finite_floats, std::log)
// log(1 + x) for x >= -1, at most 1.5 ulp off.
NNOPS_WIDE_FUNCTION(vlog1p, log1p_of_floats, std::log1p)
// The same for x in [-1/2, 1] or NaN, for less.
NNOPS_WIDE_FUNCTION(vlog1p_near, log1p_near_of_floats, std::log1p)
// log(1 - x) for x in [0, 1], at most 1 ulp off; at 1 some number below -100.
NNOPS_WIDE_FUNCTION(vlog1m_unit, log1m_of_unit_floats, log1m_of_double)
#undef NNOPS_WIDE_FUNCTION

NNOPS_END_KERNELS
