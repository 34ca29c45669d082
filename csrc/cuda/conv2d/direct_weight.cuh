// backward_weight as plain sums, for groups of few channels:
//
//   grad_weight[oc, c, kh, kw] = sum over pixels of grad_output[oc, pixel] input[c, pixel's tap]
//
// A row is a pair (oc, c). Two stages: in the first a block goes through some pixels of one row
// (lanes along pixels), or of 32 rows that follow each other where channels are neighbours in
// memory (lanes along rows), and adds up kTapChunk taps at a time: each thread reads a pixel of
// grad_output once for all of them. The threads' sums are added in a fixed order and go to
// partials[part][row][tap]. In the second a warp adds up the parts of one element.
#pragma once

#include "cuda/conv2d/digits.cuh"
#include "cuda/conv2d/pixel_pass.cuh"

namespace nnops::cuda {

inline constexpr int kTapChunk = 9;
inline constexpr int kDirectWeightThreads = 256;
inline constexpr int kDirectWeightWarps = kDirectWeightThreads / kWarpSize;
inline constexpr int kDirectWeightTerms = 64;  // of a thread

template <typename T>
struct DirectWeight : NarrowGeometry {
  const T* grad_output;
  const T* input;
  acc_t<T>* partials;
  int rows;
  unsigned tiles;   // of rows
  unsigned chunks;  // of taps

  NNOPS_HOST_DEVICE int taps() const { return kh * kw; }
};

// The sums of the thread's pixels first, first + step, ... before `end`. kThree: the kernel is 3 x
// 3, so that the taps are constants and each row and column of them is checked once.
template <bool kThree, typename T>
NNOPS_DEVICE void add_tap_products(const DirectWeight<T>& p, int row, int first_tap, int64_t first,
                                   int64_t end, int step, acc_t<T> (&sums)[kTapChunk]) {
  if (first >= end) return;
  Digits at = Digits::of(first, p.ow, p.oh);
  const Digits on = Digits::of(step, p.ow, p.oh);
  const int oc = row / p.group_c;
  const int c = oc / p.group_oc * p.group_c + row % p.group_c;
  const T* gy = p.grad_output + oc * p.output_strides.c;
  const T* input = p.input + c * p.input_strides.c;
  const int first_kh = first_tap / p.kw;
  const int first_kw = first_tap % p.kw;
#pragma unroll(kThree ? 2 : 1)
  for (int64_t pixel = first; pixel < end; pixel += step) {
    const acc_t<T> gradient = to_acc(
        gy[at.d2 * p.output_strides.n + at.d1 * p.output_strides.h + at.d0 * p.output_strides.w]);
    const int h = at.d1 * p.stride_h - p.pad_top;
    const int w = at.d0 * p.stride_w - p.pad_left;
    const T* image = input + at.d2 * p.input_strides.n;
    int kh = first_kh;
    int kw = first_kw;
    if constexpr (kThree) {
      bool inside_w[3];
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        inside_w[x] = static_cast<unsigned>(w + x * p.dilation_w) < static_cast<unsigned>(p.w);
      }
#pragma unroll
      for (int y = 0; y < 3; ++y) {
        const int tap_h = h + y * p.dilation_h;
        const bool inside_h = static_cast<unsigned>(tap_h) < static_cast<unsigned>(p.h);
        const T* line = image + tap_h * p.input_strides.h + w * p.input_strides.w;
#pragma unroll
        for (int x = 0; x < 3; ++x) {
          if (inside_h && inside_w[x]) {
            sums[3 * y + x] += gradient * to_acc(line[x * p.dilation_w * p.input_strides.w]);
          }
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTapChunk; ++i) {
        const int tap_h = h + kh * p.dilation_h;
        const int tap_w = w + kw * p.dilation_w;
        if (kh < p.kh && static_cast<unsigned>(tap_h) < static_cast<unsigned>(p.h) &&
            static_cast<unsigned>(tap_w) < static_cast<unsigned>(p.w)) {
          sums[i] +=
              gradient * to_acc(image[tap_h * p.input_strides.h + tap_w * p.input_strides.w]);
        }
        if (++kw == p.kw) {
          kw = 0;
          ++kh;
        }
      }
    }
    at.advance(on, p.ow, p.oh);
  }
}

// Pixels of a block.
template <bool kAlongRows>
inline constexpr int kDirectWeightPixels =
    kDirectWeightTerms * (kAlongRows ? kDirectWeightWarps : kDirectWeightThreads);

template <typename T, bool kAlongRows, bool kThree>
__global__ void __launch_bounds__(kDirectWeightThreads)
    direct_weight_partials(const DirectWeight<T> p) {
  using A = acc_t<T>;
  NNOPS_SHARED(A, shared, kDirectWeightWarps * (kAlongRows ? kWarpSize : 1));
  const int first_tap = static_cast<int>(blockIdx.x % p.chunks) * kTapChunk;
  const int tile = static_cast<int>(blockIdx.x / p.chunks % p.tiles);
  const int64_t part = blockIdx.x / p.chunks / p.tiles;
  const int64_t begin = part * kDirectWeightPixels<kAlongRows>;
  const int64_t end = smaller(begin + kDirectWeightPixels<kAlongRows>, p.pixels);
  const int row = kAlongRows ? tile * kWarpSize + lane_index() : tile;
  A sums[kTapChunk] = {};
  if (row < p.rows) {
    add_tap_products<kThree>(p, row, first_tap,
                             begin + (kAlongRows ? warp_index() : static_cast<int>(threadIdx.x)),
                             end, kAlongRows ? kDirectWeightWarps : kDirectWeightThreads, sums);
  }
  A* to = p.partials + (part * p.rows + row) * p.taps() + first_tap;
#pragma unroll
  for (int i = 0; i < kTapChunk; ++i) {
    if (first_tap + i >= p.taps()) break;
    if constexpr (kAlongRows) {
      shared[threadIdx.x] = sums[i];
      __syncthreads();
      if (warp_index() == 0 && row < p.rows) {
        A sum = sums[i];
#pragma unroll
        for (int warp = 1; warp < kDirectWeightWarps; ++warp) {
          sum += shared[warp * kWarpSize + lane_index()];
        }
        to[i] = sum;
      }
      __syncthreads();
    } else {
      const A sum = block_sum<kDirectWeightThreads>(sums[i], shared);
      if (threadIdx.x == 0) to[i] = sum;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kDirectWeightThreads)
    add_direct_partials(T* grad_weight, const Strides4 strides, const DirectWeight<T> p,
                        const int64_t parts) {
  const int64_t size = int64_t{p.rows} * p.taps();
  const int64_t i = int64_t{blockIdx.x} * kDirectWeightWarps + warp_index();
  acc_t<T> sum{0};
  if (i < size) {
    for (int64_t part = lane_index(); part < parts; part += kWarpSize) {
      sum += p.partials[part * size + i];
    }
  }
  sum = warp_sum(sum);
  if (lane_index() == 0 && i < size) {
    const Digits digits = Digits::of(i, p.kw, p.kh);
    grad_weight[digits.d2 / p.group_c * strides.n + digits.d2 % p.group_c * strides.c +
                digits.d1 * strides.h + digits.d0 * strides.w] = from_acc<T>(sum);
  }
}

}  // namespace nnops::cuda
