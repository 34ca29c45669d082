// How expanded_planes.h cuts its passes, and how large its buffers are.
#pragma once

#include "cpu/conv2d/pixel_pass.h"
#include "cpu/conv2d/pixel_tile.h"

NNOPS_BEGIN_KERNELS

// What a strip may have: pixels, and bytes of sums and of planes (together within a core's L2).
constexpr int64_t kResidentRows = 256;
constexpr int64_t kStripPixels = 768;
constexpr int64_t kStripBytes = int64_t{384} << 10;
// Of what a strip reads of kLanes channels, to be transposed.
constexpr int64_t kTransposedBytes = int64_t{256} << 10;

// How the weights of a pass are packed, `lanes` numbers in a cache line. Sizes are in elements.
struct PackedTiles {
  int64_t taps;
  int64_t channel_blocks, block_channels;
  int64_t tile_rows, row_tiles;
  int64_t packed_group;

  PackedTiles(const PixelPass& pass, int64_t lanes) {
    taps = pass.y.taps * pass.x.taps;
    block_channels = chain_channels(pass);
    channel_blocks = divide_up(pass.outer, block_channels);
    row_tiles = divide_up(pass.rows, kTileRows);
    tile_rows = divide_up(pass.rows, row_tiles);
    row_tiles = divide_up(pass.rows, tile_rows);
    packed_group = round_up(row_tiles * tile_rows * pass.outer * taps, lanes);
  }
};

NNOPS_INLINE PixelPass joined_backward_pass(const Conv2dGeometry& g) {
  PixelPass pass = backward_pass(g, 0, 0);
  pass.y = joined_backward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h);
  pass.x = joined_backward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w);
  return pass;
}
// Whether the passes of backward_input share their planes: where the kernel is dilated far beyond
// the stride, most of what stands there would be read by none of them. (The tables of all passes
// are as large as those of so many taps.)
NNOPS_INLINE bool shares_planes(const Conv2dGeometry& g) {
  constexpr int64_t kMostTaps = 1024;
  const PixelPass pass = joined_backward_pass(g);
  return pass.y.taps > 0 && pass.y.taps <= 2 * g.kh && pass.x.taps > 0 && pass.x.taps <= 2 * g.kw &&
         g.kh <= kMostTaps / g.kw;
}

// Passes that read the same planes. Implicitly, a pass that has its planes for itself.
struct SharingPasses {
  PixelPass joined;  // its taps read what theirs do, all together
  int64_t count;
  int64_t products;                   // taps of all passes
  const Conv2dGeometry* g = nullptr;  // of backward_input, whose passes they are all

  SharingPasses(const PixelPass& pass)
      : joined(pass), count(1), products(pass.y.taps * pass.x.taps) {}
  explicit SharingPasses(const Conv2dGeometry& geometry)
      : joined(joined_backward_pass(geometry)), count(0), products(0), g(&geometry) {
    for_each([&](const PixelPass& pass) {
      ++count;
      products += pass.y.taps * pass.x.taps;
    });
  }
  template <typename Body>
  void for_each(Body body) const {
    if (g == nullptr) {
      body(joined);
    } else {
      for_each_backward_pass(*g, body);
    }
  }
};

// What a strip wants to know of a pass.
struct StripPass {
  TapAxis y, x;
  int64_t offsets;                // the place of its tables: for a whole block, and for the last
  int64_t weights, packed_group;  // the place of its weights, and the size of a group's
  int64_t taps() const { return y.taps * x.taps; }
};

// How passes are cut up, and how large their buffers are. Sizes are in elements.
template <typename A>
struct StripPlan : PackedTiles {
  int64_t passes, products;
  int64_t resident_passes;                     // whose sums are kept at a time
  int64_t resident_tiles;                      // row tiles of these
  int64_t height, width, images;               // of a strip, in grid elements
  int64_t vertical, horizontal, image_strips;  // numbers of strips
  int64_t row_splits;
  TapAxis y, x;
  bool expanded;   // a copy for each kernel column
  int64_t copies;  // of a channel's plane
  int64_t pitch;   // of the rows of the planes and of the sums
  int64_t sequence_rows, staging_width;
  int64_t image_size, plane_size, sum_stride;
  bool transposes;          // the read image, before it is copied
  TapAxis held_x;           // `x` with the columns that planes hold and no tap reads
  int64_t read_plane_size;  // of a channel of what is transposed
  int64_t planes_size, staging_size, transposed_size, sums_size;
  // Sums are complete after one chain, and rows are whole vectors or more: they go straight to the
  // image.
  bool writes_direct;

  StripPlan(const SharingPasses& of, int threads) : PackedTiles(of.joined, kLanes<A>) {
    const PixelPass& pass = of.joined;
    passes = of.count;
    products = of.products;
    const int64_t budget = kStripBytes / static_cast<int64_t>(sizeof(A));
    resident_passes = larger(1, smaller(passes, kResidentRows / tile_rows));
    const int64_t resident_rows = resident_passes * tile_rows;
    resident_tiles =
        channel_blocks == 1 ? 1 : smaller(row_tiles, divide_up(kResidentRows, resident_rows));
    const int64_t per_pixel =
        larger(resident_tiles * resident_rows, block_channels * larger(pass.x.taps, 1));
    const int64_t pixels =
        larger(smaller(kStripPixels, budget / per_pixel), kTileVectors * kLanes<A>);
    width = larger(1, pass.x.grid);
    if (width > 2 * pixels) width = divide_up(width, divide_up(width, pixels));
    height = larger(1, smaller(pass.y.grid, pixels / width));
    height = larger(1, divide_up(pass.y.grid, divide_up(pass.y.grid, height)));
    horizontal = divide_up(pass.x.grid, width);
    images = 1;
    if (height >= pass.y.grid && horizontal == 1) {
      const int64_t wanted = divide_up(pass.images * pass.groups, int64_t{4} * threads);
      images = larger(1, smaller(wanted, pixels / round_up(width * height, kLanes<A>)));
    }
    const SharedStrips shared =
        share_strips(pass, {images, height, 1}, width, row_tiles,
                     {divide_up(products, larger(1, taps)), 8 + pass.x.taps}, threads);
    images = shared.images;
    height = shared.height;
    row_splits = shared.splits;
    image_strips = divide_up(pass.images, images);
    vertical = divide_up(pass.y.grid, height);

    y = with_sequences(pass.y, height);
    x = with_sequences(pass.x, width);
    sequence_rows = y.sequence_length(height);
    staging_width = x.sequence_length(width);
    const int64_t chain_terms = block_channels * taps;
    writes_direct = channel_blocks == 1 && piece_length(chain_terms) == chain_terms &&
                    pass.written.w == 1 && pass.x.out_step == 1 && pass.y.out_step == 1;
    const int64_t beyond = x.class_length(0, width) - width;
    const int64_t superfluous =
        writes_direct && width >= kLanes<A> ? round_up(width, kLanes<A>) - width : beyond;
    expanded = pass.rows * products * superfluous > 3 * (pass.x.taps + 1) * width;
    copies = expanded ? pass.x.taps : x.class_count();
    pitch = width + (expanded ? 0 : beyond);
    image_size = sequence_rows * pitch;
    // An odd number of cache lines, so that the planes do not share their sets; the last vector of
    // a plane may reach beyond its end.
    constexpr int64_t kLine = kLanes<A>;
    plane_size = odd_lines<A>(images * image_size + kLine);
    sum_stride = odd_lines<A>(images * round_up(pitch * height, kLine));
    planes_size = block_channels * copies * plane_size;
    staging_size = round_up((expanded ? sequence_rows * staging_width : 0) + kLine, kLine);
    sums_size = resident_passes * resident_tiles * tile_rows * sum_stride;

    held_x = x;
    // All classes are as wide as the first then, the longest.
    if (!expanded) held_x.taps += x.class_count() - 1 - (x.taps - 1) % x.period;
    read_plane_size = odd_lines<A>(most_positions(y, height) * most_positions(held_x, width));
    transposed_size = kLine * read_plane_size;
    transposes = pass.read.c == 1 && pass.read.w > 1 && block_channels >= kPiece<A> &&
                 transposed_size <= kTransposedBytes / static_cast<int64_t>(sizeof(A));
    if (!transposes) transposed_size = 0;
  }

  int64_t channel_size() const { return copies * plane_size; }
  int64_t first_tile(int64_t split) const { return split * row_tiles / row_splits; }
  // The written channels [0, split_row(split)) belong to the splits before this one.
  int64_t split_row(int64_t split, const PixelPass& pass) const {
    return smaller(pass.rows, first_tile(split) * tile_rows);
  }
  // Of the tables, in the workspace: passes, offsets of each, starts of kernel columns.
  int64_t passes_size() const {
    return passes * static_cast<int64_t>(sizeof(StripPass) / sizeof(int64_t));
  }
  int64_t table_size() const {
    return round_up(passes_size() + 2 * block_channels * products + x.taps, 8);
  }
  int64_t last_channels(const PixelPass& pass) const {
    return pass.outer - (channel_blocks - 1) * block_channels;
  }
  int64_t thread_size() const { return planes_size + staging_size + transposed_size + sums_size; }
  int64_t workspace_bytes(int threads) const {
    return table_size() * 8 + threads * thread_size() * static_cast<int64_t>(sizeof(A));
  }
};

NNOPS_END_KERNELS
