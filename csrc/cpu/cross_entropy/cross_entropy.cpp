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
// Two ways over the same rows, in blocks of as many rows as a vector has lanes: where the classes
// of a row lie side by side a vector runs along them (lane-wise partial results, then the lanes in
// a fixed order); else its lanes are rows, which also serves strides of any kind. What a row needs
// once (log1p, expm1) is done for all rows of a block at a time. Parallel over fixed chunks of
// rows; sums of rows in double.
#include "ops/cross_entropy.h"

#include "cpu/class_rows.h"
#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

// --- lanes --------------------------------------------------------------------------------------

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

// From this many classes on, the next row is fetched into the cache while one is computed on: the
// sweep for the maximum would wait for memory, the one for the exponentials keeps memory idle.
constexpr int64_t kPrefetchClasses = 256;

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
  using V = Wide<acc_t<T>>;
  const int64_t vectors = classes / kLaneCount<V>;
  V sum = blocked_sum<V>(vectors, [=](int64_t i) NNOPS_INLINE_LAMBDA {
    return term([i](const T* p) NNOPS_INLINE_LAMBDA { return read<V>(p + i * kLaneCount<V>); });
  });
  const int64_t done = vectors * kLaneCount<V>;
  if (done < classes) {
    const int64_t count = classes - done;
    const V last =
        term([=](const T* p) NNOPS_INLINE_LAMBDA { return read_first<V>(p + done, count); });
    sum += select(first_lanes<V>(count), last, V{});
  }
  return lane_sum(sum);
}

// output[c] = function(inputs[c]...) for all classes.
template <typename T, typename Function, typename... Inputs>
NNOPS_INLINE void map_classes(T* output, int64_t classes, Function function,
                              const Inputs*... inputs) {
  using V = Wide<acc_t<T>>;
  int64_t c = 0;
  for (; c + kLaneCount<V> <= classes; c += kLaneCount<V>) {
    write(output + c, function(read<V>(inputs + c)...));
  }
  if (c < classes) {
    write_first(output + c, function(read_first<V>(inputs + c, classes - c)...), classes - c);
  }
}

// A NaN is passed over here and comes back through the sum of the exponentials.
template <typename T>
NNOPS_INLINE acc_t<T> max_over_classes(const T* x, int64_t classes) {
  using A = acc_t<T>;
  using V = Wide<A>;
  constexpr int64_t kWidth = kLaneCount<V>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const auto larger = [](V next, V highest)
                          NNOPS_INLINE_LAMBDA { return select(next > highest, next, highest); };
  V highest = splat<V>(kLowest);
  V others = highest;
  int64_t i = 0;
  for (; i + 2 * kWidth <= classes; i += 2 * kWidth) {
    highest = larger(read<V>(x + i), highest);
    others = larger(read<V>(x + i + kWidth), others);
  }
  if (i + kWidth <= classes) {
    highest = larger(read<V>(x + i), highest);
    i += kWidth;
  }
  if (i < classes) others = larger(read_first<V>(x + i, classes - i, from_acc<T>(kLowest)), others);
  return lane_max(larger(others, highest));
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

template <typename T>
NNOPS_INLINE acc_t<T> rest_over_classes(const T* x, int64_t classes, acc_t<T> max) {
  using A = acc_t<T>;
  using V = Wide<A>;
  const V highest = splat<V>(max);
  const int64_t vectors = classes / kLaneCount<V>;
  const int64_t done = vectors * kLaneCount<V>;
  RestSum<V> total;
  constexpr int64_t kBlock = 32;
  // The rows after this one come into the cache while this one is computed on.
  const bool ahead = classes >= kPrefetchClasses;
  for (int64_t begin = 0; begin < vectors; begin += kBlock) {
    RestSum<V> block;
    for (int64_t i = begin; i < smaller(vectors, begin + kBlock); ++i) {
      const T* p = x + i * kLaneCount<V>;
      if (ahead) __builtin_prefetch(p + classes, 0, 2);
      add_exponential(block, read<V>(p), highest);
    }
    total += block;
  }
  if (done == classes) return lane_sum(total.rest) + (lane_sum(total.ties) - 1);
  // The missing lanes are ties too: the exponential of -infinity would be a slow underflow.
  const int64_t count = classes - done;
  add_exponential(total, read_first<V>(x + done, count, from_acc<T>(max)), highest);
  const A missing = static_cast<A>(kLaneCount<V> - count);
  return lane_sum(total.rest) + (lane_sum(total.ties) - 1 - missing);
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

  // The same of `count` rows, one a lane.
  NNOPS_INLINE_MEMBER V lane_dots(int64_t n, int64_t s, int64_t count, V max, V log_sum) const {
    const T* x = logits(n, s);
    return blocked_sum<V>(g.classes, [&](int64_t c) NNOPS_INLINE_LAMBDA {
      const V log_p = (read_lanes(x + c * g.input.c, g.input.s, count) - max) - log_sum;
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
    if (g.class_vectors) {
      A rest_of[kRows<A>] = {};
      for (int64_t i = 0; i < count; ++i) {
        max_of[i] = max_over_classes(logits(n, s + i), g.classes);
        rest_of[i] = rest_over_classes(logits(n, s + i), g.classes, max_of[i]);
      }
      max = read<V>(static_cast<const A*>(max_of));
      rest = read<V>(static_cast<const A*>(rest_of));
    } else {
      const T* x = logits(n, s);
      const auto logit = [&](int64_t c) NNOPS_INLINE_LAMBDA {
        return read_lanes(x + c * g.input.c, g.input.s, count);
      };
      max = splat<V>(-std::numeric_limits<A>::infinity());
      for (int64_t c = 0; c < g.classes; ++c) {
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
        write(dot_of, lane_dots(n, s, count, max, log_sum));
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      finish_row(n, s + i, {max_of[i], log_sum_of[i], dot_of[i]}, sums);
    }
  }
};

// pass.block(n, s, count, state) for all rows of [s_begin, s_end).
template <typename A, typename Pass, typename State>
NNOPS_INLINE void visit_rows(const Pass& pass, int64_t n, int64_t s_begin, int64_t s_end,
                             State& state) {
  for (int64_t s = s_begin; s < s_end; s += kRows<A>) {
    pass.block(n, s, smaller(s_end - s, kRows<A>), state);
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
      return vexp_nonpositive((read_lanes(x + c * g.input.c, g.input.s, count) - max) - log_sum);
    };
    const auto put = [&](int64_t c, V value) NNOPS_INLINE_LAMBDA {
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

// --- the gradient of the probabilities ----------------------------------------------------------

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
    A factor_of[kRows<A>] = {};
    for (int64_t i = 0; i < count; ++i) {
      factor_of[i] = -keep * row_gradient(grad_output, row_count, g, n, s + i);
    }
    const V factor = read<V>(static_cast<const A*>(factor_of));
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

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels = {
    NNOPS_FLOAT_DTYPES(forward_indices), NNOPS_FLOAT_DTYPES(forward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_indices), NNOPS_FLOAT_DTYPES(backward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_target)};

}  // namespace NNOPS_ISA
}  // namespace nnops
