// conv2d forward and backward_input: vectors along pixels, planes expanded along the kernel's
// width.
//
//   written[row, p] = bias[row] + sum over (channel, kh, kw) of weight[..] * read[channel, p's tap]
//
// Passes. The forward pass is one such sum over a grid of output pixels. backward_input is one for
// each residue of the input position modulo the stride, each over its own subset of the taps
// (tap_axis.h), so that no multiplication by an inserted zero is ever done. They read the same
// planes, which are copied once for all of them, unless the kernel is dilated far beyond the
// stride.
//
// How passes are cut stands in expanded_plan.h, how planes are copied in expand_block.h.
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
// the sums of a strip stay in the cache, [pass][row][pixels of the strip], and get the blocks in
// turn.
// The bias comes last. So a result depends neither on the tile shape, the strips, the batch nor the
// threads, and the error grows with the number of blocks.
//
// Parallel over (images, groups, strips) and, where those are few, over ranges of rows; a thread
// has neighbouring ones, the same at every call: what it wrote before need not come from another
// core. bfloat16 and float16 are converted while the image is copied and accumulate in float.
//
// The layout is that of implicit matrix multiplication: Chetlur et al., cuDNN, arXiv:1410.0759.
#pragma once

#include "cpu/conv2d/expand_block.h"

NNOPS_BEGIN_KERNELS

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

// One block of channels of one pass, for some row tiles of a strip. Runs are what vectors go along
// without a gap.
template <typename A>
struct PlanesBlock {
  const A* planes;
  const A* weights;      // of the first tile
  int64_t tile_weights;  // from a tile to the next
  const int64_t* offsets;
  int64_t depth;
  bool first;
  int64_t tiles;
  int64_t images, runs, run_length;
  bool direct;  // straight to the image
  A* target;    // the sums; or the image's first pixel of the strip
  int64_t target_row, target_run, target_image;
  const A* bias;  // of the first row; or null
};

template <typename A>
void multiply_block(const PlanesBlock<A>& block, const StripPlan<A>& plan) {
  constexpr int64_t kWidth = kLanes<A>;
  const int64_t tile_rows = plan.tile_rows;
  const int64_t run_vectors = divide_up(block.run_length, kWidth);
  const int64_t vectors = block.images * block.runs * run_vectors;
  // Panels of vectors differ by at most one: 2 + 2 rather than 3 + 1.
  const int64_t panels = divide_up(vectors, most_pixel_vectors(tile_rows));
  const int64_t least = vectors / panels;
  const int64_t larger_panels = vectors % panels;
  const auto multiply_least = tile_function<PixelTiles<A>>(tile_rows, least);
  const auto multiply_larger = tile_function<PixelTiles<A>>(tile_rows, least + 1);
  const int64_t piece_depth = piece_length(block.depth);
  // Straight to the image, the last vector of a run is a whole one that overlaps its neighbour.
  const int64_t last_pixel = block.direct ? block.run_length - kWidth : (run_vectors - 1) * kWidth;
  PixelTile<A> tile{};
  tile.sum_stride = block.target_row;
  int64_t image = 0;
  int64_t run = 0;
  int64_t pixel = 0;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const bool is_larger = panel < larger_panels;
    const int64_t count = is_larger ? least + 1 : least;
    const auto multiply = is_larger ? multiply_larger : multiply_least;
    int64_t targets[kMostPixelVectors];
    for (int64_t v = 0; v < count; ++v) {
      tile.planes[v] = block.planes + image * plan.image_size + run * plan.pitch + pixel;
      targets[v] = image * block.target_image + run * block.target_run + pixel;
      if (pixel < last_pixel) {
        pixel = smaller(pixel + kWidth, last_pixel);
        continue;
      }
      pixel = 0;
      if (++run == block.runs) {
        run = 0;
        ++image;
      }
    }
    A* target = block.target;
    const A* weights = block.weights;
    tile.bias = block.bias;
    for (int64_t t = 0; t < block.tiles; ++t) {
      for (int64_t v = 0; v < count; ++v) tile.sums[v] = target + targets[v];
      if (block.direct) {
        // The lines of the next panel.
        for (int64_t r = 0; r < tile_rows; ++r) {
          for (int64_t v = 0; v < count; ++v) {
            __builtin_prefetch(tile.sums[v] + r * tile.sum_stride + count * kWidth, 1, 3);
          }
        }
      }
      for (int64_t begin = 0; begin < block.depth; begin += piece_depth) {
        tile.weights = weights + begin * tile_rows;
        tile.offsets = block.offsets + begin;
        tile.depth = smaller(piece_depth, block.depth - begin);
        tile.first = block.first && begin == 0;
        multiply(tile);
      }
      target += tile_rows * block.target_row;
      weights += block.tile_weights;
      if (tile.bias != nullptr) tile.bias += tile_rows;
    }
  }
}

NNOPS_INLINE int64_t size_in_grid(int64_t begin, int64_t size, const TapAxis& axis) {
  return larger(0, smaller(size, axis.grid - begin));
}

// Adds the bias to the sums of one channel of one image and writes them.
template <typename T>
void write_channel(T* channel, const acc_t<T>* sums, acc_t<T> bias, const StripTask& strip,
                   const StripPass& on, const PixelPass& pass, const StripPlan<acc_t<T>>& plan) {
  const int64_t height = size_in_grid(strip.y0, strip.height, on.y);
  const int64_t width = size_in_grid(strip.x0, strip.width, on.x);
  const int64_t step_h = on.y.out_step * pass.written.h;
  const int64_t step_w = on.x.out_step * pass.written.w;
  T* to = channel + (on.y.out_first + strip.y0 * on.y.out_step) * pass.written.h +
          (on.x.out_first + strip.x0 * on.x.out_step) * pass.written.w;
  if (step_w == 1 && step_h == width && plan.pitch == width) {
    add_to_span(to, sums, bias, height * width);
    return;
  }
  for (int64_t i = 0; i < height; ++i, to += step_h, sums += plan.pitch) {
    if (step_w == 1) {
      add_to_span(to, sums, bias, width);
    } else {
      for (int64_t k = 0; k < width; ++k) to[k * step_w] = from_acc<T>(sums[k] + bias);
    }
  }
}

template <typename T>
void compute_strip(const PassStrip<T>& strip, const PixelPass& pass,
                   const StripPlan<acc_t<T>>& plan, const int64_t* tables, acc_t<T>* buffers) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kLanes<A>;
  constexpr bool kCanBeDirect = std::is_same_v<T, A>;
  const auto* passes = reinterpret_cast<const StripPass*>(tables);
  const int64_t* column_starts = tables + plan.passes_size();
  A* planes = buffers;
  A* staging = planes + plan.planes_size;
  A* transposed = staging + plan.staging_size;
  A* sums = transposed + plan.transposed_size;
  // A run is a row of the image, or several that follow each other there and in the planes; where
  // the sums are kept, all the rows of the planes.
  const bool rows_follow = strip.width == plan.pitch && strip.width == pass.written.h;
  const int64_t image_pixels = strip.height * strip.width;
  const bool may_be_direct =
      kCanBeDirect && plan.writes_direct && (rows_follow ? image_pixels : strip.width) >= kWidth;
  const int64_t padded_pixels = (strip.height - 1) * plan.pitch + strip.width;
  const int64_t image_sums = round_up(padded_pixels, kWidth);
  const int64_t pass_sums = plan.resident_tiles * plan.tile_rows * plan.sum_stride;

  const int64_t first_tile = plan.first_tile(strip.split);
  const int64_t last_tile = plan.first_tile(strip.split + 1);
  for (int64_t pass0 = 0; pass0 < plan.passes; pass0 += plan.resident_passes) {
    const int64_t pass1 = smaller(pass0 + plan.resident_passes, plan.passes);
    for (int64_t tile0 = first_tile; tile0 < last_tile; tile0 += plan.resident_tiles) {
      const int64_t tiles = smaller(plan.resident_tiles, last_tile - tile0);
      const int64_t row0 = tile0 * plan.tile_rows;
      PlanesBlock<A> part{};
      part.planes = planes;
      part.tiles = tiles;
      part.images = strip.images;
      part.direct = may_be_direct && row0 + tiles * plan.tile_rows <= pass.rows;
      part.runs = 1;
      part.run_length = padded_pixels;
      part.target_row = plan.sum_stride;
      part.target_image = image_sums;
      if constexpr (kCanBeDirect) {
        if (part.direct) {
          part.runs = rows_follow ? 1 : strip.height;
          part.run_length = rows_follow ? image_pixels : strip.width;
          part.target =
              strip.written + row0 * pass.written.c + strip.y0 * pass.written.h + strip.x0;
          part.target_row = pass.written.c;
          part.target_run = pass.written.h;
          part.target_image = pass.written.n;
          part.bias = strip.bias != nullptr ? strip.bias + row0 : nullptr;
        }
      }
      for (int64_t block = 0; block < plan.channel_blocks; ++block) {
        const int64_t channel0 = block * plan.block_channels;
        const int64_t channels = smaller(plan.block_channels, pass.outer - channel0);
        if (plan.channel_blocks > 1 || (pass0 == 0 && tile0 == first_tile)) {
          expand_block(planes, staging, transposed, strip, channel0, channels, column_starts, pass,
                       plan);
        }
        part.first = block == 0;
        for (int64_t p = pass0; p < pass1; ++p) {
          const StripPass& on = passes[p];
          const int64_t taps = on.taps();
          part.depth = channels * taps;
          part.offsets = tables + on.offsets;
          if (channels < plan.block_channels) part.offsets += plan.block_channels * taps;
          part.tile_weights = plan.tile_rows * pass.outer * taps;
          part.weights = strip.weights + on.weights + strip.group * on.packed_group +
                         tile0 * part.tile_weights + channel0 * taps * plan.tile_rows;
          if (!part.direct) part.target = sums + (p - pass0) * pass_sums;
          multiply_block(part, plan);
        }
      }
      if (part.direct) continue;
      const int64_t last_row = smaller(row0 + tiles * plan.tile_rows, pass.rows);
      for (int64_t image = 0; image < strip.images; ++image) {
        for (int64_t row = row0; row < last_row; ++row) {
          T* channel = strip.written + image * pass.written.n + row * pass.written.c;
          const A* from = sums + (row - row0) * plan.sum_stride + image * image_sums;
          const A bias = strip.bias != nullptr ? to_acc(strip.bias[row]) : A{0};
          for (int64_t p = pass0; p < pass1; ++p, from += pass_sums) {
            write_channel(channel, from, bias, strip, passes[p], pass, plan);
          }
        }
      }
    }
  }
}

template <typename T>
void run_expanded_planes(T* written, const T* read, const acc_t<T>* packed, const T* bias,
                         const SharingPasses& of, void* workspace, int threads) {
  using A = acc_t<T>;
  const PixelPass& pass = of.joined;
  const StripPlan<A> plan(of, threads);
  int64_t* tables = static_cast<int64_t*>(workspace);
  A* per_thread = reinterpret_cast<A*>(tables + plan.table_size());

  auto* on = reinterpret_cast<StripPass*>(tables);
  int64_t* column_starts = tables + plan.passes_size();
  for (int64_t s = 0; s < plan.x.taps; ++s) {
    column_starts[s] = plan.x.sequence_index(s, plan.width);
  }
  int64_t* offsets = column_starts + plan.x.taps;
  int64_t weights = 0;
  of.for_each([&](const PixelPass& one) {
    // The joined taps that stand for those of this pass.
    const int64_t y0 = (one.y.first - pass.y.first) / pass.y.gap;
    const int64_t x0 = (one.x.first - pass.x.first) / pass.x.gap;
    const int64_t y_step = one.y.gap / pass.y.gap;
    const int64_t x_step = one.x.gap / pass.x.gap;
    const auto place = [&](int64_t r, int64_t s) {
      const int64_t y = y0 + r * y_step;
      const int64_t x = x0 + s * x_step;
      const int64_t copy = plan.expanded ? x : x % plan.x.period;
      const int64_t shift = plan.expanded ? 0 : x / plan.x.period * plan.x.shift;
      return copy * plan.plane_size + plan.y.sequence_index(y, plan.height) * plan.pitch + shift;
    };
    const PackedTiles tiles(one, kLanes<A>);
    const int64_t table = plan.block_channels * tiles.taps;
    *on++ = {one.y, one.x, offsets - tables, weights, tiles.packed_group};
    const int64_t channel_step = plan.channel_size();
    const int64_t last_channels = plan.last_channels(pass);
    fill_offsets(offsets, plan.block_channels, channel_step, one, place);
    if (last_channels < plan.block_channels) {
      fill_offsets(offsets + table, last_channels, channel_step, one, place);
    }
    offsets += 2 * table;
    weights += pass.groups * tiles.packed_group;
  });

  in_parallel(threads, [&] {
    A* buffers = per_thread + thread_index() * plan.thread_size();
    A* staging_end = buffers + plan.planes_size + plan.staging_size;
    write(staging_end - kLanes<A>, Wide<A>{});  // read, but of no influence
#pragma omp for schedule(static)
    for (int64_t i = 0; i < strip_tasks(plan, pass, plan.row_splits); ++i) {
      const StripTask task = strip_task(plan, pass, plan.row_splits, i);
      compute_strip(pass_strip(task, written, read, packed, 0, bias, pass), pass, plan, tables,
                    buffers);
    }
  });
}

template <typename A>
void visit_expanded_planes(const SharingPasses& of, int threads,
                           const Conv2dPhaseVisitor& visitor) {
  const PixelPass& pass = of.joined;
  const StripPlan<A> plan(of, threads);
  const int64_t tasks = strip_tasks(plan, pass, plan.row_splits);
  visit_products(visitor, Schedule::kStatic, tasks, [&](int64_t i) {
    const StripTask task = strip_task(plan, pass, plan.row_splits, i);
    const int64_t rows = plan.split_row(task.split + 1, pass) - plan.split_row(task.split, pass);
    int64_t products = 0;
    of.for_each([&](const PixelPass& one) {
      products += size_in_grid(task.y0, task.height, one.y) *
                  size_in_grid(task.x0, task.width, one.x) * one.y.taps * one.x.taps;
    });
    return task.images * products * rows * pass.outer;
  });
}

// Passes that share their planes, or one that has its own: what ByPasses wants of an algorithm.
struct ExpandedPasses {
  template <typename T>
  static void run(T* written, const T* read, const void* weights, const T* bias,
                  const SharingPasses& of, void* workspace, int threads) {
    run_expanded_planes(written, read, static_cast<const acc_t<T>*>(weights), bias, of, workspace,
                        threads);
  }
  template <typename T>
  static int64_t workspace_bytes(const SharingPasses& of, int threads) {
    return StripPlan<acc_t<T>>(of, threads).workspace_bytes(threads);
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
  static void visit(const SharingPasses& of, int threads, const Conv2dPhaseVisitor& visitor) {
    visit_expanded_planes<acc_t<T>>(of, threads, visitor);
  }
};

struct ExpandedPlanes : ByPasses<ExpandedPasses> {
  template <typename T>
  static void backward_input(void* grad_input, const void* grad_output, const void* weights,
                             const Conv2dGeometry& g, void* workspace, int threads) {
    if (!shares_planes(g)) {
      ByPasses::backward_input<T>(grad_input, grad_output, weights, g, workspace, threads);
      return;
    }
    write_zeros_where_no_tap_reaches(static_cast<T*>(grad_input), g, threads);
    ExpandedPasses::run(static_cast<T*>(grad_input), static_cast<const T*>(grad_output), weights,
                        static_cast<const T*>(nullptr), SharingPasses(g), workspace, threads);
  }
  template <typename T>
  static int64_t backward_input_workspace(const Conv2dGeometry& g, int threads) {
    return shares_planes(g) ? ExpandedPasses::workspace_bytes<T>(SharingPasses(g), threads)
                            : ByPasses::backward_input_workspace<T>(g, threads);
  }
  template <typename T>
  static void backward_input_partition(const Conv2dGeometry& g, int threads,
                                       const Conv2dPhaseVisitor& visitor) {
    if (!shares_planes(g)) {
      ByPasses::backward_input_partition<T>(g, threads, visitor);
      return;
    }
    visit_zeros_where_no_tap_reaches(g, visitor);
    ExpandedPasses::visit<T>(SharingPasses(g), threads, visitor);
  }
};

NNOPS_END_KERNELS
