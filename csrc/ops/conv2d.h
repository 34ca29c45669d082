// conv2d: the contract between csrc/ops/conv2d.cpp and the kernels. No torch headers.
//
//   output[n, oc, oh, ow] = bias[oc] + sum over c, kh, kw of
//       input[n, g C/G + c, oh stride_h - pad_top + kh dilation_h, ow stride_w - ...]
//       * weight[oc, c, kh, kw]          with g = oc / (OC / G), zero outside of the input.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

// Element strides of a 4-D tensor: (N, C, H, W) of images, (OC, C/G, KH, KW) of weights.
struct Strides4 {
  int64_t n, c, h, w;
};

struct Conv2dGeometry {
  int64_t n, c, h, w;  // input
  int64_t oc, oh, ow;  // output
  int64_t kh, kw;      // kernel
  int64_t groups;      // divides c and oc
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;
  int64_t dilation_h, dilation_w;  // 1 is none
  Strides4 input, weight, output;
};

// Sums of up to so many terms are added up in one chain; longer ones in several.
inline constexpr int64_t kConv2dLongestChain = 192;

// What the order of packed weights may depend on, everything else zero. In the forward pass that is
// the weight alone; in backward_input also which taps meet which residue of the input position
// modulo the stride.
inline Conv2dGeometry forward_packing_geometry(const Conv2dGeometry& g) {
  Conv2dGeometry packing{};
  packing.c = g.c;
  packing.oc = g.oc;
  packing.kh = g.kh;
  packing.kw = g.kw;
  packing.groups = g.groups;
  packing.stride_h = packing.stride_w = packing.dilation_h = packing.dilation_w = 1;
  packing.weight = g.weight;
  return packing;
}
inline Conv2dGeometry backward_input_packing_geometry(const Conv2dGeometry& g) {
  Conv2dGeometry packing = forward_packing_geometry(g);
  packing.stride_h = g.stride_h;
  packing.stride_w = g.stride_w;
  packing.dilation_h = g.dilation_h;
  packing.dilation_w = g.dilation_w;
  packing.pad_top = g.pad_top % g.stride_h;
  packing.pad_left = g.pad_left % g.stride_w;
  // Residues that an image is too small to have are not packed.
  packing.h = g.h < g.stride_h ? g.h : g.stride_h;
  packing.w = g.w < g.stride_w ? g.w : g.stride_w;
  return packing;
}

// Whether it costs less to transform a weight of so many numbers for each part of the images, in
// the cache, than to write it transformed to memory and to read it from there: where few pixels, of
// all images, would pay for that, or where it would be larger than the caches.
inline bool conv2d_transforms_in_cache(int64_t pixels, int64_t weights) {
  constexpr int64_t kFewPixels = 2048;
  constexpr int64_t kManyWeights = int64_t{1} << 17;  // times 9
  return pixels <= kFewPixels || weights >= kManyWeights;
}

// Hears how a run shares its work among its threads, phase by phase: the threads wait for each
// other at the end of each. `begin` opens a phase, and `task` follows once for each iteration of
// its loop, in order. Work is counted in products (terms of the sums, those with padding included)
// or in elements copied or added.
struct Conv2dPhaseVisitor {
  enum class Unit { kProducts, kElements };
  // Equal shares of iterations that follow each other, or the next one to whoever is free.
  enum class Schedule { kStatic, kDynamic };
  void* context;
  void (*begin)(void* context, const char* name, Unit unit, Schedule schedule);
  void (*task)(void* context, int64_t work);
};

// One algorithm of one pass. Tensors are read and written through the geometry's strides, so every
// layout is accepted; outputs never alias inputs. In the backward passes the gradient of a tensor
// has the strides that the geometry gives for the tensor. `workspace` has the size that
// workspace_bytes returns for the same geometry and thread count.
//
// An algorithm may want its weights in an order of its own: `pack` writes them, in packed_bytes
// bytes, and `run` gets them in place of the weight. Both see the pass's packing geometry only,
// so packed weights serve every batch, image and thread count for which that is the same. Both
// are null in an algorithm that reads the weight itself.
//
// `partition` tells how `run` would share its work, from the functions that cut it in `run` too.
//
// A CUDA algorithm has the threads of a device instead of `threads`, and no partition to report.
// Null for `workspace_bytes` means none. What a table does not name is null.
template <typename Function>
struct Conv2dAlgorithm {
  using Run = Function;
  using WorkspaceBytes = int64_t (*)(const Conv2dGeometry& geometry, int threads);
  using PackedBytes = int64_t (*)(const Conv2dGeometry& geometry);
  using Pack = void (*)(void* packed, const void* weight, const Conv2dGeometry& geometry,
                        int threads);
  using Partition = void (*)(const Conv2dGeometry& geometry, int threads,
                             const Conv2dPhaseVisitor& visitor);
  PerDType<WorkspaceBytes> workspace_bytes{};
  PerDType<Function> run{};
  PerDType<PackedBytes> packed_bytes{};
  PerDType<Pack> pack{};
  PerDType<Partition> partition{};
  // Whether `run` leaves out images with numbers that it cannot work on: the workspace begins with
  // a byte for each image, which `run` sets where the image is to be computed by another algorithm.
  // In backward_weight, which adds the images up, a single byte stands for the whole result.
  bool flags_images = false;
  // As `run`, but of the weight itself, for calls for which conv2d_transforms_in_cache and whose
  // packed weight is not kept. Null: the weight is always packed.
  PerDType<Function> run_unpacked{};
  // How many images `run` computes as fast as one: a batch had best be cut into multiples of it.
  int64_t images_together = 1;
};

// bias: (oc,) contiguous, or null
using Conv2dForward =
    Conv2dAlgorithm<void (*)(void* output, const void* input, const void* weight, const void* bias,
                             const Conv2dGeometry& geometry, void* workspace, int threads)>;
using Conv2dBackwardInput =
    Conv2dAlgorithm<void (*)(void* grad_input, const void* grad_output, const void* weight,
                             const Conv2dGeometry& geometry, void* workspace, int threads)>;
using Conv2dBackwardWeight =
    Conv2dAlgorithm<void (*)(void* grad_weight, const void* grad_output, const void* input,
                             const Conv2dGeometry& geometry, void* workspace, int threads)>;

struct Conv2dKernels {
  Conv2dForward forward_depthwise_channels{};
  Conv2dForward forward_depthwise_rows{};
  Conv2dForward forward_depthwise_transposed{};
  Conv2dForward forward_expanded_planes{};
  Conv2dForward forward_grouped_channels{};
  Conv2dForward forward_image_lanes{};
  Conv2dForward forward_pair_rows{};
  Conv2dForward forward_pixel_rows{};
  Conv2dForward forward_reference{};
  Conv2dForward forward_winograd_2x2_3x3{};
  Conv2dForward forward_winograd_2x2_5x5{};
  Conv2dForward forward_winograd_4x4_3x3{};
  Conv2dBackwardInput backward_input_depthwise_channels{};
  Conv2dBackwardInput backward_input_depthwise_rows{};
  Conv2dBackwardInput backward_input_depthwise_transposed{};
  Conv2dBackwardInput backward_input_expanded_planes{};
  Conv2dBackwardInput backward_input_grouped_channels{};
  Conv2dBackwardInput backward_input_image_lanes{};
  Conv2dBackwardInput backward_input_pair_rows{};
  Conv2dBackwardInput backward_input_pixel_rows{};
  Conv2dBackwardInput backward_input_reference{};
  Conv2dBackwardInput backward_input_winograd_2x2_3x3{};
  Conv2dBackwardInput backward_input_winograd_2x2_5x5{};
  Conv2dBackwardInput backward_input_winograd_4x4_3x3{};
  Conv2dBackwardWeight backward_weight_depthwise_channel_dots{};
  Conv2dBackwardWeight backward_weight_depthwise_dots{};
  Conv2dBackwardWeight backward_weight_depthwise_transposed{};
  Conv2dBackwardWeight backward_weight_outer_products{};
  Conv2dBackwardWeight backward_weight_pair_products{};
  Conv2dBackwardWeight backward_weight_plane_dots{};
  Conv2dBackwardWeight backward_weight_reference{};
  Conv2dBackwardWeight backward_weight_winograd_2x2_3x3{};
  Conv2dBackwardWeight backward_weight_winograd_2x2_5x5{};
  Conv2dBackwardWeight backward_weight_winograd_4x4_3x3{};
  // CUDA's alone.
  Conv2dForward forward_direct{};
  Conv2dBackwardInput backward_input_direct{};
  Conv2dBackwardWeight backward_weight_direct{};
  Conv2dForward forward_implicit_gemm{};
  Conv2dBackwardInput backward_input_implicit_gemm{};
  Conv2dBackwardWeight backward_weight_implicit_gemm{};
  // float32 in TF32.
  Conv2dForward forward_tensor_cores{};
  Conv2dBackwardInput backward_input_tensor_cores{};
  Conv2dBackwardWeight backward_weight_tensor_cores{};
  // The architecture, 80 for sm_80, that the kernels which the current device runs were compiled
  // for.
  int (*tensor_core_architecture)() = nullptr;
};
NNOPS_DECLARE_KERNELS(Conv2dKernels, conv2d_kernels)

struct Conv2dBiasKernels {
  // grad_bias[oc] = sum of grad_output over n, oh, ow. grad_bias is contiguous.
  using Backward = void (*)(void* grad_bias, const void* grad_output,
                            const Conv2dGeometry& geometry, int threads);
  PerDType<Backward> backward{};
};
NNOPS_DECLARE_KERNELS(Conv2dBiasKernels, conv2d_bias_kernels)

}  // namespace nnops
