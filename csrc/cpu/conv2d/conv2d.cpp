// conv2d on the CPU: the kernel struct, and the gradient of the bias.
#include "cpu/conv2d/depthwise_channel_dots.h"
#include "cpu/conv2d/depthwise_channels.h"
#include "cpu/conv2d/depthwise_dots.h"
#include "cpu/conv2d/depthwise_rows.h"
#include "cpu/conv2d/depthwise_transposed.h"
#include "cpu/conv2d/expanded_planes.h"
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/conv2d/outer_products.h"
#include "cpu/conv2d/pixel_rows.h"
#include "cpu/conv2d/reference.h"
#include "cpu/conv2d/winograd.h"
#include "cpu/conv2d/winograd_weight.h"

NNOPS_BEGIN_KERNELS

// Sum over the pixels of each image and the images in turn. A row of pixels is summed in blocks of
// kBlock terms by lanes of acc_t, the block sums in double (integers: in wrapping arithmetic).
template <typename T>
void backward_bias(void* grad_bias, const void* grad_output, const Conv2dGeometry& g, int threads) {
  T* gb = static_cast<T*>(grad_bias);
  const T* gy = static_cast<const T*>(grad_output);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t oc = 0; oc < g.oc; ++oc) {
    if constexpr (kIsFloating<T>) {
      using A = acc_t<T>;
      constexpr int64_t kBlock = 16 * kLanes<A>;
      double total = 0;
      for (int64_t n = 0; n < g.n; ++n) {
        const T* plane = gy + n * g.output.n + oc * g.output.c;
        const bool packed = g.output.w == 1 && g.output.h == g.ow;
        const int64_t row_length = packed ? g.oh * g.ow : g.ow;
        for (int64_t row = 0; row < (packed ? 1 : g.oh); ++row) {
          const T* pixels = plane + row * g.output.h;
          for (int64_t begin = 0; begin < row_length; begin += kBlock) {
            const int64_t count = smaller(kBlock, row_length - begin);
            A lanes[kLanes<A>] = {};
            for (int64_t i = 0; i < count; ++i) {
              lanes[i % kLanes<A>] += to_acc(pixels[(begin + i) * g.output.w]);
            }
            total += sum_lanes(load(lanes));
          }
        }
      }
      gb[oc] = from_acc<T>(static_cast<A>(total));
    } else {
      uint64_t total = 0;
      for (int64_t n = 0; n < g.n; ++n) {
        for (int64_t oh = 0; oh < g.oh; ++oh) {
          for (int64_t ow = 0; ow < g.ow; ++ow) {
            total += static_cast<uint64_t>(
                gy[n * g.output.n + oc * g.output.c + oh * g.output.h + ow * g.output.w]);
          }
        }
      }
      gb[oc] = static_cast<T>(total);
    }
  }
}

}  // namespace

// Of an algorithm's functions, by the names that its files give them.
#define NNOPS_CONV2D_ALGORITHM(DTYPES, run, workspace, partition) \
  {DTYPES(workspace), DTYPES(run), {}, {}, DTYPES(partition)}
#define NNOPS_CONV2D_PACKING_ALGORITHM(name)                           \
  {NNOPS_FLOAT_DTYPES(name##_workspace), NNOPS_FLOAT_DTYPES(name),     \
   NNOPS_FLOAT_DTYPES(name##_packed), NNOPS_FLOAT_DTYPES(name##_pack), \
   NNOPS_FLOAT_DTYPES(name##_partition)}

// Transforming a weight, in units of Conv2dAlgorithm::packing_cost.
constexpr int64_t kWinogradPackingCost = 16;

// Not of double, whose sums are always direct.
#define NNOPS_WINOGRAD_DTYPES(function)                               \
  {                                                                   \
    {                                                                 \
      function<float>, nullptr, function<bfloat16>, function<float16> \
    }                                                                 \
  }
#define NNOPS_CONV2D_WINOGRAD(name)         \
  {NNOPS_WINOGRAD_DTYPES(name##_workspace), \
   NNOPS_WINOGRAD_DTYPES(name),             \
   NNOPS_WINOGRAD_DTYPES(name##_packed),    \
   NNOPS_WINOGRAD_DTYPES(name##_pack),      \
   NNOPS_WINOGRAD_DTYPES(name##_partition), \
   true,                                    \
   kWinogradPackingCost}
#define NNOPS_CONV2D_WINOGRAD_WEIGHT(name)  \
  {NNOPS_WINOGRAD_DTYPES(name##_workspace), \
   NNOPS_WINOGRAD_DTYPES(name),             \
   {},                                      \
   {},                                      \
   NNOPS_WINOGRAD_DTYPES(name##_partition), \
   true}
using Form2x2Of3x3 = WinogradForm<2, 3>;
using Form2x2Of5x5 = WinogradForm<2, 5>;
using Form4x4Of3x3 = WinogradForm<4, 3>;

extern const Conv2dKernels conv2d_kernels = {
    .forward_depthwise_channels =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, depthwise_channels_forward,
                               depthwise_channels_workspace, depthwise_channels_forward_partition),
    .forward_depthwise_rows =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, depthwise_rows_forward,
                               depthwise_rows_forward_workspace, depthwise_rows_forward_partition),
    .forward_depthwise_transposed = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, depthwise_transposed_forward, depthwise_transposed_workspace,
        depthwise_transposed_forward_partition),
    .forward_expanded_planes = NNOPS_CONV2D_PACKING_ALGORITHM(ByPasses<ExpandedPlanes>::forward),
    .forward_grouped_channels = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, ByPasses<GroupedChannels>::forward,
        ByPasses<GroupedChannels>::forward_workspace, ByPasses<GroupedChannels>::forward_partition),
    .forward_pixel_rows = NNOPS_CONV2D_PACKING_ALGORITHM(ByPasses<PixelRows>::forward),
    .forward_reference = NNOPS_CONV2D_ALGORITHM(NNOPS_ALL_DTYPES, reference_forward,
                                                reference_workspace, reference_forward_partition),
    .forward_winograd_2x2_3x3 = NNOPS_CONV2D_WINOGRAD(ByPasses<Winograd<Form2x2Of3x3>>::forward),
    .forward_winograd_2x2_5x5 = NNOPS_CONV2D_WINOGRAD(ByPasses<Winograd<Form2x2Of5x5>>::forward),
    .forward_winograd_4x4_3x3 = NNOPS_CONV2D_WINOGRAD(ByPasses<Winograd<Form4x4Of3x3>>::forward),
    .backward_input_depthwise_channels = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, depthwise_channels_backward_input, depthwise_channels_workspace,
        depthwise_channels_backward_input_partition),
    .backward_input_depthwise_rows = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, depthwise_rows_backward_input, depthwise_rows_backward_input_workspace,
        depthwise_rows_backward_input_partition),
    .backward_input_depthwise_transposed = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, depthwise_transposed_backward_input, depthwise_transposed_workspace,
        depthwise_transposed_backward_input_partition),
    .backward_input_expanded_planes =
        NNOPS_CONV2D_PACKING_ALGORITHM(ByPasses<ExpandedPlanes>::backward_input),
    .backward_input_grouped_channels =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, ByPasses<GroupedChannels>::backward_input,
                               ByPasses<GroupedChannels>::backward_input_workspace,
                               ByPasses<GroupedChannels>::backward_input_partition),
    .backward_input_pixel_rows =
        NNOPS_CONV2D_PACKING_ALGORITHM(ByPasses<PixelRows>::backward_input),
    .backward_input_reference =
        NNOPS_CONV2D_ALGORITHM(NNOPS_ALL_DTYPES, reference_backward_input, reference_workspace,
                               reference_backward_input_partition),
    .backward_input_winograd_2x2_3x3 =
        NNOPS_CONV2D_WINOGRAD(ByPasses<Winograd<Form2x2Of3x3>>::backward_input),
    .backward_input_winograd_2x2_5x5 =
        NNOPS_CONV2D_WINOGRAD(ByPasses<Winograd<Form2x2Of5x5>>::backward_input),
    .backward_input_winograd_4x4_3x3 =
        NNOPS_CONV2D_WINOGRAD(ByPasses<Winograd<Form4x4Of3x3>>::backward_input),
    .backward_weight_depthwise_channel_dots =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, depthwise_channel_dots_backward_weight,
                               depthwise_channel_dots_workspace, depthwise_channel_dots_partition),
    .backward_weight_depthwise_dots =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, depthwise_dots_backward_weight,
                               depthwise_dots_workspace, depthwise_dots_partition),
    .backward_weight_depthwise_transposed = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, depthwise_transposed_backward_weight,
        depthwise_transposed_dots_workspace, depthwise_transposed_dots_partition),
    .backward_weight_outer_products =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, outer_products_backward_weight,
                               outer_products_workspace, outer_products_partition),
    .backward_weight_reference =
        NNOPS_CONV2D_ALGORITHM(NNOPS_ALL_DTYPES, reference_backward_weight, reference_workspace,
                               reference_backward_weight_partition),
    .backward_weight_winograd_2x2_3x3 =
        NNOPS_CONV2D_WINOGRAD_WEIGHT(WinogradWeight<Form2x2Of3x3>::backward_weight),
    .backward_weight_winograd_2x2_5x5 =
        NNOPS_CONV2D_WINOGRAD_WEIGHT(WinogradWeight<Form2x2Of5x5>::backward_weight),
    .backward_weight_winograd_4x4_3x3 =
        NNOPS_CONV2D_WINOGRAD_WEIGHT(WinogradWeight<Form4x4Of3x3>::backward_weight),
    .backward_bias = NNOPS_ALL_DTYPES(backward_bias),
};

}  // namespace NNOPS_ISA
}  // namespace nnops
