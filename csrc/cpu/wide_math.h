// exp, expm1, log and log1p of a Wide.
//
// float: stated errors are the largest seen over a dense sweep (tests/test_simd_math.py). The
// polynomials are minimax fits. double: the C library's functions, lane by lane. AVX-512 has
// instructions that scale by 2^n, split a float and mend special cases, half of a logarithm's
// instructions otherwise; they give the same bits, but where a result is only said to be some
// number.
//
// NNOPS_WIDE_FUNCTION(name, on_floats, on_double) defines name(V): on_floats takes raw vectors.
#pragma once

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

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

// x, or the bound where x is beyond it; a NaN stays one.
template <typename V>
NNOPS_INLINE V at_least(float bound, V x) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_max_ps(_mm512_set1_ps(bound), reinterpret_cast<__m512>(x)));
#else
  return x < bound ? splat<V>(bound) : x;
#endif
}
template <typename V>
NNOPS_INLINE V at_most(float bound, V x) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_min_ps(_mm512_set1_ps(bound), reinterpret_cast<__m512>(x)));
#else
  return x > bound ? splat<V>(bound) : x;
#endif
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

// 2^n exp(r), rounded once where it is subnormal: as (2^(n + k) exp(r)) 2^-k where no instruction
// does it. A NaN stays one.
template <typename V>
NNOPS_INLINE V scaled_exp(ExpParts<V> parts, V unshift) {
  const V exponential = parts.tail * parts.r + parts.r + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<V>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(exponential), reinterpret_cast<__m512>(parts.n)));
#else
  const V scale = reinterpret_cast<V>(reinterpret_cast<MaskOf<V> >(parts.sum) << 23);
  return (exponential * scale) * unshift;
#endif
}

constexpr float kExpShift = 12582912.0f + 127.0f;

// Below -104 the result rounds to 0, above 89 it is infinite.
template <typename V>
NNOPS_INLINE V exp_of_floats(V x) {
  x = at_most(89.0f, at_least(-104.0f, x));
#if defined(__AVX512F__)
  return scaled_exp(exp_parts(x, splat<V>(kExpShift)), V{});
#else
  const auto negative = x < 0.0f;
  return scaled_exp(exp_parts(x, negative ? splat<V>(kExpShift + 64) : splat<V>(kExpShift - 64)),
                    negative ? splat<V>(0x1p-64f) : splat<V>(0x1p64f));
#endif
}
template <typename V>
NNOPS_INLINE V exp_of_nonpositive_floats(V x) {
  return scaled_exp(exp_parts(at_least(-104.0f, x), splat<V>(kExpShift + 64)), splat<V>(0x1p-64f));
}
template <typename V>
NNOPS_INLINE V expm1_of_nonpositive_floats(V x) {
  const ExpParts<V> parts = exp_parts(at_least(-104.0f, x), splat<V>(kExpShift + 64));
  const V exponential = scaled_exp(parts, splat<V>(0x1p-64f));
  return parts.n == 0.0f ? parts.tail * parts.r + parts.r : exponential - 1.0f;
}

// exp(x), at most 1.2 ulp off.
NNOPS_WIDE_FUNCTION(vexp, exp_of_floats, std::exp)
// The same bits where x <= 0 or NaN, for less.
NNOPS_WIDE_FUNCTION(vexp_nonpositive, exp_of_nonpositive_floats, std::exp)
// exp(x) - 1 for x <= 0 or NaN.
NNOPS_WIDE_FUNCTION(vexpm1_nonpositive, expm1_of_nonpositive_floats, std::expm1)

// 2^e (1 + f) = x for a finite x >= 0, with 1 + f in [3/4, 3/2). At 0 e is some number below -149,
// at infinity one above 127; either may be infinite.
template <typename V>
struct LogParts {
  V e;
  V f;
};
template <typename V>
NNOPS_INLINE LogParts<V> log_parts(V x) {
#if defined(__AVX512F__)
  const auto value = reinterpret_cast<__m512>(x);
  const __m512 significand = _mm512_getmant_ps(value, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
  const __m512 e = _mm512_sub_ps(_mm512_getexp_ps(value), _mm512_getexp_ps(significand));
  return {reinterpret_cast<V>(e), reinterpret_cast<V>(significand) - 1.0f};
#else
  using Bits = MaskOf<V>;
  const auto subnormal = x < std::numeric_limits<float>::min();
  // Adding 0 makes 0 of -0.
  const Bits bits = reinterpret_cast<Bits>(subnormal ? x * 8388608.0f + 0.0f : x);
  // Relative to 3/4 = 0x3f400000, so that 1 + f lies around 1.
  const Bits e = (bits - 0x3f400000) >> 23;
  const V exponent = __builtin_convertvector(e, V);
  return {subnormal ? exponent - 23.0f : exponent, reinterpret_cast<V>(bits - (e << 23)) - 1.0f};
#endif
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

// log(1 + f) + e ln2. Where a product is rounded before it is added, ln2 has two parts, of which
// the first times e is exact; else one constant will do, which is 3e-9 of ln2 off.
template <typename V>
NNOPS_INLINE V add_exponent(V f, V rest, V e) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return e * 0.693147180559945309f + (f + rest);
#else
  return e * 0.693359375f + (f + (rest + e * -2.12194440054690583e-4f));
#endif
}

template <typename V>
NNOPS_INLINE V log_of_finite_floats(V x) {
  const LogParts<V> parts = log_parts(x);
  return add_exponent(parts.f, log1p_rest(parts.f), parts.e);
}
template <typename V>
NNOPS_INLINE V log_of_floats(V x) {
  const V result = log_of_finite_floats(x);
#if defined(__AVX512F__)
  // Four bits for each kind of x: NaN, -infinity at 0, NaN below, infinity, else the result.
  const __m512i by_kind = _mm512_set1_epi32(0x03530422);
  return reinterpret_cast<V>(_mm512_fixupimm_ps(reinterpret_cast<__m512>(result),
                                                reinterpret_cast<__m512>(x), by_kind, 0));
#else
  const float infinity = std::numeric_limits<float>::infinity();
  const V nan = splat<V>(std::numeric_limits<float>::quiet_NaN());
  return x > 0.0f ? (x < infinity ? result : x) : (x == 0.0f ? splat<V>(-infinity) : nan);
#endif
}
template <typename V>
NNOPS_INLINE V log1m_of_unit_floats(V x) {
  const auto near = x <= 0.5f;
  const V others = 1.0f - x;  // exact where not near
  const LogParts<V> parts = log_parts(near ? splat<V>(1.0f) : others);
  const V f = near ? -x : parts.f;
  return add_exponent(f, log1p_rest(f), parts.e);
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
// The same for a finite x >= 0, for less; at 0 some number below -100, at infinity one above 88.
NNOPS_WIDE_FUNCTION(vlog_finite, log_of_finite_floats, std::log)
// log(1 + x) for x >= -1, at most 1.5 ulp off.
NNOPS_WIDE_FUNCTION(vlog1p, log1p_of_floats, std::log1p)
// The same for x in [-1/2, 1] or NaN, for less.
NNOPS_WIDE_FUNCTION(vlog1p_near, log1p_near_of_floats, std::log1p)
// log(1 - x) for x in [0, 1], at most 1 ulp off; at 1 some number below -100.
NNOPS_WIDE_FUNCTION(vlog1m_unit, log1m_of_unit_floats, log1m_of_double)
#undef NNOPS_WIDE_FUNCTION

NNOPS_END_KERNELS
