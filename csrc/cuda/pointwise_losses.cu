// Pointwise losses on CUDA: the launches.
#include "cuda/pointwise_losses.cuh"

#include "core/cuda.h"

namespace nnops::cuda {
namespace {

// The word in which the kernels of a loss with a domain note what lies outside. To read it waits
// for them; a loss without a domain has none, and never waits.
template <bool kHasDomain>
class Answer {
 public:
  Answer() {
    if constexpr (kHasDomain) {
      word_ = static_cast<int*>(cuda_scratch(sizeof(int)));
      set_zero(word_, sizeof(int));
    }
  }
  int* word() const { return word_; }
  int read() const {
    int answer = 0;
    if constexpr (kHasDomain) copy_to_host(&answer, word_, sizeof(answer));
    return answer;
  }

 private:
  int* word_ = nullptr;
};

template <typename Inputs, bool kHasDomain>
int run_forward(void* output, const PointwiseLossArguments& arguments) {
  const Answer<kHasDomain> answer;
  LossForward<Inputs> operation(arguments, answer.word());
  operation.output = static_cast<typename Inputs::Element*>(output);
  launch_map(operation, arguments.n, operation.inputs.aligned() && are_aligned(output));
  return answer.read();
}

template <typename Inputs, bool kHasDomain>
int run_reduce(void* output, void* block_sums, const PointwiseLossArguments& arguments,
               double divisor) {
  using T = typename Inputs::Element;
  const Answer<kHasDomain> answer;
  const Inputs inputs(arguments, answer.word());
  const int64_t parts = ceil_divide(arguments.n, kLossBlock);
  const int64_t span = larger<int64_t>(ceil_divide(parts, kMostSumBlocks), 1) * kLossBlock;
  const int64_t blocks = larger<int64_t>(ceil_divide(arguments.n, span), 1);
  NNOPS_LAUNCH((loss_sum_kernel<Inputs>), static_cast<unsigned>(blocks), kSumThreads, 0, inputs,
               block_sums, output, arguments.n, span, divisor, inputs.aligned());
  if (blocks > 1) {
    using BlockSum = typename SumTypes<typename Inputs::Scalar>::Block;
    NNOPS_LAUNCH((loss_total_kernel<T, BlockSum>), 1, kTotalThreads, 0, block_sums,
                 static_cast<int>(blocks), output, divisor);
  }
  return answer.read();
}

template <template <typename> class Loss>
struct Kernels {
  template <typename T>
  using FunctorOf = Loss<ScalarArithmetic<acc_t<T>>>;

  template <typename T>
  static int forward(void* output, const PointwiseLossArguments& arguments, int) {
    if constexpr (kIsFloating<T>) {
      using F = FunctorOf<T>;
      return run_forward<LossInputs<T, F>, F::kUnitInterval>(output, arguments);
    } else {
      return run_forward<IntegerDistance<T>, false>(output, arguments);
    }
  }

  template <typename T>
  static int reduce(void* output, void* block_sums, const PointwiseLossArguments& arguments,
                    double divisor, int) {
    if constexpr (kIsFloating<T>) {
      using F = FunctorOf<T>;
      return run_reduce<LossInputs<T, F>, F::kUnitInterval>(output, block_sums, arguments, divisor);
    } else {
      return run_reduce<IntegerDistance<T>, false>(output, block_sums, arguments, divisor);
    }
  }

  template <typename T, typename By>
  static void launch_backward(void* gradient, const void* grad_output, bool per_element,
                              double divisor, const PointwiseLossArguments& arguments) {
    LossBackward<T, FunctorOf<T>, By> operation(arguments);
    operation.output = static_cast<T*>(gradient);
    operation.grad_output = static_cast<const T*>(grad_output);
    operation.per_element = per_element;
    operation.divisor = static_cast<acc_t<T>>(divisor);
    const bool aligned = operation.inputs.aligned() && are_aligned(gradient) &&
                         (!per_element || are_aligned(grad_output));
    launch_map(operation, arguments.n, aligned);
  }

  template <typename T>
  static void backward(void* gradient, const void* grad_output, bool per_element, double divisor,
                       const PointwiseLossArguments& arguments, int) {
    launch_backward<T, ByInput>(gradient, grad_output, per_element, divisor, arguments);
  }

  template <typename T>
  static void backward_target(void* gradient, const void* grad_output, bool per_element,
                              double divisor, const PointwiseLossArguments& arguments, int) {
    launch_backward<T, ByTarget>(gradient, grad_output, per_element, divisor, arguments);
  }

  static constexpr PerDType<PointwiseLossFunctions::Backward> backward_target_kernels() {
    if constexpr (FunctorOf<float>::kHasTargetDerivative) {
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
   {}},

extern const PointwiseLossKernels pointwise_loss_kernels = {
    NNOPS_POINTWISE_LOSSES(NNOPS_FUNCTIONS)};
#undef NNOPS_FUNCTIONS

}  // namespace nnops::cuda
