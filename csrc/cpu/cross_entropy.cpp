// cross_entropy on the CPU: softmax and negative log likelihood in one, without a tensor of
// log-probabilities.
//
// For a row r = (n, s) with logits x_i, m = max x_i and l = log(sum exp(x_i - m)):
//   log p_i = (x_i - m) - l         (l by log1p, which keeps the digits of a small loss)
//   loss_r  = -sum_i q_i log p_i,      Q = sum_i q_i
//   grad_i  = g_r (p_i Q - q_i)        g_r: gradient of the row's loss, over total weight for mean;
//                                      by expm1 for the row's own class, where p_i may be near 1
// with the effective target q, e the label smoothing and C classes:
//   class t:          q_i = (1 - e) w_t [i = t] + (e / C) w_i; nothing for an ignored row
//   probabilities t:  q_i = w_i ((1 - e) t_i + e / C), whose gradient is -g_r (1 - e) w_i log p_i
// m and l are kept for backward, in float32 for the half types, which compute in it.
//
// Two ways over the same rows: where the classes of a row lie side by side a vector runs along
// them (lane-wise partial results, then the lanes in a fixed order); else its lanes are rows, which
// also serves strides of any kind. Parallel over fixed chunks of rows; sums of rows in double.
#include "ops/cross_entropy.h"

#include "cpu/class_rows.h"

NNOPS_BEGIN_KERNELS

// --- lanes --------------------------------------------------------------------------------------

// `count` elements, `stride` apart, into the first lanes; the others are 0.
template <typename T>
NNOPS_INLINE Vec<acc_t<T>> load_lanes(const T* pointer, int64_t stride, int64_t count) {
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  if (stride == 1 && count == kWidth) return load(pointer);
  T buffer[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = pointer[i * stride];
  return load(buffer);
}

template <typename T>
NNOPS_INLINE void store_lanes(T* pointer, Vec<acc_t<T>> value, int64_t stride, int64_t count) {
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  if (stride == 1 && count == kWidth) {
    store(pointer, value);
    return;
  }
  T buffer[kWidth];
  store(buffer, value);
  for (int64_t i = 0; i < count; ++i) pointer[i * stride] = buffer[i];
}

// A sum whose rounding error grows with the root of the number of terms: a block at a time.
template <typename V>
struct BlockedSum {
  static constexpr int kBlock = 32;
  V total{};
  V block{};
  int count = 0;

  inline __attribute__((always_inline)) void add(V value) {
    block += value;
    if (++count == kBlock) {
      total += block;
      block = V{};
      count = 0;
    }
  }
  inline __attribute__((always_inline)) V result() const { return total + block; }
};

template <typename V>
NNOPS_INLINE V keep_first(V value, int64_t count) {
  constexpr int64_t kWidth = sizeof(V) / sizeof(value[0]);
  for (int64_t i = count; i < kWidth; ++i) value[i] = 0;
  return value;
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

// --- a row whose classes lie side by side -------------------------------------------------------

// The sum over the classes of term(read), where read(p) is the vector of p's values for the classes
// at hand: lane by lane, then the lanes.
template <typename T, typename Term>
NNOPS_INLINE acc_t<T> sum_over_classes(int64_t classes, Term term) {
  using V = Vec<acc_t<T>>;
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  BlockedSum<V> sum;
  int64_t i = 0;
  for (; i + kWidth <= classes; i += kWidth) {
    sum.add(term([i](const T* p) { return load(p + i); }));
  }
  if (i < classes) {
    const int64_t count = classes - i;
    sum.add(keep_first(term([i, count](const T* p) { return load_first(p + i, count); }), count));
  }
  return sum_lanes(sum.result());
}

template <typename T>
NNOPS_INLINE acc_t<T> max_over_classes(const T* x, int64_t classes) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kLanes<A>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  // A NaN is passed over here and comes back through the sum of the exponentials.
  Vec<A> highest = broadcast(kLowest);
  int64_t i = 0;
  for (; i + kWidth <= classes; i += kWidth) {
    const Vec<A> v = load(x + i);
    highest = v > highest ? v : highest;
  }
  if (i < classes) {
    const Vec<A> v = load_first(x + i, classes - i, from_acc<T>(kLowest));
    highest = v > highest ? v : highest;
  }
  A result = highest[0];
  for (int64_t lane = 1; lane < kWidth; ++lane) {
    result = highest[lane] > result ? highest[lane] : result;
  }
  return result;
}

// l = log(sum exp(x - m)) as log1p of the sum without one maximum, whose term is 1: a small loss
// keeps all its digits. NaN where a logit is NaN or the maximum infinite.
template <typename V>
struct LogSumExp {
  BlockedSum<V> rest;
  V ties{};

  inline __attribute__((always_inline)) void add(V x, V max) {
    const V one = V{} + 1;
    rest.add(x == max ? V{} : vexp(x - max));
    ties += x == max ? one : V{};
  }
};

template <typename T>
NNOPS_INLINE acc_t<T> log_sum_over_classes(const T* x, int64_t classes, acc_t<T> max) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kLanes<A>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const Vec<A> highest = broadcast(max);
  LogSumExp<Vec<A>> sum;
  int64_t i = 0;
  for (; i + kWidth <= classes; i += kWidth) sum.add(load(x + i), highest);
  if (i < classes) sum.add(load_first(x + i, classes - i, from_acc<T>(kLowest)), highest);
  const A rest = sum_lanes(sum.rest.result()) + (sum_lanes(sum.ties) - 1);
  return std::log1p(rest) + (max - max);
}

// --- forward ------------------------------------------------------------------------------------

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
  using V = Vec<A>;
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

  inline __attribute__((always_inline)) void finish_row(int64_t n, int64_t s, RowTerms<A> row,
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

  // One row at a time, vectors along the classes.
  inline __attribute__((always_inline)) void row(int64_t n, int64_t s, ClassSums& sums) const {
    const T* x = logits(n, s);
    RowTerms<A> terms{max_over_classes(x, g.classes), 0, 0};
    const A max = terms.max;
    const A log_sum = log_sum_over_classes(x, g.classes, max);
    terms.log_sum = log_sum;
    if constexpr (kProbabilities) {
      const T* q = probabilities(n, s);
      const T* w = weight;
      const Smoothing<A> smooth = smoothing;
      terms.dot = sum_over_classes<T>(g.classes, [=](auto read) {
        const V factor = w ? read(w) : broadcast(A{1});
        return smoothed(read(q), factor, smooth) * ((read(x) - max) - log_sum);
      });
    } else if (smoothing.on) {
      const T* w = weight;
      terms.dot = sum_over_classes<T>(g.classes, [=](auto read) {
        const V log_p = (read(x) - max) - log_sum;
        return w ? read(w) * log_p : log_p;
      });
    }
    finish_row(n, s, terms, sums);
  }

  // `count` rows from s on, one a lane.
  inline __attribute__((always_inline)) void lanes(int64_t n, int64_t s, int64_t count,
                                                   ClassSums& sums) const {
    const T* x = logits(n, s);
    const auto read = [&](int64_t c) { return load_lanes(x + c * g.input.c, g.input.s, count); };
    V max = broadcast(-std::numeric_limits<A>::infinity());
    for (int64_t c = 0; c < g.classes; ++c) {
      const V v = read(c);
      max = v > max ? v : max;
    }
    LogSumExp<V> sum;
    for (int64_t c = 0; c < g.classes; ++c) sum.add(read(c), max);
    const V log_sum = vlog1p(sum.rest.result() + (sum.ties - 1)) + (max - max);
    BlockedSum<V> dot_sum;
    if constexpr (kProbabilities) {
      const T* q = probabilities(n, s);
      for (int64_t c = 0; c < g.classes; ++c) {
        const V probability = load_lanes(q + c * g.target.c, g.target.s, count);
        dot_sum.add(smoothed(probability, broadcast(weight_at(weight, c)), smoothing) *
                    ((read(c) - max) - log_sum));
      }
    } else if (smoothing.on) {
      for (int64_t c = 0; c < g.classes; ++c) {
        dot_sum.add(weight_at(weight, c) * ((read(c) - max) - log_sum));
      }
    }
    const V dot = dot_sum.result();
    for (int64_t i = 0; i < count; ++i) {
      finish_row(n, s + i, {max[i], log_sum[i], dot[i]}, sums);
    }
  }
};

// pass.row(n, s, state) or pass.lanes(n, s, count, state) for all rows of [s_begin, s_end).
template <typename A, typename Pass, typename State>
NNOPS_INLINE void visit_rows(const Pass& pass, int64_t n, int64_t s_begin, int64_t s_end,
                             State& state) {
  if (pass.g.class_vectors) {
    for (int64_t s = s_begin; s < s_end; ++s) pass.row(n, s, state);
  } else {
    for (int64_t s = s_begin; s < s_end; s += kLanes<A>) {
      pass.lanes(n, s, s_end - s < kLanes<A> ? s_end - s : kLanes<A>, state);
    }
  }
}

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

// --- backward -----------------------------------------------------------------------------------

template <typename T, bool kProbabilities>
struct Backward {
  using A = acc_t<T>;
  using V = Vec<A>;
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

  inline __attribute__((always_inline)) ClassRow class_row(int64_t n, int64_t s,
                                                           ClassSums& sums) const {
    const int64_t t = class_index(target, g, n, s);
    if (classify(t, n * g.spatial + s, g, sums) != RowKind::kCounts) return {0, 0, 0, -1};
    const A mass = smoothing.keep * weight_at(weight, t) + smoothing.share * weight_sum;
    A gradient = row_gradient(grad_output, total_weight, g, n, s);
    if (smoothing.on && g.reduction == Reduction::kMean && *total_weight == 0) {
      gradient = std::numeric_limits<A>::quiet_NaN();  // the loss is NaN
    }
    return {gradient, mass, smoothing.share, t};
  }

  // The entry of the row's own class.
  inline __attribute__((always_inline)) void own_class(int64_t n, int64_t s, ClassRow row) const {
    if (row.t < 0) return;
    const int64_t r = n * g.spatial + s;
    const A x = to_acc(input[n * g.input.n + s * g.input.s + row.t * g.input.c]);
    // p Q - q with q = (1 - e) w_t + share w_t, in the form that does not cancel where p is near 1.
    const A less_one = std::expm1((x - row_max[r]) - row_log_sum[r]);
    const A others = row.share * (weight_sum - weight_at(weight, row.t));
    grad_input[n * g.grad_input.n + s * g.grad_input.s + row.t * g.grad_input.c] =
        from_acc<T>(row.gradient * (less_one * row.mass + others));
  }

  inline __attribute__((always_inline)) void row(int64_t n, int64_t s, ClassSums& sums) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    const T* w = weight;
    const A max = row_max[r];
    const A log_sum = row_log_sum[r];
    if constexpr (kProbabilities) {
      const T* q = static_cast<const T*>(target) + n * g.target.n + s * g.target.s;
      const Smoothing<A> smooth = smoothing;
      const auto effective = [=](V probability, V factor) {
        return smoothed(probability, factor, smooth);
      };
      const A mass = sum_over_classes<T>(
          g.classes, [=](auto read) { return effective(read(q), w ? read(w) : broadcast(A{1})); });
      const A gradient = row_gradient(grad_output, total_weight, g, n, s);
      const auto value = [=](V logit, V probability, V factor) {
        return gradient * (vexp((logit - max) - log_sum) * mass - effective(probability, factor));
      };
      if (w) {
        map_vectors(gx, g.classes, value, x, q, w);
      } else {
        map_vectors(gx, g.classes, [=](V a, V b) { return value(a, b, broadcast(A{1})); }, x, q);
      }
    } else {
      const ClassRow row = class_row(n, s, sums);
      const auto value = [=](V logit, V factor) {
        return row.gradient * (vexp((logit - max) - log_sum) * row.mass - row.share * factor);
      };
      if (w) {
        map_vectors(gx, g.classes, value, x, w);
      } else {
        map_vectors(gx, g.classes, [=](V a) { return value(a, broadcast(A{1})); }, x);
      }
      own_class(n, s, row);
    }
  }

  inline __attribute__((always_inline)) void lanes(int64_t n, int64_t s, int64_t count,
                                                   ClassSums& sums) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gx = grad_input + n * g.grad_input.n + s * g.grad_input.s;
    const V max = load_lanes(row_max + r, 1, count);
    const V log_sum = load_lanes(row_log_sum + r, 1, count);
    const auto probability = [&](int64_t c) {
      return vexp((load_lanes(x + c * g.input.c, g.input.s, count) - max) - log_sum);
    };
    const auto write = [&](int64_t c, V value) {
      store_lanes(gx + c * g.grad_input.c, value, g.grad_input.s, count);
    };
    V gradient{};
    if constexpr (kProbabilities) {
      const T* q = static_cast<const T*>(target) + n * g.target.n + s * g.target.s;
      const auto effective = [&](int64_t c) {
        return smoothed(load_lanes(q + c * g.target.c, g.target.s, count),
                        broadcast(weight_at(weight, c)), smoothing);
      };
      for (int64_t i = 0; i < count; ++i) {
        gradient[i] = row_gradient(grad_output, total_weight, g, n, s + i);
      }
      BlockedSum<V> mass_sum;
      for (int64_t c = 0; c < g.classes; ++c) mass_sum.add(effective(c));
      const V mass = mass_sum.result();
      for (int64_t c = 0; c < g.classes; ++c) {
        write(c, gradient * (probability(c) * mass - effective(c)));
      }
    } else {
      V mass{};
      V share{};
      ClassRow rows[kLanes<A>];
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = class_row(n, s + i, sums);
        gradient[i] = rows[i].gradient;
        mass[i] = rows[i].mass;
        share[i] = rows[i].share;
      }
      for (int64_t c = 0; c < g.classes; ++c) {
        write(c, gradient * (probability(c) * mass - share * weight_at(weight, c)));
      }
      for (int64_t i = 0; i < count; ++i) own_class(n, s + i, rows[i]);
    }
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

// --- the gradient of the probabilities ----------------------------------------------------------

template <typename T>
struct BackwardTarget {
  using A = acc_t<T>;
  using V = Vec<A>;
  T* grad_target;
  const T* grad_output;
  const T* input;
  const T* weight;
  const A* row_max;
  const A* row_log_sum;
  const A* row_count;
  const ClassGeometry& g;
  A keep;

  inline __attribute__((always_inline)) void row(int64_t n, int64_t s, A) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gt = grad_target + n * g.grad_input.n + s * g.grad_input.s;
    const A max = row_max[r];
    const A log_sum = row_log_sum[r];
    const A factor = -keep * row_gradient(grad_output, row_count, g, n, s);
    if (weight) {
      map_vectors(
          gt, g.classes, [=](V a, V w) { return ((a - max) - log_sum) * (factor * w); }, x, weight);
    } else {
      map_vectors(gt, g.classes, [=](V a) { return ((a - max) - log_sum) * factor; }, x);
    }
  }

  inline __attribute__((always_inline)) void lanes(int64_t n, int64_t s, int64_t count, A) const {
    const int64_t r = n * g.spatial + s;
    const T* x = input + n * g.input.n + s * g.input.s;
    T* gt = grad_target + n * g.grad_input.n + s * g.grad_input.s;
    const V max = load_lanes(row_max + r, 1, count);
    const V log_sum = load_lanes(row_log_sum + r, 1, count);
    V factor{};
    for (int64_t i = 0; i < count; ++i) {
      factor[i] = -keep * row_gradient(grad_output, row_count, g, n, s + i);
    }
    for (int64_t c = 0; c < g.classes; ++c) {
      const V log_p = (load_lanes(x + c * g.input.c, g.input.s, count) - max) - log_sum;
      store_lanes(gt + c * g.grad_input.c, log_p * (factor * weight_at(weight, c)), g.grad_input.s,
                  count);
    }
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

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels = {
    NNOPS_FLOAT_DTYPES(forward_indices), NNOPS_FLOAT_DTYPES(forward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_indices), NNOPS_FLOAT_DTYPES(backward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_target)};

}  // namespace NNOPS_ISA
}  // namespace nnops
