// The micro-kernel of sums of outer products.
//
//   sums[vector][row] (+)= sum over pixels p of  scalars[row][p.scalar] * vectors[vector][p.vector]
//
// kRows rows times kVectors vectors of 16 lanes (double: 8) are held in registers. Each pixel says
// where its scalars stand, and where its vectors, as distances from those of the row or vector, so
// that the one may lie in planes, the other in pixel-major order, padded images in any. The terms
// are added in the order of the pixels by fused multiply-adds, whatever kRows and kVectors are.
#pragma once

#include "cpu/conv2d/factors.h"
#include "cpu/conv2d/pixel_tile.h"

NNOPS_BEGIN_KERNELS

struct OuterPixel {
  int64_t scalar, vector;
};

// F: what is multiplied (factors.h). Of pairs, a pixel is a pair of pixels.
template <typename A, typename F = A>
struct OuterTile {
  A* sums;             // the first vector's first row; its rows follow, a vector each
  int64_t sum_stride;  // from a vector's sums to the next one's
  const F* scalars[kTileRows];
  const F* vectors[kTileVectors];
  const OuterPixel* pixels;
  int64_t count;  // of pixels
  bool first;     // write the sums instead of adding to them
};

template <typename A, typename F, int kRows, int kVectors>
void multiply_outer_tile(const OuterTile<A, F>& tile) {
  constexpr int kRegisters = kVectors * kParts;
  Register<A> total[kRows][kRegisters] = {};
  const F* scalars[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) scalars[r] = tile.scalars[r];
  // x86 has too few registers for all these pointers, and GCC would keep what is left over in
  // vector registers, from where a move costs what a multiplication does; memory is cheaper.
  constexpr bool kMany = kRows + kVectors > 9;
  std::conditional_t<kMany, const F* volatile, const F*> vectors[kVectors];
#pragma GCC unroll 3
  for (int v = 0; v < kVectors; ++v) vectors[v] = tile.vectors[v];
  const OuterPixel* end = tile.pixels + tile.count;
  for (const OuterPixel* pixel = tile.pixels; pixel < end; ++pixel) {
    const int64_t at = pixel->vector;
    Register<F> factors[kRegisters];
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v) {
      factors[v] = load_register(vectors[v / kParts] + at + v % kParts * kRegisterLanes<A>);
    }
    const int64_t scalar_at = pixel->scalar;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F scalar = scalars[r][scalar_at];
#pragma GCC unroll 6
      for (int v = 0; v < kRegisters; ++v) add_products(total[r][v], scalar, factors[v]);
    }
  }
  const bool first = tile.first;
#pragma GCC unroll 6
  for (int v = 0; v < kRegisters; ++v) {
    A* sums = tile.sums + v / kParts * tile.sum_stride + v % kParts * kRegisterLanes<A>;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r, sums += kLanes<A>) {
      store_register(sums, first ? total[r][v] : load_register(sums) + total[r][v]);
    }
  }
}

template <typename A, typename F>
using OuterTileFunction = void (*)(const OuterTile<A, F>& tile);

template <typename A, typename F, int kRows>
NNOPS_INLINE OuterTileFunction<A, F> outer_tile_of_rows(int64_t vectors) {
#if defined(__AVX512F__)
  if (vectors == 3) return multiply_outer_tile<A, F, kRows, 3>;
  if (vectors == 2) return multiply_outer_tile<A, F, kRows, 2>;
#endif
  return multiply_outer_tile<A, F, kRows, 1>;
}

// The instance for a tile of `rows` <= kTileRows and `vectors` <= kTileVectors.
template <typename A, typename F>
NNOPS_INLINE OuterTileFunction<A, F> outer_tile_function(int64_t rows, int64_t vectors) {
  switch (rows) {
#if defined(__AVX512F__)
    case 8:
      return outer_tile_of_rows<A, F, 8>(vectors);
    case 7:
      return outer_tile_of_rows<A, F, 7>(vectors);
#endif
#if defined(__AVX2__)
    case 6:
      return outer_tile_of_rows<A, F, 6>(vectors);
    case 5:
      return outer_tile_of_rows<A, F, 5>(vectors);
    case 4:
      return outer_tile_of_rows<A, F, 4>(vectors);
    case 3:
      return outer_tile_of_rows<A, F, 3>(vectors);
#endif
    case 2:
      return outer_tile_of_rows<A, F, 2>(vectors);
    default:
      return outer_tile_of_rows<A, F, 1>(vectors);
  }
}

NNOPS_END_KERNELS
