// Gradient of the bias: the sum of grad_output over images and pixels, for each channel.
//
// Two stages. In the first a block adds up some pixels of one channel (lanes along pixels), or of
// 32 neighbouring channels where these are neighbours in memory (lanes along channels), each thread
// kBiasTerms of them at most, then the threads' sums as a tree, and leaves one partial sum a
// channel. In the second a warp adds up the partial sums of one channel, in double. Integers: one
// stage, wrapping around.
#pragma once

#include "cuda/conv2d/digits.cuh"
#include "ops/conv2d.h"

namespace nnops::cuda {

inline constexpr int kBiasThreads = 256;
inline constexpr int kBiasTerms = 64;  // of one thread in the first stage
inline constexpr int kBiasWarps = kBiasThreads / kWarpSize;

template <typename T>
struct BackwardBias {
  const T* grad_output;
  acc_t<T>* partials;  // [part][channel]
  int64_t pixels;      // of all images
  int64_t channels;
  int oh, ow;
  Strides4 strides;
};

// Adds up the pixels first, first + step, ... before `end`, of the channel at `from`.
template <typename T>
NNOPS_DEVICE acc_t<T> sum_of_pixels(const BackwardBias<T>& p, const T* from, int64_t first,
                                    int64_t end, int step) {
  acc_t<T> sum{0};
  if (first >= end) return sum;
  Digits at = Digits::of(first, p.ow, p.oh);
  const Digits on = Digits::of(step, p.ow, p.oh);
  const int count = static_cast<int>(ceil_divide<int64_t>(end - first, step));
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    sum += to_acc(from[at.d2 * p.strides.n + at.d1 * p.strides.h + at.d0 * p.strides.w]);
    at.advance(on, p.ow, p.oh);
  }
  return sum;
}

// Pixels of a block.
inline constexpr int kBiasPixelsAlongPixels = kBiasThreads * kBiasTerms;
inline constexpr int kBiasPixelsAlongChannels = kBiasWarps * kBiasTerms;

template <typename T>
__global__ void __launch_bounds__(kBiasThreads) bias_along_pixels(const BackwardBias<T> p) {
  NNOPS_SHARED(acc_t<T>, warps, kBiasWarps);
  const int64_t channel = blockIdx.x % p.channels;
  const int64_t part = blockIdx.x / p.channels;
  const int64_t begin = part * kBiasPixelsAlongPixels;
  const int64_t end = smaller(begin + kBiasPixelsAlongPixels, p.pixels);
  const acc_t<T> sum = sum_of_pixels(p, p.grad_output + channel * p.strides.c, begin + threadIdx.x,
                                     end, kBiasThreads);
  const acc_t<T> total = block_sum<kBiasThreads>(sum, warps);
  if (threadIdx.x == 0) p.partials[part * p.channels + channel] = total;
}

template <typename T>
__global__ void __launch_bounds__(kBiasThreads) bias_along_channels(const BackwardBias<T> p) {
  NNOPS_SHARED(acc_t<T>, sums, kBiasThreads);
  const int64_t tiles = ceil_divide<int64_t>(p.channels, kWarpSize);
  const int64_t channel = blockIdx.x % tiles * kWarpSize + lane_index();
  const int64_t part = blockIdx.x / tiles;
  const int64_t begin = part * kBiasPixelsAlongChannels;
  const int64_t end = smaller(begin + kBiasPixelsAlongChannels, p.pixels);
  acc_t<T> sum{0};
  if (channel < p.channels) {
    sum = sum_of_pixels(p, p.grad_output + channel * p.strides.c, begin + warp_index(), end,
                        kBiasWarps);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_index() == 0 && channel < p.channels) {
#pragma unroll
    for (int warp = 1; warp < kBiasWarps; ++warp) sum += sums[warp * kWarpSize + lane_index()];
    p.partials[part * p.channels + channel] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kBiasThreads)
    add_bias_partials(T* grad_bias, const acc_t<T>* partials, const int64_t channels,
                      const int64_t parts) {
  const int64_t channel = int64_t{blockIdx.x} * kBiasWarps + warp_index();
  double sum = 0;
  if (channel < channels) {
    for (int64_t part = lane_index(); part < parts; part += kWarpSize) {
      sum += static_cast<double>(partials[part * channels + channel]);
    }
  }
  sum = warp_sum(sum);
  if (lane_index() == 0 && channel < channels) {
    grad_bias[channel] = from_acc<T>(static_cast<acc_t<T>>(sum));
  }
}

// One block a channel; grad_bias of integers.
template <typename T>
__global__ void __launch_bounds__(kBiasThreads)
    integer_bias(T* grad_bias, const T* grad_output, const Conv2dGeometry g) {
  NNOPS_SHARED(uint64_t, warps, kBiasWarps);
  const int64_t channel = blockIdx.x;
  uint64_t sum = 0;
  for (int64_t i = threadIdx.x; i < g.n * g.oh * g.ow; i += kBiasThreads) {
    sum += static_cast<uint64_t>(grad_output[i / g.ow / g.oh * g.output.n + channel * g.output.c +
                                             i / g.ow % g.oh * g.output.h + i % g.ow * g.output.w]);
  }
  sum = block_sum<kBiasThreads>(sum, warps);
  if (threadIdx.x == 0) grad_bias[channel] = static_cast<T>(sum);
}

}  // namespace nnops::cuda
