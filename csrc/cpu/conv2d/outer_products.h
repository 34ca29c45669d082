// conv2d backward_weight: outer products of pixel-major rows.
//
//   grad_weight[oc, c, kh, kw] = sum over pixels p of grad_output[oc, p] * input[c, p's tap]
//
// The pixels of the batch are cut into blocks of about kBlockPixels: some rows of one image, or
// several small images. For a block both operands are transposed, once, to pixel-major order,
//   gradients[oc tile][pixel][tile row]       rows[row sequence][x][channel]
// with the padding as zeros, and each pixel adds the outer product of a tile of output channels
// and of kTileVectors vectors of columns (taps and channels) to accumulators in registers. A vector
// of columns is 16 consecutive numbers of a pixel's row. There are three layouts of the columns:
//   kSeparate  16 channels under one tap; for many channels
//   kJoined    in a row the kw taps of a pixel stand one behind the other: kw * channels
//              consecutive numbers, so that 3 or 6 channels waste little (dilation 1 only)
//   kUnfolded  the kernel rows are copied beside the channels too: kh * kw * channels in one run
//
// Accumulation: a chain over the pixels of a block; block sums are added up in order within a
// chunk, a fixed share of the blocks; the chunks' sums are added in order at the end. Nothing of
// it depends on the threads, nor on the tile shape.
// Parallel over (chunks, groups, blocks of output channels, blocks of channels). bfloat16 and
// float16 accumulate in float.
#pragma once

#include "cpu/conv2d/pixel_tile.h"
#include "cpu/conv2d/tap_axis.h"
#include "cpu/conv2d/transpose.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kBlockPixels = 128;
// The chunks' sums may take this much memory (one chunk is always there).
constexpr int64_t kChunkBytes = int64_t{8} << 20;
constexpr int64_t kWantedTasks = 32;

// --- micro-kernel -------------------------------------------------------------------------------

template <typename A>
struct OuterTile {
  A* sums;                       // [vectors][tile rows][lanes]
  const A* gradients;            // [pixels][tile rows]
  const A* input[kTileVectors];  // the columns at the first pixel of a row that starts at 0
  const int64_t* row_starts;     // of the rows of pixels, from `input`
  int64_t rows, width;           // of pixels
  int64_t pixel_step;
  bool first;  // write the sums instead of adding to them
};

template <typename A, int kRows, int kVectors>
void multiply_outer_tile(const OuterTile<A>& tile) {
  constexpr int kRegisters = kVectors * kParts;
  Register<A> total[kRows][kRegisters] = {};
  const A* gradients = tile.gradients;
  const int64_t step = tile.pixel_step;
  for (int64_t y = 0; y < tile.rows; ++y) {
    const A* input[kRegisters];
#pragma GCC unroll 6
    for (int v = 0; v < kRegisters; ++v)
      input[v] = tile.input[v / kParts] + v % kParts * kRegisterLanes<A> + tile.row_starts[y];
    for (int64_t x = 0; x < tile.width; ++x, gradients += kRows) {
      Register<A> columns[kRegisters];
#pragma GCC unroll 6
      for (int v = 0; v < kRegisters; ++v) columns[v] = load_register(input[v] + x * step);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
        for (int v = 0; v < kRegisters; ++v) total[r][v] += gradients[r] * columns[v];
      }
    }
  }
  const bool first = tile.first;
#pragma GCC unroll 6
  for (int v = 0; v < kRegisters; ++v) {
    A* sums = tile.sums + v / kParts * kRows * kLanes<A> + v % kParts * kRegisterLanes<A>;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r, sums += kLanes<A>) {
      store_register(sums, first ? total[r][v] : load_register(sums) + total[r][v]);
    }
  }
}

template <typename A>
using OuterTileFunction = void (*)(const OuterTile<A>& tile);

template <typename A, int kRows>
NNOPS_INLINE OuterTileFunction<A> outer_tile_of_rows(int64_t vectors) {
#if defined(__AVX512F__)
  if (vectors == 3) return multiply_outer_tile<A, kRows, 3>;
  if (vectors == 2) return multiply_outer_tile<A, kRows, 2>;
#endif
  return multiply_outer_tile<A, kRows, 1>;
}

// The instance for a tile of `rows` <= kTileRows and `vectors` <= kTileVectors.
template <typename A>
NNOPS_INLINE OuterTileFunction<A> outer_tile_function(int64_t rows, int64_t vectors) {
  switch (rows) {
#if defined(__AVX512F__)
    case 8:
      return outer_tile_of_rows<A, 8>(vectors);
    case 7:
      return outer_tile_of_rows<A, 7>(vectors);
#endif
#if defined(__AVX2__)
    case 6:
      return outer_tile_of_rows<A, 6>(vectors);
    case 5:
      return outer_tile_of_rows<A, 5>(vectors);
    case 4:
      return outer_tile_of_rows<A, 4>(vectors);
    case 3:
      return outer_tile_of_rows<A, 3>(vectors);
#endif
    case 2:
      return outer_tile_of_rows<A, 2>(vectors);
    default:
      return outer_tile_of_rows<A, 1>(vectors);
  }
}

// --- how the work is cut up ---------------------------------------------------------------------

enum class ColumnLayout { kSeparate, kJoined, kUnfolded };

// A column of the products: where it stands in the rows of a pixel, and in the weight.
template <typename A>
struct OuterPlan {
  int64_t group_c, group_oc, taps;
  ColumnLayout layout;
  int64_t channel_block, channel_blocks;  // kSeparate cuts the channels, the others do not
  int64_t block_vectors, vectors;         // of columns: in a whole block of channels, in all
  int64_t tile_rows, row_tiles, tile_block, tile_blocks;
  int64_t height, width, images;               // of a block of pixels
  int64_t vertical, horizontal, image_blocks;  // numbers of blocks
  int64_t chunks;
  TapAxis y, x;
  int64_t row_length, sequence_rows;  // of the rows: pixels, and rows for an image
  int64_t pixel_size;                 // numbers of a pixel
  int64_t pixel_step;                 // from a pixel of the grid to the next, in numbers
  int64_t rows_size, gradients_size, chunk_size;

  OuterPlan(const Conv2dGeometry& g, int threads) {
    constexpr int64_t kLine = kLanes<A>;
    group_c = g.c / g.groups;
    group_oc = g.oc / g.groups;
    taps = g.kh * g.kw;

    const bool joinable =
        g.dilation_w == 1 && g.kw >= g.stride_w && group_c % kLine != 0 && group_c * g.kw <= 1024;
    layout = ColumnLayout::kSeparate;
    vectors = divide_up(group_c, kLine) * taps;
    if (joinable) {
      layout = ColumnLayout::kJoined;
      vectors = g.kh * divide_up(group_c * g.kw, kLine);
      const int64_t unfolded = divide_up(group_c * taps, kLine);
      // A vector saved is a multiplication for each output channel; the price is a copy of each
      // kernel row.
      if ((vectors - unfolded) * group_oc * 2 > 3 * group_c * g.kh * g.stride_w) {
        layout = ColumnLayout::kUnfolded;
        vectors = unfolded;
      }
    }
    channel_block = group_c;
    if (layout == ColumnLayout::kSeparate) {
      channel_block = larger(96, smaller(256, 864 / taps)) / kLine * kLine;
      channel_block = smaller(channel_block, round_up(group_c, kLine));
    }
    channel_blocks = divide_up(group_c, channel_block);
    block_vectors = layout == ColumnLayout::kSeparate ? channel_block / kLine * taps : vectors;

    width = g.ow;
    if (width > 2 * kBlockPixels) width = divide_up(width, divide_up(width, kBlockPixels));
    height = larger(1, smaller(g.oh, kBlockPixels / width));
    height = divide_up(g.oh, divide_up(g.oh, height));
    vertical = divide_up(g.oh, height);
    horizontal = divide_up(g.ow, width);
    images =
        vertical * horizontal > 1 ? 1 : larger(1, smaller(g.n, kBlockPixels / (width * height)));
    image_blocks = divide_up(g.n, images);

    row_tiles = divide_up(group_oc, kTileRows);
    tile_rows = divide_up(group_oc, row_tiles);
    row_tiles = divide_up(group_oc, tile_rows);
    chunk_size = g.groups * row_tiles * vectors * tile_rows * kLine;
    tile_block = smaller(row_tiles, larger(64, smaller(256, 576 / taps)) / tile_rows);
    const int64_t most_chunks =
        larger(1, kChunkBytes / (chunk_size * static_cast<int64_t>(sizeof(A))));
    const int64_t independent = g.groups * divide_up(row_tiles, tile_block) * channel_blocks;
    chunks =
        larger(1, smaller(blocks(), smaller(most_chunks, divide_up(kWantedTasks, independent))));
    while (chunks * independent < int64_t{4} * threads && tile_block > 2) {
      tile_block = divide_up(tile_block, 2);
      if (chunks * g.groups * divide_up(row_tiles, tile_block) * channel_blocks >=
          int64_t{4} * threads) {
        break;
      }
    }
    tile_blocks = divide_up(row_tiles, tile_block);

    y = with_sequences(forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h), height);
    x = with_sequences(forward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w), width);
    sequence_rows = layout == ColumnLayout::kUnfolded ? height : y.sequence_length(height);
    if (layout == ColumnLayout::kSeparate) {
      row_length = x.sequence_length(width);
      // An odd number of cache lines: pixels that follow each other do not share their sets.
      pixel_size = (channel_block / kLine | 1) * kLine;
      pixel_step = pixel_size;
    } else {
      row_length = (width - 1) * g.stride_w + g.kw;
      pixel_size = layout == ColumnLayout::kUnfolded ? group_c * g.kh : group_c;
      pixel_step = g.stride_w * pixel_size;
    }
    rows_size = round_up(images * sequence_rows * row_length * pixel_size + kLine, kLine);
    gradients_size = round_up(tile_block * images * height * width * tile_rows, kLine);
  }

  int64_t blocks() const { return image_blocks * vertical * horizontal; }
  int64_t thread_size() const { return rows_size + gradients_size; }
  // Two numbers for each vector of columns (its place in a pixel's row), and one for each column.
  int64_t table_size() const { return round_up(block_vectors + vectors * kLanes<A>, 8); }
  int64_t workspace_bytes(int threads) const {
    return table_size() * 8 +
           (chunks * chunk_size + threads * thread_size()) * static_cast<int64_t>(sizeof(A));
  }
};

// Where vector v of a block of channels stands, from a pixel's own place in the rows.
template <typename A>
NNOPS_INLINE int64_t vector_place(const OuterPlan<A>& plan, const Conv2dGeometry& g, int64_t v) {
  constexpr int64_t kLine = kLanes<A>;
  if (plan.layout == ColumnLayout::kUnfolded) return v * kLine;
  const int64_t row = plan.row_length * plan.pixel_size;
  if (plan.layout == ColumnLayout::kJoined) {
    const int64_t per_row = plan.vectors / g.kh;
    return plan.y.sequence_index(v / per_row, plan.height) * row + v % per_row * kLine;
  }
  const int64_t tap = v % plan.taps;
  return plan.y.sequence_index(tap / g.kw, plan.height) * row +
         plan.x.sequence_index(tap % g.kw, plan.width) * plan.pixel_size + v / plan.taps * kLine;
}

// The place of a column in the weight of one output channel; -1 for one that pads a vector.
template <typename A>
NNOPS_INLINE int64_t weight_place(const OuterPlan<A>& plan, const Conv2dGeometry& g, int64_t v,
                                  int64_t lane) {
  constexpr int64_t kLine = kLanes<A>;
  int64_t c = 0;
  int64_t kh = 0;
  int64_t kw = 0;
  if (plan.layout == ColumnLayout::kSeparate) {
    // Blocks of channels follow each other, and all but the last are whole.
    c = v / plan.taps * kLine + lane;
    kh = v % plan.taps / g.kw;
    kw = v % g.kw;
  } else if (plan.layout == ColumnLayout::kJoined) {
    const int64_t per_row = plan.vectors / g.kh;
    const int64_t column = v % per_row * kLine + lane;
    c = column % plan.group_c;
    kh = v / per_row;
    kw = column / plan.group_c;
  } else {
    const int64_t column = v * kLine + lane;
    c = column / g.kh % plan.group_c;
    kh = column % g.kh;
    kw = column / (g.kh * plan.group_c);
  }
  if (c >= plan.group_c || kw >= g.kw) return -1;
  return c * g.weight.c + kh * g.weight.h + kw * g.weight.w;
}

// --- transposition ------------------------------------------------------------------------------

// One row of pixels: `source` is the first channel of the image at that row, null for padding.
template <typename T>
NNOPS_INLINE void transpose_row(acc_t<T>* row, const T* source, int64_t channel_stride,
                                int64_t channels, int64_t padded_channels, int64_t x0,
                                const Conv2dGeometry& g, const OuterPlan<acc_t<T>>& plan) {
  const int64_t size = plan.pixel_size;
  if (source == nullptr) {
    for (int64_t i = 0; i < plan.row_length; ++i) {
      for (int64_t c = 0; c < padded_channels; ++c) row[i * size + c] = 0;
    }
    return;
  }
  if (plan.layout != ColumnLayout::kSeparate) {
    transpose_positions(row, size, source, channel_stride, g.input.w, x0 * g.stride_w - g.pad_left,
                        1, plan.row_length, g.w, channels, padded_channels);
    return;
  }
  for (int64_t cls = 0; cls < plan.x.class_count(); ++cls) {
    const int64_t length = plan.x.class_length(cls, plan.width);
    transpose_positions(row, size, source, channel_stride, g.input.w, plan.x.position(cls, x0),
                        plan.x.step, length, g.w, channels, padded_channels);
    row += length * size;
  }
}

// The rows of one image for grid rows y0 .. y0 + plan.height.
template <typename T>
void transpose_image(acc_t<T>* rows, const T* image, int64_t channels, int64_t padded_channels,
                     int64_t y0, int64_t x0, const Conv2dGeometry& g,
                     const OuterPlan<acc_t<T>>& plan) {
  const int64_t row_size = plan.row_length * plan.pixel_size;
  const auto row_of = [&](int64_t h) {
    return h < 0 || h >= g.h ? nullptr : image + h * g.input.h;
  };
  if (plan.layout == ColumnLayout::kUnfolded) {
    for (int64_t y = 0; y < plan.height; ++y, rows += row_size) {
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const T* source = row_of((y0 + y) * g.stride_h - g.pad_top + kh * g.dilation_h);
        for (int64_t c = 0; c < channels; ++c) {
          transpose_row(rows + c * g.kh + kh, source == nullptr ? nullptr : source + c * g.input.c,
                        g.input.c, 1, 1, x0, g, plan);
        }
      }
    }
    return;
  }
  for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
    const int64_t length = plan.y.class_length(cls, plan.height);
    for (int64_t i = 0; i < length; ++i, rows += row_size) {
      transpose_row(rows, row_of(plan.y.position(cls, y0 + i)), g.input.c, channels,
                    padded_channels, x0, g, plan);
    }
  }
}

// --- the pass -----------------------------------------------------------------------------------

// The blocks [first, last) of pixels, for one group, block of output channels and of channels.
template <typename T>
struct OuterTask {
  acc_t<T>* sums;  // [row tile][vector][tile row][lane]
  const T* grad_output;
  const T* input;  // of the group
  int64_t first_block, last_block;
  int64_t first_tile, last_tile, channel0;
};

template <typename T>
void add_outer_products(const OuterTask<T>& task, const Conv2dGeometry& g,
                        const OuterPlan<acc_t<T>>& plan, const int64_t* places, acc_t<T>* buffers) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  A* rows = buffers;
  A* gradients = rows + plan.rows_size;
  const int64_t channels = smaller(plan.channel_block, plan.group_c - task.channel0);
  const bool separate = plan.layout == ColumnLayout::kSeparate;
  const int64_t padded_channels = separate ? round_up(channels, kLine) : channels;
  const int64_t first_vector = task.channel0 / kLine * plan.taps;
  const int64_t vectors = separate ? padded_channels / kLine * plan.taps : plan.vectors;
  const int64_t panels = divide_up(vectors, kTileVectors);
  const int64_t row_size = plan.row_length * plan.pixel_size;
  int64_t row_starts[kBlockPixels];

  for (int64_t block = task.first_block; block < task.last_block; ++block) {
    const int64_t part = block % (plan.vertical * plan.horizontal);
    const int64_t image0 = block / (plan.vertical * plan.horizontal) * plan.images;
    const int64_t images = smaller(plan.images, g.n - image0);
    const int64_t y0 = part / plan.horizontal * plan.height;
    const int64_t x0 = part % plan.horizontal * plan.width;
    const int64_t height = smaller(plan.height, g.oh - y0);
    const int64_t width = smaller(plan.width, g.ow - x0);
    for (int64_t image = 0; image < images; ++image) {
      A* image_rows = rows + image * plan.sequence_rows * row_size;
      transpose_image(image_rows,
                      task.input + (image0 + image) * g.input.n + task.channel0 * g.input.c,
                      channels, padded_channels, y0, x0, g, plan);
      for (int64_t i = 0; i < height; ++i) {
        row_starts[image * height + i] = (image * plan.sequence_rows + i) * row_size;
      }
    }
    // What the last vector of the last pixel reads beyond its row: of no influence.
    store(rows + plan.rows_size - kLine, Vec<A>{});

    const int64_t pixels = images * height * width;
    for (int64_t tile = task.first_tile; tile < task.last_tile; ++tile) {
      A* target = gradients + (tile - task.first_tile) * pixels * plan.tile_rows;
      const int64_t oc = tile * plan.tile_rows;
      const int64_t tile_rows = smaller(plan.tile_rows, plan.group_oc - oc);
      const T* source = task.grad_output + image0 * g.output.n + oc * g.output.c + y0 * g.output.h +
                        x0 * g.output.w;
      for (int64_t image = 0; image < images; ++image, source += g.output.n) {
        const bool packed = g.output.w == 1 && g.output.h == width;
        const int64_t spans = packed ? 1 : height;
        const int64_t length = packed ? height * width : width;
        for (int64_t i = 0; i < spans; ++i, target += length * plan.tile_rows) {
          transpose(target, plan.tile_rows, source + i * g.output.h, g.output.c, g.output.w,
                    tile_rows, length);
          for (int64_t r = tile_rows; r < plan.tile_rows; ++r) {
            for (int64_t k = 0; k < length; ++k) target[k * plan.tile_rows + r] = 0;
          }
        }
      }
    }

    OuterTile<A> tile{};
    tile.row_starts = row_starts;
    tile.rows = images * height;
    tile.width = width;
    tile.pixel_step = plan.pixel_step;
    tile.first = block == task.first_block;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t v0 = panel * vectors / panels;
      const int64_t count = (panel + 1) * vectors / panels - v0;
      const OuterTileFunction<A> multiply = outer_tile_function<A>(plan.tile_rows, count);
      for (int64_t v = 0; v < count; ++v) tile.input[v] = rows + places[v0 + v];
      for (int64_t t = task.first_tile; t < task.last_tile; ++t) {
        tile.gradients = gradients + (t - task.first_tile) * pixels * plan.tile_rows;
        tile.sums = task.sums + (t * plan.vectors + first_vector + v0) * plan.tile_rows * kLine;
        multiply(tile);
      }
    }
  }
}

template <typename T>
void outer_products_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                    const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  const OuterPlan<A> plan(g, threads);
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  int64_t* places = static_cast<int64_t*>(workspace);
  int64_t* weight_places = places + plan.block_vectors;
  A* chunk_sums = reinterpret_cast<A*>(places + plan.table_size());
  A* per_thread = chunk_sums + plan.chunks * plan.chunk_size;
  const int64_t group_size = plan.chunk_size / g.groups;
  for (int64_t v = 0; v < plan.block_vectors; ++v) places[v] = vector_place(plan, g, v);
  for (int64_t i = 0; i < plan.vectors * kLine; ++i) {
    weight_places[i] = weight_place(plan, g, i / kLine, i % kLine);
  }

  const int64_t parts = plan.tile_blocks * plan.channel_blocks;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    A* buffers = per_thread + thread_index() * plan.thread_size();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < plan.chunks * g.groups * parts; ++i) {
      const int64_t chunk = i / parts / g.groups;
      const int64_t group = i / parts % g.groups;
      const int64_t part = i % parts;
      OuterTask<T> task{};
      task.sums = chunk_sums + chunk * plan.chunk_size + group * group_size;
      task.grad_output = gy + group * plan.group_oc * g.output.c;
      task.input = x + group * plan.group_c * g.input.c;
      task.first_block = chunk * plan.blocks() / plan.chunks;
      task.last_block = (chunk + 1) * plan.blocks() / plan.chunks;
      task.first_tile = part / plan.channel_blocks * plan.tile_block;
      task.last_tile = smaller(task.first_tile + plan.tile_block, plan.row_tiles);
      task.channel0 = part % plan.channel_blocks * plan.channel_block;
      add_outer_products(task, g, plan, places, buffers);
    }
    // Into the first chunk's sums, a piece that stays in L1 at a time.
    constexpr int64_t kPiece = 128 * kLine;
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < divide_up(plan.chunk_size, kPiece); ++piece) {
      const int64_t end = smaller((piece + 1) * kPiece, plan.chunk_size);
      for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
        const A* sums = chunk_sums + chunk * plan.chunk_size;
        for (int64_t i = piece * kPiece; i < end; i += kLine) {
          store(chunk_sums + i, load(chunk_sums + i) + load(sums + i));
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t oc = 0; oc < g.oc; ++oc) {
      const int64_t row = oc % plan.group_oc;
      const A* sums = chunk_sums + oc / plan.group_oc * group_size +
                      row / plan.tile_rows * plan.vectors * plan.tile_rows * kLine +
                      row % plan.tile_rows * kLine;
      for (int64_t v = 0; v < plan.vectors; ++v, sums += plan.tile_rows * kLine) {
        for (int64_t lane = 0; lane < kLine; ++lane) {
          const int64_t place = weight_places[v * kLine + lane];
          if (place >= 0) gf[oc * g.weight.n + place] = from_acc<T>(sums[lane]);
        }
      }
    }
  }
}

template <typename T>
int64_t outer_products_workspace(const Conv2dGeometry& g, int threads) {
  return OuterPlan<acc_t<T>>(g, threads).workspace_bytes(threads);
}

NNOPS_END_KERNELS
