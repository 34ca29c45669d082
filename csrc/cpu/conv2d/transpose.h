// Planes [rows][count] to pixel-major rows: target[i][row] = source[row][i].
//
// In blocks of 4 x 4 floats: 16-byte vectors shuffle well on every ISA.
#pragma once

#include "cpu/simd.h"

NNOPS_BEGIN_KERNELS

NNOPS_INLINE void transpose_4x4(float* target, int64_t target_stride, const float* source,
                                int64_t source_stride) {
  typedef float f32x4 __attribute__((vector_size(16)));
  f32x4 rows[4];
  for (int r = 0; r < 4; ++r) std::memcpy(&rows[r], source + r * source_stride, sizeof(f32x4));
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

// target[i * target_stride + row] = source[row * row_stride + i * step], `rows` x `count`.
template <typename T>
NNOPS_INLINE void transpose(acc_t<T>* target, int64_t target_stride, const T* source,
                            int64_t row_stride, int64_t step, int64_t rows, int64_t count) {
  int64_t row = 0;
  if constexpr (std::is_same_v<T, float>) {
    for (; step == 1 && row + 4 <= rows; row += 4) {
      const float* from = source + row * row_stride;
      float* to = target + row;
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        transpose_4x4(to + i * target_stride, target_stride, from + i, row_stride);
      }
      for (; i < count; ++i) {
        for (int64_t r = 0; r < 4; ++r) to[i * target_stride + r] = from[r * row_stride + i];
      }
    }
  }
  for (; row < rows; ++row) {
    const T* from = source + row * row_stride;
    for (int64_t i = 0; i < count; ++i) target[i * target_stride + row] = to_acc(from[i * step]);
  }
}

NNOPS_END_KERNELS
