// conv2d forward and backward_input by Winograd's minimal filtering: F(m x m, r x r).
//
// The output is cut into tiles of m x m pixels, each of which reads n x n, n = m + r - 1. With the
// transforms of winograd_transforms.h along both axes,
//
//   V[q][tile][c] = B^T d B,    U[q][c][k] = G w G^T,    M[q][tile][k] = sum over c of V U,
//   y = A^T M A        for the n^2 places q of a tile
//
// so that a pixel costs n^2 / m^2 products a channel instead of r^2: 2.25 instead of 9 for
// F(4x4, 3x3). Vectors run along channels in all three steps: tiles of any row or image stand side
// by side, and small maps waste nothing but what their last tiles hang over.
//
// A strip is some rows of tiles of an image, or several small images. Its rows are copied with
// their padding, [row][column][channel], kStagedChannels at a time, and transformed to V, which
// stays in the cache, with M of some panels of the written channels and, a row of tiles at a time,
// the pixels that come of it. The sums over c are cut into chains of at most kWinogradChain terms.
//
// Weights are transformed to U[group][q][panel of channels][c][channel] beforehand or, where few
// pixels would have to pay for that, when a strip comes to a panel's chain of channels, two rows of
// places at a time, which stay in the cache. The bits are the same.
//
// A number that is not finite, or too large to be transformed, spreads over its tile, where a sum
// of products would keep it to the pixels that read it. Such a tile has an output that is not
// finite. The workspace begins with a byte for each image, which is then set: the caller computes
// that image by another algorithm (ops/conv2d.h).
//
// Parallel over strips and, where those are few, ranges of panels.
#pragma once

#include "cpu/conv2d/channel_tile.h"
#include "cpu/conv2d/pixel_pass.h"
#include "cpu/conv2d/pixel_rows.h"
#include "cpu/conv2d/winograd_transforms.h"
#include "cpu/transpose.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kWinogradChain = 128;
constexpr int64_t kStagedChannels = 32;                  // a multiple of all vectors
constexpr int64_t kTransformedBytes = int64_t{4} << 20;  // of V, about
// The same where each strip transforms the weights: the fewer strips, the better.
constexpr int64_t kTransformedBytesInCache = int64_t{6} << 20;
constexpr int64_t kLeastTiles = 32, kMostTiles = 96;   // of a strip
constexpr int64_t kProductBytes = int64_t{320} << 10;  // of M, about
constexpr int64_t kTapChannels = 8;                    // whose taps are put in order together

template <int kOutputSize, int kKernelSize>
struct WinogradForm {
  static constexpr int kOutputs = kOutputSize;                    // m
  static constexpr int kTaps = kKernelSize;                       // r
  static constexpr int kPoints = kOutputSize + kKernelSize - 1;   // n
  static constexpr int64_t kPlaces = int64_t{kPoints} * kPoints;  // n^2
};

// How the weights of a pass are packed. Sizes are in elements.
template <typename A, typename Form>
struct PackedWinograd : ChannelPanels {
  int64_t packed_place, packed_group;

  explicit PackedWinograd(const PixelPass& pass)
      : ChannelPanels(pass.rows, kLanes<A>, kTileVectors) {
    packed_place = odd_lines<A>(vectors * kLanes<A> * pass.outer);
    packed_group = Form::kPlaces * packed_place;
  }
};

template <typename A, typename Form>
struct WinogradPlan : PackedWinograd<A, Form> {
  using PackedWinograd<A, Form>::panels;
  int64_t chain;                               // terms
  PixelPass tiles;                             // the pass with tiles for pixels
  int64_t height, width, images;               // of a strip, in tiles
  int64_t vertical, horizontal, image_strips;  // numbers of strips
  int64_t panel_splits, resident_panels;
  int64_t columns;                              // of pixels that a strip reads
  int64_t staged_pixel, staged_size;            // strides and sizes, in elements
  int64_t transformed_tile, transformed_place;  // of V
  int64_t transformed_size, product_tile, product_place, product_size;  // and M
  int64_t pixels_size;
  // Of a chain of a panel's weights: in order, and transformed, two rows of places.
  int64_t taps_size, weights_place, weights_size;

  WinogradPlan(const PixelPass& pass, int threads) : PackedWinograd<A, Form>(pass) {
    constexpr int64_t kLine = kLanes<A>;
    constexpr int64_t kM = Form::kOutputs;
    constexpr auto kSize = static_cast<int64_t>(sizeof(A));
    chain = divide_up(pass.outer, divide_up(pass.outer, kWinogradChain));
    tiles = pass;
    for (TapAxis* axis : {&tiles.y, &tiles.x}) {
      axis->grid = divide_up(axis->grid, kM);
      axis->step = kM;
      axis->taps = Form::kPoints;
    }
    transformed_tile = odd_lines<A>(pass.outer);
    const bool transforms_in_cache = conv2d_transforms_in_cache(
        pass.images * pass.y.grid * pass.x.grid, pass.groups * pass.rows * pass.outer);
    const int64_t bytes = transforms_in_cache ? kTransformedBytesInCache : kTransformedBytes;
    const int64_t fitting = bytes / (Form::kPlaces * transformed_tile * kSize);
    const int64_t most = smaller(kMostTiles, larger(kLeastTiles, fitting));
    width = smaller(tiles.x.grid, most);
    width = divide_up(tiles.x.grid, divide_up(tiles.x.grid, width));
    horizontal = divide_up(tiles.x.grid, width);
    height = smaller(tiles.y.grid, larger(1, most / width));
    height = divide_up(tiles.y.grid, divide_up(tiles.y.grid, height));
    const bool whole_images = height >= tiles.y.grid && horizontal == 1;
    const SharedStrips shared =
        share_strips(tiles, {whole_images ? larger(1, most / (width * height)) : 1, height, 1},
                     width, panels, {2 * kTileVectors, 16}, threads);
    images = shared.images;
    height = shared.height;
    panel_splits = shared.splits;
    image_strips = divide_up(pass.images, images);
    vertical = divide_up(tiles.y.grid, height);

    columns = width * kM + Form::kTaps - 1;
    staged_pixel = smaller(round_up(pass.outer, kLine), kStagedChannels);
    staged_size = (height * kM + Form::kTaps - 1) * columns * staged_pixel;
    const int64_t strip_tiles = images * height * width;
    transformed_place = odd_lines<A>(strip_tiles * transformed_tile);
    transformed_size = Form::kPlaces * transformed_place;
    const int64_t panel_bytes = Form::kPlaces * strip_tiles * kTileVectors * kLine * kSize;
    resident_panels =
        smaller(divide_up(panels, panel_splits), larger(1, kProductBytes / panel_bytes));
    product_tile = odd_lines<A>(resident_panels * kTileVectors * kLine);
    product_place = odd_lines<A>(strip_tiles * product_tile);
    product_size = Form::kPlaces * product_place;
    pixels_size = kM * width * kM * product_tile;

    const int64_t panel_width = transforms_in_cache ? kTileVectors * kLine : 0;
    taps_size = Form::kTaps * Form::kTaps * round_up(chain, kTapChannels) * panel_width;
    weights_place = odd_lines<A>(chain * panel_width);
    weights_size = transforms_in_cache ? 2 * Form::kPoints * weights_place : 0;
  }

  int64_t first_panel(int64_t split) const { return split * panels / panel_splits; }
  int64_t flags_bytes() const { return round_up(tiles.images, 64); }
  // 0, 1, 2, ..: where the channels of a chain stand.
  int64_t offsets_size() const { return round_up(chain, 8); }
  int64_t thread_size() const {
    return staged_size + transformed_size + product_size + pixels_size + taps_size + weights_size;
  }
  int64_t workspace_bytes(int threads) const {
    return flags_bytes() + offsets_size() * 8 +
           threads * thread_size() * static_cast<int64_t>(sizeof(A));
  }
};

// --- weights ------------------------------------------------------------------------------------

// As many numbers as a register holds in double.
constexpr int kDoubles = kRegisterBytes / int{sizeof(double)};
using Doubles = Lanes<double, kDoubles>;

// By intrinsics for the ISA's registers: GCC 12 would convert halves of them one by one.
NNOPS_INLINE Doubles load_doubles(const float* numbers) {
#if defined(__AVX512F__)
  return Doubles(_mm512_cvtps_pd(_mm256_loadu_ps(numbers)));
#elif defined(__AVX2__)
  return Doubles(_mm256_cvtps_pd(_mm_loadu_ps(numbers)));
#else
  return __builtin_convertvector(load_lanes<kDoubles>(numbers), Doubles);
#endif
}
NNOPS_INLINE void store_doubles(float* numbers, Doubles values) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(numbers, _mm512_cvtpd_ps(__m512d(values)));
#elif defined(__AVX2__)
  _mm_storeu_ps(numbers, _mm256_cvtpd_ps(__m256d(values)));
#else
  store_lanes<kDoubles>(numbers, __builtin_convertvector(values, Lanes<float, kDoubles>));
#endif
}

// What weights are transformed in: in double, and rounded once, where the form is to be as exact as
// a direct sum.
template <typename Form, typename A>
using WeightVector = std::conditional_t<Form::kPoints == 4, Doubles, Register<A>>;
template <typename V, typename A>
NNOPS_INLINE V load_weights(const A* weights) {
  if constexpr (std::is_same_v<V, Doubles>) {
    return load_doubles(weights);
  } else {
    return load_register(weights);
  }
}
NNOPS_INLINE void store_weights(float* weights, Doubles values) { store_doubles(weights, values); }
NNOPS_INLINE void store_weights(float* weights, Register<float> values) {
  store_register(weights, values);
}

// Of channels [c0, c0 + channels) of a panel whose first written channel is `first`, from the
// weights of a group: [kh][channel][kw][written channel].
template <typename T>
void order_taps(acc_t<T>* taps, const T* weight, int64_t first, int64_t width, int64_t c0,
                int64_t channels, const PixelPass& pass) {
  PixelPass block = pass;
  block.outer = channels;
  pack_weight_panel(taps, weight + first * pass.weight_row + c0 * pass.weight_outer,
                    smaller(width, pass.rows - first), width, channels, block);
}

// U of `channels` channels of a panel, whose taps are as order_taps leaves them, at the listed rows
// of places: [row][place of a row][channel][written channel].
template <typename Form, typename A, typename Rows>
NNOPS_INLINE void transform_weights(A* transformed, int64_t place_stride, const A* taps,
                                    int64_t channels, int64_t width, Rows rows) {
  constexpr int kN = Form::kPoints;
  using V = WeightVector<Form, A>;
  const int64_t channel_stride = Form::kTaps * width;
  const int64_t row_stride = channels * channel_stride;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t k = 0; k < width; k += int64_t{sizeof(V) / sizeof(V{}[0])}) {
      const A* corner = taps + c * channel_stride + k;
      A* target = transformed + c * width + k;
      transform_rows<V, Form::kTaps, kN>(
          [=](int r, int s)
              NNOPS_INLINE_LAMBDA { return load_weights<V>(corner + r * row_stride + s * width); },
          NNOPS_TRANSFORM(transform_weight),
          [=](int r, int j, V u)
              NNOPS_INLINE_LAMBDA { store_weights(target + (r * kN + j) * place_stride, u); },
          rows);
    }
  }
}

template <typename Form, typename T>
void pack_winograd_panels(acc_t<T>* packed, const T* weight, const PixelPass& pass, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  // GCC 12 gives up at such an array type in a lambda.
  using Taps = A[Form::kTaps * Form::kTaps * kTapChannels * kTileVectors * kLine];
  const PackedWinograd<A, Form> plan(pass);
  const int64_t blocks = divide_up(pass.outer, kTapChannels);
  const int64_t panels = pass.groups * plan.panels;
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels * blocks; ++i) {
      const int64_t panel = i / blocks % plan.panels;
      const int64_t group = i / blocks / plan.panels;
      const int64_t c0 = i % blocks * kTapChannels;
      const int64_t channels = smaller(kTapChannels, pass.outer - c0);
      const int64_t first = plan.first_vector(panel) * kLine;
      const int64_t width = plan.first_vector(panel + 1) * kLine - first;
      Taps taps;
      order_taps(taps, weight + group * pass.weight_group, first, width, c0, channels, pass);
      transform_weights<Form>(packed + group * plan.packed_group + first * pass.outer + c0 * width,
                              plan.packed_place, taps, channels, width,
                              std::make_integer_sequence<int, Form::kPoints>{});
    }
  });
}

// --- input --------------------------------------------------------------------------------------

// Some rows and columns of an image, from (h0, w0) on, and what of them lies outside of it as
// zeros: [row][column][channel].
template <typename T>
void stage_rows(acc_t<T>* staged, int64_t pixel_size, const T* image, const Strides4& strides,
                int64_t h0, int64_t w0, int64_t rows, int64_t columns, int64_t height,
                int64_t width, int64_t channels) {
  const int64_t padded = round_up(channels, kLanes<acc_t<T>>);
  for (int64_t h = h0; h < h0 + rows; ++h, staged += columns * pixel_size) {
    const bool inside = h >= 0 && h < height;
    transpose_positions(staged, pixel_size, image + (inside ? h * strides.h : 0), strides.c,
                        strides.w, w0, 1, columns, inside ? width : 0, channels, padded);
  }
}

// V of one tile and one register of channels, whose first pixel is `pixels`.
template <typename Form, typename A>
NNOPS_INLINE void transform_tile(A* transformed, int64_t place_stride, const A* pixels,
                                 int64_t row_stride, int64_t pixel_stride) {
  constexpr int kN = Form::kPoints;
  using V = Register<A>;
  // Along the rows first.
  transform_both_axes<V, kN, kN>(
      [=](int x, int y)
          NNOPS_INLINE_LAMBDA { return load_register(pixels + y * row_stride + x * pixel_stride); },
      NNOPS_TRANSFORM(transform_input),
      [=](int x, int y, V t)
          NNOPS_INLINE_LAMBDA { store_register(transformed + (y * kN + x) * place_stride, t); });
}

// V of a strip.
template <typename Form, typename T, typename Weight>
void transform_strip(acc_t<T>* transformed, acc_t<T>* staged, const PassStrip<T, Weight>& strip,
                     const PixelPass& pass, const WinogradPlan<acc_t<T>, Form>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kM = Form::kOutputs;
  for (int64_t channel0 = 0; channel0 < pass.outer; channel0 += plan.staged_pixel) {
    const int64_t channels = smaller(plan.staged_pixel, pass.outer - channel0);
    A* tile = transformed + channel0;
    for (int64_t image = 0; image < strip.images; ++image) {
      stage_rows(
          staged, plan.staged_pixel, strip.read + image * pass.read.n + channel0 * pass.read.c,
          pass.read, pass.y.first + strip.y0 * kM, pass.x.first + strip.x0 * kM,
          strip.height * kM + Form::kTaps - 1, plan.columns, pass.y.limit, pass.x.limit, channels);
      for (int64_t y = 0; y < strip.height; ++y) {
        const A* pixels = staged + y * kM * plan.columns * plan.staged_pixel;
        for (int64_t x = 0; x < strip.width; ++x, tile += plan.transformed_tile) {
          for (int64_t c = 0; c < channels; c += kRegisterLanes<A>) {
            transform_tile<Form>(tile + c, plan.transformed_place, pixels + c,
                                 plan.columns * plan.staged_pixel, plan.staged_pixel);
          }
          pixels += kM * plan.staged_pixel;
        }
      }
    }
  }
}

// --- products -----------------------------------------------------------------------------------

// M of a strip of `tiles` for the panels [panel0, panel1).
template <typename Form, typename A>
void multiply_strip(A* products, const A* transformed, const A* weights, const int64_t* offsets,
                    int64_t tiles, int64_t panel0, int64_t panel1, const PixelPass& pass,
                    const WinogradPlan<A, Form>& plan) {
  constexpr int64_t kLine = kLanes<A>;
  const int64_t vector0 = plan.first_vector(panel0);
  ChannelTile<A> tile{};
  tile.sum_stride = plan.product_tile;
  tile.offsets = offsets;
  for (int64_t place = 0; place < Form::kPlaces; ++place) {
    for (int64_t c0 = 0; c0 < pass.outer; c0 += plan.chain) {
      tile.depth = smaller(plan.chain, pass.outer - c0);
      tile.first = c0 == 0;
      for (int64_t panel = panel0; panel < panel1; ++panel) {
        const int64_t vector = plan.first_vector(panel);
        const int64_t count = plan.first_vector(panel + 1) - vector;
        tile.weights =
            weights + place * plan.packed_place + vector * kLine * pass.outer + c0 * count * kLine;
        tile.sums = products + place * plan.product_place + (vector - vector0) * kLine;
        multiply_pixels(tile, transformed + place * plan.transformed_place + c0,
                        plan.transformed_tile, tiles, count * kParts);
      }
    }
  }
}

// body(rows) for pairs of rows of places whose weights have sums in common.
template <typename Form, typename Body>
NNOPS_INLINE void for_each_pair_of_rows(Body body) {
  constexpr int kN = Form::kPoints;
  body(std::integer_sequence<int, 0, kN - 1>{});
  body(std::integer_sequence<int, 1, 2>{});
  if constexpr (kN == 6) body(std::integer_sequence<int, 3, 4>{});
}

// Where a thread has the weights that it is about to need: in order, and transformed.
template <typename A>
struct WeightsInCache {
  A* taps;
  A* transformed;

  WeightsInCache(A* memory, int64_t taps_size) : taps(memory), transformed(memory + taps_size) {}
};

// As multiply_strip, of the group's weights as the caller has them.
template <typename Form, typename T>
void multiply_strip_in_cache(acc_t<T>* products, const acc_t<T>* transformed, const T* weight,
                             const WeightsInCache<acc_t<T>>& in_cache, const int64_t* offsets,
                             int64_t tiles, int64_t panel0, int64_t panel1, const PixelPass& pass,
                             const WinogradPlan<acc_t<T>, Form>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  constexpr int64_t kTaps = int64_t{Form::kTaps} * Form::kTaps;
  ChannelTile<A> tile{};
  tile.sum_stride = plan.product_tile;
  tile.offsets = offsets;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const int64_t first = plan.first_vector(panel) * kLine;
    const int64_t width = plan.first_vector(panel + 1) * kLine - first;
    A* sums = products + first - plan.first_vector(panel0) * kLine;
    for (int64_t c0 = 0; c0 < pass.outer; c0 += plan.chain) {
      tile.depth = smaller(plan.chain, pass.outer - c0);
      tile.first = c0 == 0;
      const auto for_each_block = [&](auto body) NNOPS_INLINE_LAMBDA {
        for (int64_t c = 0; c < tile.depth; c += kTapChannels) {
          body(c, smaller(kTapChannels, tile.depth - c), in_cache.taps + c * kTaps * width);
        }
      };
      for_each_block([&](int64_t c, int64_t channels, A* taps) {
        order_taps(taps, weight, first, width, c0 + c, channels, pass);
      });
      for_each_pair_of_rows<Form>([&]<int... kRows>(std::integer_sequence<int, kRows...> rows) {
        for_each_block([&](int64_t c, int64_t channels, const A* taps) NNOPS_INLINE_LAMBDA {
          transform_weights<Form>(in_cache.transformed + c * width, plan.weights_place, taps,
                                  channels, width, rows);
        });
        tile.weights = in_cache.transformed;
        for (const int64_t row : {kRows...}) {
          for (int64_t place = row * Form::kPoints; place < (row + 1) * Form::kPoints; ++place) {
            tile.sums = sums + place * plan.product_place;
            multiply_pixels(tile, transformed + place * plan.transformed_place + c0,
                            plan.transformed_tile, tiles, width / kRegisterLanes<A>);
            tile.weights += plan.weights_place;
          }
        }
      });
    }
  }
}

// --- output -------------------------------------------------------------------------------------

// The pixels of one tile and one register of channels. `spread` becomes NaN where one of them is
// not finite: each product is part of one of the four that are looked at.
template <typename Form, typename A>
NNOPS_INLINE void transform_products(A* pixels, int64_t row_stride, int64_t pixel_stride,
                                     const A* products, int64_t place_stride, Register<A>* spread) {
  constexpr int kN = Form::kPoints;
  constexpr int kM = Form::kOutputs;
  using V = Register<A>;
  V corners = {};
  transform_both_axes<V, kN, kM>(
      [=](int i, int j)
          NNOPS_INLINE_LAMBDA { return load_register(products + (i * kN + j) * place_stride); },
      NNOPS_TRANSFORM(transform_output),
      [=, &corners](int i, int j, V y) NNOPS_INLINE_LAMBDA {
        store_register(pixels + i * row_stride + j * pixel_stride, y);
        if (i % (kM - 1) == 0 && j % (kM - 1) == 0) corners += y;
      });
  *spread += corners * A{0};
}

// The sums of `height` rows of pixels plus the bias, for channels [channel0, channel0 + channels).
template <typename T>
void write_winograd_rows(T* corner, const acc_t<T>* pixels, int64_t row_stride,
                         int64_t pixel_stride, int64_t height, int64_t width, const T* bias,
                         int64_t channels, const PixelPass& pass) {
  using A = acc_t<T>;
  for (int64_t i = 0; i < height; ++i, corner += pass.written.h, pixels += row_stride) {
    if (pass.written.c == 1) {
      for (int64_t k = 0; k < width; ++k) {
        T* target = corner + k * pass.written.w;
        const A* sums = pixels + k * pixel_stride;
        if (bias != nullptr) {
          map_wides(
              target, channels, [](Wide<A> sum, Wide<A> shift) { return sum + shift; }, sums, bias);
        } else {
          add_to_span(target, sums, A{0}, channels);
        }
      }
      continue;
    }
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      write_planes(corner + c * pass.written.c, pass.written.c, pixels + c, pixel_stride, width,
                   bias != nullptr ? bias + c : nullptr, smaller(kLanes<A>, channels - c));
    }
  }
}

// The output of a strip for the panels [panel0, panel1); `flags` are those of the strip's images.
template <typename Form, typename T, typename Weight>
void write_strip(const PassStrip<T, Weight>& strip, const acc_t<T>* products, acc_t<T>* pixels,
                 int64_t panel0, int64_t panel1, uint8_t* flags, const PixelPass& pass,
                 const WinogradPlan<acc_t<T>, Form>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kM = Form::kOutputs;
  const int64_t channel0 = plan.first_vector(panel0) * kLanes<A>;
  const int64_t padded = plan.first_vector(panel1) * kLanes<A> - channel0;
  const int64_t channels = smaller(padded, pass.rows - channel0);
  const int64_t row_stride = plan.width * kM * plan.product_tile;
  const A* tile = products;
  for (int64_t image = 0; image < strip.images; ++image) {
    Register<A> spread = {};
    for (int64_t y = 0; y < strip.height; ++y) {
      for (int64_t x = 0; x < strip.width; ++x, tile += plan.product_tile) {
        for (int64_t c = 0; c < channels; c += kRegisterLanes<A>) {
          transform_products<Form>(pixels + x * kM * plan.product_tile + c, row_stride,
                                   plan.product_tile, tile + c, plan.product_place, &spread);
        }
      }
      const int64_t y0 = (strip.y0 + y) * kM;
      const int64_t x0 = strip.x0 * kM;
      write_winograd_rows(strip.written + image * pass.written.n + channel0 * pass.written.c +
                              y0 * pass.written.h + x0 * pass.written.w,
                          pixels, row_stride, plan.product_tile, smaller(kM, pass.y.grid - y0),
                          smaller(strip.width * kM, pass.x.grid - x0),
                          strip.bias != nullptr ? strip.bias + channel0 : nullptr, channels, pass);
    }
    for (int64_t i = 0; i < kRegisterLanes<A>; ++i) {
      if (spread[i] != spread[i]) flags[image] = 1;
    }
  }
}

// --- the pass -----------------------------------------------------------------------------------

// Of packed weights, or of the weight itself.
template <typename Form, bool kPacked, typename T>
void run_winograd(T* written, const T* read, const void* weights, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
  using A = acc_t<T>;
  using Weight = std::conditional_t<kPacked, A, T>;
  const WinogradPlan<A, Form> plan(pass, threads);
  const int64_t weight_group = kPacked ? plan.packed_group : pass.weight_group;
  uint8_t* flags = static_cast<uint8_t*>(workspace);
  int64_t* offsets = reinterpret_cast<int64_t*>(flags + plan.flags_bytes());
  A* per_thread = reinterpret_cast<A*>(offsets + plan.offsets_size());
  std::memset(flags, 0, static_cast<size_t>(pass.images));
  for (int64_t c = 0; c < plan.chain; ++c) offsets[c] = c;

  in_parallel(threads, [&] {
    A* staged = per_thread + thread_index() * plan.thread_size();
    A* transformed = staged + plan.staged_size;
    A* products = transformed + plan.transformed_size;
    A* pixels = products + plan.product_size;
    const WeightsInCache<A> in_cache(pixels + plan.pixels_size, plan.taps_size);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < strip_tasks(plan, plan.tiles, plan.panel_splits); ++i) {
      const StripTask task = strip_task(plan, plan.tiles, plan.panel_splits, i);
      const auto strip = pass_strip(task, written, read, static_cast<const Weight*>(weights),
                                    weight_group, bias, pass);
      transform_strip<Form>(transformed, staged, strip, pass, plan);
      const int64_t last = plan.first_panel(task.split + 1);
      for (int64_t panel = plan.first_panel(task.split); panel < last;) {
        const int64_t next = smaller(panel + plan.resident_panels, last);
        if constexpr (kPacked) {
          multiply_strip<Form>(products, transformed, strip.weights, offsets, task.pixels(), panel,
                               next, pass, plan);
        } else {
          multiply_strip_in_cache<Form>(products, transformed, strip.weights, in_cache, offsets,
                                        task.pixels(), panel, next, pass, plan);
        }
        write_strip<Form>(strip, products, pixels, panel, next, flags + task.image0, pass, plan);
        panel = next;
      }
    }
  });
}

template <typename Form>
struct Winograd {
  template <typename T>
  static void run(T* written, const T* read, const void* weights, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
    run_winograd<Form, true>(written, read, weights, bias, pass, workspace, threads);
  }
  template <typename T>
  static int64_t workspace_bytes(const PixelPass& pass, int threads) {
    return WinogradPlan<acc_t<T>, Form>(pass, threads).workspace_bytes(threads);
  }
  template <typename T>
  static int64_t packed_bytes(const PixelPass& pass) {
    return pass.groups * PackedWinograd<acc_t<T>, Form>(pass).packed_group *
           static_cast<int64_t>(sizeof(acc_t<T>));
  }
  template <typename T>
  static void pack(acc_t<T>* packed, const T* weight, const PixelPass& pass, int threads) {
    pack_winograd_panels<Form>(packed, weight, pass, threads);
  }
  template <typename T>
  static void visit(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
    const WinogradPlan<acc_t<T>, Form> plan(pass, threads);
    const int64_t tasks = strip_tasks(plan, plan.tiles, plan.panel_splits);
    visit_products(visitor, Schedule::kDynamic, tasks, [&](int64_t i) {
      const StripTask task = strip_task(plan, plan.tiles, plan.panel_splits, i);
      const auto channels = [&](int64_t split) {
        return smaller(pass.rows, plan.first_vector(plan.first_panel(split)) * kLanes<acc_t<T>>);
      };
      return task.pixels() * Form::kPlaces * pass.outer *
             (channels(task.split + 1) - channels(task.split));
    });
  }
};

// The same of the weight itself; shares its work and has its workspace alike.
template <typename Form>
struct WinogradInCache {
  template <typename T>
  static void run(T* written, const T* read, const void* weight, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
    run_winograd<Form, false>(written, read, weight, bias, pass, workspace, threads);
  }
  template <typename T>
  static int64_t packed_bytes(const PixelPass&) {
    return 0;
  }
};

NNOPS_END_KERNELS
