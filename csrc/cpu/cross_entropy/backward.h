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

  // The factors of rows with a class: grad_i = gradient (p_i mass - share w_i), and for its class
  // less gradient keep w_t. An ignored row has all three 0, so that its gradient is 0, or NaN
  // where p is, as torch's.
  struct ClassRows {
    RowClasses<A> classes;
    V weight;
    V gradient;
    V mass;
    V share;
  };

  NNOPS_INLINE_MEMBER ClassRows class_rows(int64_t n, int64_t s, int64_t count,
                                           ClassSums& sums) const {
    ClassRows rows;
    rows.classes = read_classes<A>(target, g, n, s, count, sums);
    const auto counts = rows.classes.count;
    rows.weight = weights_of(weight, rows.classes, count);
    rows.mass = select(counts, rows.weight * smoothing.keep + smoothing.share * weight_sum, V{});
    const bool loss_is_nan = smoothing.on && g.reduction == Reduction::kMean && *total_weight == 0;
    rows.gradient = select(counts,
                           loss_is_nan ? splat<V>(std::numeric_limits<A>::quiet_NaN())
                                       : row_gradients(grad_output, total_weight, g, n, s, count),
                           V{});
    rows.share = select(counts, splat<V>(smoothing.share), V{});
    return rows;
  }

  // The entries of the rows' own classes: p Q - q with q = (1 - e) w_t + share w_t, in the form
  // that does not cancel where p is near 1.
  NNOPS_INLINE_MEMBER void own_classes(int64_t n, int64_t s, int64_t count,
                                       const ClassRows& rows) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    const V own = at_classes(x, g.input, rows.classes, count);
    const V log_p =
        (own - read_first<V>(row_max + r, count)) - read_first<V>(row_log_sum + r, count);
    const V less_one = vexpm1_nonpositive(select(rows.classes.count, log_p, V{}));
    A values[kRows<A>];
    write(values, rows.gradient * (less_one * rows.mass + rows.share * (weight_sum - rows.weight)));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = rows.classes.of[i];
      if (c >= 0) gx[i * g.grad_input.s + c * g.grad_input.c] = from_acc<T>(values[i]);
    }
  }

  struct ClassRow {
    A gradient;
    A mass;
    A share;
  };
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

  // `count` rows, one a lane; logit(c) are their logits, put(c, V) takes their gradients.
  template <typename Logit, typename Put>
  NNOPS_INLINE_MEMBER void lanes(int64_t n, int64_t s, int64_t count, const ClassRows& rows,
                                 Logit logit, Put put) const {
    const int64_t r = n * g.spatial + s;
    const V max = read_lanes(row_max + r, 1, count);
    const V log_sum = read_lanes(row_log_sum + r, 1, count);
    const auto probability = [&](int64_t c) NNOPS_INLINE_LAMBDA {
      return vexp_nonpositive((logit(c) - max) - log_sum);
    };
    if constexpr (kProbabilities) {
      const T* q = static_cast<const T*>(target) + n * g.target.n + s * g.target.s;
      const auto effective = [&](int64_t c) NNOPS_INLINE_LAMBDA {
        return smoothed(read_lanes(q + c * g.target.c, g.target.s, count),
                        splat<V>(weight_at(weight, c)), smoothing);
      };
      const V gradient = row_gradients(grad_output, total_weight, g, n, s, count);
      const V mass = blocked_sum<V>(g.classes, effective);
      for (int64_t c = 0; c < g.classes; ++c) {
        put(c, gradient * (probability(c) * mass - effective(c)));
      }
    } else {
      if (!smoothing.on) {
        const V scale = rows.gradient * rows.mass;
        for (int64_t c = 0; c < g.classes; ++c) put(c, probability(c) * scale);
      } else {
        for (int64_t c = 0; c < g.classes; ++c) {
          put(c, rows.gradient * (probability(c) * rows.mass - rows.share * weight_at(weight, c)));
        }
      }
    }
  }

  NNOPS_INLINE_MEMBER void lanes_block(int64_t n, int64_t s, int64_t count,
                                       const ClassRows& rows) const {
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    if (is_transposed(g.input, g.classes) || is_transposed(g.grad_input, g.classes)) {
      LaneBuffer<A> buffer;
      read_block(buffer, x, g.input, count, g.classes);
      lanes(
          n, s, count, rows, [&](int64_t c) NNOPS_INLINE_LAMBDA { return buffer[c]; },
          [&](int64_t c, V value) NNOPS_INLINE_LAMBDA { write(buffer.at(c), value); });
      write_block(gx, buffer, g.grad_input, count, g.classes);
      return;
    }
    lanes(
        n, s, count, rows,
        [=, this](int64_t c) NNOPS_INLINE_LAMBDA {
          prefetch_lanes(x + c * g.input.c, g.input.s);
          return read_lanes(x + c * g.input.c, g.input.s, count);
        },
        [=, this](int64_t c, V value) NNOPS_INLINE_LAMBDA {
          prefetch_lanes_to_write(gx + c * g.grad_input.c, g.grad_input.s);
          write_lanes(gx + c * g.grad_input.c, value, g.grad_input.s, count);
        });
  }

  NNOPS_INLINE_MEMBER void class_vectors_block(int64_t n, int64_t s, int64_t count,
                                               const ClassRows& rows) const {
    if constexpr (kProbabilities) {
      for (int64_t i = 0; i < count; ++i) probability_row_vectors(n, s + i);
    } else {
      A gradient_of[kRows<A>];
      A mass_of[kRows<A>];
      A share_of[kRows<A>];
      write(gradient_of, rows.gradient);
      write(mass_of, rows.mass);
      write(share_of, rows.share);
      for (int64_t i = 0; i < count; ++i) {
        class_row_vectors(n, s + i, {gradient_of[i], mass_of[i], share_of[i]});
      }
    }
  }

  NNOPS_INLINE_MEMBER void block(int64_t n, int64_t s, int64_t count, ClassSums& sums) const {
    ClassRows rows;
    if constexpr (!kProbabilities) rows = class_rows(n, s, count, sums);
    if (g.class_vectors) {
      class_vectors_block(n, s, count, rows);
    } else {
      lanes_block(n, s, count, rows);
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
