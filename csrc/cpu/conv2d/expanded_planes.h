// conv2d forward and backward_input: vectors along pixels, planes expanded along the kernel's
// width.
//
//   written[row, p] = bias[row] + sum over (channel, kh, kw) of weight[..] * read[channel, p's tap]
//
// Passes. The forward pass is one such sum over a grid of output pixels. backward_input is one for
// each residue of the input position modulo the stride, each over its own subset of the taps
// (tap_axis.h), so that no multiplication by an inserted zero is ever done.
//
// Layout. The grid is cut into strips: some rows of one image, or several small images. For a
// strip and a block of channels the planes are copied to
//   planes[channel][kw][image][sequence of read rows][strip width]
// with the padding as zeros: one copy for each kernel column, none for the kernel rows, which are
// offsets into the sequence. A vector is then any 16 consecutive pixels of the strip, over row
// ends, under every tap: no pixel is wasted but at an image's end, whatever its width. Where there
// are too few multiplications to pay for these copies (depthwise, few rows) there is one copy for
// each class of kernel columns instead, a few columns wider than the strip, and vectors run over
// the superfluous columns too. Weights are
// packed as [group][row tile][block][kh][channel][kw][tile row].
//
// Blocking. A block of channels has about kChain terms, which pixel_tile.h adds up in registers;
// the sums of a strip stay in the cache, [row][pixels of the strip], and get the blocks in turn.
// The bias comes last. So a result depends neither on the tile shape, the strips, the batch nor the
// threads, and the error grows with the number of blocks.
//
// Parallel over (images, groups, strips) and, where those are few, over ranges of rows.
// bfloat16 and float16 are converted while the planes are copied and accumulate in float.
//
// The layout is that of implicit matrix multiplication: Chetlur et al., cuDNN, arXiv:1410.0759.
#pragma once

#include "cpu/conv2d/pixel_pass.h"
#include "cpu/conv2d/pixel_tile.h"

NNOPS_BEGIN_KERNELS

// What a strip may have: pixels, and bytes of sums and of planes (together within a core's L2).
constexpr int64_t kResidentRows = 256;
constexpr int64_t kStripPixels = 768;
constexpr int64_t kStripBytes = int64_t{384} << 10;

// How many rows ahead of the copying the read image is fetched, unless there are many channels.
constexpr int64_t kPrefetchRows = 8;

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

// How a pass is cut up, and how large its buffers are. Sizes are in elements.
template <typename A>
struct StripPlan : PackedTiles {
  int64_t resident_tiles;                      // row tiles whose sums are kept at a time
  int64_t height, width, images;               // of a strip, in grid elements
  int64_t vertical, horizontal, image_strips;  // numbers of strips
  int64_t row_splits;
  TapAxis y, x;
  bool expanded;   // a copy for each kernel column
  int64_t copies;  // of a channel's plane
  int64_t pitch;   // of the rows of the planes and of the sums
  int64_t sequence_rows, staging_width;
  int64_t image_size, plane_size, sum_stride;
  int64_t planes_size, staging_size, sums_size;
  // Sums are complete after one chain, and rows are whole vectors or more: they go straight to the
  // image.
  bool writes_direct;

  StripPlan(const PixelPass& pass, int threads) : PackedTiles(pass, kLanes<A>) {
    const int64_t budget = kStripBytes / static_cast<int64_t>(sizeof(A));
    resident_tiles =
        channel_blocks == 1 ? 1 : smaller(row_tiles, divide_up(kResidentRows, tile_rows));
    const int64_t per_pixel =
        larger(resident_tiles * tile_rows, block_channels * larger(pass.x.taps, 1));
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
        share_strips(pass, {images, height, 1}, width, row_tiles, {1, 8 + pass.x.taps}, threads);
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
    expanded = pass.rows * taps * superfluous > 3 * (pass.x.taps + 1) * width;
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
    sums_size = resident_tiles * tile_rows * sum_stride;
  }

  int64_t first_tile(int64_t split) const { return split * row_tiles / row_splits; }
  // The written channels [0, split_row(split)) belong to the splits before this one.
  int64_t split_row(int64_t split, const PixelPass& pass) const {
    return smaller(pass.rows, first_tile(split) * tile_rows);
  }
  int64_t table_size() const { return round_up(2 * block_channels * taps + x.taps, 8); }
  int64_t last_channels(const PixelPass& pass) const {
    return pass.outer - (channel_blocks - 1) * block_channels;
  }
  int64_t thread_size() const { return planes_size + staging_size + sums_size; }
  int64_t workspace_bytes(int threads) const {
    return table_size() * 8 + threads * thread_size() * static_cast<int64_t>(sizeof(A));
  }
};

// Weights of one tile of rows, [chain][kh][outer][kw][tile row]; rows beyond the last are zero.
template <typename T>
void pack_weight_tile(acc_t<T>* packed, const T* weight, int64_t first_row, int64_t tile_rows,
                      int64_t chain, const PixelPass& pass) {
  const int64_t rows = smaller(tile_rows, pass.rows - first_row);
  const T* tile = weight + first_row * pass.weight_row;
  for (int64_t c0 = 0; c0 < pass.outer; c0 += chain) {
    const int64_t c1 = smaller(c0 + chain, pass.outer);
    for (int64_t r = 0; r < pass.y.taps; ++r) {
      const T* kernel_row = tile + (pass.y.kernel_first + r * pass.y.kernel_step) * pass.weight_h;
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t s = 0; s < pass.x.taps; ++s, packed += tile_rows) {
          const T* tap = kernel_row + c * pass.weight_outer +
                         (pass.x.kernel_first + s * pass.x.kernel_step) * pass.weight_w;
          for (int64_t i = 0; i < rows; ++i) packed[i] = to_acc(tap[i * pass.weight_row]);
          for (int64_t i = rows; i < tile_rows; ++i) packed[i] = 0;
        }
      }
    }
  }
}

template <typename T>
int64_t packed_tiles_bytes(const PixelPass& pass) {
  using A = acc_t<T>;
  return pass.groups * PackedTiles(pass, kLanes<A>).packed_group * static_cast<int64_t>(sizeof(A));
}

template <typename T>
void pack_tiles(acc_t<T>* packed, const T* weight, const PixelPass& pass, int threads) {
  const PackedTiles plan(pass, kLanes<acc_t<T>>);
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pass.groups * plan.row_tiles; ++i) {
      const int64_t group = i / plan.row_tiles;
      const int64_t tile = i % plan.row_tiles;
      pack_weight_tile(
          packed + group * plan.packed_group + tile * plan.tile_rows * pass.outer * plan.taps,
          weight + group * pass.weight_group, tile * plan.tile_rows, plan.tile_rows,
          plan.block_channels, pass);
    }
  });
}

// Copies one channel of one image to planes[copy][sequence][pitch], and fetches the same rows of
// what stands at `ahead`.
template <typename T>
void expand_channel(acc_t<T>* planes, acc_t<T>* staging, const T* channel, const T* ahead,
                    const int64_t* column_starts, int64_t y0, int64_t x0, const PixelPass& pass,
                    const StripPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  // The classes of kernel columns stand side by side in the staging rows, or in planes of their
  // own.
  A* row = plan.expanded ? staging : planes;
  const int64_t row_step = plan.expanded ? plan.staging_width : plan.pitch;
  for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
    const int64_t length = plan.y.class_length(cls, plan.height);
    for (int64_t i = 0; i < length; ++i, row += row_step) {
      const int64_t h = plan.y.position(cls, y0 + i);
      const bool inside = h >= 0 && h < plan.y.limit;
      A* part = row;
      if (inside && pass.read.w == 1)
        prefetch_span(ahead + h * pass.read.h, plan.x.step * plan.width);
      for (int64_t x_cls = 0; x_cls < plan.x.class_count(); ++x_cls) {
        const int64_t count = plan.expanded ? plan.x.class_length(x_cls, plan.width) : plan.pitch;
        // A row outside of the image is a row without any position inside.
        copy_positions(part, channel + (inside ? h * pass.read.h : 0), pass.read.w,
                       plan.x.position(x_cls, x0), plan.x.step, count, inside ? plan.x.limit : 0);
        part += plan.expanded ? count : plan.plane_size;
      }
    }
  }
  if (!plan.expanded) return;
  const int64_t rows = plan.sequence_rows;
  const int64_t width = plan.width;
  const int64_t staging_width = plan.staging_width;
  for (int64_t s = 0; s < plan.x.taps; ++s) {
    const A* from = staging + column_starts[s];
    A* to = planes + s * plan.plane_size;
    // Whole vectors: what a row gets too much is overwritten by the next.
    for (int64_t i = 0; i < rows; ++i, from += staging_width, to += width) {
      for (int64_t k = 0; k < width; k += kLanes<A>) store(to + k, load(from + k));
    }
  }
}

template <typename T>
void compute_strip(const PassStrip<T>& strip, const PixelPass& pass,
                   const StripPlan<acc_t<T>>& plan, const int64_t* offsets,
                   const int64_t* column_starts, acc_t<T>* buffers) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kLanes<A>;
  constexpr bool kCanBeDirect = std::is_same_v<T, A>;
  A* planes = buffers;
  A* staging = planes + plan.planes_size;
  A* sums = staging + plan.staging_size;
  const int64_t depth = pass.outer * plan.taps;
  // A run is what vectors go along without a gap: straight to the image a row, or several that
  // follow each other there and in the planes; else all the rows of the planes.
  const bool joined = strip.width == plan.pitch && strip.width == pass.written.h;
  const int64_t image_pixels = strip.height * strip.width;
  const bool may_be_direct =
      kCanBeDirect && plan.writes_direct && (joined ? image_pixels : strip.width) >= kWidth;
  const int64_t padded_pixels = (strip.height - 1) * plan.pitch + strip.width;
  const int64_t image_vectors = divide_up(padded_pixels, kWidth);

  const int64_t first_tile = plan.first_tile(strip.split);
  const int64_t last_tile = plan.first_tile(strip.split + 1);
  for (int64_t tile0 = first_tile; tile0 < last_tile; tile0 += plan.resident_tiles) {
    const int64_t tiles = smaller(plan.resident_tiles, last_tile - tile0);
    const bool direct = may_be_direct && (tile0 + tiles) * plan.tile_rows <= pass.rows;
    const int64_t runs = direct && !joined ? strip.height : 1;
    const int64_t run_length = !direct ? padded_pixels : joined ? image_pixels : strip.width;
    const int64_t run_vectors = divide_up(run_length, kWidth);
    const int64_t vectors = strip.images * runs * run_vectors;
    const int64_t panels = divide_up(vectors, most_pixel_vectors(plan.tile_rows));
    for (int64_t block = 0; block < plan.channel_blocks; ++block) {
      const int64_t channel0 = block * plan.block_channels;
      const int64_t channels = smaller(plan.block_channels, pass.outer - channel0);
      if (plan.channel_blocks > 1 || tile0 == first_tile) {
        for (int64_t c = 0; c < channels; ++c) {
          A* channel_planes = planes + c * plan.copies * plan.plane_size;
          for (int64_t image = 0; image < strip.images; ++image) {
            const T* channel = strip.read + image * pass.read.n + (channel0 + c) * pass.read.c;
            const T* ahead = channel + (channels > kFollowedStreams || pass.groups > 1
                                            ? kPrefetchChannels * pass.read.c
                                            : kPrefetchRows * pass.read.h);
            expand_channel(channel_planes + image * plan.image_size, staging, channel, ahead,
                           column_starts, strip.y0, strip.x0, pass, plan);
          }
          for (int64_t s = 0; s < plan.copies; ++s) {
            store(channel_planes + s * plan.plane_size + strip.images * plan.image_size, Vec<A>{});
          }
        }
      }
      const int64_t* block_offsets =
          channels == plan.block_channels ? offsets : offsets + plan.block_channels * plan.taps;
      const int64_t block_depth = channels * plan.taps;
      const int64_t piece_depth = piece_length(block_depth);
      int64_t image = 0;
      int64_t run = 0;
      int64_t run_vector = 0;
      for (int64_t panel = 0; panel < panels; ++panel) {
        // Panels differ by at most one vector: 2 + 2 rather than 3 + 1.
        const int64_t first = panel * vectors / panels;
        const int64_t count = (panel + 1) * vectors / panels - first;
        const auto multiply = tile_function<PixelTiles<A>>(plan.tile_rows, count);
        PixelTile<A> tile{};
        tile.sum_stride = direct ? pass.written.c : plan.sum_stride;
        int64_t targets[kMostPixelVectors];
        for (int64_t v = 0; v < count; ++v) {
          // Straight to the image, the last vector is a whole one that overlaps its neighbour.
          const int64_t pixel =
              direct ? smaller(run_vector * kWidth, run_length - kWidth) : run_vector * kWidth;
          tile.planes[v] = planes + image * plan.image_size + run * plan.pitch + pixel;
          targets[v] =
              direct ? image * pass.written.n + (strip.y0 + run) * pass.written.h + strip.x0 + pixel
                     : (first + v) * kWidth;
          if (++run_vector == run_vectors) {
            run_vector = 0;
            if (++run == runs) {
              run = 0;
              ++image;
            }
          }
        }
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t row = (tile0 + t) * plan.tile_rows;
          A* target = sums + t * plan.tile_rows * plan.sum_stride;
          if constexpr (kCanBeDirect) {
            if (direct) target = strip.written + row * pass.written.c;
            tile.bias = direct && strip.bias != nullptr ? strip.bias + row : nullptr;
          }
          for (int64_t v = 0; v < count; ++v) tile.sums[v] = target + targets[v];
          if (direct) {
            // The lines of the next panel.
            for (int64_t r = 0; r < plan.tile_rows; ++r) {
              for (int64_t v = 0; v < count; ++v) {
                __builtin_prefetch(tile.sums[v] + r * tile.sum_stride + count * kWidth, 1, 3);
              }
            }
          }
          const A* weights = strip.weights + row * depth + channel0 * plan.taps * plan.tile_rows;
          for (int64_t begin = 0; begin < block_depth; begin += piece_depth) {
            tile.weights = weights + begin * plan.tile_rows;
            tile.offsets = block_offsets + begin;
            tile.depth = smaller(piece_depth, block_depth - begin);
            tile.first = block == 0 && begin == 0;
            multiply(tile);
          }
        }
      }
    }
    if (direct) continue;
    const int64_t first_row = tile0 * plan.tile_rows;
    const int64_t last_row = smaller(first_row + tiles * plan.tile_rows, pass.rows);
    for (int64_t image = 0; image < strip.images; ++image) {
      for (int64_t row = first_row; row < last_row; ++row) {
        write_channel(strip.written + image * pass.written.n + row * pass.written.c,
                      sums + (row - first_row) * plan.sum_stride + image * image_vectors * kWidth,
                      strip.bias != nullptr ? to_acc(strip.bias[row]) : A{0}, strip.y0, strip.x0,
                      strip.height, strip.width, pass, plan.pitch);
      }
    }
  }
}

template <typename T>
void run_pixel_pass(T* written, const T* read, const acc_t<T>* packed, const T* bias,
                    const PixelPass& pass, void* workspace, int threads) {
  using A = acc_t<T>;
  const StripPlan<A> plan(pass, threads);
  int64_t* offsets = static_cast<int64_t*>(workspace);
  int64_t* last_offsets = offsets + plan.block_channels * plan.taps;
  int64_t* column_starts = last_offsets + plan.block_channels * plan.taps;
  A* per_thread = reinterpret_cast<A*>(offsets + plan.table_size());

  for (int64_t s = 0; s < plan.x.taps; ++s) {
    column_starts[s] = plan.x.sequence_index(s, plan.width);
  }
  const auto place = [&](int64_t c, int64_t r, int64_t s) {
    const int64_t copy = plan.expanded ? s : s % plan.x.period;
    return (c * plan.copies + copy) * plan.plane_size +
           plan.y.sequence_index(r, plan.height) * plan.pitch +
           (plan.expanded ? 0 : s / plan.x.period * plan.x.shift);
  };
  fill_offsets(offsets, plan.block_channels, pass, place);
  fill_offsets(last_offsets, plan.last_channels(pass), pass, place);

  in_parallel(threads, [&] {
    A* buffers = per_thread + thread_index() * plan.thread_size();
    A* staging_end = buffers + plan.planes_size + plan.staging_size;
    store(staging_end - kLanes<A>, Vec<A>{});  // read, but of no influence
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < strip_tasks(plan, pass, plan.row_splits); ++i) {
      const StripTask task = strip_task(plan, pass, plan.row_splits, i);
      const PassStrip<T> strip =
          pass_strip(task, written, read, packed, plan.packed_group, bias, pass);
      compute_strip(strip, pass, plan, offsets, column_starts, buffers);
    }
  });
}

template <typename A>
void visit_pixel_pass(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
  const StripPlan<A> plan(pass, threads);
  const int64_t tasks = strip_tasks(plan, pass, plan.row_splits);
  visit_products(visitor, Schedule::kDynamic, tasks, [&](int64_t i) {
    const StripTask task = strip_task(plan, pass, plan.row_splits, i);
    const int64_t rows = plan.split_row(task.split + 1, pass) - plan.split_row(task.split, pass);
    return task.pixels() * rows * pass.outer * plan.taps;
  });
}

struct ExpandedPlanes {
  template <typename T>
  static void run(T* written, const T* read, const void* weights, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
    run_pixel_pass(written, read, static_cast<const acc_t<T>*>(weights), bias, pass, workspace,
                   threads);
  }
  template <typename T>
  static int64_t workspace_bytes(const PixelPass& pass, int threads) {
    return StripPlan<acc_t<T>>(pass, threads).workspace_bytes(threads);
  }
  template <typename T>
  static int64_t packed_bytes(const PixelPass& pass) {
    return packed_tiles_bytes<T>(pass);
  }
  template <typename T>
  static void pack(acc_t<T>* packed, const T* weight, const PixelPass& pass, int threads) {
    pack_tiles(packed, weight, pass, threads);
  }
  template <typename T>
  static void visit(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
    visit_pixel_pass<acc_t<T>>(pass, threads, visitor);
  }
};

NNOPS_END_KERNELS
