// conv2d backward_weight for few input channels: dot products of planes.
//
//   grad_weight[oc, c, kh, kw] = sum over pixels p of grad_output[oc, p] * input[c, p's tap]
//
// Vectors run along the pixels, as those of depthwise_dots.h, whose copies of input planes these
// are: of row-major images nothing is transposed. A tile is some filters' rows of grad_output by
// some columns (a channel and a tap): in registers each number of the one meets all of the other.
// grad_output is read where it lies, if it can be; the last vector of a row, where it is partial,
// overlaps the one before, without the pixels that this has.
//
// Accumulation: lanes over the vectors of some rows (a block); blocks, lane by lane, in order over
// a chunk, a fixed share of them; the lanes pairwise; the chunks in order. Nothing of it depends on
// the threads, nor on the shape of a tile. Parallel over chunks and groups and, where those are
// few, over parts of the filters, for each of which the planes are copied again.
#pragma once

#include <utility>

#include "cpu/conv2d/depthwise_dots.h"

NNOPS_BEGIN_KERNELS

// A tile, whose sums are held in registers.
#if defined(__AVX512F__)
constexpr int kDotFilters = 4;
constexpr int kDotColumns = 6;
#elif defined(__AVX2__)
constexpr int kDotFilters = 3;
constexpr int kDotColumns = 4;
#else
constexpr int kDotFilters = 2;
constexpr int kDotColumns = 4;
#endif
// Of a block, about: the numbers of grad_output, which leave half of L2 to the next one's, and the
// bytes of input, which leave half of L1 to a tile's gradients.
constexpr int64_t kDotGradients = 65536;
constexpr int64_t kDotInputBytes = int64_t{24} << 10;
constexpr int64_t kLeastDotPixels = 448;
// The pixels of a chunk, about, and the least of them where chunks are few: to sum up the lanes
// costs about as much as 128 pixels.
constexpr int64_t kDotChunkPixels = 8192;
constexpr int64_t kLeastDotChunkPixels = 2048;
constexpr int64_t kFewDotChunks = 8;
constexpr int64_t kMostDotChunks = 32;

template <typename A>
struct PlaneDotsPlan : DotsPlan<A> {
  int64_t channels, filters, columns;  // of a group
  int64_t blocks, chunks;              // of all images
  int64_t splits;                      // parts of a group's filters
  bool copies;                         // grad_output

  PlaneDotsPlan(const Conv2dGeometry& g, bool converts, int threads)
      : DotsPlan<A>(g, converts, block_pixels(g)),
        channels(g.c / g.groups),
        filters(g.oc / g.groups),
        columns(channels * this->taps()),
        blocks(g.n * this->vertical),
        copies(this->copies_gradients || g.ow < kLanes<A>) {
    const int64_t pixels = g.n * g.oh * g.ow;
    const int64_t few = smaller(kFewDotChunks, pixels / kLeastDotChunkPixels);
    const int64_t many = smaller(kMostDotChunks, pixels / kDotChunkPixels);
    chunks = larger(1, smaller(blocks, larger(few, many)));
    const int64_t wanted = threads > 1 ? divide_up(2 * threads, chunks * g.groups) : 1;
    splits = smaller(divide_up(filters, kDotFilters), wanted);
  }
  static int64_t block_pixels(const Conv2dGeometry& g) {
    const int64_t row_bytes =
        g.c / g.groups * smaller(g.stride_h, g.kh) * g.w * static_cast<int64_t>(sizeof(A));
    const int64_t most =
        smaller(kDotGradients / (g.oc / g.groups), kDotInputBytes / larger(1, row_bytes) * g.ow);
    return larger(kLeastDotPixels, smaller(kDotPixels, most));
  }

  int64_t tasks(const Conv2dGeometry& g) const { return chunks * g.groups * splits; }
  int64_t first_block(int64_t chunk) const { return chunk * blocks / chunks; }
  int64_t first_filter(int64_t split) const { return split * filters / splits; }
  // Of a column: its place in the planes.
  int64_t place(int64_t column) const {
    return column / this->taps() * this->plane_size + this->place_of_tap(column % this->taps());
  }
  int64_t table_size(const Conv2dGeometry& g) const {
    return round_up(columns + 2 * this->height * (g.ow / kLanes<A>), 8);
  }
  int64_t gradients_row(const Conv2dGeometry& g) const {
    return copies ? this->gradients_pitch : g.output.h;
  }
  int64_t filter_gradients() const { return copies ? this->height * this->gradients_pitch : 0; }
  int64_t thread_size() const {
    return channels * this->plane_size +
           divide_up(filters, splits) * (filter_gradients() + columns * kLanes<A>);
  }
  int64_t chunk_size(const Conv2dGeometry& g) const { return round_up(g.oc * columns, kLanes<A>); }
};

// A vector of pixels: its places in grad_output and in the copied planes.
struct DotPlace {
  int64_t gradient, plane;
};

// Rows of grad_output, of one filter and those behind it, and the copied rows that they meet.
template <typename A>
struct PlaneDotRows {
  const A* gradients;
  int64_t gradients_filter;  // from filter to filter
  const A* planes;
  const DotPlace* vectors;  // the whole ones, row by row
  int64_t count;
  int64_t rows, gradients_row, planes_row;  // from row to row
  int64_t last;  // where the vector of a row's other pixels begins; negative if there are none
  // All ones for the lanes of that vector that are pixels no other has.
  std::conditional_t<sizeof(A) == 4, int32_t, int64_t> others[kLanes<A>];
  const A* ahead;  // as `gradients`: what is asked for meanwhile
  bool first;      // write the sums instead of adding to them
};

// sums[filter][column] (+)= lane by lane, gradients of the filter . planes[offsets[column]].
template <typename A, int kFilters, int kColumns>
void add_plane_dots(A* sums, int64_t sum_stride, const PlaneDotRows<A>& part,
                    const int64_t* offsets) {
  constexpr int64_t kLine = kLanes<A>;
  for (int64_t p = 0; p < kLine; p += kRegisterLanes<A>) {
    Register<A> total[kFilters][kColumns] = {};
    // `of` reads a vector of either operand.
    const auto add = [&](const A* gradients, const A* row, auto of) NNOPS_INLINE_LAMBDA {
      Register<A> gradient[kFilters];
#pragma GCC unroll 4
      for (int f = 0; f < kFilters; ++f) gradient[f] = of(gradients + f * part.gradients_filter);
#pragma GCC unroll 6
      for (int c = 0; c < kColumns; ++c) {
        const Register<A> value = of(row + offsets[c]);
#pragma GCC unroll 4
        for (int f = 0; f < kFilters; ++f) total[f][c] += gradient[f] * value;
      }
    };
    for (const DotPlace* place = part.vectors; place < part.vectors + part.count; ++place) {
      if (p == 0) __builtin_prefetch(part.ahead + place->gradient, 0, 2);
      add(part.gradients + place->gradient + p, part.planes + place->plane + p,
          [](const A* source) NNOPS_INLINE_LAMBDA { return load_register(source); });
    }
    if (part.last >= 0) {
      // What stands at the other pixels may be infinite: a zero on one side would not hide it.
      using Bits = decltype(total[0][0] < total[0][0]);
      Bits others;
      std::memcpy(&others, part.others + p, sizeof(others));
      const A* gradients = part.gradients + part.last + p;
      const A* row = part.planes + part.last + p;
      for (int64_t y = 0; y < part.rows; ++y) {
        add(gradients, row, [&](const A* source) NNOPS_INLINE_LAMBDA {
          const Bits bits = reinterpret_cast<Bits>(load_register(source));
          return reinterpret_cast<Register<A>>(bits & others);
        });
        gradients += part.gradients_row;
        row += part.planes_row;
      }
    }
#pragma GCC unroll 4
    for (int f = 0; f < kFilters; ++f) {
#pragma GCC unroll 6
      for (int c = 0; c < kColumns; ++c) {
        A* sum = sums + f * sum_stride + c * kLine + p;
        store_register(sum, part.first ? total[f][c] : load_register(sum) + total[f][c]);
      }
    }
  }
}

template <typename A>
using PlaneDotsFunction = void (*)(A* sums, int64_t sum_stride, const PlaneDotRows<A>& part,
                                   const int64_t* offsets);

// The instance for a tile of `filters` <= kDotFilters and `columns` <= kDotColumns.
template <typename A, int... kTiles>
NNOPS_INLINE PlaneDotsFunction<A> plane_dots_function(std::integer_sequence<int, kTiles...>,
                                                      int64_t filters, int64_t columns) {
  static constexpr PlaneDotsFunction<A> kFunctions[] = {
      add_plane_dots<A, kTiles / kDotColumns + 1, kTiles % kDotColumns + 1>...};
  return kFunctions[(filters - 1) * kDotColumns + columns - 1];
}

// The same for any number of filters and columns, in tiles of about equal size.
template <typename A>
void add_all_plane_dots(A* sums, PlaneDotRows<A> part, const int64_t* offsets, int64_t filters,
                        int64_t columns) {
  const int64_t filter_tiles = divide_up(filters, kDotFilters);
  const int64_t column_tiles = divide_up(columns, kDotColumns);
  const A* gradients = part.gradients;
  const A* ahead = part.ahead;
  for (int64_t f = 0; f < filter_tiles; ++f) {
    const int64_t filter = f * filters / filter_tiles;
    const int64_t tile_filters = (f + 1) * filters / filter_tiles - filter;
    part.gradients = gradients + filter * part.gradients_filter;
    for (int64_t c = 0; c < column_tiles; ++c) {
      const int64_t column = c * columns / column_tiles;
      const int64_t tile_columns = (c + 1) * columns / column_tiles - column;
      // Of the next block, one filter a tile.
      part.ahead = ahead != nullptr && c < tile_filters
                       ? ahead + (filter + c) * part.gradients_filter
                       : part.gradients;
      constexpr auto kTiles = std::make_integer_sequence<int, kDotFilters * kDotColumns>{};
      plane_dots_function<A>(kTiles, tile_filters, tile_columns)(
          sums + (filter * columns + column) * kLanes<A>, columns * kLanes<A>, part,
          offsets + column);
    }
  }
}

// The blocks of one chunk, for some filters of a group: their sums, lane by lane.
template <typename T>
void add_chunk_dots(acc_t<T>* sums, acc_t<T>* buffers, const T* gy, const T* x, int64_t first_block,
                    int64_t last_block, int64_t filters, const Conv2dGeometry& g,
                    const PlaneDotsPlan<acc_t<T>>& plan, const int64_t* offsets,
                    const DotPlace* vectors) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  A* planes = buffers;
  A* copied = planes + plan.channels * plan.plane_size;
  PlaneDotRows<A> part{};
  part.planes = planes;
  part.planes_row = plan.step;
  part.vectors = vectors;
  part.gradients_row = plan.gradients_row(g);
  part.gradients_filter = plan.copies ? plan.filter_gradients() : g.output.c;
  const int64_t others = g.ow % kLine;
  part.last = others == 0 ? -1 : plan.copies ? g.ow - others : g.ow - kLine;
  for (int64_t i = 0; i < kLine; ++i) {
    part.others[i] = (plan.copies ? i < others : i >= kLine - others) ? -1 : 0;
  }
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t n = block / plan.vertical;
    const int64_t y0 = block % plan.vertical * plan.height;
    part.rows = smaller(plan.height, g.oh - y0);
    part.first = block == first_block;
    for (int64_t c = 0; c < plan.channels; ++c) {
      plan.copy_plane(planes + c * plan.plane_size, x + n * g.input.n + c * g.input.c, y0,
                      part.rows, g);
    }
    const T* source = gy + n * g.output.n + y0 * g.output.h;
    if (plan.copies) {
      part.gradients = copied;
      for (int64_t f = 0; f < filters; ++f) {
        for (int64_t k = 0; k < part.rows; ++k) {
          copy_positions(copied + f * part.gradients_filter + k * part.gradients_row,
                         source + f * g.output.c + k * g.output.h, g.output.w, 0, 1,
                         part.gradients_row, g.ow);
        }
      }
    } else if constexpr (std::is_same_v<T, A>) {
      part.gradients = source;
      const int64_t next = block + 1;
      part.ahead = next < last_block && g.output.h == g.ow
                       ? gy + next / plan.vertical * g.output.n +
                             next % plan.vertical * plan.height * g.output.h
                       : nullptr;
    }
    part.count = part.rows * (g.ow / kLine);
    add_all_plane_dots(sums, part, offsets, filters, plan.columns);
  }
}

template <typename T>
void plane_dots_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  const PlaneDotsPlan<A> plan(g, !std::is_same_v<T, A>, threads);
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  int64_t* offsets = static_cast<int64_t*>(workspace);
  A* chunk_sums = reinterpret_cast<A*>(offsets + plan.table_size(g));
  A* per_thread = chunk_sums + plan.chunks * plan.chunk_size(g);
  for (int64_t column = 0; column < plan.columns; ++column) offsets[column] = plan.place(column);
  DotPlace* vectors = reinterpret_cast<DotPlace*>(offsets + plan.columns);
  DotPlace* vector = vectors;
  for (int64_t y = 0; y < plan.height; ++y) {
    for (int64_t i = 0; i + kLine <= g.ow; i += kLine) {
      *vector++ = {y * plan.gradients_row(g) + i, y * plan.step + i};
    }
  }

  in_parallel(threads, [&] {
    A* sums = per_thread + thread_index() * plan.thread_size();
    A* buffers = sums + divide_up(plan.filters, plan.splits) * plan.columns * kLine;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < plan.tasks(g); ++task) {
      const int64_t split = task % plan.splits;
      const int64_t group = task / plan.splits % g.groups;
      const int64_t chunk = task / plan.splits / g.groups;
      const int64_t oc = group * plan.filters + plan.first_filter(split);
      const int64_t filters = plan.first_filter(split + 1) - plan.first_filter(split);
      add_chunk_dots(sums, buffers, gy + oc * g.output.c, x + group * plan.channels * g.input.c,
                     plan.first_block(chunk), plan.first_block(chunk + 1), filters, g, plan,
                     offsets, vectors);
      A* totals = chunk_sums + chunk * plan.chunk_size(g) + oc * plan.columns;
      for (int64_t i = 0; i < filters * plan.columns; ++i) {
        totals[i] = lane_sum(read<Wide<A>>(sums + i * kLine));
      }
    }
#pragma omp for schedule(static)
    for (int64_t oc = 0; oc < g.oc; ++oc) {
      for (int64_t column = 0; column < plan.columns; ++column) {
        const A* of_chunk = chunk_sums + oc * plan.columns + column;
        A sum = 0;
        for (int64_t chunk = 0; chunk < plan.chunks; ++chunk, of_chunk += plan.chunk_size(g)) {
          sum += *of_chunk;
        }
        const int64_t tap = column % plan.taps();
        gf[oc * g.weight.n + column / plan.taps() * g.weight.c + tap / g.kw * g.weight.h +
           tap % g.kw * g.weight.w] = from_acc<T>(sum);
      }
    }
  });
}

template <typename T>
int64_t plane_dots_workspace(const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  const PlaneDotsPlan<A> plan(g, !std::is_same_v<T, A>, threads);
  return plan.table_size(g) * 8 +
         (plan.chunks * plan.chunk_size(g) + threads * plan.thread_size()) *
             static_cast<int64_t>(sizeof(A));
}

template <typename T>
void plane_dots_partition(const Conv2dGeometry& g, int threads, const Conv2dPhaseVisitor& visitor) {
  const PlaneDotsPlan<acc_t<T>> plan(g, !std::is_same_v<T, acc_t<T>>, threads);
  visit_products(visitor, Schedule::kStatic, plan.tasks(g), [&](int64_t task) {
    const int64_t split = task % plan.splits;
    const int64_t chunk = task / plan.splits / g.groups;
    int64_t rows = 0;
    for (int64_t block = plan.first_block(chunk); block < plan.first_block(chunk + 1); ++block) {
      rows += smaller(plan.height, g.oh - block % plan.vertical * plan.height);
    }
    return rows * g.ow * (plan.first_filter(split + 1) - plan.first_filter(split)) * plan.columns;
  });
  visit_copies(visitor, "sum of chunks", g.oc, [&](int64_t) { return plan.columns * plan.chunks; });
}

NNOPS_END_KERNELS
