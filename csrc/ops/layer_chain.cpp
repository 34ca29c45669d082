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
#include <memory>
#include <optional>
#include <vector>

#include "core/check.h"
#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/library.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "ops/conv2d_precision.h"
#include "ops/fused_conv2d_call.h"
#include "ops/linear.h"
#include "ops/max_pool2d_call.h"

namespace nnops {
namespace {

constexpr const char* kOp = "_layer_chain";
constexpr KernelTable<LinearKernels> kLinearTable = NNOPS_CPU_KERNEL_TABLE(linear_kernels);

// Products below which another thread does not pay; they come with a byte of weights or four each.
constexpr int64_t kGrainProducts = int64_t{1} << 18;

enum class Layer : int64_t { kConvolution, kLinear };

// Hands out numbers and parameters in turn.
class Reader {
 public:
  Reader(const std::vector<int64_t>& numbers, const std::vector<Tensor>& parameters)
      : numbers_(numbers), parameters_(parameters) {}

  bool at_end() const { return number_ == numbers_.size(); }
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

 private:
  const std::vector<int64_t>& numbers_;
  const std::vector<Tensor>& parameters_;
  size_t number_ = 0;
  size_t parameter_ = 0;
};

Tensor convolve(const Tensor& input, Reader& reader) {
  const bool has_bias = reader.number() != 0;
  Conv2dTail tail;
  tail.relu = reader.number() != 0;
  const bool pools = reader.number() != 0;
  const IntList stride = reader.list(2);
  const IntList padding = reader.list(4);
  const IntList dilation = reader.list(2);
  const int64_t groups = reader.number();
  Pool2dGeometry window{};
  if (pools) {
    const IntList kernel_size = reader.list(2);
    const IntList pool_stride = reader.list(2);
    const IntList pool_padding = reader.list(2);
    window = pool2d_window(kOp, kernel_size, pool_stride, pool_padding, reader.list(2));
    tail.window = &window;
    tail.ceil_mode = reader.number() != 0;
  }
  const Tensor& weight = reader.parameter();
  return fused_conv2d(kOp, input, weight, reader.bias(has_bias), stride, padding, dilation, groups,
                      tail)
      .output;
}

Tensor apply_linear(const Tensor& input, Reader& reader) {
  const bool has_bias = reader.number() != 0;
  LinearGeometry g{};
  g.relu = reader.number() != 0;
  const Tensor& weight = reader.parameter();
  const std::optional<Tensor> bias = reader.bias(has_bias);
  check_same_type(kOp, "weight", weight, "input", input);
  NNOPS_CHECK(weight.dim() == 2 && weight.is_contiguous(), kOp,
              ": the weight of a linear layer must be a contiguous matrix, but got sizes ",
              tuple_text(weight.sizes()));
  g.n = input.size(0);
  g.in = weight.size(1);
  g.out = weight.size(0);
  NNOPS_CHECK(input.numel() == g.n * g.in, kOp, ": a linear layer of weight sizes ",
              tuple_text(weight.sizes()), " cannot follow an output of sizes ",
              tuple_text(input.sizes()));
  if (bias.has_value()) {
    check_same_type(kOp, "bias", *bias, "input", input);
    NNOPS_CHECK(bias->is_contiguous() && bias->numel() == g.out, kOp,
                ": the bias of a linear layer must have one element per output, ", g.out,
                ", but got sizes ", tuple_text(bias->sizes()));
  }
  const DeviceScope scope(input);
  const DType dtype = dtype_of(kOp, input);
  NNOPS_CHECK_NOT_IMPLEMENTED(!scope.on_cuda(), kOp, ": not implemented on CUDA");
  const auto kernel = kernel_for(
      "linear", "vector", active_kernels(kLinearTable, scope.isa()).forward, dtype, scope.isa());
  const Tensor rows = torch::stable::contiguous(input);
  const Tensor output = empty_contiguous(IntList{g.n, g.out}, dtype, input);
  kernel(output.mutable_data_ptr(), rows.const_data_ptr(), weight.const_data_ptr(),
         bias.has_value() ? bias->const_data_ptr() : nullptr, g,
         thread_count(g.n * g.in * g.out, kGrainProducts));
  return output;
}

Tensor layer_chain(const Tensor& input, const std::vector<Tensor>& parameters,
                   const std::vector<int64_t>& layers, int64_t precision) {
  check_device(kOp, "input", input);
  const ConvPrecisionScope precision_scope(kOp, precision);
  Reader reader(layers, parameters);
  Tensor current = input;
  while (!reader.at_end()) {
    const int64_t kind = reader.number();
    switch (static_cast<Layer>(kind)) {
      case Layer::kConvolution:
        current = convolve(current, reader);
        break;
      case Layer::kLinear:
        current = apply_linear(current, reader);
        break;
      default:
        NNOPS_CHECK(false, kOp, ": layers names an unknown kind of layer, ", kind);
    }
  }
  return current;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(nnops, library) {
  library.def(
      "_layer_chain(Tensor input, Tensor[] parameters, int[] layers, int precision=0) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(nnops, CompositeExplicitAutograd, library) {
  library.impl("_layer_chain", TORCH_BOX(&layer_chain));
}

}  // namespace nnops
