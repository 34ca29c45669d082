// The forward pass of cross_entropy: the loss, and each row's maximum and log of the sum.
#pragma once

#include "cpu/cross_entropy/class_vectors.h"

NNOPS_BEGIN_KERNELS

template <typename T, bool kProbabilities>
struct Forward {
  using A = acc_t<T>;
  using V = Wide<A>;
  T* loss;
  A* row_max;
  A* row_log_sum;
  const T* input;
  const void* target;
  const T* weight;
  const ClassGeometry& g;
  Smoothing<A> smoothing;

  const T* logits(int64_t n, int64_t s) const { return input + n * g.input.n + s * g.input.s; }
  const T* probabilities(int64_t n, int64_t s) const {
    return static_cast<const T*>(target) + n * g.target.n + s * g.target.s;
  }

  // From the maxima m and the logarithms l of `count` rows to their losses. dot is the sum of
  // q_i log p_i for probabilities; where there is smoothing, of w_i log p_i for classes.
  NNOPS_INLINE_MEMBER void finish_rows(int64_t n, int64_t s, int64_t count, V max, V log_sum, V dot,
                                       ClassSums& sums) const {
    const int64_t r = n * g.spatial + s;
    write_first(row_max + r, max, count);
    write_first(row_log_sum + r, log_sum, count);
    const auto rows = first_lanes<V>(count);
    V value;
    if constexpr (kProbabilities) {
      value = -dot;
      // Lanes without a row must not make 0 of a sum that is -0.
      sums.loss += sum_of_rows(select(rows, value, splat<V>(A{-0.0f})));
      if (g.classes > 0) sums.weight += static_cast<double>(count);
    } else {
      const RowClasses<A> classes = read_classes<A>(target, g, n, s, count, sums);
      const V factor = weights_of(weight, classes, count);
      const V own = at_classes(logits(n, s), g.input, classes, count);
      value = -factor * ((own - max) - log_sum);
      if (smoothing.on) value = value * smoothing.keep;
      value = select(classes.count, value, V{});
      sums.loss += sum_of_rows(value);
      sums.weight += sum_of_rows(factor);
      if (smoothing.on) {
        // Without classes an ignored row is NaN, as in torch: 0 times an infinite share.
        const V smoothed_part = select(classes.count, dot * -smoothing.share,
                                       select(rows, splat<V>(A{0} * smoothing.share), V{}));
        sums.smoothed += sum_of_rows(smoothed_part);
        value += smoothed_part;
      }
    }
    if (g.reduction == Reduction::kNone) write_first(loss + r, value, count);
  }

  // Of each row of a block: its maximum m, and the sum of exp(x - m) without one maximum.
  struct RowSums {
    V max;
    V rest;
  };
  // NaN where a logit is NaN or the maximum infinite.
  NNOPS_INLINE V log_of(RowSums rows) { return vlog1p(rows.rest) + (rows.max - rows.max); }

  // finish_rows' dot of one row, vectors along the classes.
  NNOPS_INLINE_MEMBER A row_dot(int64_t n, int64_t s, A max, A log_sum) const {
    const T* x = logits(n, s);
    const T* w = weight;
    if constexpr (kProbabilities) {
      const T* q = probabilities(n, s);
      const Smoothing<A> smooth = smoothing;
      return sum_over_classes<T>(g.classes, [=](auto read) NNOPS_INLINE_LAMBDA {
        const V factor = w ? read(w) : splat<V>(1);
        return smoothed(read(q), factor, smooth) * ((read(x) - max) - log_sum);
      });
    } else {
      return sum_over_classes<T>(g.classes, [=](auto read) NNOPS_INLINE_LAMBDA {
        const V log_p = (read(x) - max) - log_sum;
        return w ? read(w) * log_p : log_p;
      });
    }
  }

  // The same of `count` rows, one a lane; logit(c) are their logits.
  template <typename Logit>
  NNOPS_INLINE_MEMBER V lane_dots(int64_t n, int64_t s, int64_t count, V max, V log_sum,
                                  Logit logit) const {
    return blocked_sum<V>(g.classes, [&](int64_t c) NNOPS_INLINE_LAMBDA {
      const V log_p = (logit(c) - max) - log_sum;
      if constexpr (kProbabilities) {
        const V q = read_lanes(probabilities(n, s) + c * g.target.c, g.target.s, count);
        return smoothed(q, splat<V>(weight_at(weight, c)), smoothing) * log_p;
      } else {
        return weight_at(weight, c) * log_p;
      }
    });
  }

  // The maximum of each of `count` rows, one a lane, and the rest of its sum; logit(c) as above.
  template <typename Logit>
  NNOPS_INLINE_MEMBER RowSums lane_sums(Logit logit) const {
    V max = splat<V>(-std::numeric_limits<A>::infinity());
    for (int64_t c = 0; c < g.classes; ++c) {
      const V v = logit(c);
      max = select(v > max, v, max);
    }
    const auto sum =
        blocked_sums<RestSum<V>>(g.classes, [&](RestSum<V>& rest, int64_t c) NNOPS_INLINE_LAMBDA {
          add_exponential(rest, logit(c), max);
        });
    return {max, sum.rest + (sum.ties - A{1})};
  }

  // The same of rows whose vectors run along the classes.
  NNOPS_INLINE_MEMBER RowSums class_sums(int64_t n, int64_t s, int64_t count) const {
    A max_of[kRows<A>] = {};
    A rest_of[kRows<A>] = {};
    for (int64_t i = 0; i < count; ++i) {
      max_of[i] = max_over_classes(logits(n, s + i), g.classes);
      rest_of[i] = rest_over_classes(logits(n, s + i), g.classes, max_of[i]);
    }
    return {read<V>(static_cast<const A*>(max_of)), read<V>(static_cast<const A*>(rest_of))};
  }

  template <typename Logit>
  NNOPS_INLINE_MEMBER void lanes_block(int64_t n, int64_t s, int64_t count, ClassSums& sums,
                                       Logit logit) const {
    const RowSums rows = lane_sums(logit);
    const V log_sum = log_of(rows);
    V dot{};
    if (kProbabilities || smoothing.on) {
      dot = lane_dots(n, s, count, rows.max, log_sum, logit);
    }
    finish_rows(n, s, count, rows.max, log_sum, dot, sums);
  }

  NNOPS_INLINE_MEMBER void class_vectors_block(int64_t n, int64_t s, int64_t count,
                                               ClassSums& sums) const {
    const RowSums rows = class_sums(n, s, count);
    const V log_sum = log_of(rows);
    A dot_of[kRows<A>] = {};
    if (kProbabilities || smoothing.on) {
      A max_of[kRows<A>];
      A log_sum_of[kRows<A>];
      write(max_of, rows.max);
      write(log_sum_of, log_sum);
      for (int64_t i = 0; i < count; ++i) {
        dot_of[i] = row_dot(n, s + i, max_of[i], log_sum_of[i]);
      }
    }
    finish_rows(n, s, count, rows.max, log_sum, read<V>(static_cast<const A*>(dot_of)), sums);
  }

  NNOPS_INLINE_MEMBER void block(int64_t n, int64_t s, int64_t count, ClassSums& sums) const {
    const T* x = logits(n, s);
    if (g.class_vectors) {
      class_vectors_block(n, s, count, sums);
    } else if (is_transposed(g.input, g.classes)) {
      LaneBuffer<A> buffer;
      read_block(buffer, x, g.input, count, g.classes);
      lanes_block(n, s, count, sums, [&](int64_t c) NNOPS_INLINE_LAMBDA { return buffer[c]; });
    } else {
      lanes_block(n, s, count, sums, [=, this](int64_t c) NNOPS_INLINE_LAMBDA {
        prefetch_lanes(x + c * g.input.c, g.input.s);
        return read_lanes(x + c * g.input.c, g.input.s, count);
      });
    }
  }
};

template <typename T, bool kProbabilities>
NNOPS_INLINE int64_t forward(void* loss, void* log_sum_exp, void* total_weight, const void* input,
                             const void* target, const void* weight, ClassSums* sums,
                             const ClassGeometry& g, int threads) {
  using A = acc_t<T>;
  A* row_max = static_cast<A*>(log_sum_exp);
  const Forward<T, kProbabilities> pass{static_cast<T*>(loss),
                                        row_max,
                                        row_max + g.batch * g.spatial,
                                        static_cast<const T*>(input),
                                        target,
                                        static_cast<const T*>(weight),
                                        g,
                                        smoothing_of<A>(g)};
  clear_sums(sums, g, kProbabilities ? -0.0 : 0.0);
  for_each_class_chunk(g, threads,
                       [&pass, sums](int64_t chunk, int64_t n, int64_t s_begin, int64_t s_end) {
                         ClassSums total = sums[chunk];
                         visit_rows<A>(pass, n, s_begin, s_end, total);
                         sums[chunk] = total;
                       });
  finish_loss(pass.loss, static_cast<A*>(total_weight), sums, g, kProbabilities);
  return first_bad_row(sums, g);
}

template <typename T>
int64_t forward_indices(void* loss, void* log_sum_exp, void* total_weight, const void* input,
                        const void* target, const void* weight, ClassSums* sums,
                        const ClassGeometry& g, int threads) {
  return forward<T, false>(loss, log_sum_exp, total_weight, input, target, weight, sums, g,
                           threads);
}

template <typename T>
int64_t forward_probabilities(void* loss, void* log_sum_exp, void* total_weight, const void* input,
                              const void* target, const void* weight, ClassSums* sums,
                              const ClassGeometry& g, int threads) {
  return forward<T, true>(loss, log_sum_exp, total_weight, input, target, weight, sums, g, threads);
}

NNOPS_END_KERNELS
