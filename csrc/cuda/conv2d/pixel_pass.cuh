// forward and each phase of backward_input as one thing: a grid of pixels to write, each a sum over
// taps and channels of the read image.
//
// Along one axis, element i of the grid is written at out_first + i out_step, and its tap t, which
// is kernel index kernel_first + t kernel_step, reads position
//
//   first + i step + t gap           (zero outside of [0, limit)).
//
// forward is a single such grid. In backward_input the input positions of one residue modulo the
// stride meet the same subset of the taps: each pair of residues is a phase, a grid of its own, so
// that nothing is multiplied by the zeros between the strides.
//
// Positions are 32-bit and, with paddings and reaches, less than 2^29 (fits_32_bits in
// ops/conv2d.cpp), so that sums of two, one of them "nowhere", do not overflow.
#pragma once

#include "cuda/numbers.cuh"
#include "ops/conv2d.h"

namespace nnops::cuda {

// A position that no sum brings into an image.
inline constexpr int kNowhere = -(1 << 30);

// Whether kRun neighbouring channels of a group lie side by side in every pixel, in one aligned
// piece of memory: of 16 bytes, a chunk.
template <int kRun>
bool has_runs(const void* image, int64_t images, const Strides4& strides, int64_t group_channels) {
  return strides.c == 1 && group_channels % kRun == 0 && are_aligned(image) &&
         (images == 1 || strides.n % kRun == 0) && strides.h % kRun == 0 && strides.w % kRun == 0;
}

struct PassAxis {
  int taps;  // may be 0
  int kernel_first, kernel_step;
  int first, gap, step;
  int limit;
  int grid;  // may be 0
  int out_first, out_step;
  int slot;  // of its weights, where they are packed; backward_input: the first of its taps
};

inline PassAxis forward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride,
                             int64_t pad, int64_t dilation) {
  PassAxis axis{};
  axis.taps = static_cast<int>(kernel);
  axis.kernel_step = 1;
  axis.first = -static_cast<int>(pad);
  axis.gap = static_cast<int>(dilation);
  axis.step = static_cast<int>(stride);
  axis.limit = static_cast<int>(size);
  axis.grid = static_cast<int>(out_size);
  axis.out_step = 1;
  return axis;
}

// What the phases of backward_input along one axis have in common.
struct BackwardAxis {
  int size, out_size, kernel, stride, pad, dilation;
  int gap, period;  // dilation and stride over their greatest common divisor

  // As many as there are residues that an input position can have.
  NNOPS_HOST_DEVICE int phases() const { return smaller(stride, size); }
  // Phases that taps reach, in images of any size, are told apart by the first of their taps.
  NNOPS_HOST_DEVICE int slots() const { return smaller(period, kernel); }
  NNOPS_HOST_DEVICE int phase_of_slot(int slot) const {
    return ((slot * dilation - pad) % stride + stride) % stride;
  }
  int most_taps() const { return ceil_divide(kernel, period); }
};

inline BackwardAxis backward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride,
                                  int64_t pad, int64_t dilation) {
  int64_t divisor = dilation;
  for (int64_t rest = stride; rest != 0;) {
    const int64_t next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  return {static_cast<int>(size),
          static_cast<int>(out_size),
          static_cast<int>(kernel),
          static_cast<int>(stride),
          static_cast<int>(pad),
          static_cast<int>(dilation),
          static_cast<int>(dilation / divisor),
          static_cast<int>(stride / divisor)};
}

// Positions phase, phase + stride, ... of the gradient of the input. Kernel index t reaches
// position h from output (h + pad - t dilation) / stride where that is whole, which depends on the
// phase and on t modulo the period. Taps run from the last to the first, so that positions ascend.
NNOPS_HOST_DEVICE PassAxis phase_axis(const BackwardAxis& of, int phase) {
  PassAxis axis{};
  axis.gap = of.gap;
  axis.step = 1;
  axis.limit = of.out_size;
  axis.grid = ceil_divide(of.size - phase, of.stride);
  axis.out_first = phase;
  axis.out_step = of.stride;
  int first_tap = 0;
  while (first_tap < of.slots() && (phase + of.pad - first_tap * of.dilation) % of.stride != 0) {
    ++first_tap;
  }
  if (first_tap == of.slots()) return axis;  // no tap: the gradient is zero
  axis.slot = first_tap;
  axis.taps = ceil_divide(of.kernel - first_tap, of.period);
  axis.kernel_first = first_tap + (axis.taps - 1) * of.period;
  axis.kernel_step = -of.period;
  axis.first = (phase + of.pad - axis.kernel_first * of.dilation) / of.stride;
  return axis;
}

// What the kernels of backward_weight ask of the geometry, in 32 bits.
struct NarrowGeometry {
  int64_t pixels;         // of the output, of all images
  int group_c, group_oc;  // channels of a group, of the input and of the output
  int kh, kw;
  int h, w, oh, ow;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  Strides4 input_strides, output_strides;
};

inline NarrowGeometry narrow_geometry(const Conv2dGeometry& g) {
  NarrowGeometry narrow{};
  narrow.pixels = g.n * g.oh * g.ow;
  narrow.group_c = static_cast<int>(g.c / g.groups);
  narrow.group_oc = static_cast<int>(g.oc / g.groups);
  narrow.kh = static_cast<int>(g.kh);
  narrow.kw = static_cast<int>(g.kw);
  narrow.h = static_cast<int>(g.h);
  narrow.w = static_cast<int>(g.w);
  narrow.oh = static_cast<int>(g.oh);
  narrow.ow = static_cast<int>(g.ow);
  narrow.stride_h = static_cast<int>(g.stride_h);
  narrow.stride_w = static_cast<int>(g.stride_w);
  narrow.pad_top = static_cast<int>(g.pad_top);
  narrow.pad_left = static_cast<int>(g.pad_left);
  narrow.dilation_h = static_cast<int>(g.dilation_h);
  narrow.dilation_w = static_cast<int>(g.dilation_w);
  narrow.input_strides = g.input;
  narrow.output_strides = g.output;
  return narrow;
}

// The images of a pass, the channels of a group, and the grids: in forward y and x, in
// backward_input the phases of backward_y and backward_x.
struct PixelPass {
  int64_t images;
  int groups;
  int rows;   // channels of the written image, per group
  int outer;  // channels of the read image, per group
  Strides4 written, read;
  // Strides of the weights: written channel, read channel, kernel row and column. Those of a group
  // begin weight_group behind those of the one before.
  int64_t weight_group, weight_row, weight_outer, weight_h, weight_w;
  PassAxis y, x;  // backward_input: of phase 0, which has the largest grid
  int phases_h, phases_w;
  int slots_h, slots_w;
  BackwardAxis backward_y, backward_x;

  int phases() const { return phases_h * phases_w; }
  int slots() const { return slots_h * slots_w; }
  // Of any phase.
  int most_taps() const {
    return backward() ? backward_y.most_taps() * backward_x.most_taps() : y.taps * x.taps;
  }
  NNOPS_HOST_DEVICE bool backward() const { return backward_y.size > 0; }
};

inline PixelPass pass_of_images(const Conv2dGeometry& g) {
  PixelPass pass{};
  pass.images = g.n;
  pass.groups = static_cast<int>(g.groups);
  pass.weight_h = g.weight.h;
  pass.weight_w = g.weight.w;
  return pass;
}

inline PixelPass forward_pass(const Conv2dGeometry& g) {
  PixelPass pass = pass_of_images(g);
  pass.rows = static_cast<int>(g.oc / g.groups);
  pass.outer = static_cast<int>(g.c / g.groups);
  pass.written = g.output;
  pass.read = g.input;
  pass.weight_group = pass.rows * g.weight.n;
  pass.weight_row = g.weight.n;
  pass.weight_outer = g.weight.c;
  pass.phases_h = pass.phases_w = 1;
  pass.slots_h = pass.slots_w = 1;
  pass.y = forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h);
  pass.x = forward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w);
  return pass;
}

inline PixelPass backward_pass(const Conv2dGeometry& g) {
  PixelPass pass = pass_of_images(g);
  pass.rows = static_cast<int>(g.c / g.groups);
  pass.outer = static_cast<int>(g.oc / g.groups);
  pass.written = g.input;
  pass.read = g.output;
  pass.weight_group = pass.outer * g.weight.n;
  pass.weight_row = g.weight.c;
  pass.weight_outer = g.weight.n;
  pass.backward_y = backward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h);
  pass.backward_x = backward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w);
  pass.phases_h = pass.backward_y.phases();
  pass.phases_w = pass.backward_x.phases();
  pass.slots_h = pass.backward_y.slots();
  pass.slots_w = pass.backward_x.slots();
  pass.y = phase_axis(pass.backward_y, 0);
  pass.x = phase_axis(pass.backward_x, 0);
  return pass;
}

// The grids of one phase.
NNOPS_HOST_DEVICE void phase_axes(const PixelPass& pass, int phase, PassAxis* y, PassAxis* x) {
  if (!pass.backward()) {
    *y = pass.y;
    *x = pass.x;
  } else {
    *y = phase_axis(pass.backward_y, phase / pass.phases_w);
    *x = phase_axis(pass.backward_x, phase % pass.phases_w);
  }
}

}  // namespace nnops::cuda
