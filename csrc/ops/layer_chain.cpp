// nnops::_layer_chain: a run of layers as one call, for inference with small nets, where the price
// of a call is larger than the work in it.
//
// The layers are convolutions with what may be fused behind them (fused_conv2d), and linear layers
// with a ReLU or without, whose input is flattened: (N, the rest). `layers` lists them, each as its
// kind and its numbers:
//
//   kConvolution, has bias, relu, pools, stride (2), padding (top, bottom, left, right),
//       dilation (2), groups, and if it pools: kernel size, stride, padding, dilation (2 each),
//       ceil mode
//   kLinear, has bias, relu
//
// `parameters` holds the weights, and biases behind them, in the order of the layers. There is no
// derivative: it has a private name only, and Python calls it where nothing is differentiated.
//
// What the layers do is planned once for all tensors of the same sizes, strides and dtypes, and the
// plan is kept: deciding it takes as long as computing a small net's layers. What lies between two
// layers is scratch memory.
#include <algorithm>
#include <array>
#include <limits>
#include <list>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "ops/conv2d_precision.h"
#include "ops/conv2d_winners.h"
#include "ops/fused_conv2d_call.h"
#include "ops/linear.h"
#include "ops/max_pool2d_call.h"

namespace nnops {
namespace {

constexpr const char* kOp = "_layer_chain";
constexpr KernelTable<LinearKernels> kLinearTable = NNOPS_CPU_KERNEL_TABLE(linear_kernels);

// Of each thread.
constexpr size_t kMostPlans = 16;

enum class Layer : int64_t { kConvolution, kLinear };

// --- plans --------------------------------------------------------------------------------------

struct LinearPlan {
  LinearGeometry g;
  LinearKernels::Forward run;
  int threads;
};

struct LayerPlan {
  std::variant<FusedConv2dPlan, LinearPlan> layer;
  bool has_bias;
  IntList output_sizes;
};

struct ChainPlan {
  std::vector<int64_t> signature;  // of the calls that it is for
  std::vector<LayerPlan> layers;
  DType dtype;
  std::array<int64_t, 2> scratch_bytes;  // the largest outputs of layers 0, 2, ... and 1, 3, ...
  Choice choice;                         // the last one
};

// Reads the numbers and the parameters of the layers, one layer after the other.
class Planner {
 public:
  Planner(const DeviceScope& scope, const Tensor& input, const std::vector<Tensor>& parameters,
          const std::vector<int64_t>& numbers)
      : scope_(scope), input_(input), current_(input), parameters_(parameters), numbers_(numbers) {}

  ChainPlan plan() {
    ChainPlan plan{};
    plan.dtype = dtype_of(kOp, input_);
    while (number_ < numbers_.size()) {
      LayerPlan layer = next_layer();
      const int64_t bytes = checked_numel(kOp, layer.output_sizes) * element_size(plan.dtype);
      int64_t& most = plan.scratch_bytes[plan.layers.size() % 2];
      const bool is_last = number_ == numbers_.size();  // which writes the output
      if (!is_last) most = std::max(most, bytes);
      plan.layers.push_back(std::move(layer));
    }
    NNOPS_CHECK(parameter_ == parameters_.size(), kOp, ": too many parameters, ",
                parameters_.size());
    plan.choice = last_choice();
    return plan;
  }

 private:
  int64_t number() {
    NNOPS_CHECK(number_ < numbers_.size(), kOp, ": layers ends in the middle of a layer");
    return numbers_[number_++];
  }
  IntList list(int64_t count) {
    IntList values;
    for (int64_t i = 0; i < count; ++i) values.push_back(number());
    return values;
  }
  const Tensor& parameter() {
    NNOPS_CHECK(parameter_ < parameters_.size(), kOp, ": too few parameters, ", parameters_.size());
    return parameters_[parameter_++];
  }
  std::optional<Tensor> bias(bool given) {
    if (!given) return std::nullopt;
    return parameter();
  }

  LayerPlan next_layer() {
    const int64_t kind = number();
    switch (static_cast<Layer>(kind)) {
      case Layer::kConvolution:
        return convolution();
      case Layer::kLinear:
        return linear();
    }
    NNOPS_CHECK(false, kOp, ": layers names an unknown kind of layer, ", kind);
    __builtin_unreachable();
  }

  LayerPlan convolution() {
    const bool has_bias = number() != 0;
    Conv2dTail tail;
    tail.relu = number() != 0;
    const bool pools = number() != 0;
    const IntList stride = list(2);
    const IntList padding = list(4);
    const IntList dilation = list(2);
    const int64_t groups = number();
    Pool2dGeometry window{};
    if (pools) {
      const IntList kernel_size = list(2);
      const IntList pool_stride = list(2);
      const IntList pool_padding = list(2);
      window = pool2d_window(kOp, kernel_size, pool_stride, pool_padding, list(2));
      tail.window = &window;
      tail.ceil_mode = number() != 0;
    }
    // A linear layer takes the channels of an image one after the other.
    tail.row_major =
        number_ < numbers_.size() && numbers_[number_] == static_cast<int64_t>(Layer::kLinear);
    const Tensor& weight = parameter();
    const FusedConv2dPlan plan = plan_fused_conv2d(kOp, scope_, current_, weight, bias(has_bias),
                                                   stride, padding, dilation, groups, tail);
    const IntList sizes = plan.output_sizes();
    current_ = empty_image(sizes, plan.channels_last, plan.dtype, input_);
    return {plan, has_bias, sizes};
  }

  LayerPlan linear() {
    const bool has_bias = number() != 0;
    LinearPlan plan{};
    LinearGeometry& g = plan.g;
    g.relu = number() != 0;
    const Tensor& weight = parameter();
    const std::optional<Tensor> shift = bias(has_bias);
    check_same_type(kOp, "weight", weight, "input", current_);
    NNOPS_CHECK(weight.dim() == 2, kOp,
                ": the weight of a linear layer must be a matrix, but got sizes ",
                tuple_text(weight.sizes()));
    g.n = current_.size(0);
    g.in = weight.size(1);
    g.out = weight.size(0);
    NNOPS_CHECK(current_.numel() == g.n * g.in, kOp, ": a linear layer of weight sizes ",
                tuple_text(weight.sizes()), " cannot follow an output of sizes ",
                tuple_text(current_.sizes()));
    if (shift.has_value()) {
      check_same_type(kOp, "bias", *shift, "input", current_);
      NNOPS_CHECK(shift->dim() == 1 && shift->size(0) == g.out, kOp,
                  ": the bias of a linear layer must have one element per output, ", g.out,
                  ", but got sizes ", tuple_text(shift->sizes()));
    }
    NNOPS_CHECK_NOT_IMPLEMENTED(!scope_.on_cuda(), kOp, ": not implemented on CUDA");
    const DType dtype = dtype_of(kOp, current_);
    const Isa isa = scope_.isa();
    plan.run =
        kernel_for("linear", "vector", active_kernels(kLinearTable, isa).forward, dtype, isa);
    plan.threads = thread_count(g.n * g.in * g.out, kLinearGrain);
    const IntList sizes{g.n, g.out};
    current_ = empty_contiguous(sizes, dtype, input_);
    return {plan, has_bias, sizes};
  }

  const DeviceScope& scope_;
  const Tensor& input_;
  Tensor current_;  // of the sizes, strides and dtype that the next layer reads; not its numbers
  const std::vector<Tensor>& parameters_;
  const std::vector<int64_t>& numbers_;
  size_t number_ = 0;
  size_t parameter_ = 0;
};

// --- plans that are kept ------------------------------------------------------------------------

// Whether two calls that look the same may be planned alike: not where somebody listens to the
// choices, or makes them.
bool plans_alike(Isa isa) {
  return isa != Isa::kCuda && !reasons_wanted() && !is_any_forced() && !autotune();
}

std::vector<int64_t> signature_of(Isa isa, const Tensor& input,
                                  const std::vector<Tensor>& parameters,
                                  const std::vector<int64_t>& numbers) {
  std::vector<int64_t> signature;
  signature.reserve(numbers.size() + 16 * (parameters.size() + 1));
  signature.assign({static_cast<int64_t>(isa), static_cast<int64_t>(conv_precision()),
                    thread_count(std::numeric_limits<int64_t>::max(), 1),
                    static_cast<int64_t>(numbers.size())});
  signature.insert(signature.end(), numbers.begin(), numbers.end());
  append_signature(&signature, input);
  for (const Tensor& each : parameters) append_signature(&signature, each);
  return signature;
}

// The calling thread's plan of that signature, made if there is none.
const ChainPlan& kept_plan(std::vector<int64_t> signature, Planner& planner) {
  static thread_local std::list<ChainPlan> plans;  // the most recently used first
  const auto place = std::find_if(plans.begin(), plans.end(), [&](const ChainPlan& each) {
    return each.signature == signature;
  });
  if (place != plans.end()) {
    plans.splice(plans.begin(), plans, place);
    const Choice& choice = plans.front().choice;
    record_choice(choice.op, choice.algorithm, plans.front().dtype, choice.isa);
    return plans.front();
  }
  plans.push_front(planner.plan());
  plans.front().signature = std::move(signature);
  if (plans.size() > kMostPlans) plans.pop_back();
  return plans.front();
}

// --- the call -----------------------------------------------------------------------------------

Tensor run_chain(const ChainPlan& plan, const DeviceScope& scope, const Tensor& input,
                 const std::vector<Tensor>& parameters) {
  const LayerPlan& last = plan.layers.back();
  const auto* last_convolution = std::get_if<FusedConv2dPlan>(&last.layer);
  const bool channels_last = last_convolution != nullptr && last_convolution->channels_last;
  const Tensor output = last_convolution != nullptr
                            ? empty_image(last.output_sizes, channels_last, plan.dtype, input)
                            : empty_contiguous(last.output_sizes, plan.dtype, input);
  const bool begins_linear = std::holds_alternative<LinearPlan>(plan.layers.front().layer);
  const Tensor first = begins_linear ? packed(input) : input;
  // Layers read one and write the other, in turns.
  const Scratch even(scope, plan.scratch_bytes[0]);
  const Scratch odd(scope, plan.scratch_bytes[1]);
  const void* read = first.const_data_ptr();
  auto parameter = parameters.begin();
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const LayerPlan& layer = plan.layers[i];
    const bool is_last = i + 1 == plan.layers.size();
    void* written = is_last ? output.mutable_data_ptr() : (i % 2 == 0 ? even : odd).data();
    const Tensor& weight = *parameter++;
    const std::optional<Tensor> bias =
        layer.has_bias ? packed(std::make_optional(*parameter++)) : std::nullopt;
    if (const auto* convolution = std::get_if<FusedConv2dPlan>(&layer.layer)) {
      run_fused_conv2d(*convolution, scope,
                       {written, nullptr, read, weight.const_data_ptr(), data_or_null(bias)});
    } else {
      const auto& linear = std::get<LinearPlan>(layer.layer);
      const Tensor rows = packed(weight);
      linear.run(written, read, rows.const_data_ptr(), data_or_null(bias), linear.g,
                 linear.threads);
    }
    read = written;
  }
  return output;
}

Tensor layer_chain(const Tensor& input, const std::vector<Tensor>& parameters,
                   const std::vector<int64_t>& layers, int64_t precision) {
  check_device(kOp, "input", input);
  for (const Tensor& each : parameters) check_device(kOp, "parameter", each);
  if (layers.empty()) return input;
  const ConvPrecisionScope precision_scope(kOp, precision);
  const DeviceScope scope(input);
  Planner planner(scope, input, parameters, layers);
  if (!plans_alike(scope.isa())) return run_chain(planner.plan(), scope, input, parameters);
  const ChainPlan& plan = kept_plan(signature_of(scope.isa(), input, parameters, layers), planner);
  return run_chain(plan, scope, input, parameters);
}

}  // namespace

NNOPS_PRIVATE_OPERATOR(
    layer_chain, "(Tensor input, Tensor[] parameters, int[] layers, int precision=0) -> Tensor",
    layer_chain)

}  // namespace nnops
