// The micro-kernel whose lanes are images.
//
//   sums[row][pixel][image] (+)= sum over (kh, channel, kw) of
//       weights[kh][channel][kw][row] * read[kh][channel][pixel and kw][image]
//
// kRows channels of the written image times kVectors neighbouring pixels are held in registers. The
// terms are added in the order of (kh, channel, kw) by fused multiply-adds, whatever kRows and
// kVectors are: the same bits as pixel_tile.h.
#pragma once

#include "cpu/conv2d/pixel_tile.h"

NNOPS_BEGIN_KERNELS

struct LaneTile {
  float* sums;
  int64_t sum_row;
  const float* weights;  // of the first tap, whose kw are neighbours
  int64_t weight_kh, weight_channel;
  const float* read;               // of the first pixel, as the first tap sees it
  int64_t pixel, kh, channel, kw;  // steps of `read`
  int64_t y_taps, channels, x_taps;
  bool first;         // write the sums instead of adding to them
  const float* bias;  // of the rows, added last; or null
};

template <int kRows, int kVectors>
void multiply_lane_tile(const LaneTile& tile) {
  constexpr int kRegisters = kVectors * kParts;
  Register<float> total[kRows][kRegisters] = {};
  for (int64_t r = 0; r < tile.y_taps; ++r) {
    const float* read_channel = tile.read + r * tile.kh;
    const float* weight_channel = tile.weights + r * tile.weight_kh;
    for (int64_t c = 0; c < tile.channels; ++c) {
      const float* read = read_channel;
      const float* weights = weight_channel;
      const float* end = weights + tile.x_taps * kRows;
      for (; weights < end; weights += kRows, read += tile.kw) {
        Register<float> pixels[kRegisters];
#pragma GCC unroll 6
        for (int v = 0; v < kRegisters; ++v) {
          pixels[v] =
              load_register(read + v / kParts * tile.pixel + v % kParts * kRegisterLanes<float>);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 6
          for (int v = 0; v < kRegisters; ++v) total[i][v] += weights[i] * pixels[v];
        }
      }
      read_channel += tile.channel;
      weight_channel += tile.weight_channel;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v) {
      float* place = tile.sums + i * tile.sum_row + v * kRegisterLanes<float>;
      Register<float> sum = total[i][v];
      if (!tile.first) sum = load_register(place) + sum;
      if (tile.bias != nullptr) sum += tile.bias[i];
      store_register(place, sum);
    }
  }
}

struct LaneTiles {
  using Function = void (*)(const LaneTile& tile);
  template <int kRows, int kVectors>
  static constexpr Function kFunction = multiply_lane_tile<kRows, kVectors>;
};

NNOPS_END_KERNELS
