// Blocks of rows for cross_entropy, as many as a vector has lanes, and what both ways over them
// share: lanes of any stride, sums, exponentials, the effective target.
#pragma once

#include "cpu/class_rows.h"
#include "cpu/wide_math.h"

NNOPS_BEGIN_KERNELS

// The rows of a block, and the lanes of a vector.
template <typename A>
constexpr int64_t kRows = 64 / sizeof(A);

// `count` elements, `stride` apart, into the first lanes; the others are 0.
template <typename T>
NNOPS_INLINE Wide<acc_t<T>> read_lanes(const T* pointer, int64_t stride, int64_t count) {
  using V = Wide<acc_t<T>>;
  if (stride == 1) {
    return count == kLaneCount<V> ? read<V>(pointer) : read_first<V>(pointer, count);
  }
  acc_t<T> buffer[kLaneCount<V>] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = to_acc(pointer[i * stride]);
  return read<V>(static_cast<const acc_t<T>*>(buffer));
}

template <typename T>
NNOPS_INLINE void write_lanes(T* pointer, Wide<acc_t<T>> value, int64_t stride, int64_t count) {
  using V = Wide<acc_t<T>>;
  if (stride == 1) {
    if (count == kLaneCount<V>) {
      write(pointer, value);
    } else {
      write_first(pointer, value, count);
    }
    return;
  }
  acc_t<T> buffer[kLaneCount<V>];
  write(buffer, value);
  for (int64_t i = 0; i < count; ++i) pointer[i * stride] = from_acc<T>(buffer[i]);
}

// Where the rows of a block touch each other in memory and the classes lie far apart, every class
// is a stream of its own, too many for the machine to foresee: the block after the next is asked
// for.
template <typename T>
NNOPS_INLINE void prefetch_lanes(const T* pointer, int64_t stride) {
  if (stride == 1) __builtin_prefetch(pointer + 2 * kRows<acc_t<T>>, 0, 2);
}
template <typename T>
NNOPS_INLINE void prefetch_lanes_to_write(const T* pointer, int64_t stride) {
  if (stride == 1) __builtin_prefetch(pointer + 2 * kRows<acc_t<T>>, 1, 2);
}

// The sum of term(i) for i in [0, count), a block at a time: its rounding error grows with the root
// of the number of terms.
template <typename V, typename Term>
NNOPS_INLINE V blocked_sum(int64_t count, Term term) {
  constexpr int64_t kBlock = 32;
  V total{};
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    V block{};
    for (int64_t i = begin; i < smaller(count, begin + kBlock); ++i) block += term(i);
    total += block;
  }
  return total;
}

// pass.block(n, s, count, state) for all rows of [s_begin, s_end).
template <typename A, typename Pass, typename State>
NNOPS_INLINE void visit_rows(const Pass& pass, int64_t n, int64_t s_begin, int64_t s_end,
                             State& state) {
  for (int64_t s = s_begin; s < s_end; s += kRows<A>) {
    pass.block(n, s, smaller(s_end - s, kRows<A>), state);
  }
}

// l = log(sum exp(x - m)) is log1p of this: the sum without one maximum, whose term is 1. A small
// loss keeps all its digits so. `ties` counts the maxima.
template <typename V>
struct RestSum {
  V rest{};
  V ties{};
};
template <typename V>
NNOPS_INLINE void add_exponential(RestSum<V>& sum, V x, V max) {
  const auto tie = x == max;
  const V exponential = vexp_nonpositive(x - max);
  sum.rest += select(tie, V{}, exponential);
  sum.ties += select(tie, splat<V>(1), V{});
}
template <typename V>
NNOPS_INLINE RestSum<V>& operator+=(RestSum<V>& a, const RestSum<V>& b) {
  a.rest += b.rest;
  a.ties += b.ties;
  return a;
}

// --- the effective target -----------------------------------------------------------------------

template <typename A>
struct Smoothing {
  A keep;   // 1 - e
  A share;  // e / C
  bool on;
};

template <typename A>
NNOPS_INLINE Smoothing<A> smoothing_of(const ClassGeometry& g) {
  const double e = g.label_smoothing;
  if (e == 0) return {A{1}, A{0}, false};
  return {static_cast<A>(1 - e), static_cast<A>(e / static_cast<double>(g.classes)), true};
}

// q_i for probabilities. It ends in an addition, and so cannot become part of a fused p Q - q:
// where p is 1 the two must cancel.
template <typename V, typename A>
NNOPS_INLINE V smoothed(V probability, V weight, Smoothing<A> smoothing) {
  return probability * (weight * smoothing.keep) + weight * smoothing.share;
}

template <typename T>
NNOPS_INLINE acc_t<T> weight_at(const T* weight, int64_t i) {
  return weight ? to_acc(weight[i]) : acc_t<T>{1};
}

NNOPS_END_KERNELS
