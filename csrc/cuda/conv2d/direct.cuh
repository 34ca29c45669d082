// forward and backward_input as plain sums, for groups of few channels: depthwise convolutions with
// any multiplier above all, for which tiles of a GEMM would be mostly empty.
//
// These are bound by memory, so each thread computes a strip of kDirectStrip pixels of one column
// of the grid (pixel_pass.cuh), of one channel or, where groups have a single channel and channels
// are neighbours in memory, of a vector of them: what neighbouring pixels read comes from registers
// along the strip, if the kernel has kTaps rows one pixel apart, and else from the cache. The lanes
// of a warp go along rows of pixels, or along channels where these are neighbours; the weights of
// channels that are neighbours are gathered by direct_weights first.
//
// A sum is one chain of at most kConv2dLongestChain terms; its order does not depend on the width
// of the vectors.
#pragma once

#include "cuda/conv2d/digits.cuh"
#include "cuda/conv2d/epilogue.cuh"
#include "cuda/conv2d/pixel_pass.cuh"

namespace nnops::cuda {

inline constexpr int kDirectThreads = 256;
inline constexpr int kDirectStrip = 4;
// Blocks that a multiprocessor must hold at least, or 0: what ptxas makes of it by itself. It gives
// the widest vectors more registers than they need on some devices, and a third block does not fit.
template <int kVector, int kTaps>
inline constexpr int kDirectBlocks = kVector == 8 && kTaps == 0 ? 3 : 0;

template <typename T>
struct DirectPass {
  PixelPass pass;
  T* written;
  const T* read;
  const T* weights;     // by the strides of the pass, or gathered: [outer][kh][kw][channel]
  bool channels_inner;  // lanes go along channels; the weights are gathered
  int kh, kw;
  int strips;       // of a column of the largest grid
  unsigned blocks;  // of an image in one phase
};

template <int kVector, typename T>
NNOPS_DEVICE Vector<acc_t<T>, kVector> load_or_zero(const T* from, bool inside) {
  Vector<acc_t<T>, kVector> value{};
  if (inside) value = load_acc<kVector>(from);
  return value;
}

// kVector: channels of a thread; kTaps: kernel rows, all with step and gap 1, or 0 for any.
template <typename T, int kVector, int kTaps>
__global__ void __launch_bounds__(kDirectThreads, kDirectBlocks<kVector, kTaps>)
    direct_pass(const DirectPass<T> p, const AddBias<T> epilogue) {
  const PixelPass& pass = p.pass;
  const unsigned block = blockIdx.x % p.blocks;
  const unsigned part = blockIdx.x / p.blocks;
  const int64_t image = part % static_cast<unsigned>(pass.images);
  PassAxis y, x;
  phase_axes(pass, static_cast<int>(part / static_cast<unsigned>(pass.images)), &y, &x);
  const int channels = pass.groups * pass.rows;
  const Digits digits = Digits::of(int64_t{block} * kDirectThreads + threadIdx.x,
                                   p.channels_inner ? channels / kVector : x.grid,
                                   p.channels_inner ? x.grid : p.strips);
  const int channel = (p.channels_inner ? digits.d0 : digits.d2) * kVector;
  const int column = p.channels_inner ? digits.d1 : digits.d0;
  const int first_row = (p.channels_inner ? digits.d2 : digits.d1) * kDirectStrip;
  if (channel >= channels || first_row >= y.grid) return;

  const int group = channel / pass.rows;
  const int first_h = first_row * y.step + y.first;
  const int first_w = column * x.step + x.first;
  const T* read = p.read + image * pass.read.n + int64_t{group} * pass.outer * pass.read.c +
                  first_h * pass.read.h;
  const int64_t weight_w = p.channels_inner ? channels : pass.weight_w;
  const int64_t weight_h = p.channels_inner ? int64_t{channels} * p.kw : pass.weight_h;
  const int64_t weight_outer = p.channels_inner ? weight_h * p.kh : pass.weight_outer;
  const T* weights =
      p.weights +
      (p.channels_inner ? channel
                        : group * pass.weight_group + channel % pass.rows * pass.weight_row) +
      y.kernel_first * weight_h + x.kernel_first * weight_w;
  const int64_t tap_h = y.kernel_step * weight_h;
  const int64_t tap_w = x.kernel_step * weight_w;
  const int step_h = static_cast<int>(y.step * pass.read.h);
  const int gap_h = static_cast<int>(y.gap * pass.read.h);

  Vector<acc_t<T>, kVector> sums[kDirectStrip] = {};
  for (int j = 0; j < pass.outer; ++j) {
    for (int s = 0; s < x.taps; ++s) {
      const int w = first_w + s * x.gap;
      if (static_cast<unsigned>(w) >= static_cast<unsigned>(x.limit)) continue;
      const T* from = read + j * pass.read.c + w * pass.read.w;
      const T* column_weights = weights + j * weight_outer + s * tap_w;
      if constexpr (kTaps > 0) {
        Vector<acc_t<T>, kVector> taps[kTaps];
#pragma unroll
        for (int r = 0; r < kTaps; ++r) taps[r] = load_acc<kVector>(column_weights + r * tap_h);
#pragma unroll
        for (int u = 0; u < kDirectStrip + kTaps - 1; ++u) {
          const bool inside = static_cast<unsigned>(first_h + u) < static_cast<unsigned>(y.limit);
          const auto value = load_or_zero<kVector>(from + u * pass.read.h, inside);
#pragma unroll
          for (int i = 0; i < kDirectStrip; ++i) {
            if (u - i < 0 || u - i >= kTaps) continue;
#pragma unroll
            for (int v = 0; v < kVector; ++v) sums[i][v] += value[v] * taps[u - i][v];
          }
        }
      } else {
        // One tap at a time: the pixels of a strip are loads enough, and taps side by side spill.
        const T* line = from;
        const T* tap_weights = column_weights;
        int h = first_h;
#pragma unroll 1
        for (int r = 0; r < y.taps; ++r) {
          const auto tap = load_acc<kVector>(tap_weights);
#pragma unroll
          for (int i = 0; i < kDirectStrip; ++i) {
            const bool inside =
                static_cast<unsigned>(h + i * y.step) < static_cast<unsigned>(y.limit);
            const auto value = load_or_zero<kVector>(line + i * step_h, inside);
#pragma unroll
            for (int v = 0; v < kVector; ++v) sums[i][v] += value[v] * tap[v];
          }
          line += gap_h;
          tap_weights += tap_h;
          h += y.gap;
        }
      }
    }
  }

  T* to = p.written + image * pass.written.n + channel * pass.written.c +
          int64_t{x.out_first + column * x.out_step} * pass.written.w;
#pragma unroll
  for (int i = 0; i < kDirectStrip; ++i) {
    if (first_row + i >= y.grid) break;
    Vector<T, kVector> result;
#pragma unroll
    for (int v = 0; v < kVector; ++v) result[v] = epilogue(sums[i][v], channel + v);
    store_vector<kVector>(to + int64_t{y.out_first + (first_row + i) * y.out_step} * pass.written.h,
                          result);
  }
}

// gathered[outer][kernel row, kernel column][channel of the written image]
template <typename T>
__global__ void __launch_bounds__(kDirectThreads)
    direct_weights(T* gathered, const T* weight, const PixelPass pass, const int kh, const int kw) {
  const int channels = pass.groups * pass.rows;
  for_grid_stride(int64_t{channels} * pass.outer * kh * kw, [&](int64_t i) {
    const Digits digits = Digits::of(i, channels, kh * kw);
    gathered[i] = weight[digits.d0 / pass.rows * pass.weight_group +
                         digits.d0 % pass.rows * pass.weight_row + digits.d2 * pass.weight_outer +
                         digits.d1 / kw * pass.weight_h + digits.d1 % kw * pass.weight_w];
  });
}

}  // namespace nnops::cuda
