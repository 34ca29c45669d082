// The gradient of cross_entropy by its input.
#pragma once

#include "cpu/cross_entropy/class_vectors.h"

NNOPS_BEGIN_KERNELS

template <typename T, bool kProbabilities>
struct Backward {
  using A = acc_t<T>;
  using V = Wide<A>;
  T* grad_input;
  const T* grad_output;
  const T* input;
  const void* target;
  const T* weight;
  const A* row_max;
  const A* row_log_sum;
  const A* total_weight;
  const ClassGeometry& g;
  Smoothing<A> smoothing;
  A weight_sum;  // of all classes

  // The factors of a row with a class: grad_i = gradient (p_i mass - share w_i), and for its class
  // less gradient keep w_t. An ignored row has all three 0, so that its gradient is 0, or NaN
  // where p is, as torch's.
  struct ClassRow {
    A gradient;
    A mass;
    A share;
    int64_t t;  // -1: none
  };

  NNOPS_INLINE_MEMBER ClassRow class_row(int64_t n, int64_t s, ClassSums& sums) const {
    const int64_t t = class_index(target, g, n, s);
    if (classify(t, n * g.spatial + s, g, sums) != RowKind::kCounts) return {0, 0, 0, -1};
    const A mass = smoothing.keep * weight_at(weight, t) + smoothing.share * weight_sum;
    A gradient = row_gradient(grad_output, total_weight, g, n, s);
    if (smoothing.on && g.reduction == Reduction::kMean && *total_weight == 0) {
      gradient = std::numeric_limits<A>::quiet_NaN();  // the loss is NaN
    }
    return {gradient, mass, smoothing.share, t};
  }

  // The entries of the rows' own classes: p Q - q with q = (1 - e) w_t + share w_t, in the form
  // that does not cancel where p is near 1.
  NNOPS_INLINE_MEMBER void own_classes(int64_t n, int64_t s, int64_t count,
                                       const ClassRow* rows) const {
    const int64_t r = n * g.spatial + s;
    A log_p[kRows<A>] = {};
    for (int64_t i = 0; i < count; ++i) {
      if (rows[i].t < 0) continue;
      const T* x = input + n * g.input.n + (s + i) * g.input.s;
      log_p[i] = (to_acc(x[rows[i].t * g.input.c]) - row_max[r + i]) - row_log_sum[r + i];
    }
    A less_one[kRows<A>];
    write(less_one, vexpm1_nonpositive(read<V>(static_cast<const A*>(log_p))));
    for (int64_t i = 0; i < count; ++i) {
      const ClassRow row = rows[i];
      if (row.t < 0) continue;
      const A others = row.share * (weight_sum - weight_at(weight, row.t));
      grad_input[n * g.grad_input.n + (s + i) * g.grad_input.s + row.t * g.grad_input.c] =
          from_acc<T>(row.gradient * (less_one[i] * row.mass + others));
    }
  }

  NNOPS_INLINE_MEMBER void class_row_vectors(int64_t n, int64_t s, ClassRow row) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    const A max = row_max[r];
    const A log_sum = row_log_sum[r];
    if (!smoothing.on) {
      const A scale = row.gradient * row.mass;
      map_classes(
          gx, g.classes,
          [=](V logit)
              NNOPS_INLINE_LAMBDA { return vexp_nonpositive((logit - max) - log_sum) * scale; },
          x);
      return;
    }
    const auto value = [=](V logit, V factor) NNOPS_INLINE_LAMBDA {
      return row.gradient *
             (vexp_nonpositive((logit - max) - log_sum) * row.mass - row.share * factor);
    };
    if (weight) {
      map_classes(gx, g.classes, value, x, weight);
    } else {
      map_classes(gx, g.classes, [=](V a) NNOPS_INLINE_LAMBDA { return value(a, splat<V>(1)); }, x);
    }
  }

  NNOPS_INLINE_MEMBER void probability_row_vectors(int64_t n, int64_t s) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    const T* q = static_cast<const T*>(target) + n * g.target.n + s * g.target.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    const T* w = weight;
    const A max = row_max[r];
    const A log_sum = row_log_sum[r];
    const Smoothing<A> smooth = smoothing;
    const A mass = sum_over_classes<T>(g.classes, [=](auto read) NNOPS_INLINE_LAMBDA {
      return smoothed(read(q), w ? read(w) : splat<V>(1), smooth);
    });
    const A gradient = row_gradient(grad_output, total_weight, g, n, s);
    const auto value = [=](V logit, V probability, V factor) NNOPS_INLINE_LAMBDA {
      return gradient * (vexp_nonpositive((logit - max) - log_sum) * mass -
                         smoothed(probability, factor, smooth));
    };
    if (w) {
      map_classes(gx, g.classes, value, x, q, w);
    } else {
      map_classes(
          gx, g.classes, [=](V a, V b) NNOPS_INLINE_LAMBDA { return value(a, b, splat<V>(1)); }, x,
          q);
    }
  }

  // `count` rows, one a lane.
  NNOPS_INLINE_MEMBER void lanes(int64_t n, int64_t s, int64_t count, const ClassRow* rows) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    const V max = read_lanes(row_max + r, 1, count);
    const V log_sum = read_lanes(row_log_sum + r, 1, count);
    const auto probability = [&](int64_t c) NNOPS_INLINE_LAMBDA {
      prefetch_lanes(x + c * g.input.c, g.input.s);
      return vexp_nonpositive((read_lanes(x + c * g.input.c, g.input.s, count) - max) - log_sum);
    };
    const auto put = [&](int64_t c, V value) NNOPS_INLINE_LAMBDA {
      prefetch_lanes_to_write(gx + c * g.grad_input.c, g.grad_input.s);
      write_lanes(gx + c * g.grad_input.c, value, g.grad_input.s, count);
    };
    A gradient_of[kRows<A>] = {};
    if constexpr (kProbabilities) {
      const T* q = static_cast<const T*>(target) + n * g.target.n + s * g.target.s;
      const auto effective = [&](int64_t c) NNOPS_INLINE_LAMBDA {
        return smoothed(read_lanes(q + c * g.target.c, g.target.s, count),
                        splat<V>(weight_at(weight, c)), smoothing);
      };
      for (int64_t i = 0; i < count; ++i) {
        gradient_of[i] = row_gradient(grad_output, total_weight, g, n, s + i);
      }
      const V gradient = read<V>(static_cast<const A*>(gradient_of));
      const V mass = blocked_sum<V>(g.classes, effective);
      for (int64_t c = 0; c < g.classes; ++c) {
        put(c, gradient * (probability(c) * mass - effective(c)));
      }
    } else {
      A mass_of[kRows<A>] = {};
      A share_of[kRows<A>] = {};
      for (int64_t i = 0; i < count; ++i) {
        gradient_of[i] = rows[i].gradient;
        mass_of[i] = rows[i].mass;
        share_of[i] = rows[i].share;
      }
      const V gradient = read<V>(static_cast<const A*>(gradient_of));
      const V mass = read<V>(static_cast<const A*>(mass_of));
      const V share = read<V>(static_cast<const A*>(share_of));
      if (!smoothing.on) {
        const V scale = gradient * mass;
        for (int64_t c = 0; c < g.classes; ++c) put(c, probability(c) * scale);
      } else {
        for (int64_t c = 0; c < g.classes; ++c) {
          put(c, gradient * (probability(c) * mass - share * weight_at(weight, c)));
        }
      }
    }
  }

  NNOPS_INLINE_MEMBER void block(int64_t n, int64_t s, int64_t count, ClassSums& sums) const {
    ClassRow rows[kRows<A>];
    if constexpr (!kProbabilities) {
      for (int64_t i = 0; i < count; ++i) rows[i] = class_row(n, s + i, sums);
    }
    if (!g.class_vectors) {
      lanes(n, s, count, rows);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        if constexpr (kProbabilities) {
          probability_row_vectors(n, s + i);
        } else {
          class_row_vectors(n, s + i, rows[i]);
        }
      }
    }
    if constexpr (!kProbabilities) own_classes(n, s, count, rows);
  }
};

template <typename T, bool kProbabilities>
NNOPS_INLINE int64_t backward(void* grad_input, const void* grad_output, const void* input,
                              const void* target, const void* weight, const void* log_sum_exp,
                              const void* total_weight, ClassSums* sums, const ClassGeometry& g,
                              int threads) {
  using A = acc_t<T>;
  const T* w = static_cast<const T*>(weight);
  const A* row_max = static_cast<const A*>(log_sum_exp);
  double weight_sum = static_cast<double>(g.classes);
  if (w) {
    weight_sum = 0;
    for (int64_t c = 0; c < g.classes; ++c) weight_sum += to_acc(w[c]);
  }
  const Backward<T, kProbabilities> pass{static_cast<T*>(grad_input),
                                         static_cast<const T*>(grad_output),
                                         static_cast<const T*>(input),
                                         target,
                                         w,
                                         row_max,
                                         row_max + g.batch * g.spatial,
                                         static_cast<const A*>(total_weight),
                                         g,
                                         smoothing_of<A>(g),
                                         static_cast<A>(weight_sum)};
  clear_sums(sums, g);
  for_each_class_chunk(g, threads,
                       [&pass, sums](int64_t chunk, int64_t n, int64_t s_begin, int64_t s_end) {
                         ClassSums total = sums[chunk];
                         visit_rows<A>(pass, n, s_begin, s_end, total);
                         sums[chunk] = total;
                       });
  return first_bad_row(sums, g);
}

template <typename T>
int64_t backward_indices(void* grad_input, const void* grad_output, const void* input,
                         const void* target, const void* weight, const void* log_sum_exp,
                         const void* total_weight, ClassSums* sums, const ClassGeometry& g,
                         int threads) {
  return backward<T, false>(grad_input, grad_output, input, target, weight, log_sum_exp,
                            total_weight, sums, g, threads);
}

template <typename T>
int64_t backward_probabilities(void* grad_input, const void* grad_output, const void* input,
                               const void* target, const void* weight, const void* log_sum_exp,
                               const void* total_weight, ClassSums* sums, const ClassGeometry& g,
                               int threads) {
  return backward<T, true>(grad_input, grad_output, input, target, weight, log_sum_exp,
                           total_weight, sums, g, threads);
}

NNOPS_END_KERNELS
