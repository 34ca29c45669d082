// The transforms of Winograd's minimal filtering along one axis: F(m, r), m outputs of r taps.
//
//   y[i] = sum over j of w[j] d[i + j]  =  A^T ((G w) * (B^T d))     n = m + r - 1 products
//
// n - 1 interpolation points and infinity (Cook-Toom; Lavin and Gray, arXiv:1509.09308): row p of
// B^T has the coefficients of M_p(x) = product over the other points q of (x - q), row p of G is
// (1, p, p^2, ...) / M_p(p), column p of A^T is (1, p, p^2, ...). Infinity has the coefficients of
// the product over all points, and picks the last tap and the last output.
//
//   n = 4   points 0, 1, -1                F(2, 3), as exact as a direct sum
//   n = 6   points 0, a, -a, b, -b         F(4, 3) and F(2, 5)
//
// backward_weight is the transpose of the whole: G^T ((A g) * (B^T d)) for gradients g of the
// outputs.
//
// with a = 5/8, b = 3/2: errors are about a quarter of those of the textbook's 1 and 2 (the powers
// stay nearer to 1), at the same number of operations, and every constant of B^T and of the powers
// is exact in float. Two axes apply one after the other. The number of points, taps and outputs is
// that of the arrays.
#pragma once

#include <utility>

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

constexpr float kPointA = 0.625f;
constexpr float kPointB = 1.5f;
constexpr float kSquareA = kPointA * kPointA;
constexpr float kSquareB = kPointB * kPointB;

// At the points 0, a, -a, b, -b and infinity, of the parts with even and with odd powers.
template <typename V>
NNOPS_INLINE void set_points(V at_0, V even_a, V odd_a, V even_b, V odd_b, V at_infinity,
                             V (&t)[6]) {
  t[0] = at_0;
  t[1] = even_a + kPointA * odd_a;
  t[2] = even_a - kPointA * odd_a;
  t[3] = even_b + kPointB * odd_b;
  t[4] = even_b - kPointB * odd_b;
  t[5] = at_infinity;
}

template <typename V>
NNOPS_INLINE void transform_input(const V (&d)[4], V (&t)[4]) {
  t[0] = d[0] - d[2];
  t[1] = d[1] + d[2];
  t[2] = d[2] - d[1];
  t[3] = d[3] - d[1];
}
template <typename V>
NNOPS_INLINE void transform_input(const V (&d)[6], V (&t)[6]) {
  const V even_a = d[4] - kSquareB * d[2];
  const V even_b = d[4] - kSquareA * d[2];
  const V odd_a = d[3] - kSquareB * d[1];
  const V odd_b = d[3] - kSquareA * d[1];
  set_points<V>((d[4] - (kSquareA + kSquareB) * d[2]) + kSquareA * kSquareB * d[0], even_a, odd_a,
                even_b, odd_b, (d[5] - (kSquareA + kSquareB) * d[3]) + kSquareA * kSquareB * d[1],
                t);
}

template <typename V>
NNOPS_INLINE void transform_weight(const V (&w)[3], V (&u)[4]) {
  const V even = 0.5f * (w[0] + w[2]);
  u[0] = w[0];
  u[1] = even + 0.5f * w[1];
  u[2] = even - 0.5f * w[1];
  u[3] = w[2];
}

// Of six points without the scale 1 / M_p(p), which transform_output has instead: so every constant
// is exact here, and there are few roundings where there are many weights.
template <typename V>
NNOPS_INLINE void transform_weight(const V (&w)[3], V (&u)[6]) {
  set_points<V>(w[0], w[0] + kSquareA * w[2], w[1], w[0] + kSquareB * w[2], w[1], w[2], u);
}
template <typename V>
NNOPS_INLINE void transform_weight(const V (&w)[5], V (&u)[6]) {
  const V even_a = w[0] + kSquareA * (w[2] + kSquareA * w[4]);
  const V even_b = w[0] + kSquareB * (w[2] + kSquareB * w[4]);
  const V odd_a = w[1] + kSquareA * w[3];
  const V odd_b = w[1] + kSquareB * w[3];
  set_points<V>(w[0], even_a, odd_a, even_b, odd_b, w[4], u);
}

// 1 / M_p(p) of 0, of +-a and of +-b.
constexpr double kScale0 = 1.0 / (double{kSquareA} * double{kSquareB});
constexpr double kScaleA = 0.5 / (double{kSquareA} * (double{kSquareA} - double{kSquareB}));
constexpr double kScaleB = 0.5 / (double{kSquareB} * (double{kSquareB} - double{kSquareA}));

template <typename V>
NNOPS_INLINE void transform_output(const V (&m)[4], V (&y)[2]) {
  y[0] = m[0] + (m[1] + m[2]);
  y[1] = m[3] + (m[1] - m[2]);
}
constexpr float scaled_power(double scale, double point, int power) {
  for (; power > 0; --power) scale *= point;
  return static_cast<float>(scale);
}
template <int kPower>
constexpr float kOutputA = scaled_power(kScaleA, kPointA, kPower);
template <int kPower>
constexpr float kOutputB = scaled_power(kScaleB, kPointB, kPower);
constexpr float kOutput0 = scaled_power(kScale0, 0, 0);
template <typename V>
NNOPS_INLINE void transform_output(const V (&m)[6], V (&y)[2]) {
  y[0] = (kOutput0 * m[0] + kOutputA<0> * (m[1] + m[2])) + kOutputB<0> * (m[3] + m[4]);
  y[1] = (m[5] + kOutputA<1> * (m[1] - m[2])) + kOutputB<1> * (m[3] - m[4]);
}
template <typename V>
NNOPS_INLINE void transform_output(const V (&m)[6], V (&y)[4]) {
  const V even_a = m[1] + m[2];
  const V even_b = m[3] + m[4];
  const V odd_a = m[1] - m[2];
  const V odd_b = m[3] - m[4];
  y[0] = (kOutput0 * m[0] + kOutputA<0> * even_a) + kOutputB<0> * even_b;
  y[1] = kOutputA<1> * odd_a + kOutputB<1> * odd_b;
  y[2] = kOutputA<2> * even_a + kOutputB<2> * even_b;
  y[3] = (m[5] + kOutputA<3> * odd_a) + kOutputB<3> * odd_b;
}

// The transposes of A^T and G, the scale with the latter, in double there: what a weight's gradient
// is made of is transformed once for many tiles.
template <typename V>
NNOPS_INLINE void transform_gradient(const V (&g)[2], V (&t)[4]) {
  t[0] = g[0];
  t[1] = g[0] + g[1];
  t[2] = g[0] - g[1];
  t[3] = g[1];
}
template <typename V>
NNOPS_INLINE void transform_gradient(const V (&g)[2], V (&t)[6]) {
  set_points<V>(g[0], g[0], g[1], g[0], g[1], g[1], t);
}
template <typename V>
NNOPS_INLINE void transform_gradient(const V (&g)[4], V (&t)[6]) {
  const V even_a = g[0] + kSquareA * g[2];
  const V even_b = g[0] + kSquareB * g[2];
  const V odd_a = g[1] + kSquareA * g[3];
  const V odd_b = g[1] + kSquareB * g[3];
  set_points<V>(g[0], even_a, odd_a, even_b, odd_b, g[3], t);
}

template <typename V>
NNOPS_INLINE void transform_back_to_weight(const V (&u)[4], V (&w)[3]) {
  const V even = 0.5 * (u[1] + u[2]);
  w[0] = u[0] + even;
  w[1] = 0.5 * (u[1] - u[2]);
  w[2] = u[3] + even;
}
template <typename V, int kTaps>
NNOPS_INLINE void transform_back_to_weight(const V (&u)[6], V (&w)[kTaps]) {
  constexpr double kA = kPointA;
  constexpr double kB = kPointB;
  V even_a = kScaleA * (u[1] + u[2]);
  V even_b = kScaleB * (u[3] + u[4]);
  V odd_a = (kA * kScaleA) * (u[1] - u[2]);
  V odd_b = (kB * kScaleB) * (u[3] - u[4]);
  w[0] = kScale0 * u[0] + (even_a + even_b);
  w[1] = odd_a + odd_b;
  for (int i = 2; i < kTaps; i += 2) {
    even_a *= kA * kA;
    even_b *= kB * kB;
    w[i] = even_a + even_b;
    if (i + 1 == kTaps) break;
    odd_a *= kA * kA;
    odd_b *= kB * kB;
    w[i + 1] = odd_a + odd_b;
  }
  w[kTaps - 1] += u[5];
}

// store(r, j, T x T^T) for x[i][j] = load(i, j), kIn a side, and kOut after the transform T, which
// is transform(in, out) along one axis: first along i, then along j. Of the rows of the result
// those listed, of which r counts.
template <typename V, int kIn, int kOut, typename Load, typename Transform, typename Store,
          int... kRows>
NNOPS_INLINE void transform_rows(Load load, Transform transform, Store store,
                                 std::integer_sequence<int, kRows...>) {
  constexpr int kCount = sizeof...(kRows);
  V between[kCount][kIn];
  for (int j = 0; j < kIn; ++j) {
    V in[kIn];
    V out[kOut];
    for (int i = 0; i < kIn; ++i) in[i] = load(i, j);
    transform(in, out);
    int r = 0;
    ((between[r++][j] = out[kRows]), ...);
  }
  for (int r = 0; r < kCount; ++r) {
    V out[kOut];
    transform(between[r], out);
    for (int j = 0; j < kOut; ++j) store(r, j, out[j]);
  }
}
// All rows.
template <typename V, int kIn, int kOut, typename Load, typename Transform, typename Store>
NNOPS_INLINE void transform_both_axes(Load load, Transform transform, Store store) {
  transform_rows<V, kIn, kOut>(load, transform, store, std::make_integer_sequence<int, kOut>{});
}

// One of the transforms above, for transform_both_axes.
#define NNOPS_TRANSFORM(name) [](const auto& in, auto& out) NNOPS_INLINE_LAMBDA { name(in, out); }

NNOPS_END_KERNELS
