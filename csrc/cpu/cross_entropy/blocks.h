// Blocks of rows for cross_entropy, as many as a vector has lanes, and what both ways over them
// share: lanes of any stride, sums, exponentials, the effective target.
#pragma once

#include "cpu/class_rows.h"
#include "cpu/transpose.h"
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

// The values of a block with its rows as lanes, class after class: what is read twice, or has its
// classes side by side in memory, where lanes one by one would wait for each other's narrow stores.
constexpr int64_t kMostBufferedClasses = 128;
template <typename A>
struct LaneBuffer {
  alignas(64) A values[kMostBufferedClasses * kRows<A>];

  NNOPS_INLINE_MEMBER A* at(int64_t c) { return values + c * kRows<A>; }
  NNOPS_INLINE_MEMBER Wide<A> operator[](int64_t c) const {
    return read<Wide<A>>(values + c * kRows<A>);
  }
};

NNOPS_INLINE bool is_transposed(ClassStrides strides, int64_t classes) {
  return strides.s != 1 && classes <= kMostBufferedClasses;
}

// x[i * s + c * c_stride] for `count` rows i; the lanes of rows that are missing are 0.
template <typename T>
NNOPS_INLINE void read_block(LaneBuffer<acc_t<T>>& buffer, const T* x, ClassStrides strides,
                             int64_t count, int64_t classes) {
  constexpr int64_t kCount = kRows<acc_t<T>>;
  if (strides.s == 1) {
    for (int64_t c = 0; c < classes; ++c) {
      write(buffer.at(c), read_lanes(x + c * strides.c, 1, count));
    }
    return;
  }
  if (count < kCount) std::memset(buffer.at(0), 0, classes * kCount * sizeof(acc_t<T>));
  transpose(buffer.at(0), kCount, x, strides.s, strides.c, count, classes);
}

// And back.
template <typename T>
NNOPS_INLINE void write_block(T* x, LaneBuffer<acc_t<T>>& buffer, ClassStrides strides,
                              int64_t count, int64_t classes) {
  constexpr int64_t kCount = kRows<acc_t<T>>;
  if (strides.c == 1 && classes >= kPiece<acc_t<T>>) {
    write_planes<T>(x, strides.s, buffer.at(0), kCount, classes, nullptr, count);
    return;
  }
  for (int64_t c = 0; c < classes; ++c) {
    write_lanes(x + c * strides.c, buffer[c], strides.s, count);
  }
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

// add(sum, i) for i in [0, count), into sums of kBlock terms whose sum is returned: the rounding
// error grows with the root of the number of terms.
template <typename Sum, typename Add>
NNOPS_INLINE Sum blocked_sums(int64_t count, Add add) {
  constexpr int64_t kBlock = 32;
  Sum total{};
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    Sum block{};
    for (int64_t i = begin; i < smaller(count, begin + kBlock); ++i) add(block, i);
    total += block;
  }
  return total;
}
// The same of term(i).
template <typename V, typename Term>
NNOPS_INLINE V blocked_sum(int64_t count, Term term) {
  return blocked_sums<V>(count, [&](V& sum, int64_t i) NNOPS_INLINE_LAMBDA { sum += term(i); });
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

// --- the classes of a block's rows --------------------------------------------------------------

template <typename A>
struct RowClasses {
  int64_t of[kRows<A>];
  WideMask<A> count;  // the lanes of rows that count: their class is one, and not ignored
};

// A bad row is noted in `sums`.
template <typename A>
NNOPS_INLINE RowClasses<A> read_classes(const void* target, const ClassGeometry& g, int64_t n,
                                        int64_t s, int64_t count, ClassSums& sums) {
  using V = Wide<A>;
  RowClasses<A> classes;
  bool all_count = true;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = class_index(target, g, n, s + i);
    classes.of[i] = t;
    all_count &= static_cast<uint64_t>(t) < static_cast<uint64_t>(g.classes);
    all_count &= t != g.ignore_index;
  }
  classes.count = first_lanes<V>(count);
  if (!all_count) {
    A counts[kRows<A>] = {};
    for (int64_t i = 0; i < count; ++i) {
      if (classify(classes.of[i], n * g.spatial + s + i, g, sums) == RowKind::kCounts) {
        counts[i] = 1;
      } else {
        classes.of[i] = -1;
      }
    }
    classes.count = read<V>(static_cast<const A*>(counts)) != A{0};
  }
  return classes;
}

// x[i * s + c_i * c_stride] for the rows i that count and their classes c_i; 0 for the others.
template <typename T>
NNOPS_INLINE Wide<acc_t<T>> at_classes(const T* x, ClassStrides strides,
                                       const RowClasses<acc_t<T>>& classes, int64_t count) {
  acc_t<T> values[kRows<acc_t<T>>] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = classes.of[i];
    if (c >= 0) values[i] = to_acc(x[i * strides.s + c * strides.c]);
  }
  return read<Wide<acc_t<T>>>(static_cast<const acc_t<T>*>(values));
}

// The weights of the rows' classes, 1 where there are none; 0 for rows that do not count.
template <typename T>
NNOPS_INLINE Wide<acc_t<T>> weights_of(const T* weight, const RowClasses<acc_t<T>>& classes,
                                       int64_t count) {
  using V = Wide<acc_t<T>>;
  if (weight == nullptr) return select(classes.count, splat<V>(1), V{});
  return at_classes(weight, ClassStrides{0, 1, 0}, classes, count);
}

// row_gradient of `count` rows; the lanes of rows that are missing may be anything.
template <typename T>
NNOPS_INLINE Wide<acc_t<T>> row_gradients(const T* grad_output, const acc_t<T>* total_weight,
                                          const ClassGeometry& g, int64_t n, int64_t s,
                                          int64_t count) {
  using A = acc_t<T>;
  if (g.reduction != Reduction::kNone) {
    return splat<Wide<A>>(row_gradient(grad_output, total_weight, g, n, s));
  }
  A gradients[kRows<A>] = {};
  for (int64_t i = 0; i < count; ++i) {
    gradients[i] = row_gradient(grad_output, total_weight, g, n, s + i);
  }
  return read<Wide<A>>(static_cast<const A*>(gradients));
}

// In double, the lanes in a fixed order.
NNOPS_INLINE double sum_of_rows(Wide<float> rows) { return lane_sum(to_double(rows)); }
NNOPS_INLINE double sum_of_rows(Wide<double> rows) { return lane_sum(rows); }

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
