// Logarithms of float for a part of the numbers, for less than CUDA's own.
//
// Multiplications, fused additions and integers alone: a device rounds them as a CPU does, so that
// the stated errors, the largest seen over a dense sweep on a CPU (as in tests/test_simd_math.py),
// hold there too. The polynomials are minimax fits.
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

// x + x^2 p(x), p by its coefficients in ascending order.
template <int N>
NNOPS_DEVICE float x_plus_square_times(const float (&coefficients)[N], float x) {
  float p = coefficients[N - 1];
#pragma unroll
  for (int i = N - 2; i >= 0; --i) p = fmaf(p, x, coefficients[i]);
  return fmaf(x * x, p, x);
}

// log(1 + x) for x in [-1/3, 1/3], at most 0.75 ulp off.
NNOPS_DEVICE float log1p_of_third(float x) {
  constexpr float kCoefficients[] = {-0.5f,         0.333332151f,  -0.249998018f,
                                     0.200104445f,  -0.166803166f, 0.140053406f,
                                     -0.121864676f, 0.139867067f,  -0.128826052f};
  return x_plus_square_times(kCoefficients, x);
}

// log(1 + x) for x in [0, 1] or NaN, at most 1.2 ulp off.
NNOPS_DEVICE float log1p_of_unit(float x) {
  constexpr float kCoefficients[] = {-0.499999315f, 0.333304644f,  -0.24958019f,
                                     0.196921021f,  -0.153448805f, 0.106611282f,
                                     -0.057457231f, 0.0200862419f, -0.00329046859f};
  return x_plus_square_times(kCoefficients, x);
}

// e << 23 where x = 2^e (1 + f), f in [-1/3, 1/3], for a positive normal x; e is -127 at 0.
NNOPS_DEVICE int exponent_bits(float x) {
  constexpr int kTwoThirds = 0x3f2aaaab;
  return (bits_as<int>(x) - kTwoThirds) & static_cast<int>(0xff800000);
}
// e as a number: its bits are added to those of 1.5 * 2^23, whose ulp is 1.
NNOPS_DEVICE float exponent_of(int exponent_bits) {
  return bits_as<float>(0x4b400000 + (exponent_bits >> 23)) - 12582912.0f;
}
NNOPS_DEVICE float add_exponent(float exponent, float logarithm) {
  return fmaf(exponent, 0.693147182f, logarithm);
}

// log(x) for a finite x >= 0, at most 1 ulp off; at 0 some number below -100.
NNOPS_DEVICE float log_of_finite(float x) {
  const bool subnormal = x < 0x1p-126f;
  // Adding 0 makes 0 of -0.
  const float scaled = subnormal ? fmaf(x, 0x1p23f, 0.0f) : x;
  const int bits = exponent_bits(scaled);
  const float f = bits_as<float>(bits_as<int>(scaled) - bits) - 1.0f;
  const float exponent = exponent_of(bits);
  return add_exponent(subnormal ? exponent - 23.0f : exponent, log1p_of_third(f));
}

// log(1 - x) for x in [0, 1], at most 1 ulp off; at 1 some number below -100.
NNOPS_DEVICE float log1m_of_unit(float x) {
  // e is that of the rounded 1 - x; f = (1 - x) / 2^e - 1 is rounded once.
  const float rest = 1.0f - x;
  const int bits = exponent_bits(rest);
  const float scale = bits_as<float>(0x3f800000 - bits);
  const float f = fmaf(-x, scale, scale - 1.0f);
  return add_exponent(rest == 0.0f ? -150.0f : exponent_of(bits), log1p_of_third(f));
}

}  // namespace nnops::cuda
