// Pointwise losses, one element at a time: value, derivative by the input, derivative by the
// target.
//
// Every loss is a struct of static functions over an arithmetic policy A, so that the CPU kernels
// (A::Value is a vector) and the CUDA kernels (A::Value is a scalar) share the formulas. A offers
// constant(double), select(mask, a, b), abs, exp, log, log1p and, cheaper for a part of the
// numbers,
//   exp_nonpositive(x)  x <= 0 or NaN
//   log_finite(x)       finite x >= 0; at 0 any number below -100, at infinity one above 0
//   log1m_unit(x)       log(1 - x) for x in [0, 1]; at 1 any number below -100
//   log1p_unit(x)       log(1 + x) for x in [0, 1] or NaN
// No torch headers. The CPU's A lives in the unnamed namespace of the file that includes this one,
// and with it every instantiation, so that nothing of one ISA has external linkage.
//
// With d = input - target, x = input, t = target, w = weight, p = pos_weight:
//   l1                 |d|
//   mse                d^2
//   smooth_l1          d^2 / (2 beta) where |d| < beta, else |d| - beta / 2
//   huber              d^2 / 2 where |d| < delta, else delta (|d| - delta / 2)
//   kl_div             t log t - t x, with 0 log 0 = 0
//   kl_div_log_target  exp(t) (t - x)
//   bce                -w (t max(log x, -100) + (1 - t) max(log(1 - x), -100))
//   bce_logits         w ((1 - t) x - log sigmoid(x)), with pos_weight w ((1 - t) x - (1 + (p - 1)
//   t) log sigmoid(x)), with x in [-largest logit, largest logit]
#pragma once

#include <limits>

#if defined(__CUDACC__)
#define NNOPS_MATH static __device__ __forceinline__
#else
#define NNOPS_MATH static inline __attribute__((always_inline))
#endif

// One line a loss: name, functor, dtypes of the value (FLOAT or ALL, see core/dtype.h).
#define NNOPS_POINTWISE_LOSSES(LOSS)                 \
  LOSS(l1, L1Loss, ALL)                              \
  LOSS(mse, MseLoss, FLOAT)                          \
  LOSS(smooth_l1, SmoothL1Loss, FLOAT)               \
  LOSS(huber, HuberLoss, FLOAT)                      \
  LOSS(kl_div, KlDivLoss, FLOAT)                     \
  LOSS(kl_div_log_target, KlDivLogTargetLoss, FLOAT) \
  LOSS(bce, BceLoss, FLOAT)                          \
  LOSS(bce_logits, BceLogitsLoss, FLOAT)             \
  LOSS(bce_logits_pos_weight, BceLogitsPosWeightLoss, FLOAT)

namespace nnops {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

template <typename A>
struct LossElement {
  using Value = typename A::Value;
  Value input;
  Value target;
  Value weight;      // 1 where there is none
  Value pos_weight;  // only read by losses that say kHasPosWeight
  Value parameter;   // beta, delta or the largest logit, beyond which they count as it
};

// What the kernels must know of a loss beyond its formulas.
struct LossTraits {
  static constexpr bool kHasWeight = false;
  static constexpr bool kHasPosWeight = false;
  // Input and target must lie in [0, 1]; a NaN does not.
  static constexpr bool kUnitInterval = false;
};

// Losses of d = input - target: the target's derivative is minus the input's, and nobody asks for
// it.
template <typename A>
struct DifferenceLoss : LossTraits {
  using V = typename A::Value;
  using Element = const LossElement<A>&;
  static constexpr bool kHasTargetDerivative = false;

  NNOPS_MATH V difference(Element e) { return e.input - e.target; }
  // 0 at 0 and at NaN, as torch's sign of a NaN.
  NNOPS_MATH V sign(V d) {
    const V one = A::constant(1.0);
    const V zero = A::constant(0.0);
    return A::select(d > zero, one, A::select(d < zero, -one, zero));
  }
};

template <typename A>
struct OtherLoss : LossTraits {
  using V = typename A::Value;
  using Element = const LossElement<A>&;
  static constexpr bool kHasTargetDerivative = true;
};

template <typename A>
struct L1Loss : DifferenceLoss<A> {
  using typename DifferenceLoss<A>::V;
  using typename DifferenceLoss<A>::Element;
  NNOPS_MATH V value(Element e) { return A::abs(L1Loss::difference(e)); }
  NNOPS_MATH V by_input(Element e) { return L1Loss::sign(L1Loss::difference(e)); }
};

template <typename A>
struct MseLoss : DifferenceLoss<A> {
  using typename DifferenceLoss<A>::V;
  using typename DifferenceLoss<A>::Element;
  NNOPS_MATH V value(Element e) {
    const V d = MseLoss::difference(e);
    return d * d;
  }
  NNOPS_MATH V by_input(Element e) { return A::constant(2.0) * MseLoss::difference(e); }
};

template <typename A>
struct SmoothL1Loss : DifferenceLoss<A> {
  using typename DifferenceLoss<A>::V;
  using typename DifferenceLoss<A>::Element;
  NNOPS_MATH V value(Element e) {
    const V half = A::constant(0.5);
    const V size = A::abs(SmoothL1Loss::difference(e));
    return A::select(size < e.parameter, half * size * size / e.parameter,
                     size - half * e.parameter);
  }
  NNOPS_MATH V by_input(Element e) {
    const V d = SmoothL1Loss::difference(e);
    return A::select(A::abs(d) >= e.parameter, SmoothL1Loss::sign(d), d / e.parameter);
  }
};

template <typename A>
struct HuberLoss : DifferenceLoss<A> {
  using typename DifferenceLoss<A>::V;
  using typename DifferenceLoss<A>::Element;
  NNOPS_MATH V value(Element e) {
    const V half = A::constant(0.5);
    const V size = A::abs(HuberLoss::difference(e));
    return A::select(size < e.parameter, half * size * size,
                     e.parameter * (size - half * e.parameter));
  }
  NNOPS_MATH V by_input(Element e) {
    const V d = HuberLoss::difference(e);
    return A::select(A::abs(d) >= e.parameter, e.parameter * HuberLoss::sign(d), d);
  }
};

template <typename A>
struct KlDivLoss : OtherLoss<A> {
  using typename OtherLoss<A>::V;
  using typename OtherLoss<A>::Element;
  NNOPS_MATH V value(Element e) {
    const V zero = A::constant(0.0);
    // NaN below 0 and at NaN; at infinity the product is infinite whatever log_finite says.
    const V rest = A::select(e.target == zero, zero, A::constant(kNaN));
    const V entropy = A::select(e.target > zero, e.target * A::log_finite(e.target), rest);
    return entropy - e.target * e.input;
  }
  NNOPS_MATH V by_input(Element e) { return -e.target; }
  // t / t is 1, but NaN at 0 and infinity, where torch's derivative of t log t is NaN too.
  NNOPS_MATH V by_target(Element e) { return A::log(e.target) + e.target / e.target - e.input; }
};

template <typename A>
struct KlDivLogTargetLoss : OtherLoss<A> {
  using typename OtherLoss<A>::V;
  using typename OtherLoss<A>::Element;
  NNOPS_MATH V value(Element e) { return A::exp(e.target) * (e.target - e.input); }
  NNOPS_MATH V by_input(Element e) { return -A::exp(e.target); }
  NNOPS_MATH V by_target(Element e) {
    const V probability = A::exp(e.target);
    return probability * (e.target - e.input) + probability;
  }
};

template <typename A>
struct BceLoss : OtherLoss<A> {
  using typename OtherLoss<A>::V;
  using typename OtherLoss<A>::Element;
  static constexpr bool kHasWeight = true;
  static constexpr bool kUnitInterval = true;

  NNOPS_MATH V clamped(V logarithm) {
    const V least = A::constant(-100.0);
    return A::select(logarithm < least, least, logarithm);
  }
  NNOPS_MATH V value(Element e) {
    const V one = A::constant(1.0);
    const V miss = (e.target - one) * clamped(A::log1m_unit(e.input));
    return e.weight * (miss - e.target * clamped(A::log_finite(e.input)));
  }
  NNOPS_MATH V by_input(Element e) {
    const V least = A::constant(1e-12);
    const V variance = (A::constant(1.0) - e.input) * e.input;
    return e.weight * ((e.input - e.target) / A::select(variance < least, least, variance));
  }
  NNOPS_MATH V by_target(Element e) { return e.weight * (A::log1p(-e.input) - A::log(e.input)); }
};

// With q = exp(-|x|), log sigmoid(x) = min(x, 0) - log1p(q); the two x terms are joined before they
// can cancel. Nothing overflows.
template <typename A>
struct LogitsLoss : OtherLoss<A> {
  using typename OtherLoss<A>::V;
  static constexpr bool kHasWeight = true;

  // x in [-largest, largest]; a NaN stays.
  NNOPS_MATH V bounded(V x, V largest) {
    return A::select(x > largest, largest, A::select(x < -largest, -largest, x));
  }
  NNOPS_MATH V decay(V x) { return A::exp_nonpositive(-A::abs(x)); }
  NNOPS_MATH V softplus(V x) { return A::log1p_unit(LogitsLoss::decay(x)); }
  // 1 - sigmoid(|x|), to full relative precision.
  NNOPS_MATH V tail(V x) {
    const V q = LogitsLoss::decay(x);
    return q / (A::constant(1.0) + q);
  }
  // 0, but NaN at -infinity, where torch's value is infinity - infinity.
  NNOPS_MATH V nan_at_minus_infinity(V x) {
    const V zero = A::constant(0.0);
    const V negative = A::select(x < zero, x, zero);
    return negative - negative;
  }
};

template <typename A>
struct BceLogitsLoss : LogitsLoss<A> {
  using typename OtherLoss<A>::V;
  using typename OtherLoss<A>::Element;
  NNOPS_MATH V value(Element e) {
    const V x = BceLogitsLoss::bounded(e.input, e.parameter);
    const V slope = A::select(x < A::constant(0.0), -e.target, A::constant(1.0) - e.target);
    return e.weight *
           (slope * x + BceLogitsLoss::softplus(x) + BceLogitsLoss::nan_at_minus_infinity(x));
  }
  // Bounded as in value(), which changes nothing here, so that both have one exponential.
  NNOPS_MATH V by_input(Element e) {
    const V x = BceLogitsLoss::bounded(e.input, e.parameter);
    const V tail = BceLogitsLoss::tail(x);
    return e.weight *
           A::select(x < A::constant(0.0), tail - e.target, (A::constant(1.0) - e.target) - tail);
  }
  NNOPS_MATH V by_target(Element e) {
    return e.weight * -BceLogitsLoss::bounded(e.input, e.parameter);
  }
};

template <typename A>
struct BceLogitsPosWeightLoss : LogitsLoss<A> {
  using typename OtherLoss<A>::V;
  using typename OtherLoss<A>::Element;
  static constexpr bool kHasPosWeight = true;

  NNOPS_MATH V value(Element e) {
    const V one = A::constant(1.0);
    const V x = BceLogitsPosWeightLoss::bounded(e.input, e.parameter);
    const V positive = e.pos_weight * e.target;
    const V log_weight = (e.pos_weight - one) * e.target + one;
    const V slope = A::select(x < A::constant(0.0), -positive, one - e.target);
    return e.weight * (slope * x + log_weight * BceLogitsPosWeightLoss::softplus(x) +
                       BceLogitsPosWeightLoss::nan_at_minus_infinity(x));
  }
  // Bounded as in value(), as above.
  NNOPS_MATH V by_input(Element e) {
    const V one = A::constant(1.0);
    const V zero = A::constant(0.0);
    const V x = BceLogitsPosWeightLoss::bounded(e.input, e.parameter);
    const V positive = e.pos_weight * e.target;
    const V log_weight = (e.pos_weight - one) * e.target + one;
    const V tail = BceLogitsPosWeightLoss::tail(x);
    // One product to a sum: of two, a compiler would round the one here and the other there.
    const V slope = A::select(x < zero, -positive, one - e.target);
    return e.weight * (log_weight * A::select(x < zero, tail, -tail) + slope);
  }
  // log sigmoid(-x) - p log sigmoid(x)
  NNOPS_MATH V by_target(Element e) {
    const V x = BceLogitsPosWeightLoss::bounded(e.input, e.parameter);
    const V linear = A::select(x < A::constant(0.0), e.pos_weight * x, x);
    return e.weight *
           ((e.pos_weight - A::constant(1.0)) * BceLogitsPosWeightLoss::softplus(x) - linear);
  }
};

}  // namespace nnops
