// conv2d forward and backward_input: vectors along channels of the written image.
//
// The sum and its order are those of pixel_pass.h, and so are the bits.
//
// Layout. The grid is cut into strips: some rows of one image, or several small images. For a strip
// and some outer channels the rows of the read image are copied, with the padding as zeros, in the
// order in which they stand there:
//   rows[outer channel][image][row sequence][column sequence]        planar
//   rows[image][row sequence][column sequence][outer channel]        where channels are neighbours
// A tile of pixels is that many places in it, whatever rows or images they belong to: no pixel is
// wasted, however small the map, and nothing is transposed. Where channels are neighbours and no
// tap reads padding, the image itself serves as the rows. Weights are packed as
//   [group][panel of kTileRegisters registers of channels][chain][kh][outer][kw][channel]
// and one chain of a panel stays in L1 while all the pixels of the strip pass by. The sums of a
// strip, [pixel][channel], stay in L2 and are transposed back on the way out; where the written
// channels are neighbours and fill their vectors, the image itself holds the sums, or, of pairs of
// bfloat16, the last chain's tiles write it.
//
// Parallel over (images, groups, strips) and, where those are few, over ranges of panels.
// bfloat16 and float16 are converted while the rows are copied and accumulate in float; pairs of
// bfloat16 (bfloat16_pairs.h) are copied as they are.
#pragma once

#include "cpu/conv2d/channel_tile.h"
#include "cpu/conv2d/pixel_pass.h"
#include "cpu/transpose.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kRowsPixels = 768;
constexpr int64_t kRowsBytes = int64_t{256} << 10;  // of the sums, and of the rows, of a strip
constexpr int64_t kResidentChannels = 256;          // whose sums are kept at a time
constexpr int64_t kGroupChannels = 64;              // outer channels copied at a time
constexpr int64_t kAlignedWidth = 5;                // from which on tiles are parts of a row

// How the weights of a pass are packed, `lanes` factors (factors.h) in a register, each of some
// outer channels. Sizes are in factors.
struct PackedPanels : ChannelPanels {
  int64_t outer;  // the outer channels
  int64_t taps, depth;
  int64_t chain;  // of the outer channels
  int64_t packed_group;

  PackedPanels(const PixelPass& pass, int64_t lanes, int64_t factor_channels)
      : ChannelPanels(pass.rows, lanes, kTileRegisters) {
    outer = divide_up(pass.outer, factor_channels);
    taps = pass.y.taps * pass.x.taps;
    depth = outer * taps;
    chain = divide_up(chain_channels(pass), factor_channels);
    packed_group = vectors * lanes * depth;
  }
};

// From a pixel to the next one, and to those below it and in the next image.
struct PixelSteps {
  int64_t pixel, row, image;
};

template <typename T, typename F>
struct RowsPlan : PackedPanels {
  using A = acc_t<T>;
  static constexpr int64_t kChannels = kFactorNumbers<F>;
  static constexpr int64_t kVector = kRegisterLanes<A>;
  static constexpr int64_t kPanel = kTileRegisters * kVector;
  // Whether the image may hold the factors themselves.
  static constexpr bool kReadsFactors = sizeof(F) == kChannels * sizeof(T);
  int64_t channels;  // outer ones copied at a time, in factors
  int64_t resident_panels;
  int64_t height, width, images;               // of a strip, in grid elements
  int64_t vertical, horizontal, image_strips;  // numbers of strips
  int64_t panel_splits;
  TapAxis y, x;
  int64_t dense_step;  // from a grid element to the next in a column sequence
  int64_t dense_width;
  int64_t sequence_rows, row_length;
  bool planar;
  // From a place in the rows to the next column, and to where the next row and channel stand.
  int64_t column_step, row_step, channel_step;
  bool reads_in_place, writes_in_place;
  bool rounds_in_tiles;   // the last chain writes the image
  PixelSteps read_steps;  // of grid elements
  int64_t sum_stride;     // from pixel to pixel, unless written in place
  int64_t rows_size, sums_size, planes_size;

  RowsPlan(const PixelPass& pass, int threads) : PackedPanels(pass, kVector, kChannels) {
    constexpr int64_t kLine = kLanes<A>;
    channels = smaller(divide_up(outer, chain), larger(1, kGroupChannels / chain)) * chain;
    resident_panels = smaller(panels, divide_up(kResidentChannels, kPanel));

    const int64_t budget = kRowsBytes / static_cast<int64_t>(sizeof(A));
    const int64_t per_pixel =
        larger(smaller(vectors * kVector, resident_panels * kPanel), channels);
    const int64_t pixels = larger(smaller(kRowsPixels, budget / per_pixel), 4 * kTileRows);
    width = larger(1, pass.x.grid);
    if (width > 2 * pixels) width = divide_up(width, divide_up(width, pixels));
    height = larger(1, smaller(pass.y.grid, pixels / width));
    height = larger(1, divide_up(pass.y.grid, divide_up(pass.y.grid, height)));
    horizontal = divide_up(pass.x.grid, width);
    const bool whole_images = height >= pass.y.grid && horizontal == 1;
    const SharedStrips shared =
        share_strips(pass, {whole_images ? pixels / (width * height) : 1, height, 1}, width, panels,
                     {2 * kTileVectors, 4}, threads);
    images = shared.images;
    height = shared.height;
    panel_splits = shared.splits;
    image_strips = divide_up(pass.images, images);
    vertical = divide_up(pass.y.grid, height);

    y = with_sequences(pass.y, height);
    // Where the taps read every column, the columns stay in their order whatever the stride.
    const bool dense = pass.x.gap == 1 && pass.x.taps >= pass.x.step;
    TapAxis columns = pass.x;
    dense_step = dense ? pass.x.step : 1;
    dense_width = (width - 1) * dense_step + 1;
    if (dense) columns.step = 1;
    x = with_sequences(columns, dense_width);
    sequence_rows = y.sequence_length(height);
    row_length = x.sequence_length(dense_width);
    planar = pass.read.c != 1;
    column_step = planar ? 1 : channels;
    row_step = row_length * column_step;
    read_steps = {dense_step * column_step, row_step, sequence_rows * row_step};
    // An odd number of cache lines: the channels' planes do not share their sets.
    channel_step = planar ? odd_lines<A>(images * read_steps.image) : 1;
    rows_size = planar ? channels * channel_step : round_up(images * read_steps.image, kLine);
    sum_stride = odd_lines<A>(resident_panels * kPanel);
    sums_size = images * height * width * sum_stride;
    planes_size = kLine * plane_stride();

    const bool whole_factors = pass.outer % kChannels == 0 && pass.read.w % kChannels == 0 &&
                               pass.read.h % kChannels == 0 && pass.read.n % kChannels == 0;
    reads_in_place = kReadsFactors && !planar && whole_factors && reads_no_padding(pass.y) &&
                     reads_no_padding(pass.x);
    if (reads_in_place) {
      channels = divide_up(outer, chain) * chain;
      read_steps = {pass.x.step * pass.read.w / kChannels, pass.y.step * pass.read.h / kChannels,
                    pass.read.n / kChannels};
      rows_size = 0;
    }
    constexpr bool kSameType = std::is_same_v<T, A>;
    const PixelSteps steps = written_steps(pass);
    // Tiles that run over the ends of rows and images want their pixels at equal distances.
    const bool even =
        steps.row == width * steps.pixel && (images == 1 || steps.image == height * steps.row);
    const bool writes_vectors =
        pass.written.c == 1 && pass.rows % kVector == 0 && (even || !flat());
    writes_in_place = kSameType && writes_vectors;
    rounds_in_tiles = kChannels > 1 && writes_vectors;
    if (writes_in_place) sums_size = planes_size = 0;
  }

  int64_t first_panel(int64_t split) const { return split * panels / panel_splits; }
  // The written channels [0, split_channel(split)) belong to the splits before this one.
  int64_t split_channel(int64_t split, const PixelPass& pass) const {
    return smaller(pass.rows, first_vector(first_panel(split)) * kVector);
  }
  static PixelSteps written_steps(const PixelPass& pass) {
    return {pass.x.out_step * pass.written.w, pass.y.out_step * pass.written.h, pass.written.n};
  }
  // Whether tiles run over the ends of rows and images: where parts of rows would be too small.
  bool flat() const { return width < kAlignedWidth; }

  // Of the buffer in which the sums of a row are transposed for images that are not packed.
  int64_t plane_stride() const { return odd_lines<A>(width); }
  int64_t table_size() const { return round_up(2 * chain * taps, 8); }
  int64_t thread_size() const { return rows_size + sums_size + planes_size; }
  int64_t workspace_bytes(int threads) const {
    return table_size() * 8 + threads * thread_size() * static_cast<int64_t>(sizeof(A));
  }
};

// Weights of `count` written channels, [chain][kh][outer][kw][width], in factors, `chain` of them
// in a chain; columns beyond `count` are zero.
template <typename F, typename T>
void pack_weight_panel(F* packed, const T* weight, int64_t count, int64_t width, int64_t chain,
                       const PixelPass& pass) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  constexpr int64_t kChannels = kFactorNumbers<F>;
  const int64_t taps = pass.y.taps * pass.x.taps;
  // Every tap of the kernel, one behind the other in memory; perhaps the channels likewise.
  const bool whole =
      pass.weight_h == pass.x.taps * pass.weight_w && pass.weight_w < pass.weight_outer &&
      pass.x.kernel_step * pass.x.kernel_step == 1 &&
      pass.y.kernel_step * pass.y.kernel_step == 1 &&
      smaller(pass.y.kernel_first, pass.y.kernel_first + (pass.y.taps - 1) * pass.y.kernel_step) ==
          0;
  const bool joined = pass.weight_outer == taps * pass.weight_w;
  for (int64_t c0 = 0; c0 < pass.outer; c0 += chain * kChannels) {
    const int64_t channels = smaller(chain * kChannels, pass.outer - c0);
    const int64_t factors = divide_up(channels, kChannels);
    const int64_t terms = channels * taps;
    const T* source = weight + c0 * pass.weight_outer;
    const auto for_each_tap = [&](auto body) {
      for (int64_t r = 0; r < pass.y.taps; ++r) {
        const int64_t kh = pass.y.kernel_first + r * pass.y.kernel_step;
        for (int64_t s = 0; s < pass.x.taps; ++s) {
          body(packed + (r * factors * pass.x.taps + s) * width, kh,
               pass.x.kernel_first + s * pass.x.kernel_step);
        }
      }
    };
    const int64_t factor_step = pass.x.taps * width;
    if (whole && taps > 1 && terms <= kMostTerms) {
      // Transposed in memory's order, and then put into the order of the sum.
      A scratch[kMostTerms * kLine];
      for (int64_t i0 = 0; i0 < count; i0 += kLine) {
        const int64_t lanes = smaller(kLine, count - i0);
        if (lanes < kLine) {
          for (int64_t i = 0; i < terms * kLine; ++i) scratch[i] = 0;
        }
        for (int64_t c = 0; c < (joined ? 1 : channels); ++c) {
          transpose(scratch + c * taps * kLine, kLine,
                    source + i0 * pass.weight_row + c * pass.weight_outer, pass.weight_row,
                    pass.weight_w, lanes, joined ? terms : taps);
        }
        for_each_tap([&](F* target, int64_t kh, int64_t kw) {
          const A* from = scratch + (kh * pass.x.taps + kw) * kLine;
          for (int64_t c = 0; c < channels; c += kChannels, target += factor_step) {
            for (int64_t v = 0; v < lanes; v += kRegisterLanes<A>) {
              store_factors(target + i0 + v, from + c * taps * kLine + v, taps * kLine,
                            channels - c);
            }
          }
        });
      }
    } else {
      for_each_tap([&](F* target, int64_t kh, int64_t kw) {
        transpose_factors(target, factor_step, source + kh * pass.weight_h + kw * pass.weight_w,
                          pass.weight_row, pass.weight_outer, count, width, channels);
      });
    }
    packed += factors * taps * width;
  }
}

template <typename T, typename F>
int64_t packed_panels_bytes(const PixelPass& pass) {
  const PackedPanels plan(pass, kRegisterLanes<acc_t<T>>, kFactorNumbers<F>);
  return pass.groups * plan.packed_group * static_cast<int64_t>(sizeof(F));
}

template <typename F, typename T>
void pack_panels(F* packed, const T* weight, const PixelPass& pass, int threads) {
  constexpr int64_t kVector = kRegisterLanes<acc_t<T>>;
  const PackedPanels plan(pass, kVector, kFactorNumbers<F>);
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pass.groups * plan.panels; ++i) {
      const int64_t group = i / plan.panels;
      const int64_t first = plan.first_vector(i % plan.panels) * kVector;
      const int64_t width = plan.first_vector(i % plan.panels + 1) * kVector - first;
      pack_weight_panel(packed + group * plan.packed_group + first * plan.depth,
                        weight + group * pass.weight_group + first * pass.weight_row,
                        smaller(width, pass.rows - first), width, plan.chain, pass);
    }
  });
}

// One row of one factor, or of all factors where channels are neighbours, of `channels` channels in
// all; outside of the image it is a row without any position inside.
template <typename T, typename F>
NNOPS_INLINE void copy_row(F* row, const T* source, int64_t h, int64_t x0, int64_t channels,
                           const PixelPass& pass, const RowsPlan<T, F>& plan) {
  const bool inside = h >= 0 && h < plan.y.limit;
  const int64_t limit = inside ? plan.x.limit : 0;
  const T* from = source + (inside ? h * pass.read.h : 0);
  for (int64_t cls = 0; cls < plan.x.class_count(); ++cls) {
    const int64_t count = plan.x.class_length(cls, plan.dense_width);
    const int64_t first = plan.x.position(cls, 0) + x0 * pass.x.step;
    if (plan.planar) {
      copy_planar_factors(row, from, pass.read.c, pass.read.w, first, plan.x.step, count, limit,
                          channels);
    } else {
      copy_pixel_factors(row, plan.channels, from, pass.read.w, first, plan.x.step, count, limit,
                         channels);
    }
    row += count * plan.column_step;
  }
}

// The outer channels [channel0, channel0 + channels) of a strip, counted in factors.
template <typename T, typename F>
void gather_rows(F* rows, const PassStrip<T, F>& strip, int64_t channel0, int64_t channels,
                 const PixelPass& pass, const RowsPlan<T, F>& plan) {
  const int64_t together = plan.planar ? 1 : channels;
  for (int64_t c = 0; c < channels; c += together) {
    const int64_t first = (channel0 + c) * plan.kChannels;
    const int64_t numbers = smaller(together * plan.kChannels, pass.outer - first);
    for (int64_t image = 0; image < strip.images; ++image) {
      const T* source = strip.read + image * pass.read.n + first * pass.read.c;
      F* row = rows + c * plan.channel_step + image * plan.read_steps.image;
      for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
        const int64_t length = plan.y.class_length(cls, plan.height);
        for (int64_t i = 0; i < length; ++i, row += plan.row_step) {
          const int64_t h = plan.y.position(cls, strip.y0 + i);
          if (plan.planar && pass.read.w == 1 && h >= 0 && h < plan.y.limit) {
            prefetch_span(source + kPrefetchChannels * pass.read.c + h * pass.read.h,
                          plan.x.step * plan.dense_width);
          }
          copy_row(row, source, h, strip.x0, numbers, pass, plan);
        }
      }
    }
  }
}

// The sums of a strip plus the bias, for the written channels [channel0, channel0 + channels).
template <typename T, typename F>
void write_rows(const PassStrip<T, F>& strip, const acc_t<T>* sums, acc_t<T>* planes,
                int64_t channel0, int64_t channels, const PixelPass& pass,
                const RowsPlan<T, F>& plan) {
  using A = acc_t<T>;
  const int64_t step_h = pass.y.out_step * pass.written.h;
  const int64_t step_w = pass.x.out_step * pass.written.w;
  const bool whole_rows = step_w == 1 && step_h == strip.width;
  const int64_t run = whole_rows ? strip.height * strip.width : strip.width;
  const int64_t runs = whole_rows ? 1 : strip.height;
  for (int64_t image = 0; image < strip.images; ++image) {
    T* corner = strip.written + image * pass.written.n + channel0 * pass.written.c +
                (pass.y.out_first + strip.y0 * pass.y.out_step) * pass.written.h +
                (pass.x.out_first + strip.x0 * pass.x.out_step) * pass.written.w;
    for (int64_t i = 0; i < runs; ++i, corner += step_h, sums += run * plan.sum_stride) {
      for (int64_t c0 = 0; c0 < channels; c0 += kLanes<A>) {
        const int64_t count = smaller(kLanes<A>, channels - c0);
        const T* bias = strip.bias != nullptr ? strip.bias + channel0 + c0 : nullptr;
        T* target = corner + c0 * pass.written.c;
        if (step_w == 1) {
          write_planes(target, pass.written.c, sums + c0, plan.sum_stride, run, bias, count);
          continue;
        }
        transpose(planes, plan.plane_stride(), sums + c0, plan.sum_stride, 1, run, count);
        for (int64_t c = 0; c < count; ++c, target += pass.written.c) {
          const A* plane = planes + c * plan.plane_stride();
          const A shift = bias != nullptr ? to_acc(bias[c]) : A{0};
          for (int64_t k = 0; k < run; ++k) target[k * step_w] = from_acc<T>(plane[k] + shift);
        }
      }
    }
  }
}

// The same where channels stand next to each other: nothing to transpose.
template <typename T, typename F>
void write_rows_channels_last(const PassStrip<T, F>& strip, const acc_t<T>* sums, int64_t channel0,
                              int64_t channels, const PixelPass& pass, const RowsPlan<T, F>& plan) {
  using A = acc_t<T>;
  const T* bias = strip.bias != nullptr ? strip.bias + channel0 : nullptr;
  for (int64_t image = 0; image < strip.images; ++image) {
    for (int64_t y = 0; y < strip.height; ++y) {
      for (int64_t x = 0; x < strip.width; ++x, sums += plan.sum_stride) {
        T* target = strip.written + image * pass.written.n + channel0 +
                    (pass.y.out_first + (strip.y0 + y) * pass.y.out_step) * pass.written.h +
                    (pass.x.out_first + (strip.x0 + x) * pass.x.out_step) * pass.written.w;
        if (bias != nullptr) {
          map_wides(
              target, channels, [](Wide<A> sum, Wide<A> shift) { return sum + shift; }, sums, bias);
        } else {
          add_to_span(target, sums, A{0}, channels);
        }
      }
    }
  }
}

// One chain of one panel, for all pixels of a strip.
template <typename A, typename F>
struct RowsChain {
  A* sums;
  PixelSteps sum_steps;
  const A* bias;      // of the first channel, if it is to be added; or null
  bfloat16* rounded;  // the image, if this is the last chain and writes it; or null
  PixelSteps rounded_steps;
  const F* rows;
  const F* weights;
  const int64_t* offsets;
  int64_t depth;
  int64_t registers;
  bool first;
  // Of a kernel of one tap that reads the image itself, where nobody has read these channels yet:
  // how many numbers of a pixel to ask for, a tile ahead. The pieces are too short, and pixels too
  // many at a time, for the hardware to follow. Else 0.
  int64_t unread;
};

// The terms [begin, end) of the chain, for one tile of pixels, in pieces; goes on to the next tile.
template <typename A, typename F>
NNOPS_INLINE void multiply_terms(ChannelTile<A, F>& tile, int64_t pixels,
                                 const RowsChain<A, F>& chain, int64_t begin, int64_t end) {
  const ChannelTileFunction<A, F> multiply = channel_tile_function<A, F>(pixels, chain.registers);
  const int64_t length = piece_length(chain.depth, kFactorNumbers<F>);
  bfloat16* rounded = tile.rounded;
  for (int64_t piece = 0; piece < chain.depth; piece += length) {
    const int64_t first = smaller(larger(begin, piece), end);
    tile.depth = larger(0, smaller(end, piece + length) - first);
    tile.weights = chain.weights + first * chain.registers * kRegisterLanes<A>;
    tile.offsets = chain.offsets + first;
    tile.first = chain.first && piece == 0;
    const bool last = piece + length >= chain.depth;
    tile.bias = last ? chain.bias : nullptr;
    tile.rounded = last ? rounded : nullptr;
    multiply(tile);
  }
  tile.sums += pixels * tile.sum_stride;
  if (rounded != nullptr) tile.rounded = rounded + pixels * tile.rounded_stride;
}

// Tiles are parts of a row of the grid, and leave out the kernel rows that see only padding.
template <typename T, typename F>
void multiply_by_rows(const RowsChain<acc_t<T>, F>& chain, const PassStrip<T, F>& strip,
                      const PixelPass& pass, const RowsPlan<T, F>& plan) {
  using A = acc_t<T>;
  const TapAxis& axis = pass.y;
  // Tiles differ by at most one pixel.
  const int64_t tiles = divide_up(strip.width, kTileRows);
  const int64_t least = strip.width / tiles;
  const int64_t larger_tiles = strip.width % tiles;
  const int64_t terms_of_row = chain.depth / axis.taps;
  ChannelTile<A, F> tile{};
  tile.sum_stride = chain.sum_steps.pixel;
  tile.rounded_stride = chain.rounded_steps.pixel;
  // The next chain's weights stand behind this one's: fetched a part with each row.
  const int64_t size = chain.depth * chain.registers * kRegisterLanes<A>;
  const int64_t part = divide_up(size, strip.images * strip.height);
  const F* weights_ahead = chain.weights + size;
  for (int64_t image = 0; image < strip.images; ++image) {
    for (int64_t y = 0; y < strip.height; ++y, weights_ahead += part) {
      prefetch_span(weights_ahead, part);
      const int64_t position = (strip.y0 + y) * axis.step + axis.first;
      const int64_t begin = position < 0 ? smaller(axis.taps, divide_up(-position, axis.gap)) : 0;
      const int64_t end = position < axis.limit
                              ? smaller(axis.taps, divide_up(axis.limit - position, axis.gap))
                              : 0;
      const F* pixel = chain.rows + image * plan.read_steps.image + y * plan.read_steps.row;
      tile.sums = chain.sums + image * chain.sum_steps.image + y * chain.sum_steps.row;
      if (chain.rounded != nullptr) {
        tile.rounded =
            chain.rounded + image * chain.rounded_steps.image + y * chain.rounded_steps.row;
      }
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t pixels = t < larger_tiles ? least + 1 : least;
        for (int64_t i = 0; i < pixels; ++i, pixel += plan.read_steps.pixel) tile.pixels[i] = pixel;
        if (chain.unread > 0) {
          for (int64_t i = 0; i < pixels; ++i) {
            prefetch_span(pixel + i * plan.read_steps.pixel, chain.unread);
          }
        }
        if (chain.first && plan.writes_in_place) {
          const A* next = tile.sums + pixels * tile.sum_stride;
          const int64_t width = chain.registers * kRegisterLanes<A>;
          for (int64_t i = 0; i < pixels; ++i, next += tile.sum_stride) {
            for (int64_t c = 0; c < width; c += kLanes<A>) __builtin_prefetch(next + c, 1, 3);
          }
        }
        multiply_terms(tile, pixels, chain, begin * terms_of_row,
                       larger(begin, end) * terms_of_row);
      }
    }
  }
}

// Tiles run over the ends of rows and images.
template <typename T, typename F>
void multiply_flat(const RowsChain<acc_t<T>, F>& chain, const PassStrip<T, F>& strip,
                   const RowsPlan<T, F>& plan) {
  using A = acc_t<T>;
  ChannelTile<A, F> tile{};
  tile.sum_stride = chain.sum_steps.pixel;
  tile.sums = chain.sums;
  tile.rounded = chain.rounded;
  tile.rounded_stride = chain.rounded_steps.pixel;
  int64_t pixels = 0;
  const auto multiply = [&] {
    multiply_terms(tile, pixels, chain, 0, chain.depth);
    pixels = 0;
  };
  for (int64_t image = 0; image < strip.images; ++image) {
    for (int64_t y = 0; y < strip.height; ++y) {
      const F* pixel = chain.rows + image * plan.read_steps.image + y * plan.read_steps.row;
      for (int64_t x = 0; x < strip.width; ++x, pixel += plan.read_steps.pixel) {
        tile.pixels[pixels++] = pixel;
        if (pixels == kTileRows) multiply();
      }
    }
  }
  if (pixels > 0) multiply();
}

template <typename T, typename F>
void compute_rows_strip(const PassStrip<T, F>& strip, const PixelPass& pass,
                        const RowsPlan<T, F>& plan, const int64_t* offsets, acc_t<T>* buffers) {
  using A = acc_t<T>;
  static_assert(sizeof(F) == sizeof(A), "sizes of buffers are in numbers of either");
  constexpr int64_t kVector = RowsPlan<T, F>::kVector;
  F* copied = reinterpret_cast<F*>(buffers);
  const F* rows = copied;
  A* sums = buffers + plan.rows_size;
  A* planes = sums + plan.sums_size;
  PixelSteps sum_steps{plan.sum_stride, strip.width * plan.sum_stride,
                       strip.height * strip.width * plan.sum_stride};
  const A* bias = nullptr;
  const PixelSteps image_steps = plan.written_steps(pass);
  T* image = strip.written + pass.y.out_first * pass.written.h + strip.y0 * image_steps.row +
             pass.x.out_first * pass.written.w + strip.x0 * image_steps.pixel;
  if (plan.reads_in_place) {
    rows = reinterpret_cast<const F*>(strip.read +
                                      (strip.y0 * pass.y.step + pass.y.first) * pass.read.h +
                                      (strip.x0 * pass.x.step + pass.x.first) * pass.read.w);
  }
  if constexpr (std::is_same_v<T, A>) {
    if (plan.writes_in_place) {
      sum_steps = image_steps;
      sums = image;
      bias = strip.bias;
    }
  }

  const int64_t first_panel = plan.first_panel(strip.split);
  const int64_t last_panel = plan.first_panel(strip.split + 1);
  for (int64_t panel0 = first_panel; panel0 < last_panel; panel0 += plan.resident_panels) {
    const int64_t panel1 = smaller(panel0 + plan.resident_panels, last_panel);
    const int64_t vector0 = plan.first_vector(panel0);
    for (int64_t channel0 = 0; channel0 < plan.outer; channel0 += plan.channels) {
      const int64_t channels = smaller(plan.channels, plan.outer - channel0);
      if (!plan.reads_in_place && (plan.channels < plan.outer || panel0 == first_panel)) {
        gather_rows(copied, strip, channel0, channels, pass, plan);
      }
      for (int64_t panel = panel0; panel < panel1; ++panel) {
        const int64_t v0 = plan.first_vector(panel);
        const int64_t count = plan.first_vector(panel + 1) - v0;
        const F* weights =
            strip.weights + v0 * kVector * plan.depth + channel0 * plan.taps * count * kVector;
        for (int64_t c0 = 0; c0 < channels; c0 += plan.chain) {
          const int64_t chain = smaller(plan.chain, channels - c0);
          RowsChain<A, F> part{};
          part.rows = rows + c0 * plan.channel_step;
          part.weights = weights + c0 * plan.taps * count * kVector;
          part.offsets = chain == plan.chain ? offsets : offsets + plan.chain * plan.taps;
          part.depth = chain * plan.taps;
          part.registers = count;
          part.sums = sums + (plan.writes_in_place ? v0 : v0 - vector0) * kVector;
          part.sum_steps = sum_steps;
          part.first = channel0 + c0 == 0;
          if (plan.reads_in_place && plan.taps == 1 && panel == first_panel) part.unread = chain;
          const bool last = channel0 + c0 + chain == plan.outer;
          if (bias != nullptr && last) part.bias = bias + v0 * kVector;
          A widened[RowsPlan<T, F>::kPanel];
          if constexpr (std::is_same_v<T, bfloat16>) {
            if (plan.rounds_in_tiles && last) {
              part.rounded = image + v0 * kVector;
              part.rounded_steps = image_steps;
              if (strip.bias != nullptr) {
                copy_span(widened, strip.bias + v0 * kVector, count * kVector);
                part.bias = widened;
              }
            }
          }
          if (plan.flat()) {
            multiply_flat(part, strip, plan);
          } else {
            multiply_by_rows(part, strip, pass, plan);
          }
        }
      }
    }
    if (plan.writes_in_place || plan.rounds_in_tiles) continue;
    const int64_t first_channel = vector0 * kVector;
    const int64_t channels =
        smaller(plan.first_vector(panel1) * kVector, pass.rows) - first_channel;
    if (pass.written.c == 1) {
      write_rows_channels_last(strip, sums, first_channel, channels, pass, plan);
    } else {
      write_rows(strip, sums, planes, first_channel, channels, pass, plan);
    }
  }
}

template <typename T, typename F>
void run_pixel_rows(T* written, const T* read, const F* packed, const T* bias,
                    const PixelPass& pass, void* workspace, int threads) {
  using A = acc_t<T>;
  const RowsPlan<T, F> plan(pass, threads);
  int64_t* offsets = static_cast<int64_t*>(workspace);
  A* per_thread = reinterpret_cast<A*>(offsets + plan.table_size());
  const auto place = [&](int64_t r, int64_t s) {
    if (plan.reads_in_place) {
      return (r * pass.y.gap * pass.read.h + s * pass.x.gap * pass.read.w) / plan.kChannels;
    }
    return plan.y.sequence_index(r, plan.height) * plan.row_step +
           plan.x.sequence_index(s, plan.dense_width) * plan.column_step;
  };
  fill_offsets(offsets, plan.chain, plan.channel_step, pass, place);
  const int64_t last_chain = plan.outer - (divide_up(plan.outer, plan.chain) - 1) * plan.chain;
  if (last_chain < plan.chain) {
    fill_offsets(offsets + plan.chain * plan.taps, last_chain, plan.channel_step, pass, place);
  }

  in_parallel(threads, [&] {
    A* buffers = per_thread + thread_index() * plan.thread_size();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < strip_tasks(plan, pass, plan.panel_splits); ++i) {
      const StripTask task = strip_task(plan, pass, plan.panel_splits, i);
      const PassStrip<T, F> strip =
          pass_strip(task, written, read, packed, plan.packed_group, bias, pass);
      compute_rows_strip(strip, pass, plan, offsets, buffers);
    }
  });
}

template <typename T, typename F>
void visit_pixel_rows(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
  const RowsPlan<T, F> plan(pass, threads);
  const int64_t tasks = strip_tasks(plan, pass, plan.panel_splits);
  visit_products(visitor, Schedule::kStatic, tasks, [&](int64_t i) {
    const StripTask task = strip_task(plan, pass, plan.panel_splits, i);
    const int64_t rows =
        plan.split_channel(task.split + 1, pass) - plan.split_channel(task.split, pass);
    return task.pixels() * rows * pass.outer * plan.taps;
  });
}

// FactorOf<T>: what is multiplied of images and weights of T.
template <template <typename> class FactorOf>
struct RowsOf {
  template <typename T>
  static void run(T* written, const T* read, const void* weights, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
    run_pixel_rows(written, read, static_cast<const FactorOf<T>*>(weights), bias, pass, workspace,
                   threads);
  }
  template <typename T>
  static int64_t workspace_bytes(const PixelPass& pass, int threads) {
    return RowsPlan<T, FactorOf<T>>(pass, threads).workspace_bytes(threads);
  }
  template <typename T>
  static int64_t packed_bytes(const PixelPass& pass) {
    return packed_panels_bytes<T, FactorOf<T>>(pass);
  }
  template <typename T>
  static void pack(void* packed, const T* weight, const PixelPass& pass, int threads) {
    pack_panels(static_cast<FactorOf<T>*>(packed), weight, pass, threads);
  }
  template <typename T>
  static void visit(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
    visit_pixel_rows<T, FactorOf<T>>(pass, threads, visitor);
  }
};

using PixelRows = RowsOf<acc_t>;

NNOPS_END_KERNELS
