// conv2d as a sequence of small matrix products on packed panels; no image is ever unfolded whole.
//
// A panel holds kPanelWidth columns of a product C[rows, columns] = A[rows, depth] B[depth,
// columns], kDepthBlock rows of B at a time:
//
//   pass              rows          columns             depth
//   forward           oc            output pixels       (c, kh, kw)
//   backward_input    c             input pixels        (oc, kh, kw)
//   backward_weight   oc            (c, kh, kw)         (n, output pixels)
//
// A is packed as [row tile][depth][tile row]. Products of one depth block are summed in registers
// and the block sums are added up in order, so that the error grows with the number of blocks, not
// of terms, and a result depends neither on the tile shape (which differs between ISAs) nor on
// threads, nor, in forward and backward_input, on the other images of the batch. bfloat16 and
// float16 are converted while packing and accumulate in float.
//
// Goto & van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008;
// implicit unfolding as in Chetlur et al., cuDNN, arXiv:1410.0759.
#pragma once

#include "cpu/conv2d/pixel_tile.h"
#include "cpu/conv2d/tap_axis.h"

NNOPS_BEGIN_KERNELS

constexpr int kPanelVectors = 3;
constexpr int64_t kDepthBlock = 64;

template <typename A>
constexpr int64_t kPanelWidth = kPanelVectors * kLanes<A>;

// sums[rows, kPanelWidth] += (or =, for the first block) A[rows, depth] panel[depth, kPanelWidth].
// packed_a: [row tile][packed_depth][kTileRows], already at the block's first depth.
template <typename A>
void multiply_block(A* sums, const A* packed_a, int64_t packed_depth, const A* panel, int64_t rows,
                    int64_t depth, int64_t columns, bool first) {
  constexpr int64_t kWidth = kPanelWidth<A>;
  constexpr int64_t kStep = kTileVectors * kLanes<A>;
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const A* a = packed_a + (row / kTileRows) * packed_depth * kTileRows;
    for (int64_t column = 0; column < columns; column += kStep) {
      Vec<A> total[kTileRows][kTileVectors] = {};
      const A* b = panel + column;
      const A* a_row = a;
      for (int64_t d = 0; d < depth; ++d, b += kWidth, a_row += kTileRows) {
        Vec<A> b_row[kTileVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kTileVectors; ++v) b_row[v] = load(b + v * kLanes<A>);
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
          for (int v = 0; v < kTileVectors; ++v) total[r][v] += a_row[r] * b_row[v];
        }
      }
      A* c = sums + row * kWidth + column;
      for (int r = 0; r < kTileRows; ++r) {
        for (int v = 0; v < kTileVectors; ++v) {
          A* target = c + r * kWidth + v * kLanes<A>;
          store(target, first ? total[r][v] : load(target) + total[r][v]);
        }
      }
    }
  }
}

// row[k * row_step] = source[position * stride_of_source] for position = start + k step, zero where
// the position lies outside of [0, limit); k in [0, length).
template <typename T>
NNOPS_INLINE void copy_steps(acc_t<T>* row, int64_t row_step, const T* source,
                             int64_t source_stride, int64_t start, int64_t step, int64_t length,
                             int64_t limit) {
  // First k with start + k step >= 0, and first with start + k step >= limit. Runs are short and
  // many: no division where the step is 1.
  const int64_t to_zero = start < 0 ? -start : 0;
  const int64_t to_limit = start < limit ? limit - start : 0;
  const int64_t begin = smaller(length, step == 1 ? to_zero : divide_up(to_zero, step));
  const int64_t end = smaller(length, step == 1 ? to_limit : divide_up(to_limit, step));
  int64_t k = 0;
  for (; k < begin; ++k) row[k * row_step] = 0;
  if (step * source_stride == 1 && row_step == 1) {
    const T* from = source + start;
    for (; k < end; ++k) row[k] = to_acc(from[k]);
  } else {
    for (; k < end; ++k) {
      row[k * row_step] = to_acc(source[(start + k * step) * source_stride]);
    }
  }
  for (; k < length; ++k) row[k * row_step] = 0;
}

// --- backward_weight ----------------------------------------------------------------------------

// How the depth (all output pixels of the batch) is split: into chunks that are summed apart, so
// that layers with few columns still occupy every thread. A function of the geometry alone.
struct WeightSplit {
  int64_t columns, panels, rows, blocks, chunks, blocks_per_chunk;
};

template <typename A>
NNOPS_INLINE WeightSplit weight_split(const Conv2dGeometry& g) {
  constexpr int64_t kWantedTasks = 16;
  WeightSplit split;
  split.columns = g.c / g.groups * g.kh * g.kw;
  split.panels = divide_up(split.columns, kPanelWidth<A>);
  split.rows = g.oc / g.groups;
  split.blocks = divide_up(g.n * g.oh * g.ow, kDepthBlock);
  const int64_t wanted = divide_up(kWantedTasks, g.groups * split.panels);
  split.blocks_per_chunk = divide_up(split.blocks, smaller(wanted, split.blocks));
  split.chunks = divide_up(split.blocks, split.blocks_per_chunk);
  return split;
}

// grad_output of one group, pixels [begin, end) of the batch, as [row tile][pixel][kTileRows].
template <typename T>
NNOPS_INLINE void pack_grad_output(acc_t<T>* packed, const T* grad_output, int64_t rows,
                                   int64_t begin, int64_t end, const Conv2dGeometry& g) {
  const int64_t pixels = g.oh * g.ow;
  const T* pixel[kDepthBlock];
  for (int64_t p = begin; p < end; ++p) {
    pixel[p - begin] = grad_output + p / pixels * g.output.n + p % pixels / g.ow * g.output.h +
                       p % g.ow * g.output.w;
  }
  const int64_t count = end - begin;
  for (int64_t first_row = 0; first_row < rows;
       first_row += kTileRows, packed += count * kTileRows) {
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t channel = (first_row + r) * g.output.c;
      const bool exists = first_row + r < rows;
      for (int64_t i = 0; i < count; ++i) {
        packed[i * kTileRows + r] = exists ? to_acc(pixel[i][channel]) : acc_t<T>{0};
      }
    }
  }
}

// The input under taps (c, kh, kw) = [first_column, first_column + columns), one row per output
// pixel of [begin, end). Filled column by column, where the input is contiguous.
template <typename T>
NNOPS_INLINE void pack_taps(acc_t<T>* panel, const T* input, int64_t first_column, int64_t columns,
                            int64_t begin, int64_t end, const Conv2dGeometry& g) {
  constexpr int64_t kWidth = kPanelWidth<acc_t<T>>;
  const int64_t pixels = g.oh * g.ow;
  const int64_t taps = g.kh * g.kw;
  for (int64_t column = 0; column < columns; ++column) {
    const int64_t tap = (first_column + column) % taps;
    const int64_t kh = tap / g.kw;
    const int64_t kw = tap % g.kw;
    const T* plane = input + (first_column + column) / taps * g.input.c;
    for (int64_t p = begin; p < end;) {
      const int64_t oh = p % pixels / g.ow;
      const int64_t ow = p % g.ow;
      const int64_t length = smaller(g.ow - ow, end - p);
      const int64_t h = oh * g.stride_h - g.pad_top + kh * g.dilation_h;
      acc_t<T>* target = panel + (p - begin) * kWidth + column;
      if (h < 0 || h >= g.h) {
        for (int64_t k = 0; k < length; ++k) target[k * kWidth] = 0;
      } else {
        copy_steps(target, kWidth, plane + p / pixels * g.input.n + h * g.input.h, g.input.w,
                   ow * g.stride_w - g.pad_left + kw * g.dilation_w, g.stride_w, length, g.w);
      }
      p += length;
    }
  }
  for (int64_t p = begin; p < end; ++p) {
    acc_t<T>* row = panel + (p - begin) * kWidth;
    for (int64_t column = columns; column < kWidth; ++column) row[column] = 0;
  }
}

template <typename T>
void panel_gemm_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kPanelWidth<A>;
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  const WeightSplit split = weight_split<A>(g);
  const int64_t padded_rows = round_up(split.rows, kTileRows);
  const int64_t tile_size = padded_rows * kWidth;
  const int64_t tiles = g.groups * split.panels;
  A* partial = static_cast<A*>(workspace);  // [chunks][groups][panels][rows][kWidth]
  A* per_thread = partial + split.chunks * tiles * tile_size;
  const int64_t thread_size = kDepthBlock * (padded_rows + kWidth);
  const int64_t all_pixels = g.n * g.oh * g.ow;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    A* panel = per_thread + thread_index() * thread_size;
    A* packed = panel + kDepthBlock * kWidth;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < split.chunks * tiles; ++i) {
      const int64_t chunk = i / tiles;
      const int64_t group = i % tiles / split.panels;
      const int64_t first_column = i % split.panels * kWidth;
      const int64_t columns = smaller(kWidth, split.columns - first_column);
      const int64_t first_block = chunk * split.blocks_per_chunk;
      const int64_t last_block = smaller(first_block + split.blocks_per_chunk, split.blocks);
      for (int64_t block = first_block; block < last_block; ++block) {
        const int64_t begin = block * kDepthBlock;
        const int64_t end = smaller(begin + kDepthBlock, all_pixels);
        pack_grad_output(packed, gy + group * split.rows * g.output.c, split.rows, begin, end, g);
        pack_taps(panel, x + group * (g.c / g.groups) * g.input.c, first_column, columns, begin,
                  end, g);
        multiply_block(partial + i * tile_size, packed, end - begin, panel, split.rows, end - begin,
                       columns, block == first_block);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.oc * split.panels; ++i) {
      const int64_t oc = i / split.panels;
      const int64_t first_column = i % split.panels * kWidth;
      const int64_t tile = oc / split.rows * split.panels + i % split.panels;
      const A* first = partial + tile * tile_size + oc % split.rows * kWidth;
      const int64_t columns = smaller(kWidth, split.columns - first_column);
      for (int64_t column = 0; column < columns; ++column) {
        A sum = first[column];
        for (int64_t chunk = 1; chunk < split.chunks; ++chunk) {
          sum += first[chunk * tiles * tile_size + column];
        }
        const int64_t tap = first_column + column;
        gf[oc * g.weight.n + tap / (g.kh * g.kw) * g.weight.c + tap / g.kw % g.kh * g.weight.h +
           tap % g.kw * g.weight.w] = from_acc<T>(sum);
      }
    }
  }
}

template <typename T>
int64_t panel_gemm_workspace(const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  const WeightSplit split = weight_split<A>(g);
  const int64_t padded_rows = round_up(split.rows, kTileRows);
  const int64_t partial = split.chunks * g.groups * split.panels * padded_rows * kPanelWidth<A>;
  return (partial + threads * kDepthBlock * (padded_rows + kPanelWidth<A>)) *
         static_cast<int64_t>(sizeof(A));
}

NNOPS_END_KERNELS
