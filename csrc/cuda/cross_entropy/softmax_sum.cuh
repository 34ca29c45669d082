// Online softmax: the maximum and the sum of exponentials of a row in one reading of it.
//
// A lane keeps the largest logit m so far and sums of exp(x - m); when a step brings a larger one,
// what was summed is scaled to it, once a step. log(sum exp(x - m)) is log1p of the sum without one
// maximum, whose term is 1, so that a small loss keeps its digits: the terms of maxima are counted
// apart. With a target that is not a single class, sum q_i log p_i comes from the same reading:
//   sum q_i (x_i - m)  -  l sum q_i
// whose parts have the same sign, term by term, so that nothing cancels that did not before.
//
// A NaN never becomes the maximum; it makes the sum NaN. Where m is infinite, l is NaN, as torch's.
#pragma once

#include <limits>

#include "cuda/cross_entropy/row_lanes.cuh"

namespace nnops::cuda {

NNOPS_DEVICE float exponential(float x) { return expf(x); }
NNOPS_DEVICE double exponential(double x) { return exp(x); }
NNOPS_DEVICE float log_one_plus(float x) { return log1pf(x); }
NNOPS_DEVICE double log_one_plus(double x) { return log1p(x); }
NNOPS_DEVICE float exponential_less_one(float x) { return expm1f(x); }
NNOPS_DEVICE double exponential_less_one(double x) { return expm1(x); }

template <typename A>
inline constexpr A kLowest = -std::numeric_limits<A>::infinity();
template <typename A>
inline constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();

template <typename A>
struct SoftmaxSum {
  A max;
  A rest;  // sum of exp(x - max) over the logits below it
  A ties;  // number of logits that are it
  A mass;  // sum of q
  A dot;   // sum of q (x - max)
};

template <typename A>
NNOPS_DEVICE SoftmaxSum<A> empty_softmax_sum() {
  return {kLowest<A>, 0, 0, 0, 0};
}

// Refers the sum to `max`, which is at least its own.
template <bool kDot, typename A>
NNOPS_DEVICE void raise(SoftmaxSum<A>& sum, A max) {
  if (!(max > sum.max)) return;
  const A difference = sum.max - max;
  sum.rest = (sum.rest + sum.ties) * exponential(difference);
  // With nothing but -infinity so far, `dot` is referred to 0.
  if (kDot && sum.max != kLowest<A>) sum.dot += difference * sum.mass;
  sum.ties = 0;
  sum.max = max;
}

// A lane adds up so many steps before they join what was before them: the rounding error of one
// long sum would grow with its length.
constexpr int kStepsPerSum = 16;

// Moves `part` into `sum`, and leaves it empty.
template <bool kDot, typename A>
NNOPS_DEVICE void move_into(SoftmaxSum<A>& sum, SoftmaxSum<A>& part) {
  raise<kDot>(sum, part.max);
  raise<kDot>(part, sum.max);
  sum.rest += part.rest;
  sum.ties += part.ties;
  sum.mass += part.mass;
  sum.dot += part.dot;
  part = empty_softmax_sum<A>();
}

// Adds the values x[j] for which is_class(j); q is only read with kDot.
template <bool kDot, int kValues, typename A, typename IsClass>
NNOPS_DEVICE void add_step(SoftmaxSum<A>& sum, const A (&x)[kValues], const A (&q)[kValues],
                           IsClass is_class) {
  A max = sum.max;
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    if (is_class(j) && x[j] > max) max = x[j];
  }
  raise<kDot>(sum, max);
  const A origin = max == kLowest<A> ? A{0} : max;
  A rest = 0;
  A ties = 0;
  A mass = 0;
  A dot = 0;
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    if (!is_class(j)) continue;
    const bool tie = x[j] == max;
    rest += tie ? A{0} : exponential(x[j] - max);
    ties += tie ? A{1} : A{0};
    if constexpr (kDot) {
      mass += q[j];
      dot += q[j] * (x[j] - origin);
    }
  }
  sum.rest += rest;
  sum.ties += ties;
  if constexpr (kDot) {
    sum.mass += mass;
    sum.dot += dot;
  }
}

// Joins at most 32 lanes; every one gets the result.
template <bool kDot, typename A>
NNOPS_DEVICE void join_softmax_sums(SoftmaxSum<A>& sum, int lanes) {
  raise<kDot>(sum, join_lanes(sum.max, lanes, Largest{}));
  sum.rest = join_lanes(sum.rest, lanes, Sum{});
  sum.ties = join_lanes(sum.ties, lanes, Sum{});
  if constexpr (kDot) {
    sum.mass = join_lanes(sum.mass, lanes, Sum{});
    sum.dot = join_lanes(sum.dot, lanes, Sum{});
  }
}

}  // namespace nnops::cuda
