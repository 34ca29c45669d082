// The forward pass of cross_entropy: the loss, and each row's maximum and log of the sum.
#pragma once

#include "cpu/cross_entropy/class_vectors.h"

NNOPS_BEGIN_KERNELS

// What a row's loss is made of, whichever way the row was read.
template <typename A>
struct RowTerms {
  A max;
  A log_sum;
  A dot;  // sum of q_i log p_i for probabilities, of w_i log p_i for classes
};

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

  NNOPS_INLINE_MEMBER void finish_row(int64_t n, int64_t s, RowTerms<A> row,
                                      ClassSums& sums) const {
    const int64_t r = n * g.spatial + s;
    row_max[r] = row.max;
    row_log_sum[r] = row.log_sum;
    A value{};
    if constexpr (kProbabilities) {
      value = -row.dot;
      sums.loss += value;
      sums.weight += g.classes > 0 ? 1 : 0;
    } else {
      const int64_t t = class_index(target, g, n, s);
      // Without classes an ignored row is NaN, as in torch: 0 times an infinite share.
      A smoothed_part = A{0} * smoothing.share;
      if (classify(t, r, g, sums) == RowKind::kCounts) {
        const A factor = weight_at(weight, t);
        value = -factor * ((to_acc(logits(n, s)[t * g.input.c]) - row.max) - row.log_sum);
        if (smoothing.on) {
          value *= smoothing.keep;
          smoothed_part = -smoothing.share * row.dot;
        }
        sums.loss += value;
        sums.weight += factor;
      }
      if (smoothing.on) {
        sums.smoothed += smoothed_part;
        value += smoothed_part;
      }
    }
    if (g.reduction == Reduction::kNone) loss[r] = from_acc<T>(value);
  }

  // RowTerms::dot of one row, vectors along the classes.
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

  NNOPS_INLINE_MEMBER void block(int64_t n, int64_t s, int64_t count, ClassSums& sums) const {
    A max_of[kRows<A>] = {};
    A log_sum_of[kRows<A>];
    A dot_of[kRows<A>] = {};
    V max;
    V rest;
    const auto logit = [&](int64_t c) NNOPS_INLINE_LAMBDA {
      return read_lanes(logits(n, s) + c * g.input.c, g.input.s, count);
    };
    if (g.class_vectors) {
      A rest_of[kRows<A>] = {};
      for (int64_t i = 0; i < count; ++i) {
        max_of[i] = max_over_classes(logits(n, s + i), g.classes);
        rest_of[i] = rest_over_classes(logits(n, s + i), g.classes, max_of[i]);
      }
      max = read<V>(static_cast<const A*>(max_of));
      rest = read<V>(static_cast<const A*>(rest_of));
    } else {
      max = splat<V>(-std::numeric_limits<A>::infinity());
      for (int64_t c = 0; c < g.classes; ++c) {
        prefetch_lanes(logits(n, s) + c * g.input.c, g.input.s);
        const V v = logit(c);
        max = select(v > max, v, max);
      }
      const RestSum<V> sum = blocked_sum<RestSum<V>>(g.classes, [&](int64_t c) NNOPS_INLINE_LAMBDA {
        RestSum<V> term;
        add_exponential(term, logit(c), max);
        return term;
      });
      rest = sum.rest + (sum.ties - A{1});
      write(max_of, max);
    }
    // NaN where a logit is NaN or the maximum infinite.
    const V log_sum = vlog1p(rest) + (max - max);
    write(log_sum_of, log_sum);
    if (kProbabilities || smoothing.on) {
      if (g.class_vectors) {
        for (int64_t i = 0; i < count; ++i) {
          dot_of[i] = row_dot(n, s + i, max_of[i], log_sum_of[i]);
        }
      } else {
        write(dot_of, lane_dots(n, s, count, max, log_sum, logit));
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      finish_row(n, s + i, {max_of[i], log_sum_of[i], dot_of[i]}, sums);
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
