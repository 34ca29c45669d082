// Planes [rows][count] to pixel-major rows, target[i][row] = source[row][i], and back.
//
// A block is a register of rows by 16 bytes of each: these pieces are loaded straight to their
// place in the registers, and what is left is to transpose within 16 bytes, for which every ISA has
// cheap shuffles.
#pragma once

#include <utility>

#include "cpu/lanes.h"

NNOPS_BEGIN_KERNELS

// The numbers in 16 bytes: 4 floats or 2 doubles.
template <typename A>
constexpr int kPiece = 16 / int{sizeof(A)};
template <typename A>
using Piece = Lanes<A, kPiece<A>>;

// source[0], source[step], ...: one piece; nothing beyond its last number is read.
template <int kStep, typename T>
NNOPS_INLINE Piece<acc_t<T>> load_piece(const T* source, int64_t step) {
  using A = acc_t<T>;
  Piece<A> piece;
  if constexpr (kStep == 1) {
    piece = load_lanes<kPiece<A>>(source);
  } else if constexpr (kStep == 2 && std::is_same_v<T, float>) {
    Piece<A> high;
    std::memcpy(&piece, source, sizeof(piece));
    std::memcpy(&high, source + 3, sizeof(high));
    piece = __builtin_shufflevector(piece, high, 0, 2, 5, 7);
  } else {
    for (int i = 0; i < kPiece<A>; ++i) piece[i] = to_acc(source[i * step]);
  }
  return piece;
}

// The pieces of rows 0, kPiece, 2 kPiece, ... side by side.
template <int N, int kStep, typename T>
NNOPS_INLINE Lanes<acc_t<T>, N> load_pieces(const T* source, int64_t row_stride, int64_t step) {
  using A = acc_t<T>;
  constexpr int kPieces = N / kPiece<A>;
  Piece<A> pieces[kPieces];
  for (int p = 0; p < kPieces; ++p) {
    pieces[p] = load_piece<kStep>(source + p * kPiece<A> * row_stride, step);
  }
  Lanes<A, N> joined;
  // Insertions straight from memory: GCC would go by way of the stack.
#if defined(__AVX512F__)
  if constexpr (kPieces == 4) {
    __m512i whole = _mm512_castsi128_si512(reinterpret_cast<__m128i>(pieces[0]));
    whole = _mm512_inserti32x4(whole, reinterpret_cast<__m128i>(pieces[1]), 1);
    whole = _mm512_inserti32x4(whole, reinterpret_cast<__m128i>(pieces[2]), 2);
    whole = _mm512_inserti32x4(whole, reinterpret_cast<__m128i>(pieces[3]), 3);
    std::memcpy(&joined, &whole, sizeof(joined));
    return joined;
  }
#endif
#if defined(__AVX2__)
  if constexpr (kPieces == 2) {
    __m256i whole = _mm256_castsi128_si256(reinterpret_cast<__m128i>(pieces[0]));
    whole = _mm256_inserti128_si256(whole, reinterpret_cast<__m128i>(pieces[1]), 1);
    std::memcpy(&joined, &whole, sizeof(joined));
    return joined;
  }
#endif
  std::memcpy(&joined, pieces, sizeof(joined));
  return joined;
}

// In each 16 bytes: runs of kRun numbers of a and of b by turns, from the low or the high half.
template <int kPieceLanes, int kRun, bool kHigh, typename V, int... kLane>
NNOPS_INLINE V interleave_lanes(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shufflevector(
      a, b,
      (kLane / kPieceLanes * kPieceLanes + (kHigh ? kPieceLanes / 2 : 0) +
       kLane % kPieceLanes / (2 * kRun) * kRun + kLane % kRun +
       (kLane / kRun % 2 == 1 ? kCount : 0))...);
}
template <int kRun, bool kHigh, typename A, int N>
NNOPS_INLINE Lanes<A, N> interleave(Lanes<A, N> a, Lanes<A, N> b) {
  return interleave_lanes<kPiece<A>, kRun, kHigh>(a, b, std::make_integer_sequence<int, N>{});
}

// columns[i][row] = source[row * row_stride + i * step] for N rows and the numbers of a piece.
template <int N, int kStep, typename T>
NNOPS_INLINE void transpose_block(Lanes<acc_t<T>, N>* columns, const T* source, int64_t row_stride,
                                  int64_t step) {
  using A = acc_t<T>;
  Lanes<A, N> rows[kPiece<A>];
  for (int r = 0; r < kPiece<A>; ++r) {
    rows[r] = load_pieces<N, kStep>(source + r * row_stride, row_stride, step);
  }
  if constexpr (kPiece<A> == 2) {
    columns[0] = interleave<1, false, A, N>(rows[0], rows[1]);
    columns[1] = interleave<1, true, A, N>(rows[0], rows[1]);
  } else {
    const Lanes<A, N> low01 = interleave<1, false, A, N>(rows[0], rows[1]);
    const Lanes<A, N> low23 = interleave<1, false, A, N>(rows[2], rows[3]);
    const Lanes<A, N> high01 = interleave<1, true, A, N>(rows[0], rows[1]);
    const Lanes<A, N> high23 = interleave<1, true, A, N>(rows[2], rows[3]);
    columns[0] = interleave<2, false, A, N>(low01, low23);
    columns[1] = interleave<2, true, A, N>(low01, low23);
    columns[2] = interleave<2, false, A, N>(high01, high23);
    columns[3] = interleave<2, true, A, N>(high01, high23);
  }
}

// By blocks, of which the last in each direction overlaps the one before it where sizes are not
// whole. `count` is at least a piece.
template <int kStep, typename T>
NNOPS_INLINE void transpose_blocks(acc_t<T>* target, int64_t target_stride, const T* source,
                                   int64_t row_stride, int64_t step, int64_t rows, int64_t count) {
  using A = acc_t<T>;
  for_lanes<A>(
      0, rows,
      [&](auto lanes, int64_t row) {
        constexpr int kCount = lanes.kCount;
        const T* from = source + row * row_stride;
        A* to = target + row;
        for (int64_t begin = 0; begin < count; begin += kPiece<A>) {
          const int64_t i = smaller(begin, count - kPiece<A>);
          if (begin % kLanes<T> == 0) {
            // A cache line of each row of the next block: short rows are beyond the hardware's
            // guess.
            for (int64_t k = kCount; k < 2 * kCount; ++k) {
              __builtin_prefetch(from + k * row_stride + i * step);
            }
          }
          Lanes<A, kCount> columns[kPiece<A>];
          transpose_block<kCount, kStep>(columns, from + i * step, row_stride, step);
          for (int k = 0; k < kPiece<A>; ++k) {
            std::memcpy(to + (i + k) * target_stride, &columns[k], sizeof(columns[k]));
          }
        }
      },
      [&](int64_t row) {
        const T* from = source + row * row_stride;
        for (int64_t i = 0; i < count; ++i)
          target[i * target_stride + row] = to_acc(from[i * step]);
      });
}

// target[i * target_stride + row] = source[row * row_stride + i * step], `rows` x `count`.
template <typename T>
NNOPS_INLINE void transpose(acc_t<T>* target, int64_t target_stride, const T* source,
                            int64_t row_stride, int64_t step, int64_t rows, int64_t count) {
  if (row_stride == 1 && step == rows && target_stride == rows) {
    copy_span(target, source, rows * count);
  } else if (row_stride == 1 && rows > 1) {
    for (int64_t i = 0; i < count; ++i) {
      copy_span(target + i * target_stride, source + i * step, rows);
    }
  } else if (count < kPiece<acc_t<T>>) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t row = 0; row < rows; ++row) {
        target[i * target_stride + row] = to_acc(source[row * row_stride + i * step]);
      }
    }
  } else if (step == 1) {
    transpose_blocks<1>(target, target_stride, source, row_stride, 1, rows, count);
  } else if (step == 2) {
    transpose_blocks<2>(target, target_stride, source, row_stride, 2, rows, count);
  } else {
    transpose_blocks<0>(target, target_stride, source, row_stride, step, rows, count);
  }
}

// planes[i * plane_stride + p] = pixels[p * pixel_stride + i] + bias[i], for `count` pixels (at
// least a piece) of `channels`; bias may be null.
template <typename T>
NNOPS_INLINE void write_planes(T* planes, int64_t plane_stride, const acc_t<T>* pixels,
                               int64_t pixel_stride, int64_t count, const T* bias,
                               int64_t channels) {
  using A = acc_t<T>;
  const auto shift = [&](int64_t i) { return bias != nullptr ? to_acc(bias[i]) : A{0}; };
  for_lanes<A>(
      0, count,
      [&](auto lanes, int64_t pixel) {
        constexpr int kCount = lanes.kCount;
        for (int64_t begin = 0; begin < channels; begin += kPiece<A>) {
          const A* from = pixels + pixel * pixel_stride + begin;
          Lanes<A, kCount> columns[kPiece<A>];
          transpose_block<kCount, 1>(columns, from, pixel_stride, 1);
          // Pixels are padded to whole pieces, planes are not.
          for (int k = 0; k < kPiece<A>; ++k) {
            if (begin + k >= channels) break;
            store_lanes<kCount>(planes + (begin + k) * plane_stride + pixel,
                                columns[k] + shift(begin + k));
          }
        }
      },
      [&](int64_t pixel) {
        for (int64_t i = 0; i < channels; ++i) {
          planes[i * plane_stride + pixel] =
              from_acc<T>(pixels[pixel * pixel_stride + i] + shift(i));
        }
      });
}

NNOPS_END_KERNELS
