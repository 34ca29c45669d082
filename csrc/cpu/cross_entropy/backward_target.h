// The gradient of cross_entropy by a target of probabilities.
#pragma once

#include "cpu/cross_entropy/class_vectors.h"

NNOPS_BEGIN_KERNELS

template <typename T>
struct BackwardTarget {
  using A = acc_t<T>;
  using V = Wide<A>;
  T* grad_target;
  const T* grad_output;
  const T* input;
  const T* weight;
  const A* row_max;
  const A* row_log_sum;
  const A* row_count;
  const ClassGeometry& g;
  A keep;

  NNOPS_INLINE_MEMBER void row(int64_t n, int64_t s) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gt = grad_target + n * g.grad_input.n + s * g.grad_input.s;
    const A max = row_max[r];
    const A log_sum = row_log_sum[r];
    const A factor = -keep * row_gradient(grad_output, row_count, g, n, s);
    if (weight) {
      map_classes(
          gt, g.classes,
          [=](V a, V w) NNOPS_INLINE_LAMBDA { return ((a - max) - log_sum) * (factor * w); }, x,
          weight);
    } else {
      map_classes(
          gt, g.classes, [=](V a) NNOPS_INLINE_LAMBDA { return ((a - max) - log_sum) * factor; },
          x);
    }
  }

  NNOPS_INLINE_MEMBER void lanes(int64_t n, int64_t s, int64_t count) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gt = grad_target + n * g.grad_input.n + s * g.grad_input.s;
    const V max = read_lanes(row_max + r, 1, count);
    const V log_sum = read_lanes(row_log_sum + r, 1, count);
    const V factor = row_gradients(grad_output, row_count, g, n, s, count) * -keep;
    for (int64_t c = 0; c < g.classes; ++c) {
      const V log_p = (read_lanes(x + c * g.input.c, g.input.s, count) - max) - log_sum;
      write_lanes(gt + c * g.grad_input.c, log_p * (factor * weight_at(weight, c)), g.grad_input.s,
                  count);
    }
  }

  NNOPS_INLINE_MEMBER void block(int64_t n, int64_t s, int64_t count, A) const {
    if (!g.class_vectors) return lanes(n, s, count);
    for (int64_t i = 0; i < count; ++i) row(n, s + i);
  }
};

template <typename T>
void backward_target(void* grad_target, const void* grad_output, const void* input,
                     const void* weight, const void* log_sum_exp, const ClassGeometry& g,
                     int threads) {
  using A = acc_t<T>;
  const int64_t rows = g.batch * g.spatial;
  const A* row_max = static_cast<const A*>(log_sum_exp);
  const A row_count = static_cast<A>(rows);
  const BackwardTarget<T> pass{static_cast<T*>(grad_target),
                               static_cast<const T*>(grad_output),
                               static_cast<const T*>(input),
                               static_cast<const T*>(weight),
                               row_max,
                               row_max + rows,
                               &row_count,
                               g,
                               smoothing_of<A>(g).keep};
  for_each_class_chunk(g, threads, [&pass](int64_t, int64_t n, int64_t s_begin, int64_t s_end) {
    const A none{};
    visit_rows<A>(pass, n, s_begin, s_end, none);
  });
}

NNOPS_END_KERNELS
