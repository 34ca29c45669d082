// The micro-kernel whose vectors run along channels of the written image.
//
//   sums[pixel][register] (+)= sum over d < depth of
//       pixels[pixel][offsets[d]] * weights[d][register]
//
// kRows pixels times kRegisters registers of channels are held at a time. `pixels[p]` points at
// pixel p as the tap of offset 0 sees it. The terms are added in the order of d by fused
// multiply-adds: the same bits as pixel_tile.h.
#pragma once

#include "cpu/conv2d/factors.h"
#include "cpu/conv2d/pixel_tile.h"
#include "cpu/conv2d/tap_axis.h"

NNOPS_BEGIN_KERNELS

constexpr int kTileRegisters = kTileVectors * kParts;

// Channels in vectors of `lanes`, and these in panels of up to `most`, of which each is a tile's:
// about equally wide.
struct ChannelPanels {
  int64_t vectors, panels;

  ChannelPanels(int64_t channels, int64_t lanes, int64_t most)
      : vectors(divide_up(channels, lanes)), panels(divide_up(vectors, most)) {}

  int64_t first_vector(int64_t panel) const { return panel * vectors / panels; }
};

// F: what is multiplied (factors.h); a vector has as many as of A.
template <typename A, typename F = A>
struct ChannelTile {
  A* sums;  // [pixels][sum_stride]
  int64_t sum_stride;
  const F* pixels[kTileRows];
  const F* weights;  // [depth][registers]
  const int64_t* offsets;
  int64_t depth;
  bool first;     // write the sums instead of adding to them
  const A* bias;  // [registers], added last; or null
  // Of factors of several numbers: where the sums go instead, rounded to bfloat16; or null.
  bfloat16* rounded;
  int64_t rounded_stride;
};

template <typename A, typename F, int kRows, int kRegisters>
void multiply_channel_tile(const ChannelTile<A, F>& tile) {
  static_assert(sizeof(F) == sizeof(A));
  constexpr int64_t kWidth = kRegisters * kRegisterLanes<A>;
  Register<A> total[kRows][kRegisters] = {};
  const F* weights = tile.weights;
  const F* pixels[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) pixels[r] = tile.pixels[r];
  const int64_t* offsets = tile.offsets;
  const int64_t* end = offsets + tile.depth;
  for (; offsets < end; ++offsets, weights += kWidth) {
    const int64_t offset = *offsets;
    Register<F> channels[kRegisters];
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v)
      channels[v] = load_register(weights + v * kRegisterLanes<A>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
      for (int v = 0; v < kRegisters; ++v) {
        add_products(total[r][v], pixels[r][offset], channels[v]);
      }
    }
  }
  A* sums = tile.sums;
  const int64_t sum_stride = tile.sum_stride;
  if (!tile.first) {
    const A* before = sums;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r, before += sum_stride) {
#pragma GCC unroll 6
      for (int v = 0; v < kRegisters; ++v)
        total[r][v] = load_register(before + v * kRegisterLanes<A>) + total[r][v];
    }
  }
  if (tile.bias != nullptr) {
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v) {
      const Register<A> bias = load_register(tile.bias + v * kRegisterLanes<A>);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) total[r][v] += bias;
    }
  }
  if constexpr (kFactorNumbers<F> > 1) {
    if (bfloat16* rounded = tile.rounded; rounded != nullptr) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r, rounded += tile.rounded_stride) {
#pragma GCC unroll 6
        for (int v = 0; v < kRegisters; ++v) {
          store_rounded(rounded + v * kRegisterLanes<A>, total[r][v]);
        }
      }
      return;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r, sums += sum_stride) {
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v) store_register(sums + v * kRegisterLanes<A>, total[r][v]);
  }
}

template <typename A, typename F = A>
using ChannelTileFunction = void (*)(const ChannelTile<A, F>& tile);

template <typename A, typename F, int kRows>
NNOPS_INLINE ChannelTileFunction<A, F> channel_tile_of_rows(int64_t registers) {
  if constexpr (kTileRegisters >= 4) {
    if (registers == 4) return multiply_channel_tile<A, F, kRows, 4>;
  }
  if constexpr (kTileRegisters >= 3) {
    if (registers == 3) return multiply_channel_tile<A, F, kRows, 3>;
  }
  if (registers == 2) return multiply_channel_tile<A, F, kRows, 2>;
  return multiply_channel_tile<A, F, kRows, 1>;
}

// The instance for `pixels` <= kTileRows and `registers` <= kTileRegisters.
template <typename A, typename F = A>
NNOPS_INLINE ChannelTileFunction<A, F> channel_tile_function(int64_t pixels, int64_t registers) {
  switch (pixels) {
#if defined(__AVX512F__)
    case 8:
      return channel_tile_of_rows<A, F, 8>(registers);
    case 7:
      return channel_tile_of_rows<A, F, 7>(registers);
#endif
#if defined(__AVX2__)
    case 6:
      return channel_tile_of_rows<A, F, 6>(registers);
    case 5:
      return channel_tile_of_rows<A, F, 5>(registers);
    case 4:
      return channel_tile_of_rows<A, F, 4>(registers);
    case 3:
      return channel_tile_of_rows<A, F, 3>(registers);
#endif
    case 2:
      return channel_tile_of_rows<A, F, 2>(registers);
    default:
      return channel_tile_of_rows<A, F, 1>(registers);
  }
}

// The same for `count` pixels, `step` apart, in tiles that differ by at most one pixel. Of `tile`,
// whose sums are those of the first pixel, `pixels` is left to this function.
template <typename A>
NNOPS_INLINE void multiply_pixels(ChannelTile<A> tile, const A* pixels, int64_t step, int64_t count,
                                  int64_t registers) {
  A* sums = tile.sums;
  const int64_t tiles = divide_up(count, kTileRows);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = i * count / tiles;
    const int64_t size = (i + 1) * count / tiles - first;
    tile.sums = sums + first * tile.sum_stride;
    for (int64_t p = 0; p < size; ++p) tile.pixels[p] = pixels + (first + p) * step;
    channel_tile_function<A>(size, registers)(tile);
  }
}

NNOPS_END_KERNELS
