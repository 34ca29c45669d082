// conv2d backward_weight by the transpose of Winograd's F(m x m, r x r).
//
//   dU[q][k][c] = sum over images and tiles of D[q][tile][k] V[q][tile][c]
//   grad_weight = G^T dU G        with D = A g A^T of a tile of m x m gradients, V = B^T d B
//
// with the transforms of winograd_transforms.h and V as in winograd.h: n^2 products for what m^2
// pixels add to r^2 weights.
//
// A block is some channels of the input and some of the output; its dU stays in the cache while
// strips of tiles, some rows of an image or several small images, pass by: their rows are copied
// with padding and transformed, V to [place][panel of channels][tile][channel], D to
// [place][tile][channel], and each place is a product of matrices. The strips of all images are cut
// into parts, as many as give enough tasks; the parts' dU are added in order, so that the cut,
// which depends on the sizes alone, and not the threads, decides about the order of the sum.
//
// Where a weight's gradient is not finite, or a transform was not, the first byte of the workspace
// is set, and the caller computes all of them by another algorithm (ops/conv2d.h).
//
// Parallel over blocks and parts, then over rows of weights.
#pragma once

#include "cpu/conv2d/winograd.h"

NNOPS_BEGIN_KERNELS

// Of the input and of the output, a multiple of all vectors: the more, the fewer blocks transform
// the same channels, unless those blocks would be too few for the threads.
constexpr int64_t kMostBlockChannels = 128, kLeastBlockChannels = 64;
constexpr int64_t kLeastBlocks = 16;
constexpr int64_t kGradientTiles = 64;  // of a strip, about
constexpr int64_t kWeightTasks = 16;    // to which the strips are cut, if there are enough
constexpr int64_t kLeastStrips = 2;     // of a part

// A strip: some rows of tiles of one or more images.
struct WinogradWeightStrip {
  int64_t tiles;
  int64_t row0, rows;
  int64_t image0, images;
};

template <typename A, typename Form>
struct WinogradWeightPlan {
  int64_t images, groups;
  int64_t outer, rows;  // channels of a group, of the input and of the output
  int64_t block_channels;
  int64_t outer_blocks, row_blocks;  // of a group
  int64_t blocks;                    // of all groups
  int64_t tile_rows, tile_columns;   // of an image
  int64_t strip_images;              // of a strip
  int64_t height, vertical;          // of a strip, in tiles, and how many an image has
  int64_t strips;                    // of all images
  int64_t parts;                     // of the strips of all images
  int64_t input_columns, gradient_columns;
  int64_t staged_size;
  int64_t input_place, gradient_tile, gradient_place;
  int64_t sum_row, sum_place, sum_size;  // of a block's dU

  explicit WinogradWeightPlan(const Conv2dGeometry& g) {
    constexpr int64_t kM = Form::kOutputs;
    images = g.n;
    groups = g.groups;
    outer = g.c / g.groups;
    rows = g.oc / g.groups;
    for (const int64_t size : {kMostBlockChannels, kLeastBlockChannels}) {
      block_channels = size;
      outer_blocks = divide_up(outer, size);
      row_blocks = divide_up(rows, size);
      blocks = groups * outer_blocks * row_blocks;
      if (blocks >= kLeastBlocks) break;
    }
    tile_rows = divide_up(g.oh, kM);
    tile_columns = divide_up(g.ow, kM);
    height = smaller(tile_rows, larger(1, kGradientTiles / tile_columns));
    height = divide_up(tile_rows, divide_up(tile_rows, height));
    vertical = divide_up(tile_rows, height);
    strip_images = vertical > 1 ? 1 : larger(1, kGradientTiles / (height * tile_columns));
    strips = divide_up(images, strip_images) * vertical;
    // A power of two: so many threads have the same to do.
    parts = 1;
    while (2 * parts * blocks <= kWeightTasks && 2 * parts * kLeastStrips <= strips) parts *= 2;
    input_columns = tile_columns * kM + Form::kTaps - 1;
    gradient_columns = tile_columns * kM;
    const int64_t width = smaller(block_channels, round_up(outer, kLanes<A>));
    const int64_t tiles = strip_images * height * tile_columns;
    // A part of a block's channels at a time.
    staged_size = (height * kM + Form::kTaps - 1) * input_columns * kStagedChannels;
    input_place = odd_lines<A>(tiles * width);
    gradient_tile = odd_lines<A>(smaller(block_channels, rows));
    gradient_place = odd_lines<A>(tiles * gradient_tile);
    sum_row = odd_lines<A>(width);
    sum_place = smaller(block_channels, rows) * sum_row;
    sum_size = Form::kPlaces * sum_place;
  }

  int64_t tasks() const { return blocks * parts; }
  int64_t first_strip(int64_t part) const { return part * strips / parts; }
  WinogradWeightStrip strip(int64_t index) const {
    WinogradWeightStrip result{};
    result.row0 = index % vertical * height;
    result.rows = smaller(height, tile_rows - result.row0);
    result.image0 = index / vertical * strip_images;
    result.images = smaller(strip_images, images - result.image0);
    result.tiles = result.images * result.rows * tile_columns;
    return result;
  }
  int64_t offsets_size() const { return round_up(strip_images * height * tile_columns, 8); }
  int64_t thread_size() const {
    return staged_size + Form::kPlaces * (input_place + gradient_place);
  }
  int64_t workspace_bytes(int threads) const {
    return 64 + offsets_size() * 8 +
           (tasks() * sum_size + threads * thread_size()) * static_cast<int64_t>(sizeof(A));
  }
};

// A block: channels of a group, of the input and of the output.
struct WinogradWeightBlock {
  int64_t group;
  int64_t channel0, channels;
  int64_t row0, rows;
};
template <typename Plan>
NNOPS_INLINE WinogradWeightBlock weight_block(const Plan& plan, int64_t index) {
  WinogradWeightBlock block{};
  block.channel0 = index % plan.outer_blocks * plan.block_channels;
  block.channels = smaller(plan.block_channels, plan.outer - block.channel0);
  index /= plan.outer_blocks;
  block.row0 = index % plan.row_blocks * plan.block_channels;
  block.rows = smaller(plan.block_channels, plan.rows - block.row0);
  block.group = index / plan.row_blocks;
  return block;
}

// D of one tile and one register of channels.
template <typename Form, typename A>
NNOPS_INLINE void transform_gradient_tile(A* transformed, int64_t place_stride, const A* pixels,
                                          int64_t row_stride, int64_t pixel_stride) {
  constexpr int kN = Form::kPoints;
  using V = Register<A>;
  // Along the rows first.
  transform_both_axes<V, Form::kOutputs, kN>(
      [=](int x, int y)
          NNOPS_INLINE_LAMBDA { return load_register(pixels + y * row_stride + x * pixel_stride); },
      NNOPS_TRANSFORM(transform_gradient),
      [=](int x, int y, V t)
          NNOPS_INLINE_LAMBDA { store_register(transformed + (y * kN + x) * place_stride, t); });
}

// V and D of an image of a strip, whose tiles stand from tile0 on; `x` and `gy` are the image's
// first channel of the block.
template <typename Form, typename T>
void transform_weight_rows(acc_t<T>* inputs, acc_t<T>* gradients, acc_t<T>* staged, const T* x,
                           const T* gy, const WinogradWeightStrip& strip, int64_t tile0,
                           const WinogradWeightBlock& block, const Conv2dGeometry& g,
                           const WinogradWeightPlan<acc_t<T>, Form>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kM = Form::kOutputs;
  constexpr int64_t kLine = kLanes<A>;
  const ChannelPanels panels(block.channels, kLine, kTileVectors);
  for (int64_t c0 = 0; c0 < block.channels; c0 += kStagedChannels) {
    const int64_t channels = smaller(kStagedChannels, block.channels - c0);
    stage_rows(staged, kStagedChannels, x + c0 * g.input.c, g.input, strip.row0 * kM - g.pad_top,
               -g.pad_left, strip.rows * kM + Form::kTaps - 1, plan.input_columns, g.h, g.w,
               channels);
    for (int64_t panel = 0; panel < panels.panels; ++panel) {
      const int64_t first = panels.first_vector(panel) * kLine;
      const int64_t width = panels.first_vector(panel + 1) * kLine - first;
      const int64_t begin = larger(first, c0);
      const int64_t end = smaller(first + width, c0 + round_up(channels, kLine));
      for (int64_t c = begin; c < end; c += kRegisterLanes<A>) {
        A* tile = inputs + first * strip.tiles + tile0 * width + c - first;
        for (int64_t y = 0; y < strip.rows; ++y) {
          const A* pixels = staged + y * kM * plan.input_columns * kStagedChannels + c - c0;
          for (int64_t i = 0; i < plan.tile_columns; ++i, tile += width) {
            transform_tile<Form>(tile, plan.input_place, pixels + i * kM * kStagedChannels,
                                 plan.input_columns * kStagedChannels, kStagedChannels);
          }
        }
      }
    }
  }
  for (int64_t k0 = 0; k0 < block.rows; k0 += kStagedChannels) {
    const int64_t channels = smaller(kStagedChannels, block.rows - k0);
    stage_rows(staged, kStagedChannels, gy + k0 * g.output.c, g.output, strip.row0 * kM, 0,
               strip.rows * kM, plan.gradient_columns, g.oh, g.ow, channels);
    for (int64_t y = 0; y < strip.rows; ++y) {
      for (int64_t i = 0; i < plan.tile_columns; ++i) {
        A* tile = gradients + (tile0 + y * plan.tile_columns + i) * plan.gradient_tile + k0;
        const A* pixels = staged + (y * kM * plan.gradient_columns + i * kM) * kStagedChannels;
        for (int64_t k = 0; k < channels; k += kRegisterLanes<A>) {
          transform_gradient_tile<Form>(tile + k, plan.gradient_place, pixels + k,
                                        plan.gradient_columns * kStagedChannels, kStagedChannels);
        }
      }
    }
  }
}

// dU of a block (+)= the products of a strip.
template <typename Form, typename A>
void add_weight_products(A* sums, const A* inputs, const A* gradients, const int64_t* offsets,
                         int64_t tiles, bool first, const WinogradWeightBlock& block,
                         const WinogradWeightPlan<A, Form>& plan) {
  constexpr int64_t kLine = kLanes<A>;
  const ChannelPanels panels(block.channels, kLine, kTileVectors);
  ChannelTile<A> tile{};
  tile.sum_stride = plan.sum_row;
  tile.offsets = offsets;
  tile.depth = tiles;
  tile.first = first;
  for (int64_t place = 0; place < Form::kPlaces; ++place) {
    for (int64_t panel = 0; panel < panels.panels; ++panel) {
      const int64_t vector = panels.first_vector(panel);
      const int64_t count = panels.first_vector(panel + 1) - vector;
      tile.weights = inputs + place * plan.input_place + vector * kLine * tiles;
      tile.sums = sums + place * plan.sum_place + vector * kLine;
      multiply_pixels(tile, gradients + place * plan.gradient_place, 1, block.rows, count * kParts);
    }
  }
}

// The gradients of a row of weights, of kDoubles input channels: [kh][kw][channel]. `sums` are
// those of the first part.
template <typename Form, typename A>
NNOPS_INLINE void transform_sums(A* taps, const A* sums, const WinogradWeightPlan<A, Form>& plan) {
  constexpr int kR = Form::kTaps;
  transform_both_axes<Doubles, Form::kPoints, kR>(
      [&](int i, int j) NNOPS_INLINE_LAMBDA {
        const A* place = sums + (i * Form::kPoints + j) * plan.sum_place;
        Doubles u = load_doubles(place);
        for (int64_t part = 1; part < plan.parts; ++part) {
          u += load_doubles(place + part * plan.blocks * plan.sum_size);
        }
        return u;
      },
      NNOPS_TRANSFORM(transform_back_to_weight),
      [=](int r, int s, Doubles w)
          NNOPS_INLINE_LAMBDA { store_doubles(taps + (r * kR + s) * kDoubles, w); });
}

// Row `k` of a block of weights; returns whether all its gradients are finite.
template <typename Form, typename T>
bool write_weight_row(T* grad_weight, const acc_t<T>* sums, int64_t k,
                      const WinogradWeightBlock& block, const Conv2dGeometry& g,
                      const WinogradWeightPlan<acc_t<T>, Form>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kR = Form::kTaps;
  A taps[kR * kR * kDoubles];
  A spread = 0;
  T* row = grad_weight + (block.group * plan.rows + block.row0 + k) * g.weight.n;
  for (int64_t c = 0; c < block.channels; c += kDoubles) {
    transform_sums<Form>(taps, sums + k * plan.sum_row + c, plan);
    for (int64_t i = 0; i < smaller(kDoubles, block.channels - c); ++i) {
      T* weight = row + (block.channel0 + c + i) * g.weight.c;
      for (int64_t tap = 0; tap < kR * kR; ++tap) {
        const A value = taps[tap * kDoubles + i];
        spread += value * 0;
        weight[tap / kR * g.weight.h + tap % kR * g.weight.w] = from_acc<T>(value);
      }
    }
  }
  return spread == 0;
}

template <typename Form>
struct WinogradWeight {
  template <typename T>
  static void backward_weight(void* grad_weight, const void* grad_output, const void* input,
                              const Conv2dGeometry& g, void* workspace, int threads) {
    using A = acc_t<T>;
    const WinogradWeightPlan<A, Form> plan(g);
    const T* gy = static_cast<const T*>(grad_output);
    const T* x = static_cast<const T*>(input);
    uint8_t* flag = static_cast<uint8_t*>(workspace);
    int64_t* offsets = reinterpret_cast<int64_t*>(flag + 64);
    A* sums = reinterpret_cast<A*>(offsets + plan.offsets_size());
    A* per_thread = sums + plan.tasks() * plan.sum_size;
    *flag = 0;
    for (int64_t t = 0; t < plan.strip_images * plan.height * plan.tile_columns; ++t) {
      offsets[t] = t * plan.gradient_tile;
    }
    in_parallel(threads, [&] {
      A* staged = per_thread + thread_index() * plan.thread_size();
      A* inputs = staged + plan.staged_size;
      A* gradients = inputs + Form::kPlaces * plan.input_place;
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < plan.tasks(); ++i) {
        const int64_t part = i / plan.blocks;
        const WinogradWeightBlock block = weight_block(plan, i % plan.blocks);
        const T* block_x = x + (block.group * plan.outer + block.channel0) * g.input.c;
        const T* block_gy = gy + (block.group * plan.rows + block.row0) * g.output.c;
        const int64_t first = plan.first_strip(part);
        for (int64_t index = first; index < plan.first_strip(part + 1); ++index) {
          const WinogradWeightStrip strip = plan.strip(index);
          int64_t tile0 = 0;
          for (int64_t n = strip.image0; n < strip.image0 + strip.images; ++n) {
            transform_weight_rows<Form>(inputs, gradients, staged, block_x + n * g.input.n,
                                        block_gy + n * g.output.n, strip, tile0, block, g, plan);
            tile0 += strip.rows * plan.tile_columns;
          }
          add_weight_products<Form>(sums + i * plan.sum_size, inputs, gradients, offsets,
                                    strip.tiles, index == first, block, plan);
        }
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < plan.blocks * plan.block_channels; ++i) {
        const int64_t index = i / plan.block_channels;
        const WinogradWeightBlock block = weight_block(plan, index);
        if (i % plan.block_channels >= block.rows) continue;
        if (!write_weight_row<Form>(static_cast<T*>(grad_weight), sums + index * plan.sum_size,
                                    i % plan.block_channels, block, g, plan)) {
#pragma omp atomic write
          *flag = 1;
        }
      }
    });
  }

  template <typename T>
  static int64_t backward_weight_workspace(const Conv2dGeometry& g, int threads) {
    return WinogradWeightPlan<acc_t<T>, Form>(g).workspace_bytes(threads);
  }

  template <typename T>
  static void backward_weight_partition(const Conv2dGeometry& g, int,
                                        const Conv2dPhaseVisitor& visitor) {
    const WinogradWeightPlan<acc_t<T>, Form> plan(g);
    visit_products(visitor, Schedule::kDynamic, plan.tasks(), [&](int64_t i) {
      const WinogradWeightBlock block = weight_block(plan, i % plan.blocks);
      const int64_t part = i / plan.blocks;
      int64_t tiles = 0;
      for (int64_t strip = plan.first_strip(part); strip < plan.first_strip(part + 1); ++strip) {
        tiles += plan.strip(strip).tiles;
      }
      return tiles * Form::kPlaces * block.rows * block.channels;
    });
    visit_phase(visitor, "weights", WorkUnit::kElements, Schedule::kStatic,
                plan.blocks * plan.block_channels, [&](int64_t i) {
                  const WinogradWeightBlock block = weight_block(plan, i / plan.block_channels);
                  const bool exists = i % plan.block_channels < block.rows;
                  return exists ? block.channels * Form::kPlaces * plan.parts : 0;
                });
  }
};

NNOPS_END_KERNELS
