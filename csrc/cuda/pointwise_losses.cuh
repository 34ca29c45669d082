// Pointwise losses on CUDA: the formulas of math/pointwise_losses.h over dense memory.
//
// forward writes one value an element and backward is one fused pass (elementwise.cuh). reduce is
// one pass without a temporary of n elements: a block sums the losses of a span of the elements, a
// thread a fixed part of it; the vector of a thread is added pairwise in float and goes into a
// double (double: compensated all the way); then lanes, warps and, in a second launch of one block,
// the blocks. The order depends on n alone: never on the device, on alignment or on the run, and no
// atomic adds a floating number. bfloat16 and float16 compute in float, l1 of integers wraps as
// torch's subtraction does.
//
// Losses with a domain note what lies outside in a word of device memory, by an atomic or.
#pragma once

#include "cuda/elementwise.cuh"
#include "cuda/logarithms.cuh"
#include "ops/pointwise_losses.h"

namespace nnops::cuda {

// The policy A of math/pointwise_losses.h, one element at a time.
template <typename T>
struct ScalarArithmetic {
  using Value = T;
  static constexpr bool kFloat = std::is_same_v<T, float>;

  NNOPS_MATH T constant(double value) { return static_cast<T>(value); }
  NNOPS_MATH T select(bool mask, T a, T b) { return mask ? a : b; }
  NNOPS_MATH T abs(T x) {
    if constexpr (kFloat) {
      return ::fabsf(x);
    } else {
      return ::fabs(x);
    }
  }
  NNOPS_MATH T exp(T x) {
    if constexpr (kFloat) {
      return ::expf(x);
    } else {
      return ::exp(x);
    }
  }
  NNOPS_MATH T log(T x) {
    if constexpr (kFloat) {
      return ::logf(x);
    } else {
      return ::log(x);
    }
  }
  NNOPS_MATH T log1p(T x) {
    if constexpr (kFloat) {
      return ::log1pf(x);
    } else {
      return ::log1p(x);
    }
  }
  NNOPS_MATH T exp_nonpositive(T x) { return exp(x); }
  NNOPS_MATH T log_finite(T x) {
    if constexpr (kFloat) {
      return log_of_finite(x);
    } else {
      return ::log(x);
    }
  }
  NNOPS_MATH T log1m_unit(T x) {
    if constexpr (kFloat) {
      return log1m_of_unit(x);
    } else {
      return ::log1p(-x);
    }
  }
  NNOPS_MATH T log1p_unit(T x) {
    if constexpr (kFloat) {
      return log1p_of_unit(x);
    } else {
      return ::log1p(x);
    }
  }
};

// --- the elements of a loss ---------------------------------------------------------------------

// The operands of a loss F of floating type T, read in vectors, and its value.
template <typename T, typename F>
struct LossInputs {
  using Element = T;
  using Scalar = acc_t<T>;
  const T* input;
  const T* target;
  const T* weight;
  const T* pos_weight;
  Scalar parameter;
  int* outside;

  // `outside`: a cleared word of device memory, only of losses with a domain.
  LossInputs(const PointwiseLossArguments& arguments, int* outside)
      : input(static_cast<const T*>(arguments.input)),
        target(static_cast<const T*>(arguments.target)),
        weight(static_cast<const T*>(arguments.weight)),
        pos_weight(static_cast<const T*>(arguments.pos_weight)),
        parameter(static_cast<Scalar>(arguments.parameter)),
        outside(outside) {}

  bool aligned() const { return are_aligned(input, target, weight, pos_weight); }

  template <int N>
  struct Operands {
    Vector<T, N> input;
    Vector<T, N> target;
    Vector<T, N> weight;
    Vector<T, N> pos_weight;
  };

  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    Operands<N> operands = {};
    operands.input = load_vector<N>(input + i);
    operands.target = load_vector<N>(target + i);
    if constexpr (F::kHasWeight) {
      if (weight != nullptr) operands.weight = load_vector<N>(weight + i);
    }
    if constexpr (F::kHasPosWeight) operands.pos_weight = load_vector<N>(pos_weight + i);
    return operands;
  }

  template <int N>
  NNOPS_DEVICE LossElement<ScalarArithmetic<Scalar>> element(const Operands<N>& operands,
                                                             int lane) const {
    const bool weighted = F::kHasWeight && weight != nullptr;
    return {to_acc(operands.input[lane]), to_acc(operands.target[lane]),
            weighted ? to_acc(operands.weight[lane]) : Scalar{1}, to_acc(operands.pos_weight[lane]),
            parameter};
  }

  template <int N>
  NNOPS_DEVICE Scalar value(const Operands<N>& operands, int lane) const {
    return F::value(element(operands, lane));
  }

  // Notes which of the operands lie outside the domain of the loss; a NaN does.
  template <int N>
  NNOPS_DEVICE void check_domain(const Operands<N>& operands) const {
    if constexpr (F::kUnitInterval) {
      int found = 0;
#pragma unroll
      for (int lane = 0; lane < N; ++lane) {
        const Scalar x = to_acc(operands.input[lane]);
        const Scalar t = to_acc(operands.target[lane]);
        found |= (x >= 0 && x <= 1 ? 0 : kInputOutside) | (t >= 0 && t <= 1 ? 0 : kTargetOutside);
      }
      if (found != 0) atomicOr(outside, found);
    }
  }
};

// |input - target| of integers, modulo 2^bits.
template <typename T>
struct IntegerDistance {
  using Element = T;
  using Scalar = T;
  const T* input;
  const T* target;

  IntegerDistance(const PointwiseLossArguments& arguments, int*)
      : input(static_cast<const T*>(arguments.input)),
        target(static_cast<const T*>(arguments.target)) {}

  bool aligned() const { return are_aligned(input, target); }

  template <int N>
  struct Operands {
    Vector<T, N> input;
    Vector<T, N> target;
  };
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return {load_vector<N>(input + i), load_vector<N>(target + i)};
  }
  template <int N>
  NNOPS_DEVICE T value(const Operands<N>& operands, int lane) const {
    if constexpr (sizeof(T) < sizeof(int)) {
      // In 32 bits: of 16-bit arithmetic on the bytes of a vector, nvcc 13.0 takes the sign of the
      // first byte of each word from the byte behind it.
      const int d = static_cast<T>(int{operands.input[lane]} - int{operands.target[lane]});
      return static_cast<T>(d < 0 ? -d : d);
    } else {
      using Unsigned = std::make_unsigned_t<T>;
      const auto d = static_cast<Unsigned>(operands.input[lane]) -
                     static_cast<Unsigned>(operands.target[lane]);
      const bool negative = std::is_signed_v<T> && static_cast<T>(d) < 0;
      return static_cast<T>(negative ? 0 - d : d);
    }
  }
  template <int N>
  NNOPS_DEVICE void check_domain(const Operands<N>&) const {}
};

// --- forward and backward -----------------------------------------------------------------------

// output[i] = loss of element i.
template <typename Inputs>
struct LossForward : MapOperation<typename Inputs::Element> {
  using T = typename Inputs::Element;
  using typename MapOperation<T>::Nothing;
  Inputs inputs;

  LossForward(const PointwiseLossArguments& arguments, int* outside) : inputs(arguments, outside) {}

  template <int N>
  using Operands = typename Inputs::template Operands<N>;
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return inputs.template load<N>(i);
  }
  template <typename Loaded>
  NNOPS_DEVICE T value(const Loaded& operands, int lane, Nothing) const {
    return from_acc<T>(inputs.value(operands, lane));
  }
  // Operands beyond the end are 0, inside every domain.
  template <int N>
  NNOPS_DEVICE void finish(const Operands<N>& operands, int64_t, bool) const {
    inputs.check_domain(operands);
  }
};

struct ByInput {
  template <typename F, typename E>
  NNOPS_DEVICE static auto derivative(const E& element) {
    return F::by_input(element);
  }
};
struct ByTarget {
  template <typename F, typename E>
  NNOPS_DEVICE static auto derivative(const E& element) {
    return F::by_target(element);
  }
};

// output[i] = grad_output[i] * derivative of element i, or grad_output[0] / divisor for all.
template <typename T, typename F, typename By>
struct LossBackward : MapOperation<T> {
  using Scalar = acc_t<T>;
  LossInputs<T, F> inputs;
  const T* grad_output;
  bool per_element;
  Scalar divisor;

  explicit LossBackward(const PointwiseLossArguments& arguments) : inputs(arguments, nullptr) {}

  template <int N>
  struct Operands {
    typename LossInputs<T, F>::template Operands<N> inputs;
    Vector<T, N> grad_output;
  };
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    Operands<N> operands = {};
    operands.inputs = inputs.template load<N>(i);
    if (per_element) operands.grad_output = load_vector<N>(grad_output + i);
    return operands;
  }
  NNOPS_DEVICE Scalar common() const {
    return per_element ? Scalar{0} : to_acc(grad_output[0]) / divisor;
  }
  template <int N>
  NNOPS_DEVICE T value(const Operands<N>& operands, int lane, Scalar common) const {
    const Scalar gradient = per_element ? to_acc(operands.grad_output[lane]) : common;
    return from_acc<T>(gradient *
                       By::template derivative<F>(inputs.element(operands.inputs, lane)));
  }
};

// --- sums ---------------------------------------------------------------------------------------

// A sum in double and, exactly, what its roundings lost (Knuth's two-sum).
struct CompensatedSum {
  double total;
  double lost;
};
NNOPS_DEVICE CompensatedSum operator+(CompensatedSum a, CompensatedSum b) {
  const double sum = a.total + b.total;
  const double added = sum - a.total;
  const double error = (a.total - (sum - added)) + (b.total - added);
  return {sum, (a.lost + b.lost) + error};
}
NNOPS_DEVICE void add_to(CompensatedSum& sum, double value) {
  sum = sum + CompensatedSum{value, 0.0};
}
NNOPS_DEVICE void add_to(unsigned long long& sum, unsigned long long value) { sum += value; }
// Where the total is infinite, what was lost is a NaN.
NNOPS_DEVICE double total_of(CompensatedSum sum) {
  return sum.lost - sum.lost == 0 ? sum.total + sum.lost : sum.total;
}
NNOPS_DEVICE double total_of(double sum) { return sum; }
NNOPS_DEVICE unsigned long long total_of(unsigned long long sum) { return sum; }

// What a thread adds losses of type Scalar in, and what a block's sum is kept in.
template <typename Scalar>
struct SumTypes {
  using Thread = unsigned long long;
  using Block = unsigned long long;
};
template <>
struct SumTypes<float> {
  using Thread = double;
  using Block = double;
};
template <>
struct SumTypes<double> {
  using Thread = CompensatedSum;
  using Block = double;
};

template <int N>
NNOPS_DEVICE void add_losses(double& sum, Vector<float, N> losses) {
#pragma unroll
  for (int width = N / 2; width > 0; width /= 2) {
#pragma unroll
    for (int i = 0; i < width; ++i) losses[i] += losses[i + width];
  }
  sum += static_cast<double>(losses[0]);
}
template <int N>
NNOPS_DEVICE void add_losses(CompensatedSum& sum, Vector<double, N> losses) {
#pragma unroll
  for (int i = 0; i < N; ++i) add_to(sum, losses[i]);
}
template <typename T, int N>
NNOPS_DEVICE void add_losses(unsigned long long& sum, Vector<T, N> losses) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum += static_cast<unsigned long long>(int64_t{losses[i]});
}

// The result of a reduction, from the sum of all losses.
template <typename T>
NNOPS_DEVICE void write_total(void* output, double total, double divisor) {
  using Scalar = acc_t<T>;
  // A sum that is infinite in Scalar has an infinite mean, as in torch.
  const Scalar sum = static_cast<Scalar>(total);
  const bool overflows = !(sum - sum == 0);
  *static_cast<T*>(output) = from_acc<T>(overflows ? sum : static_cast<Scalar>(total / divisor));
}
template <typename T>
NNOPS_DEVICE void write_total(void* output, unsigned long long total, double) {
  *static_cast<int64_t*>(output) = static_cast<int64_t>(total);
}

inline constexpr int kSumThreads = 256;
// More blocks than this sum longer spans instead, so that the second launch stays short.
inline constexpr int64_t kMostSumBlocks = 4096;

// block_sums[b] = sum of the losses of elements b * span .. (b + 1) * span; a single block writes
// the result itself. `span` is a multiple of kLossBlock, `aligned` says that all operands are.
template <typename Inputs>
__global__ void __launch_bounds__(kSumThreads)
    loss_sum_kernel(const Inputs inputs, void* block_sums, void* output, int64_t n, int64_t span,
                    double divisor, bool aligned) {
  using T = typename Inputs::Element;
  using Scalar = typename Inputs::Scalar;
  using ThreadSum = typename SumTypes<Scalar>::Thread;
  using BlockSum = typename SumTypes<Scalar>::Block;
  constexpr int kWidth = kVectorWidth<T>;
  constexpr int kVectors = kWidth >= 16 ? 1 : (kWidth == 8 ? 2 : 4);
  constexpr int kStep = kSumThreads * kWidth;
  static_assert(kLossBlock % (kStep * kVectors) == 0);
  NNOPS_SHARED(ThreadSum, warp_sums, kSumThreads / kWarpSize);

  ThreadSum sum = {};
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * span;
  const int64_t end = smaller(begin + span, n);
  for (int64_t round = begin; round < end; round += kStep * kVectors) {
    const int64_t first = round + static_cast<int>(threadIdx.x) * kWidth;
    if (aligned && round + kStep * kVectors <= n) {
      typename Inputs::template Operands<kWidth> operands[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        operands[v] = inputs.template load<kWidth>(first + v * kStep);
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        Vector<Scalar, kWidth> losses;
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) losses[lane] = inputs.value(operands[v], lane);
        add_losses(sum, losses);
        inputs.check_domain(operands[v]);
      }
    } else {
      // The same elements a thread, in the same order.
#pragma unroll 1
      for (int v = 0; v < kVectors; ++v) {
        Vector<Scalar, kWidth> losses = {};
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) {
          const int64_t i = first + v * kStep + lane;
          if (i >= n) continue;
          const auto operands = inputs.template load<1>(i);
          losses[lane] = inputs.value(operands, 0);
          inputs.check_domain(operands);
        }
        add_losses(sum, losses);
      }
    }
  }
  const BlockSum total = total_of(block_sum<kSumThreads>(sum, warp_sums));
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    write_total<T>(output, total, divisor);
  } else {
    static_cast<BlockSum*>(block_sums)[blockIdx.x] = total;
  }
}

// The result from the sums of `blocks` blocks. One block, of kMostSumBlocks / 4 threads.
inline constexpr int kTotalThreads = 1024;

template <typename T, typename BlockSum>
__global__ void __launch_bounds__(kTotalThreads)
    loss_total_kernel(const void* block_sums, int blocks, void* output, double divisor) {
  using Total = std::conditional_t<std::is_same_v<BlockSum, double>, CompensatedSum, BlockSum>;
  NNOPS_SHARED(Total, warp_sums, kTotalThreads / kWarpSize);
  Total sum = {};
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kTotalThreads) {
    add_to(sum, static_cast<const BlockSum*>(block_sums)[i]);
  }
  sum = block_sum<kTotalThreads>(sum, warp_sums);
  if (threadIdx.x == 0) write_total<T>(output, total_of(sum), divisor);
}

}  // namespace nnops::cuda
