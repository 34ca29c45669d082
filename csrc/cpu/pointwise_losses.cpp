// Pointwise losses on the CPU: the formulas of math/pointwise_losses.h over dense memory.
//
// forward writes one value an element. reduce, with or without the gradient beside it, is one pass
// without a temporary of n elements: blocks of kLossBlock elements; inside a block one accumulator
// a vector lane (for 16 lanes of float in double, into which go the sums of four vectors at a time;
// for 8 of double compensated), the lanes added pairwise; the block sums added in ascending order,
// compensated. The order depends on n alone, so the number of threads changes no bit. backward is
// one fused pass. bfloat16 and float16 compute in float, l1 of integers wraps as torch's
// subtraction does. Parallel over blocks or chunks of elements.
#include "ops/pointwise_losses.h"

#include <type_traits>

#include "cpu/wide_math.h"

NNOPS_BEGIN_KERNELS

template <typename T>
struct VectorArithmetic {
  using Value = Wide<T>;
  NNOPS_INLINE Value constant(double value) { return splat<Value>(static_cast<T>(value)); }
  NNOPS_INLINE Value select(WideMask<T> mask, Value a, Value b) {
    return NNOPS_ISA::select(mask, a, b);
  }
  NNOPS_INLINE Value abs(Value value) { return vabs(value); }
  NNOPS_INLINE Value exp(Value value) { return vexp(value); }
  NNOPS_INLINE Value exp_nonpositive(Value value) { return vexp_nonpositive(value); }
  NNOPS_INLINE Value log(Value value) { return vlog(value); }
  NNOPS_INLINE Value log_finite(Value value) { return vlog_finite(value); }
  NNOPS_INLINE Value log1p(Value value) { return vlog1p(value); }
  NNOPS_INLINE Value log1m_unit(Value value) { return vlog1m_unit(value); }
  NNOPS_INLINE Value log1p_unit(Value value) { return vlog1p_near(value); }
};

// total + value, exactly the rounding error of which is added to `lost` (Knuth's two-sum).
template <typename V>
NNOPS_INLINE void add_compensated(V& total, V& lost, V value) {
  const V sum = total + value;
  const V added = sum - total;
  lost += (total - (sum - added)) + (value - added);
  total = sum;
}

// Sums of a block, lane by lane, in double: floats in two halves, doubles with what rounding lost.
template <typename T>
struct LaneSums;
template <>
struct LaneSums<float> {
  Pair<Wide<double>> halves = {};
};
template <>
struct LaneSums<double> {
  Wide<double> total = {};
  Wide<double> lost = {};
};

NNOPS_INLINE void add_lanes(LaneSums<float>& sums, Wide<float> value) {
  sums.halves += to_double(value);
}
NNOPS_INLINE void add_lanes(LaneSums<double>& sums, Wide<double> value) {
  add_compensated(sums.total, sums.lost, value);
}

NNOPS_INLINE double total_of(const LaneSums<float>& sums) { return lane_sum(sums.halves); }
NNOPS_INLINE double total_of(const LaneSums<double>& sums) {
  // Where the total is infinite, what was lost is a NaN.
  const auto known = sums.lost - sums.lost == 0.0;
  return lane_sum(sums.total + select(known, sums.lost, Wide<double>{}));
}

// Negative where a number is none of [0, 1], whose bits are the integers from 0 to those of 1; a
// NaN is none.
template <typename V>
NNOPS_INLINE MaskOf<V> outside_unit_interval(V value) {
  if constexpr (kIsPair<V>) {
    return {outside_unit_interval(value.lo), outside_unit_interval(value.hi)};
  } else {
    using Bits = RawVector<std::make_unsigned_t<LaneOf<MaskOf<V>>>, sizeof(V)>;
    // Adding 0 makes 0 of -0.
    const Bits bits = reinterpret_cast<Bits>(value + 0);
    return reinterpret_cast<MaskOf<V>>(bits | (reinterpret_cast<Bits>(splat<V>(1)) - bits));
  }
}
template <typename M>
NNOPS_INLINE bool any_negative(M lanes) {
  return fold_lanes(lanes, [](auto a, auto b) NNOPS_INLINE_LAMBDA { return a | b; }) < 0;
}

// How to read the operands of a vector of elements: all lanes, or the first ones of the last
// vector, whose other lanes are 0.
template <typename T>
struct AllLanes {
  NNOPS_INLINE_MEMBER Wide<acc_t<T>> operator()(const T* pointer) const {
    return read<Wide<acc_t<T>>>(pointer);
  }
};
template <typename T>
struct FirstLanes {
  int64_t count;
  NNOPS_INLINE_MEMBER Wide<acc_t<T>> operator()(const T* pointer) const {
    return read_first<Wide<acc_t<T>>>(pointer, count);
  }
};

// The operands of a loss F, element by element, and which of them were outside its domain.
template <typename T, typename F>
struct Elements {
  using Scalar = acc_t<T>;
  using Element = LossElement<VectorArithmetic<Scalar>>;
  const T* input;
  const T* target;
  const T* weight;
  const T* pos_weight;
  Wide<Scalar> one;
  Wide<Scalar> parameter;
  WideMask<Scalar> input_outside{};
  WideMask<Scalar> target_outside{};

  explicit Elements(const PointwiseLossArguments& arguments)
      : input(static_cast<const T*>(arguments.input)),
        target(static_cast<const T*>(arguments.target)),
        weight(static_cast<const T*>(arguments.weight)),
        pos_weight(static_cast<const T*>(arguments.pos_weight)),
        one(splat<Wide<Scalar>>(Scalar{1})),
        parameter(splat<Wide<Scalar>>(static_cast<Scalar>(arguments.parameter))) {}

  template <typename Read>
  NNOPS_INLINE_MEMBER Element at(int64_t i, Read read) {
    Element element = {read(input + i), read(target + i), one, one, parameter};
    if constexpr (F::kHasWeight) {
      if (weight != nullptr) element.weight = read(weight + i);
    }
    if constexpr (F::kHasPosWeight) element.pos_weight = read(pos_weight + i);
    if constexpr (F::kUnitInterval) {
      input_outside |= outside_unit_interval(element.input);
      target_outside |= outside_unit_interval(element.target);
    }
    return element;
  }

  // Bits kInputOutside and kTargetOutside.
  NNOPS_INLINE_MEMBER int outside() const {
    return (any_negative(input_outside) ? kInputOutside : 0) |
           (any_negative(target_outside) ? kTargetOutside : 0);
  }
};

// output[i] = function(element i, i, how to read) for i in [begin, end). Answers with what was
// outside the domain.
template <typename F, typename T, typename Function>
NNOPS_INLINE int map_elements(T* output, const PointwiseLossArguments& arguments, int64_t begin,
                              int64_t end, Function function) {
  constexpr int64_t kWidth = kLanes<acc_t<T>>;
  Elements<T, F> elements(arguments);
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) {
    const AllLanes<T> read{};
    write(output + i, function(elements.at(i, read), i, read));
  }
  if (i < end) {
    const FirstLanes<T> read{end - i};
    write_first(output + i, function(elements.at(i, read), i, read), end - i);
  }
  return elements.outside();
}

template <template <typename> class Loss>
struct Kernels {
  // Adds the losses of the elements of [begin, end) to `lanes`, and hands each vector of elements,
  // the place of its first one and their number to `visit`. Answers as map_elements.
  template <typename T, typename Visit>
  NNOPS_INLINE int sum_elements(LaneSums<acc_t<T>>& lanes, const PointwiseLossArguments& arguments,
                                int64_t begin, int64_t end, Visit visit) {
    using Scalar = acc_t<T>;
    using F = Loss<VectorArithmetic<Scalar>>;
    constexpr int64_t kWidth = kLanes<Scalar>;
    Elements<T, F> elements(arguments);
    const auto value = [&](int64_t i) NNOPS_INLINE_LAMBDA {
      const auto element = elements.at(i, AllLanes<T>{});
      visit(element, i, kWidth);
      return F::value(element);
    };
    int64_t i = begin;
    if constexpr (sizeof(Scalar) == sizeof(float)) {
      // Pairs of pairs are added in float: converting to double would cost more than the loss.
      for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
        const Wide<Scalar> first = value(i) + value(i + kWidth);
        const Wide<Scalar> second = value(i + 2 * kWidth) + value(i + 3 * kWidth);
        add_lanes(lanes, first + second);
      }
    }
    for (; i + kWidth <= end; i += kWidth) add_lanes(lanes, value(i));
    if (i < end) {
      const auto element = elements.at(i, FirstLanes<T>{end - i});
      visit(element, i, end - i);
      add_lanes(lanes,
                select(first_lanes<Wide<Scalar>>(end - i), F::value(element), Wide<Scalar>{}));
    }
    return elements.outside();
  }

  // |input - target| of integers, modulo 2^bits.
  template <typename T>
  NNOPS_INLINE T integer_distance(const PointwiseLossArguments& arguments, int64_t i) {
    using Unsigned = std::make_unsigned_t<T>;
    const Unsigned x = static_cast<Unsigned>(static_cast<const T*>(arguments.input)[i]);
    const Unsigned t = static_cast<Unsigned>(static_cast<const T*>(arguments.target)[i]);
    const Unsigned d = static_cast<Unsigned>(x - t);
    return static_cast<T>(static_cast<T>(d) < 0 ? static_cast<Unsigned>(0 - d) : d);
  }

  template <typename T>
  static int forward(void* output, const PointwiseLossArguments& arguments, int threads) {
    T* y = static_cast<T*>(output);
    int outside = 0;
    parallel_chunks(arguments.n, kElementwiseChunk, threads, [&](int64_t begin, int64_t end) {
      if constexpr (kIsFloating<T>) {
        using F = Loss<VectorArithmetic<acc_t<T>>>;
        const int found = map_elements<F>(y, arguments, begin, end,
                                          [](const auto& element, int64_t, auto)
                                              NNOPS_INLINE_LAMBDA { return F::value(element); });
        if (found != 0) __atomic_fetch_or(&outside, found, __ATOMIC_RELAXED);
      } else {
        for (int64_t i = begin; i < end; ++i) y[i] = integer_distance<T>(arguments, i);
      }
    });
    return outside;
  }

  // The sum of the losses / divisor; `visit` as in sum_elements.
  template <typename T, typename Visit>
  NNOPS_INLINE int reduce_elements(void* output, void* block_sums,
                                   const PointwiseLossArguments& arguments, double divisor,
                                   int threads, Visit visit) {
    using Scalar = acc_t<T>;
    double* sums = static_cast<double*>(block_sums);
    int outside = 0;
    parallel_chunks(arguments.n, kLossBlock, threads, [&](int64_t begin, int64_t end) {
      LaneSums<Scalar> lanes;
      const int found = sum_elements<T>(lanes, arguments, begin, end, visit);
      if (found != 0) __atomic_fetch_or(&outside, found, __ATOMIC_RELAXED);
      sums[begin / kLossBlock] = total_of(lanes);
    });
    const int64_t blocks = divide_up(arguments.n, kLossBlock);
    double total = 0;
    double lost = 0;
    for (int64_t i = 0; i < blocks; ++i) add_compensated(total, lost, sums[i]);
    if (lost - lost == 0) total += lost;
    // A sum that is infinite in Scalar has an infinite mean, as in torch.
    const Scalar sum = static_cast<Scalar>(total);
    const bool overflows = sum - sum != 0;
    *static_cast<T*>(output) = from_acc<T>(overflows ? sum : static_cast<Scalar>(total / divisor));
    return outside;
  }

  template <typename T>
  static int reduce(void* output, void* block_sums, const PointwiseLossArguments& arguments,
                    double divisor, int threads) {
    if constexpr (kIsFloating<T>) {
      return reduce_elements<T>(output, block_sums, arguments, divisor, threads,
                                [](const auto&, int64_t, int64_t) NNOPS_INLINE_LAMBDA {});
    } else {
      const int64_t blocks = divide_up(arguments.n, kLossBlock);
      uint64_t* sums = static_cast<uint64_t*>(block_sums);
      parallel_chunks(arguments.n, kLossBlock, threads, [=](int64_t begin, int64_t end) {
        uint64_t sum = 0;
        for (int64_t i = begin; i < end; ++i) {
          sum += static_cast<uint64_t>(static_cast<int64_t>(integer_distance<T>(arguments, i)));
        }
        sums[begin / kLossBlock] = sum;
      });
      uint64_t total = 0;
      for (int64_t i = 0; i < blocks; ++i) total += sums[i];
      *static_cast<int64_t*>(output) = static_cast<int64_t>(total);
      return 0;
    }
  }

  template <typename T>
  static int reduce_with_gradient(void* output, void* gradient, void* block_sums,
                                  const PointwiseLossArguments& arguments, double divisor,
                                  int threads) {
    using F = Loss<VectorArithmetic<T>>;
    constexpr int64_t kWidth = kLanes<T>;
    T* result = static_cast<T*>(gradient);
    const Wide<T> factor = splat<Wide<T>>(T{1} / static_cast<T>(divisor));
    return reduce_elements<T>(output, block_sums, arguments, divisor, threads,
                              [=](const auto& element, int64_t i, int64_t count)
                                  NNOPS_INLINE_LAMBDA {
                                    const Wide<T> derivative = factor * F::by_input(element);
                                    if (count == kWidth) {
                                      write(result + i, derivative);
                                    } else {
                                      write_first(result + i, derivative, count);
                                    }
                                  });
  }

  // derivative(element) is F::by_input or F::by_target.
  template <typename F, typename T, typename Derivative>
  NNOPS_INLINE void write_gradient(void* gradient, const void* grad_output, bool per_element,
                                   double divisor, const PointwiseLossArguments& arguments,
                                   int threads, Derivative derivative) {
    using Scalar = acc_t<T>;
    T* result = static_cast<T*>(gradient);
    const T* g = static_cast<const T*>(grad_output);
    const Wide<Scalar> shared = splat<Wide<Scalar>>(to_acc(g[0]) / static_cast<Scalar>(divisor));
    parallel_chunks(arguments.n, kElementwiseChunk, threads, [&](int64_t begin, int64_t end) {
      map_elements<F>(result, arguments, begin, end,
                      [=](const auto& element, int64_t i, auto read) NNOPS_INLINE_LAMBDA {
                        return (per_element ? read(g + i) : shared) * derivative(element);
                      });
    });
  }

  template <typename T>
  static void backward(void* gradient, const void* grad_output, bool per_element, double divisor,
                       const PointwiseLossArguments& arguments, int threads) {
    using F = Loss<VectorArithmetic<acc_t<T>>>;
    write_gradient<F, T>(gradient, grad_output, per_element, divisor, arguments, threads,
                         [](const auto& element)
                             NNOPS_INLINE_LAMBDA { return F::by_input(element); });
  }

  template <typename T>
  static void backward_target(void* gradient, const void* grad_output, bool per_element,
                              double divisor, const PointwiseLossArguments& arguments,
                              int threads) {
    using F = Loss<VectorArithmetic<acc_t<T>>>;
    write_gradient<F, T>(gradient, grad_output, per_element, divisor, arguments, threads,
                         [](const auto& element)
                             NNOPS_INLINE_LAMBDA { return F::by_target(element); });
  }

  static constexpr PerDType<PointwiseLossFunctions::Backward> backward_target_kernels() {
    if constexpr (Loss<VectorArithmetic<float>>::kHasTargetDerivative) {
      return NNOPS_FLOAT_DTYPES(backward_target);
    } else {
      return {};
    }
  }
};

}  // namespace

#define NNOPS_FUNCTIONS(name, functor, dtypes)         \
  {NNOPS_##dtypes##_DTYPES(Kernels<functor>::forward), \
   NNOPS_##dtypes##_DTYPES(Kernels<functor>::reduce),  \
   NNOPS_FLOAT_DTYPES(Kernels<functor>::backward),     \
   Kernels<functor>::backward_target_kernels(),        \
   {Kernels<functor>::reduce_with_gradient<float>,     \
    Kernels<functor>::reduce_with_gradient<double>}},

extern const PointwiseLossKernels pointwise_loss_kernels = {
    NNOPS_POINTWISE_LOSSES(NNOPS_FUNCTIONS)};
#undef NNOPS_FUNCTIONS

}  // namespace NNOPS_ISA
}  // namespace nnops
