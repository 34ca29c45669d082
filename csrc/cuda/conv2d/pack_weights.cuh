// The weights in the order in which the implicit GEMM of forward and backward_input wants them:
// [slot][group][channel n of the written image][k], k as in pixel_gemm.cuh, each row filled up
// with zeros to whole chunks of 16 bytes. For TF32 they are rounded on the way.
//
// A block moves 32 x 32 elements through shared memory, reading along n and writing along k.
#pragma once

#include "cuda/conv2d/digits.cuh"
#include "cuda/conv2d/pixel_pass.cuh"
#include "cuda/conv2d/tf32.cuh"

namespace nnops::cuda {

inline constexpr int kPackTile = 32;
inline constexpr int kPackRows = 8;  // of threads

template <typename T>
struct PackWeights {
  PixelPass pass;
  const T* weight;
  T* packed;
  int row_length;
  bool channels_inner;
  unsigned tiles_n, tiles_k;
};

template <typename T, bool kTf32>
__global__ void __launch_bounds__(kPackTile* kPackRows) pack_weights(const PackWeights<T> p) {
  NNOPS_SHARED(T, tile, kPackTile * (kPackTile + 1));
  const int lane = lane_index();
  const int first_k = static_cast<int>(blockIdx.x % p.tiles_k) * kPackTile;
  const int first_n = static_cast<int>(blockIdx.x / p.tiles_k % p.tiles_n) * kPackTile;
  const int part = static_cast<int>(blockIdx.x / p.tiles_k / p.tiles_n);
  const int slot = part / p.pass.groups;
  PassAxis y = p.pass.y;
  PassAxis x = p.pass.x;
  if (p.pass.backward()) {
    const BackwardAxis& of_y = p.pass.backward_y;
    const BackwardAxis& of_x = p.pass.backward_x;
    y = phase_axis(of_y, of_y.phase_of_slot(slot / p.pass.slots_w));
    x = phase_axis(of_x, of_x.phase_of_slot(slot % p.pass.slots_w));
  }
  const int terms = y.taps * x.taps * p.pass.outer;
  const T* weight = p.weight + part % p.pass.groups * p.pass.weight_group;

  for (int j = warp_index(); j < kPackTile; j += kPackRows) {
    const int k = first_k + j;
    const int n = first_n + lane;
    T value{};
    if (k < terms && n < p.pass.rows) {
      const Digits digits = Digits::of(k, p.channels_inner ? p.pass.outer : x.taps,
                                       p.channels_inner ? x.taps : y.taps);
      const int channel = p.channels_inner ? digits.d0 : digits.d2;
      const int tap_w = p.channels_inner ? digits.d1 : digits.d0;
      const int tap_h = p.channels_inner ? digits.d2 : digits.d1;
      value = weight[n * p.pass.weight_row + channel * p.pass.weight_outer +
                     (y.kernel_first + tap_h * y.kernel_step) * p.pass.weight_h +
                     (x.kernel_first + tap_w * x.kernel_step) * p.pass.weight_w];
    }
    if constexpr (kTf32) value = rounded_to_tf32(value);
    tile[j * (kPackTile + 1) + lane] = value;
  }
  __syncthreads();
  for (int j = warp_index(); j < kPackTile; j += kPackRows) {
    const int n = first_n + j;
    const int k = first_k + lane;
    if (n < p.pass.rows && k < p.row_length) {
      p.packed[(int64_t{part} * p.pass.rows + n) * p.row_length + k] =
          tile[lane * (kPackTile + 1) + j];
    }
  }
}

}  // namespace nnops::cuda
