// conv2d on the CPU: the kernel struct.
#include "cpu/conv2d/depthwise_channel_dots.h"
#include "cpu/conv2d/depthwise_channels.h"
#include "cpu/conv2d/depthwise_dots.h"
#include "cpu/conv2d/depthwise_rows.h"
#include "cpu/conv2d/depthwise_transposed.h"
#include "cpu/conv2d/expanded_planes.h"
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/conv2d/image_lanes.h"
#include "cpu/conv2d/outer_products.h"
#include "cpu/conv2d/pair_algorithms.h"
#include "cpu/conv2d/pixel_rows.h"
#include "cpu/conv2d/plane_dots.h"
#include "cpu/conv2d/reference.h"
#include "cpu/conv2d/winograd.h"
#include "cpu/conv2d/winograd_weight.h"

NNOPS_BEGIN_KERNELS

// Of an algorithm's functions, by the names that its files give them.
#define NNOPS_CONV2D_ALGORITHM(DTYPES, run, workspace, partition) \
  {DTYPES(workspace), DTYPES(run), {}, {}, DTYPES(partition)}
#define NNOPS_CONV2D_PACKING_ALGORITHM(name)                           \
  {NNOPS_FLOAT_DTYPES(name##_workspace), NNOPS_FLOAT_DTYPES(name),     \
   NNOPS_FLOAT_DTYPES(name##_packed), NNOPS_FLOAT_DTYPES(name##_pack), \
   NNOPS_FLOAT_DTYPES(name##_partition)}

// Of bfloat16 alone.
#define NNOPS_BFLOAT16(function) \
  {                              \
    {                            \
      nullptr, nullptr, function \
    }                            \
  }
#define NNOPS_CONV2D_BFLOAT16_PACKING(name)                                               \
  {NNOPS_BFLOAT16(name##_workspace), NNOPS_BFLOAT16(name), NNOPS_BFLOAT16(name##_packed), \
   NNOPS_BFLOAT16(name##_pack), NNOPS_BFLOAT16(name##_partition)}

// Of float alone.
#define NNOPS_CONV2D_IMAGE_LANES(pass) \
  {{{ImageLanes::pass##_workspace}},   \
   {{ImageLanes::pass}},               \
   {{ImageLanes::pass##_packed}},      \
   {{ImageLanes::pass##_pack}},        \
   {{ImageLanes::pass##_partition}},   \
   false,                              \
   {},                                 \
   ImageLanes::kImages}

// Not of double, whose sums are always direct.
#define NNOPS_WINOGRAD_DTYPES(function)                               \
  {                                                                   \
    {                                                                 \
      function<float>, nullptr, function<bfloat16>, function<float16> \
    }                                                                 \
  }
#define NNOPS_CONV2D_WINOGRAD(Form, pass)                             \
  {NNOPS_WINOGRAD_DTYPES(ByPasses<Winograd<Form>>::pass##_workspace), \
   NNOPS_WINOGRAD_DTYPES(ByPasses<Winograd<Form>>::pass),             \
   NNOPS_WINOGRAD_DTYPES(ByPasses<Winograd<Form>>::pass##_packed),    \
   NNOPS_WINOGRAD_DTYPES(ByPasses<Winograd<Form>>::pass##_pack),      \
   NNOPS_WINOGRAD_DTYPES(ByPasses<Winograd<Form>>::pass##_partition), \
   true,                                                              \
   NNOPS_WINOGRAD_DTYPES(ByPasses<WinogradInCache<Form>>::pass)}
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

}  // namespace

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
    .forward_expanded_planes = NNOPS_CONV2D_PACKING_ALGORITHM(ExpandedPlanes::forward),
    .forward_grouped_channels = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, ByPasses<GroupedChannels>::forward,
        ByPasses<GroupedChannels>::forward_workspace, ByPasses<GroupedChannels>::forward_partition),
    .forward_image_lanes = NNOPS_CONV2D_IMAGE_LANES(forward),
#if defined(__AVX512F__)
    .forward_pair_rows = NNOPS_CONV2D_BFLOAT16_PACKING(PairRows::forward),
#endif
    .forward_pixel_rows = NNOPS_CONV2D_PACKING_ALGORITHM(ByPasses<PixelRows>::forward),
    .forward_reference = NNOPS_CONV2D_ALGORITHM(NNOPS_ALL_DTYPES, reference_forward,
                                                reference_workspace, reference_forward_partition),
    .forward_winograd_2x2_3x3 = NNOPS_CONV2D_WINOGRAD(Form2x2Of3x3, forward),
    .forward_winograd_2x2_5x5 = NNOPS_CONV2D_WINOGRAD(Form2x2Of5x5, forward),
    .forward_winograd_4x4_3x3 = NNOPS_CONV2D_WINOGRAD(Form4x4Of3x3, forward),
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
        NNOPS_CONV2D_PACKING_ALGORITHM(ExpandedPlanes::backward_input),
    .backward_input_grouped_channels =
        NNOPS_CONV2D_ALGORITHM(NNOPS_FLOAT_DTYPES, ByPasses<GroupedChannels>::backward_input,
                               ByPasses<GroupedChannels>::backward_input_workspace,
                               ByPasses<GroupedChannels>::backward_input_partition),
    .backward_input_image_lanes = NNOPS_CONV2D_IMAGE_LANES(backward_input),
#if defined(__AVX512F__)
    .backward_input_pair_rows = NNOPS_CONV2D_BFLOAT16_PACKING(PairRows::backward_input),
#endif
    .backward_input_pixel_rows =
        NNOPS_CONV2D_PACKING_ALGORITHM(ByPasses<PixelRows>::backward_input),
    .backward_input_reference =
        NNOPS_CONV2D_ALGORITHM(NNOPS_ALL_DTYPES, reference_backward_input, reference_workspace,
                               reference_backward_input_partition),
    .backward_input_winograd_2x2_3x3 = NNOPS_CONV2D_WINOGRAD(Form2x2Of3x3, backward_input),
    .backward_input_winograd_2x2_5x5 = NNOPS_CONV2D_WINOGRAD(Form2x2Of5x5, backward_input),
    .backward_input_winograd_4x4_3x3 = NNOPS_CONV2D_WINOGRAD(Form4x4Of3x3, backward_input),
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
#if defined(__AVX512F__)
    .backward_weight_pair_products = NNOPS_CONV2D_ALGORITHM(
        NNOPS_BFLOAT16, PairProducts::backward_weight, PairProducts::backward_weight_workspace,
        PairProducts::backward_weight_partition),
#endif
    .backward_weight_plane_dots = NNOPS_CONV2D_ALGORITHM(
        NNOPS_FLOAT_DTYPES, plane_dots_backward_weight, plane_dots_workspace, plane_dots_partition),
    .backward_weight_reference =
        NNOPS_CONV2D_ALGORITHM(NNOPS_ALL_DTYPES, reference_backward_weight, reference_workspace,
                               reference_backward_weight_partition),
    .backward_weight_winograd_2x2_3x3 =
        NNOPS_CONV2D_WINOGRAD_WEIGHT(WinogradWeight<Form2x2Of3x3>::backward_weight),
    .backward_weight_winograd_2x2_5x5 =
        NNOPS_CONV2D_WINOGRAD_WEIGHT(WinogradWeight<Form2x2Of5x5>::backward_weight),
    .backward_weight_winograd_4x4_3x3 =
        NNOPS_CONV2D_WINOGRAD_WEIGHT(WinogradWeight<Form4x4Of3x3>::backward_weight),
};

}  // namespace NNOPS_ISA
}  // namespace nnops
