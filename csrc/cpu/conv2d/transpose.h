// Planes [rows][count] to pixel-major rows: target[i][row] = source[row][i].
//
// In blocks of 4 x 4 floats: 16-byte vectors shuffle well on every ISA.
#pragma once

#include "cpu/conv2d/tap_axis.h"

NNOPS_BEGIN_KERNELS

typedef float f32x4 __attribute__((vector_size(16)));

// source[0], source[step], source[2 step], source[3 step]; nothing beyond them is read.
NNOPS_INLINE f32x4 load_4(const float* source, int64_t step) {
  f32x4 low;
  if (step == 1) {
    std::memcpy(&low, source, sizeof(low));
    return low;
  }
  if (step == 2) {
    f32x4 high;
    std::memcpy(&low, source, sizeof(low));
    std::memcpy(&high, source + 3, sizeof(high));
    return __builtin_shufflevector(low, high, 0, 2, 5, 7);
  }
  return f32x4{source[0], source[step], source[2 * step], source[3 * step]};
}

NNOPS_INLINE void transpose_4x4(float* target, int64_t target_stride, const float* source,
                                int64_t row_stride, int64_t step) {
  f32x4 rows[4];
  for (int r = 0; r < 4; ++r) rows[r] = load_4(source + r * row_stride, step);
  const f32x4 low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const f32x4 low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const f32x4 high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const f32x4 high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  const f32x4 columns[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                            __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                            __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                            __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(target + i * target_stride, &columns[i], sizeof(f32x4));
}

// In blocks of 4 x 4; the last one in each direction overlaps the one before it where sizes are
// not whole. Both sizes are at least 4.
NNOPS_INLINE void transpose_blocks(float* target, int64_t target_stride, const float* source,
                                   int64_t row_stride, int64_t step, int64_t rows, int64_t count) {
  for (int64_t row = 0; row < rows; row += 4) {
    const int64_t r = smaller(row, rows - 4);
    const float* from = source + r * row_stride;
    float* to = target + r;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
      if (i % 16 == 0) {
        // A cache line of each row, two blocks ahead: short rows are beyond the hardware's guess.
        for (int64_t k = 8; k < 12; ++k) __builtin_prefetch(from + k * row_stride + i * step);
      }
      transpose_4x4(to + i * target_stride, target_stride, from + i * step, row_stride, step);
    }
    if (i < count) {
      i = count - 4;
      transpose_4x4(to + i * target_stride, target_stride, from + i * step, row_stride, step);
    }
  }
}

// target[i * target_stride + row] = source[row * row_stride + i * step], `rows` x `count`.
template <typename T>
NNOPS_INLINE void transpose(acc_t<T>* target, int64_t target_stride, const T* source,
                            int64_t row_stride, int64_t step, int64_t rows, int64_t count) {
  if (row_stride == 1 && rows > 1) {
    for (int64_t i = 0; i < count; ++i) {
      copy_span(target + i * target_stride, source + i * step, rows);
    }
    return;
  }
  if constexpr (std::is_same_v<T, float>) {
    if (rows >= 4 && count >= 4) {
      if (step == 1) {
        transpose_blocks(target, target_stride, source, row_stride, 1, rows, count);
      } else if (step == 2) {
        transpose_blocks(target, target_stride, source, row_stride, 2, rows, count);
      } else {
        transpose_blocks(target, target_stride, source, row_stride, step, rows, count);
      }
      return;
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = source + row * row_stride;
    for (int64_t i = 0; i < count; ++i) target[i * target_stride + row] = to_acc(from[i * step]);
  }
}

// rows[i][channel] = the input at positions first + i step of one row, zero outside of [0, limit).
template <typename T>
NNOPS_INLINE void transpose_positions(acc_t<T>* rows, int64_t pixel_size, const T* source,
                                      int64_t channel_stride, int64_t pixel_stride, int64_t first,
                                      int64_t step, int64_t length, int64_t limit, int64_t channels,
                                      int64_t padded_channels) {
  const int64_t to_zero = first < 0 ? -first : 0;
  const int64_t to_limit = first < limit ? limit - first : 0;
  const int64_t begin = smaller(length, divide_up(to_zero, step));
  const int64_t end = larger(begin, smaller(length, divide_up(to_limit, step)));
  for (int64_t i = 0; i < begin; ++i) {
    for (int64_t c = 0; c < padded_channels; ++c) rows[i * pixel_size + c] = 0;
  }
  transpose(rows + begin * pixel_size, pixel_size, source + (first + begin * step) * pixel_stride,
            channel_stride, step * pixel_stride, channels, end - begin);
  for (int64_t c = channels; c < padded_channels; ++c) {
    for (int64_t i = begin; i < end; ++i) rows[i * pixel_size + c] = 0;
  }
  for (int64_t i = end; i < length; ++i) {
    for (int64_t c = 0; c < padded_channels; ++c) rows[i * pixel_size + c] = 0;
  }
}

NNOPS_END_KERNELS
