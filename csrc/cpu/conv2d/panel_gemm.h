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

#include "cpu/simd.h"
#include "ops/conv2d.h"

NNOPS_BEGIN_KERNELS

// Register tile: kTileRows x kTileVectors accumulators, one row of B and one broadcast of A.
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
constexpr int kTileVectors = 1;
#else
constexpr int kTileRows = 2;
constexpr int kTileVectors = 1;
#endif

constexpr int kPanelVectors = 3;
constexpr int64_t kDepthBlock = 64;

template <typename A>
constexpr int64_t kPanelWidth = kPanelVectors * kLanes<A>;

NNOPS_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
NNOPS_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

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

// A[row, (outer, kh, kw)] from the weight, in the packed order; rows beyond `rows` are zero.
template <typename T>
NNOPS_INLINE void pack_weight_tile(acc_t<T>* packed, const T* weight, int64_t first_row,
                                   int64_t rows, int64_t row_stride, int64_t outer_count,
                                   int64_t outer_stride, const Conv2dGeometry& g) {
  for (int64_t outer = 0; outer < outer_count; ++outer) {
    for (int64_t kh = 0; kh < g.kh; ++kh) {
      for (int64_t kw = 0; kw < g.kw; ++kw, packed += kTileRows) {
        const T* tap = weight + outer * outer_stride + kh * g.weight.h + kw * g.weight.w;
        for (int r = 0; r < kTileRows; ++r) {
          const int64_t row = first_row + r;
          packed[r] = row < rows ? to_acc(tap[row * row_stride]) : acc_t<T>{0};
        }
      }
    }
  }
}

// A run of `length` columns of a panel that lie in one row of pixels, starting at pixel (y, x).
struct PixelRun {
  int64_t column, length, y, x;
};

// Splits the pixels [first, first + count) of a row-major image of width `width` into runs.
// Writes at most `count` runs and returns how many.
NNOPS_INLINE int split_into_runs(PixelRun* runs, int64_t first, int64_t count, int64_t width) {
  int number = 0;
  for (int64_t column = 0; column < count;) {
    const int64_t y = (first + column) / width;
    const int64_t x = (first + column) % width;
    const int64_t length = smaller(width - x, count - column);
    runs[number++] = {column, length, y, x};
    column += length;
  }
  return number;
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

// One panel row of the forward pass: input[.., h, w] under tap (kh, kw) for each output pixel.
template <typename T>
NNOPS_INLINE void pack_forward_row(acc_t<T>* row, const T* plane, int64_t kh, int64_t kw,
                                   const PixelRun* runs, int run_count, const Conv2dGeometry& g) {
  for (int i = 0; i < run_count; ++i) {
    const PixelRun& run = runs[i];
    const int64_t h = run.y * g.stride_h - g.pad_top + kh * g.dilation_h;
    acc_t<T>* target = row + run.column;
    if (h < 0 || h >= g.h) {
      for (int64_t k = 0; k < run.length; ++k) target[k] = 0;
    } else {
      copy_steps(target, 1, plane + h * g.input.h, g.input.w,
                 run.x * g.stride_w - g.pad_left + kw * g.dilation_w, g.stride_w, run.length, g.w);
    }
  }
}

// One panel row of backward_input: the grad_output that tap (kh, kw) carries to each input pixel.
template <typename T>
NNOPS_INLINE void pack_backward_row(acc_t<T>* row, const T* plane, int64_t kh, int64_t kw,
                                    const PixelRun* runs, int run_count, const Conv2dGeometry& g) {
  for (int i = 0; i < run_count; ++i) {
    const PixelRun& run = runs[i];
    acc_t<T>* target = row + run.column;
    const int64_t t = run.y + g.pad_top - kh * g.dilation_h;
    const int64_t u = run.x + g.pad_left - kw * g.dilation_w;
    const int64_t oh = g.stride_h == 1 ? t : t / g.stride_h;
    const bool outside = t < 0 || oh >= g.oh || oh * g.stride_h != t;
    if (g.stride_w > 1 || outside) {
      for (int64_t k = 0; k < run.length; ++k) target[k] = 0;
    }
    if (outside) continue;
    const T* source = plane + oh * g.output.h;
    if (g.stride_w == 1) {
      copy_steps(target, 1, source, g.output.w, u, 1, run.length, g.ow);
      continue;
    }
    // The first column that an output pixel reaches: u + k a multiple of stride_w.
    const int64_t first = ((-u) % g.stride_w + g.stride_w) % g.stride_w;
    if (first >= run.length) continue;
    copy_steps(target + first, g.stride_w, source, g.output.w, (u + first) / g.stride_w, 1,
               divide_up(run.length - first, g.stride_w), g.ow);
  }
}

// Packs rows [depth_begin, depth_end) of a panel; depth counts (outer, kh, kw), and `pack_row`
// fills one row from the plane of channel `outer`.
template <typename T, typename PackRow>
NNOPS_INLINE void pack_panel(acc_t<T>* panel, const T* planes, int64_t plane_stride,
                             int64_t depth_begin, int64_t depth_end, int64_t columns,
                             const Conv2dGeometry& g, PackRow pack_row) {
  constexpr int64_t kWidth = kPanelWidth<acc_t<T>>;
  const int64_t taps = g.kh * g.kw;
  int64_t outer = depth_begin / taps;
  int64_t kh = depth_begin % taps / g.kw;
  int64_t kw = depth_begin % g.kw;
  for (int64_t d = depth_begin; d < depth_end; ++d, panel += kWidth) {
    pack_row(panel, planes + outer * plane_stride, kh, kw);
    for (int64_t k = columns; k < kWidth; ++k) panel[k] = 0;
    if (++kw == g.kw) {
      kw = 0;
      if (++kh == g.kh) {
        kh = 0;
        ++outer;
      }
    }
  }
}

// Writes `columns` pixels of each row (channel) of a panel's sums to an image.
template <typename T>
NNOPS_INLINE void store_panel(T* image, const Strides4& strides, const acc_t<T>* sums,
                              const T* bias, int64_t rows, const PixelRun* runs, int run_count) {
  constexpr int64_t kWidth = kPanelWidth<acc_t<T>>;
  for (int64_t row = 0; row < rows; ++row) {
    const acc_t<T> shift = bias != nullptr ? to_acc(bias[row]) : acc_t<T>{0};
    const acc_t<T>* from = sums + row * kWidth;
    T* channel = image + row * strides.c;
    for (int i = 0; i < run_count; ++i) {
      const PixelRun& run = runs[i];
      T* target = channel + run.y * strides.h + run.x * strides.w;
      if (strides.w == 1) {
        for (int64_t k = 0; k < run.length; ++k) {
          target[k] = from_acc<T>(from[run.column + k] + shift);
        }
      } else {
        for (int64_t k = 0; k < run.length; ++k) {
          target[k * strides.w] = from_acc<T>(from[run.column + k] + shift);
        }
      }
    }
  }
}

// The two passes whose columns are pixels differ only in these names.
struct PixelPass {
  int64_t group_rows;                              // channels of the written image, per group
  int64_t group_outer;                             // channels of the read image, per group
  int64_t height, width;                           // of the written image
  int64_t row_stride, outer_stride, group_stride;  // of the weight
  Strides4 written, read;
};

NNOPS_INLINE PixelPass forward_pass(const Conv2dGeometry& g) {
  const int64_t rows = g.oc / g.groups;
  return {rows,       g.c / g.groups,    g.oh,     g.ow,   g.weight.n,
          g.weight.c, rows * g.weight.n, g.output, g.input};
}
NNOPS_INLINE PixelPass backward_input_pass(const Conv2dGeometry& g) {
  const int64_t outer = g.oc / g.groups;
  return {g.c / g.groups,     outer,   g.h,     g.w, g.weight.c, g.weight.n,
          outer * g.weight.n, g.input, g.output};
}

template <typename A>
struct PanelBuffers {
  A* packed_weight;  // [groups][row tiles][depth][kTileRows]
  A* per_thread;     // [threads][panel block + sums]
  int64_t packed_group, panel_size, thread_size;
};

template <typename A>
NNOPS_INLINE PanelBuffers<A> panel_buffers(void* workspace, int64_t groups, int64_t rows,
                                           int64_t depth) {
  const int64_t padded_rows = round_up(rows, kTileRows);
  PanelBuffers<A> buffers;
  buffers.packed_group = round_up(padded_rows * depth, kLanes<A>);
  buffers.panel_size = smaller(depth, kDepthBlock) * kPanelWidth<A>;
  buffers.thread_size = buffers.panel_size + padded_rows * kPanelWidth<A>;
  buffers.packed_weight = static_cast<A*>(workspace);
  buffers.per_thread = buffers.packed_weight + groups * buffers.packed_group;
  return buffers;
}

template <typename T, typename MakePackRow>
NNOPS_INLINE void pixel_convolution(T* written, const T* read, const T* weight, const T* bias,
                                    const Conv2dGeometry& g, const PixelPass& pass, void* workspace,
                                    int threads, MakePackRow make_pack_row) {
  using A = acc_t<T>;
  constexpr int64_t kWidth = kPanelWidth<A>;
  const int64_t depth = pass.group_outer * g.kh * g.kw;
  const int64_t row_tiles = divide_up(pass.group_rows, kTileRows);
  const PanelBuffers<A> buffers = panel_buffers<A>(workspace, g.groups, pass.group_rows, depth);

#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < g.groups * row_tiles; ++i) {
    const int64_t group = i / row_tiles;
    const int64_t tile = i % row_tiles;
    pack_weight_tile(
        buffers.packed_weight + group * buffers.packed_group + tile * depth * kTileRows,
        weight + group * pass.group_stride, tile * kTileRows, pass.group_rows, pass.row_stride,
        pass.group_outer, pass.outer_stride, g);
  }

  const int64_t pixels = pass.height * pass.width;
  const int64_t panels = divide_up(pixels, kWidth);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    A* panel = buffers.per_thread + thread_index() * buffers.thread_size;
    A* sums = panel + buffers.panel_size;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.n * g.groups * panels; ++i) {
      const int64_t first_pixel = i % panels * kWidth;
      const int64_t group = i / panels % g.groups;
      const int64_t n = i / panels / g.groups;
      const int64_t columns = smaller(kWidth, pixels - first_pixel);
      PixelRun runs[kWidth];
      const int run_count = split_into_runs(runs, first_pixel, columns, pass.width);
      const T* planes = read + n * pass.read.n + group * pass.group_outer * pass.read.c;
      const auto pack_row = make_pack_row(runs, run_count);
      for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
        const int64_t end = smaller(begin + kDepthBlock, depth);
        pack_panel(panel, planes, pass.read.c, begin, end, columns, g, pack_row);
        multiply_block(sums,
                       buffers.packed_weight + group * buffers.packed_group + begin * kTileRows,
                       depth, panel, pass.group_rows, end - begin, columns, begin == 0);
      }
      const int64_t first_row = group * pass.group_rows;
      store_panel(written + n * pass.written.n + first_row * pass.written.c, pass.written, sums,
                  bias != nullptr ? bias + first_row : nullptr, pass.group_rows, runs, run_count);
    }
  }
}

template <typename T>
void panel_gemm_forward(void* output, const void* input, const void* weight, const void* bias,
                        const Conv2dGeometry& g, void* workspace, int threads) {
  pixel_convolution(static_cast<T*>(output), static_cast<const T*>(input),
                    static_cast<const T*>(weight), static_cast<const T*>(bias), g, forward_pass(g),
                    workspace, threads, [&](const PixelRun* runs, int count) {
                      return
                          [&g, runs, count](acc_t<T>* row, const T* plane, int64_t kh, int64_t kw) {
                            pack_forward_row(row, plane, kh, kw, runs, count, g);
                          };
                    });
}

template <typename T>
void panel_gemm_backward_input(void* grad_input, const void* grad_output, const void* weight,
                               const Conv2dGeometry& g, void* workspace, int threads) {
  pixel_convolution(
      static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
      static_cast<const T*>(weight), static_cast<const T*>(nullptr), g, backward_input_pass(g),
      workspace, threads, [&](const PixelRun* runs, int count) {
        return [&g, runs, count](acc_t<T>* row, const T* plane, int64_t kh, int64_t kw) {
          pack_backward_row(row, plane, kh, kw, runs, count, g);
        };
      });
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
int64_t panel_gemm_workspace(Conv2dAlgorithm::Pass pass, const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  if (pass == Conv2dAlgorithm::kBackwardWeight) {
    const WeightSplit split = weight_split<A>(g);
    const int64_t padded_rows = round_up(split.rows, kTileRows);
    const int64_t partial = split.chunks * g.groups * split.panels * padded_rows * kPanelWidth<A>;
    return (partial + threads * kDepthBlock * (padded_rows + kPanelWidth<A>)) *
           static_cast<int64_t>(sizeof(A));
  }
  const PixelPass names =
      pass == Conv2dAlgorithm::kForward ? forward_pass(g) : backward_input_pass(g);
  const PanelBuffers<A> buffers =
      panel_buffers<A>(nullptr, 0, names.group_rows, names.group_outer * g.kh * g.kw);
  return (g.groups * buffers.packed_group + threads * buffers.thread_size) *
         static_cast<int64_t>(sizeof(A));
}

NNOPS_END_KERNELS
