// Pointwise losses on the CPU: the formulas of math/pointwise_losses.h over dense memory.
//
// forward writes one value an element. reduce is one pass without a temporary of n elements: blocks
// of kLossBlock elements; inside a block one double accumulator a vector lane (16 lanes of float, 8
// of double, these compensated), the lanes added pairwise; the block sums added in ascending order,
// compensated. The order depends on n alone, so the number of threads changes no bit. backward is
// one fused pass. bfloat16 and float16 compute in float, l1 of integers wraps as torch's
// subtraction does. Parallel over blocks or chunks of elements.
#include "ops/pointwise_losses.h"

#include <type_traits>

#include "cpu/simd.h"

NNOPS_BEGIN_KERNELS

template <typename T>
struct VectorArithmetic {
  using Value = Vec<T>;
  NNOPS_INLINE Value constant(double value) { return broadcast(static_cast<T>(value)); }
  NNOPS_INLINE Value select(Mask<T> mask, Value a, Value b) { return mask ? a : b; }
  NNOPS_INLINE Value abs(Value value) {
    using Bits = std::remove_reference_t<decltype(Mask<T>{}[0])>;
    return reinterpret_cast<Value>(reinterpret_cast<Mask<T>>(value) &
                                   std::numeric_limits<Bits>::max());
  }
  NNOPS_INLINE Value exp(Value value) { return vexp(value); }
  NNOPS_INLINE Value log(Value value) { return vlog(value); }
  NNOPS_INLINE Value log1p(Value value) { return vlog1p(value); }
};

// The first `count` elements, count at most a vector; the other lanes are 0.
template <typename T>
NNOPS_INLINE Vec<acc_t<T>> get(const T* pointer, int64_t count) {
  return count == kLanes<acc_t<T>> ? load(pointer) : load_first(pointer, count);
}
template <typename T>
NNOPS_INLINE void put(T* pointer, Vec<acc_t<T>> value, int64_t count) {
  if (count == kLanes<acc_t<T>>) {
    store(pointer, value);
  } else {
    store_first(pointer, value, count);
  }
}

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
  Vec<double> half[2] = {};
};
template <>
struct LaneSums<double> {
  Vec<double> total = {};
  Vec<double> lost = {};
};

NNOPS_INLINE void add_lanes(LaneSums<float>& sums, Vec<float> value) {
  typedef float f32x8 __attribute__((vector_size(32)));
  f32x8 halves[2];
  std::memcpy(halves, &value, sizeof(value));
  sums.half[0] += __builtin_convertvector(halves[0], Vec<double>);
  sums.half[1] += __builtin_convertvector(halves[1], Vec<double>);
}
NNOPS_INLINE void add_lanes(LaneSums<double>& sums, Vec<double> value) {
  add_compensated(sums.total, sums.lost, value);
}

NNOPS_INLINE double total_of(const LaneSums<float>& sums) {
  return sum_lanes(sums.half[0] + sums.half[1]);
}
NNOPS_INLINE double total_of(const LaneSums<double>& sums) {
  // Where the total is infinite, what was lost is a NaN.
  const Mask<double> known = sums.lost - sums.lost == 0;
  return sum_lanes(sums.total + (known ? sums.lost : Vec<double>{}));
}

template <typename T>
NNOPS_INLINE Mask<T> outside_unit_interval(Vec<T> value) {
  // Written so that a NaN is outside.
  return ~((value >= T{0}) & (value <= T{1}));
}
template <typename T>
NNOPS_INLINE bool any(Mask<T> mask) {
  bool found = false;
  for (int64_t i = 0; i < kLanes<T>; ++i) found |= mask[i] != 0;
  return found;
}

template <template <typename> class Loss>
struct Kernels {
  // Calls visit(position, count, element) for each vector of [begin, end); in the last one only the
  // first `count` lanes are real. Answers with the bits kInputOutside and kTargetOutside.
  template <typename T, typename Visit>
  NNOPS_INLINE int visit_elements(const PointwiseLossArguments& arguments, int64_t begin,
                                  int64_t end, Visit visit) {
    using Scalar = acc_t<T>;
    using F = Loss<VectorArithmetic<Scalar>>;
    constexpr int64_t kWidth = kLanes<Scalar>;
    const T* input = static_cast<const T*>(arguments.input);
    const T* target = static_cast<const T*>(arguments.target);
    const T* weight = static_cast<const T*>(arguments.weight);
    const T* pos_weight = static_cast<const T*>(arguments.pos_weight);
    const Vec<Scalar> one = broadcast(Scalar{1});
    const Vec<Scalar> parameter = broadcast(static_cast<Scalar>(arguments.parameter));
    Mask<Scalar> input_outside = {};
    Mask<Scalar> target_outside = {};
    for (int64_t i = begin; i < end; i += kWidth) {
      const int64_t count = end - i < kWidth ? end - i : kWidth;
      LossElement<VectorArithmetic<Scalar>> element = {get(input + i, count),
                                                       get(target + i, count), one, one, parameter};
      if constexpr (F::kHasWeight) {
        if (weight != nullptr) element.weight = get(weight + i, count);
      }
      if constexpr (F::kHasPosWeight) element.pos_weight = get(pos_weight + i, count);
      if constexpr (F::kUnitInterval) {
        input_outside |= outside_unit_interval<Scalar>(element.input);
        target_outside |= outside_unit_interval<Scalar>(element.target);
      }
      visit(i, count, element);
    }
    if constexpr (F::kUnitInterval) {
      return (any<Scalar>(input_outside) ? kInputOutside : 0) |
             (any<Scalar>(target_outside) ? kTargetOutside : 0);
    }
    return 0;
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
        const int found = visit_elements<T>(arguments, begin, end,
                                            [=](int64_t i, int64_t count, const auto& element) {
                                              put(y + i, F::value(element), count);
                                            });
        if (found != 0) __atomic_fetch_or(&outside, found, __ATOMIC_RELAXED);
      } else {
        for (int64_t i = begin; i < end; ++i) y[i] = integer_distance<T>(arguments, i);
      }
    });
    return outside;
  }

  template <typename T>
  static int reduce(void* output, void* block_sums, const PointwiseLossArguments& arguments,
                    double divisor, int threads) {
    const int64_t blocks = (arguments.n + kLossBlock - 1) / kLossBlock;
    if constexpr (kIsFloating<T>) {
      using Scalar = acc_t<T>;
      using F = Loss<VectorArithmetic<Scalar>>;
      double* sums = static_cast<double*>(block_sums);
      int outside = 0;
      parallel_chunks(arguments.n, kLossBlock, threads, [&](int64_t begin, int64_t end) {
        LaneSums<Scalar> lanes;
        const int found = visit_elements<T>(arguments, begin, end,
                                            [&](int64_t, int64_t count, const auto& element) {
                                              Vec<Scalar> value = F::value(element);
                                              if (count < kLanes<Scalar>) {
                                                Scalar values[kLanes<Scalar>] = {};
                                                store_first(values, value, count);
                                                value = load(values);
                                              }
                                              add_lanes(lanes, value);
                                            });
        if (found != 0) __atomic_fetch_or(&outside, found, __ATOMIC_RELAXED);
        sums[begin / kLossBlock] = total_of(lanes);
      });
      double total = 0;
      double lost = 0;
      for (int64_t i = 0; i < blocks; ++i) add_compensated(total, lost, sums[i]);
      if (lost - lost == 0) total += lost;
      // A sum that is infinite in Scalar has an infinite mean, as in torch.
      const Scalar sum = static_cast<Scalar>(total);
      const bool overflows = sum - sum != 0;
      *static_cast<T*>(output) =
          from_acc<T>(overflows ? sum : static_cast<Scalar>(total / divisor));
      return outside;
    } else {
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

  // derivative(element) is Loss::by_input or Loss::by_target.
  template <typename T, typename Derivative>
  NNOPS_INLINE void write_gradient(void* gradient, const void* grad_output, bool per_element,
                                   double divisor, const PointwiseLossArguments& arguments,
                                   int threads, Derivative derivative) {
    using Scalar = acc_t<T>;
    T* result = static_cast<T*>(gradient);
    const T* g = static_cast<const T*>(grad_output);
    const Vec<Scalar> shared = broadcast(to_acc(g[0]) / static_cast<Scalar>(divisor));
    parallel_chunks(arguments.n, kElementwiseChunk, threads, [&](int64_t begin, int64_t end) {
      visit_elements<T>(arguments, begin, end, [=](int64_t i, int64_t count, const auto& element) {
        const Vec<Scalar> factor = per_element ? get(g + i, count) : shared;
        put(result + i, factor * derivative(element), count);
      });
    });
  }

  template <typename T>
  static void backward(void* gradient, const void* grad_output, bool per_element, double divisor,
                       const PointwiseLossArguments& arguments, int threads) {
    using F = Loss<VectorArithmetic<acc_t<T>>>;
    write_gradient<T>(gradient, grad_output, per_element, divisor, arguments, threads,
                      [](const auto& element) { return F::by_input(element); });
  }

  template <typename T>
  static void backward_target(void* gradient, const void* grad_output, bool per_element,
                              double divisor, const PointwiseLossArguments& arguments,
                              int threads) {
    using F = Loss<VectorArithmetic<acc_t<T>>>;
    write_gradient<T>(gradient, grad_output, per_element, divisor, arguments, threads,
                      [](const auto& element) { return F::by_target(element); });
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
   NNOPS_FLOAT_DTYPES(Kernels<functor>::backward), Kernels<functor>::backward_target_kernels()},

extern const PointwiseLossKernels pointwise_loss_kernels = {
    NNOPS_POINTWISE_LOSSES(NNOPS_FUNCTIONS)};
#undef NNOPS_FUNCTIONS

}  // namespace NNOPS_ISA
}  // namespace nnops
