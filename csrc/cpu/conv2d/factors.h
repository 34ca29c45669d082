// What the tiles of pixel_rows.h and outer_products.h multiply.
//
// A factor F holds kFactorNumbers numbers that follow each other in a sum, of which it is one term:
// here a single number, of the type that the sums have; in bfloat16_pairs.h two. In pixel_rows.h
// they are neighbouring outer channels of a pixel or of a weight. Whatever copies factors and adds
// their products is a function here that other factors overload.
#pragma once

#include "cpu/conv2d/pixel_tile.h"
#include "cpu/conv2d/tap_axis.h"

NNOPS_BEGIN_KERNELS

template <typename F>
constexpr int64_t kFactorNumbers = 1;

// sum += factor * factors
template <typename A>
NNOPS_INLINE void add_products(Register<A>& sum, A factor, Register<A> factors) {
  sum += factor * factors;
}

// target[c * target_stride + i] = source[i * row_stride + c * channel_stride], a factor a number;
// zero for i in [count, width).
template <typename T>
NNOPS_INLINE void transpose_factors(acc_t<T>* target, int64_t target_stride, const T* source,
                                    int64_t row_stride, int64_t channel_stride, int64_t count,
                                    int64_t width, int64_t channels) {
  transpose(target, target_stride, source, row_stride, channel_stride, count, channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = count; i < width; ++i) target[c * target_stride + i] = 0;
  }
}
// target = the register of the first of `channels` channels, which are `step` apart.
template <typename A>
NNOPS_INLINE void store_factors(A* target, const A* source, int64_t, int64_t) {
  store_register(target, load_register(source));
}

// A row of one factor: what stands at positions first + i step, zero outside of [0, limit).
template <typename T>
NNOPS_INLINE void copy_planar_factors(acc_t<T>* row, const T* source, int64_t, int64_t stride,
                                      int64_t first, int64_t step, int64_t length, int64_t limit,
                                      int64_t) {
  copy_positions(row, source, stride, first, step, length, limit);
}
// The same of pixels of `channels` neighbouring channels; in the row a pixel has pixel_size
// factors.
template <typename T>
NNOPS_INLINE void copy_pixel_factors(acc_t<T>* row, int64_t pixel_size, const T* source,
                                     int64_t stride, int64_t first, int64_t step, int64_t length,
                                     int64_t limit, int64_t channels) {
  transpose_positions(row, pixel_size, source, 1, stride, first, step, length, limit, channels,
                      channels);
}

NNOPS_END_KERNELS
