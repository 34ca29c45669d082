// The micro-kernel whose vectors run along pixels.
//
//   sums[vector][row] (+)= sum over d < depth of  weights[d][row] * planes[vector][offsets[d] ..]
//
// kRows rows (channels of the written image) times kVectors vectors of pixels are held in
// registers. `planes[v]` points at the first pixel of vector v as the tap of offset 0 sees it;
// offsets[d] leads to the same pixel under tap and channel d. The terms are added in the order of
// d by fused multiply-adds, whatever kRows and kVectors are.
#pragma once

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

// What the ISA computes at a time; a vector of 64 bytes is kParts of them.
constexpr int kParts = 64 / kRegisterBytes;
template <typename A>
struct RegisterOf {
  using type = RawVector<A, kRegisterBytes>;
};
template <typename A>
using Register = typename RegisterOf<A>::type;
template <typename A>
constexpr int64_t kRegisterLanes = kRegisterBytes / sizeof(A);

template <typename A>
NNOPS_INLINE Register<A> load_register(const A* pointer) {
  Register<A> result;
  std::memcpy(&result, pointer, sizeof(result));
  return result;
}
template <typename A>
NNOPS_INLINE void store_register(A* pointer, Register<A> value) {
  std::memcpy(pointer, &value, sizeof(value));
}

// The largest tile that the registers hold: accumulators, one row of vectors and a broadcast.
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
constexpr int kTileVectors = 1;
#else
constexpr int kTileRows = 2;
constexpr int kTileVectors = 1;
#endif

// Tiles of few rows take more vectors of pixels, for as many accumulators.
#if defined(__AVX512F__)
constexpr int kMostPixelVectors = 6;
constexpr int64_t most_pixel_vectors(int64_t rows) { return rows <= 4 ? 6 : rows <= 6 ? 4 : 3; }
#elif defined(__AVX2__)
constexpr int kMostPixelVectors = 2;
constexpr int64_t most_pixel_vectors(int64_t rows) { return rows <= 3 ? 2 : 1; }
#else
constexpr int kMostPixelVectors = 1;
constexpr int64_t most_pixel_vectors(int64_t) { return 1; }
#endif

template <typename A>
struct PixelTile {
  A* sums[kMostPixelVectors];  // the first row's; rows are sum_stride apart
  int64_t sum_stride;
  const A* weights;  // [depth][rows]
  const A* planes[kMostPixelVectors];
  const int64_t* offsets;
  int64_t depth;
  bool first;     // write the sums instead of adding to them
  const A* bias;  // of the rows, added to sums that are written; or null
};

template <typename A, int kRows, int kVectors>
void multiply_pixel_tile(const PixelTile<A>& tile) {
  constexpr int kRegisters = kVectors * kParts;
  Register<A> total[kRows][kRegisters] = {};
  const A* weights = tile.weights;
  const A* planes[kRegisters];
#pragma GCC unroll 6
  for (int v = 0; v < kRegisters; ++v)
    planes[v] = tile.planes[v / kParts] + v % kParts * kRegisterLanes<A>;
  const int64_t* offsets = tile.offsets;
  const int64_t* end = offsets + tile.depth;
  for (; offsets < end; ++offsets, weights += kRows) {
    const int64_t offset = *offsets;
    Register<A> pixels[kRegisters];
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v) pixels[v] = load_register(planes[v] + offset);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
      for (int v = 0; v < kRegisters; ++v) total[r][v] += weights[r] * pixels[v];
    }
  }
  A* sums[kRegisters];
#pragma GCC unroll 6
  for (int v = 0; v < kRegisters; ++v)
    sums[v] = tile.sums[v / kParts] + v % kParts * kRegisterLanes<A>;
  const int64_t sum_stride = tile.sum_stride;
  const A* bias = tile.bias;
  if (!tile.first) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
      for (int v = 0; v < kRegisters; ++v) {
        A* sum = sums[v] + r * sum_stride;
        store_register(sum, load_register(sum) + total[r][v]);
      }
    }
    return;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v) {
      store_register(sums[v] + r * sum_stride,
                     bias != nullptr ? total[r][v] + bias[r] : total[r][v]);
    }
  }
}

// The function of Tiles (PixelTiles, for one) for a tile of kRows rows.
template <typename Tiles, int kRows>
NNOPS_INLINE typename Tiles::Function tile_of_rows(int64_t vectors) {
  if constexpr (most_pixel_vectors(kRows) >= 6) {
    if (vectors == 6) return Tiles::template kFunction<kRows, 6>;
    if (vectors == 5) return Tiles::template kFunction<kRows, 5>;
  }
  if constexpr (most_pixel_vectors(kRows) >= 4) {
    if (vectors == 4) return Tiles::template kFunction<kRows, 4>;
  }
  if constexpr (most_pixel_vectors(kRows) >= 3) {
    if (vectors == 3) return Tiles::template kFunction<kRows, 3>;
  }
  if constexpr (most_pixel_vectors(kRows) >= 2) {
    if (vectors == 2) return Tiles::template kFunction<kRows, 2>;
  }
  return Tiles::template kFunction<kRows, 1>;
}

// The same for `rows` <= kTileRows and `vectors` <= most_pixel_vectors(rows).
template <typename Tiles>
NNOPS_INLINE typename Tiles::Function tile_function(int64_t rows, int64_t vectors) {
  switch (rows) {
#if defined(__AVX512F__)
    case 8:
      return tile_of_rows<Tiles, 8>(vectors);
    case 7:
      return tile_of_rows<Tiles, 7>(vectors);
#endif
#if defined(__AVX2__)
    case 6:
      return tile_of_rows<Tiles, 6>(vectors);
    case 5:
      return tile_of_rows<Tiles, 5>(vectors);
    case 4:
      return tile_of_rows<Tiles, 4>(vectors);
    case 3:
      return tile_of_rows<Tiles, 3>(vectors);
#endif
    case 2:
      return tile_of_rows<Tiles, 2>(vectors);
    default:
      return tile_of_rows<Tiles, 1>(vectors);
  }
}

template <typename A>
struct PixelTiles {
  using Function = void (*)(const PixelTile<A>& tile);
  template <int kRows, int kVectors>
  static constexpr Function kFunction = multiply_pixel_tile<A, kRows, kVectors>;
};

NNOPS_END_KERNELS
