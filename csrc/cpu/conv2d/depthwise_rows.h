// conv2d forward and backward_input for one input channel a group, row-major images: vectors along
// the pixels of a row.
//
// The sum and its order are those of pixel_pass.h, and so are the bits.
//
// Layout. There is nothing to share between channels, and a term costs as much to load as to
// multiply: so each plane is read once and written once, and what lies between stays in L1. Some
// rows of a plane, a band, are copied with their padding (padded_rows.h); then kRows rows of sums
// at a time stay in registers while the rows that they have in common pass by. Square kernels of 3,
// 5 and 7 are unrolled. Rows shorter than a vector are written whole in ascending order: what one
// spills is overwritten by the next, up to the band's end. Meanwhile the next band is fetched.
//
// backward_input at stride 2: the input positions of one parity meet one half of the taps. A row of
// the gradient is the sums of both parities, interleaved in registers and written once.
//
// Parallel over (images, groups, bands). bfloat16 and float16 are converted while the rows are
// copied and accumulate in float.
#pragma once

#include "cpu/conv2d/padded_rows.h"
#include "cpu/conv2d/pixel_pass.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kBandBytes = int64_t{20} << 10;  // of the copied rows of a band
constexpr int64_t kLeastBandRows = 4;

// Some rows of the grid of the planes [first, last).
struct Band {
  int64_t first, last, y0, rows;
};

// How the rows of all planes are cut into bands: some rows of one plane, or several small planes. A
// load that needs what several stores have just written would wait for them: with several planes in
// a band the copying is well ahead of the sums.
struct BandPlan {
  int64_t rows, bands;   // of a band, of a plane
  int64_t planes, runs;  // of a band; numbers of bands over all planes
  int64_t grid_rows, all_planes;
  BandPlan(int64_t grid, int64_t step, int64_t pitch_bytes, int64_t plane_count, int threads)
      : grid_rows(grid), all_planes(plane_count) {
    const int64_t fitting = larger(kBandBytes / (step * pitch_bytes), kLeastBandRows);
    int64_t count = divide_up(grid_rows, fitting);
    if (all_planes < 2 * threads) {
      count = larger(
          count, smaller(divide_up(2 * threads, all_planes), divide_up(grid_rows, kLeastBandRows)));
    }
    rows = divide_up(grid_rows, count);
    bands = divide_up(grid_rows, rows);
    planes = bands > 1 ? 1 : larger(1, smaller(fitting / rows, all_planes / (4 * threads)));
    runs = bands > 1 ? all_planes * bands : divide_up(all_planes, planes);
  }
  Band band(int64_t run) const {
    const int64_t first = bands > 1 ? run / bands : run * planes;
    const int64_t y0 = run % bands * rows;
    return {first, smaller(first + planes, all_planes), y0, smaller(rows, grid_rows - y0)};
  }
};

// --- one parity, or stride 1 --------------------------------------------------------------------

template <typename T>
struct DepthwiseRows {
  T* written;  // of the first row
  int64_t written_pitch, width;
  T* end;  // where the last row ends: nothing is written from there on
  const acc_t<T>* rows;
  int64_t pitch, step, gap;  // of the copied rows: from grid row to grid row, from tap to tap
  const int64_t* columns;    // of each tap
  const acc_t<T>* weights;   // [kh][kw]
  int64_t y_taps, x_taps;
  acc_t<T> bias;
  // Where the rows that the next band reads begin, and how many numbers of them to fetch with each
  // grid row of this one, while the sums keep memory idle.
  const T* ahead;
  int64_t ahead_numbers;
};

// All lanes, of which those from `end` on are not written.
template <int kCount, typename T>
NNOPS_INLINE void store_before(T* pointer, Lanes<acc_t<T>, kCount> value, const T* end) {
  if (end - pointer >= kCount) {
    store_lanes<kCount>(pointer, value);
    return;
  }
  const int64_t count = end - pointer;
  T buffer[kCount];
  store_lanes<kCount>(static_cast<T*>(buffer), value);
  for (int64_t i = 0; i < count; ++i) pointer[i] = buffer[i];
}

// Calls body(x) so that [0, width) is covered by vectors of N, the last of which may overlap the
// one before or, if it is the only one, reach beyond the end.
template <int kCount, typename Body>
NNOPS_INLINE void for_row_vectors(int64_t width, Body body) {
  int64_t x = 0;
  for (; x + kCount <= width; x += kCount) body(x);
  if (x < width) body(larger(0, width - kCount));
}

// Rows [first, last) in blocks of kRows, as many as are whole; returns the first that is left.
template <typename T, int kTaps, int kStep, int kRows>
int64_t add_square_taps(const DepthwiseRows<T>& task, int64_t first, int64_t last) {
  using A = acc_t<T>;
  constexpr int kCount = kMostLanes<T>;
  constexpr int kReadRows = (kRows - 1) * kStep + kTaps;
  Lanes<A, kCount> weights[kTaps * kTaps];
#pragma GCC unroll 49
  for (int t = 0; t < kTaps * kTaps; ++t) weights[t] = task.weights[t] - Lanes<A, kCount>{};
  const Lanes<A, kCount> bias = task.bias - Lanes<A, kCount>{};
  const int64_t pitch = task.pitch;
  const int64_t width = task.width;
  int64_t columns[kTaps];
#pragma GCC unroll 7
  for (int s = 0; s < kTaps; ++s) columns[s] = task.columns[s];

  int64_t y = first;
  for (; y + kRows <= last; y += kRows) {
    const A* rows = task.rows + y * kStep * pitch;
    T* written = task.written + y * task.written_pitch;
    prefetch_span(task.ahead + y * task.ahead_numbers, kRows * task.ahead_numbers);
    for_row_vectors<kCount>(width, [&](int64_t x) __attribute__((always_inline)) {
      Lanes<A, kCount> total[kRows] = {};
      const A* row = rows + x;
#pragma GCC unroll 16
      for (int i = 0; i < kReadRows; ++i, row += pitch) {
#pragma GCC unroll 7
        for (int s = 0; s < kTaps; ++s) {
          Lanes<A, kCount> pixels = load_lanes<kCount>(row + columns[s]);
          load_once(pixels);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const int tap = i - r * kStep;
            if (tap >= 0 && tap < kTaps) total[r] += weights[tap * kTaps + s] * pixels;
          }
        }
      }
      T* target = written + x;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r, target += task.written_pitch) {
        store_before<kCount>(target, total[r] + bias, task.end);
      }
    });
  }
  return y;
}

template <typename T, int kTaps, int kStep>
void add_square(const DepthwiseRows<T>& task, int64_t rows) {
  // Fours and as many threes as leave no rest, but for fewer than six rows or nine.
  const int64_t threes = smaller((4 - rows % 4) % 4, rows / 3);
  int64_t y = add_square_taps<T, kTaps, kStep, 4>(task, 0, rows - 3 * threes);
  y = add_square_taps<T, kTaps, kStep, 3>(task, y, rows);
  add_square_taps<T, kTaps, kStep, 1>(task, y, rows);
}

template <typename T>
void add_any_taps(const DepthwiseRows<T>& task, int64_t rows) {
  using A = acc_t<T>;
  constexpr int kCount = kMostLanes<T>;
  constexpr int kVectors = 4;
  for (int64_t y = 0; y < rows; ++y) {
    T* written = task.written + y * task.written_pitch;
    const A* first_row = task.rows + y * task.step * task.pitch;
    prefetch_span(task.ahead + y * task.ahead_numbers, task.ahead_numbers);
    const auto add = [&](auto count, int64_t x) __attribute__((always_inline)) {
      constexpr int kMany = decltype(count)::kCount;
      Lanes<A, kCount> total[kMany] = {};
      const A* weight = task.weights;
      const A* row = first_row + x;
      for (int64_t r = 0; r < task.y_taps; ++r, row += task.gap * task.pitch) {
        for (int64_t s = 0; s < task.x_taps; ++s, ++weight) {
          const A* pixels = row + task.columns[s];
#pragma GCC unroll 4
          for (int v = 0; v < kMany; ++v)
            total[v] += *weight * load_lanes<kCount>(pixels + v * kCount);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < kMany; ++v) {
        store_before<kCount>(written + x + v * kCount, total[v] + task.bias, task.end);
      }
    };
    int64_t x = 0;
    for (; x + kVectors * kCount <= task.width; x += kVectors * kCount)
      add(LaneCount<kVectors>{}, x);
    for_row_vectors<kCount>(task.width - x, [&](int64_t i) {
      // Overlapping the vectors of the loop above is as good as overlapping those of this one.
      add(LaneCount<1>{}, smaller(x + i, larger(0, task.width - kCount)));
    });
  }
}

template <typename T>
using DepthwiseRowsFunction = void (*)(const DepthwiseRows<T>& task, int64_t rows);

template <typename T>
DepthwiseRowsFunction<T> depthwise_rows_function(const TapAxis& y, const TapAxis& x) {
  if (y.taps == x.taps && y.gap == 1 && y.step == 1) {
    if (y.taps == 3) return add_square<T, 3, 1>;
    if (y.taps == 5) return add_square<T, 5, 1>;
    if (y.taps == 7) return add_square<T, 7, 1>;
  }
  if (y.taps == x.taps && y.gap == 1 && y.step == 2) {
    if (y.taps == 3) return add_square<T, 3, 2>;
    if (y.taps == 5) return add_square<T, 5, 2>;
    if (y.taps == 7) return add_square<T, 7, 2>;
  }
  return add_any_taps<T>;
}

// The weights of one channel in the order of the sum.
template <typename T>
NNOPS_INLINE void gather_taps(acc_t<T>* taps, const T* weight, const TapAxis& y, const TapAxis& x,
                              int64_t stride_h, int64_t stride_w) {
  for (int64_t r = 0; r < y.taps; ++r) {
    const T* row = weight + (y.kernel_first + r * y.kernel_step) * stride_h;
    for (int64_t s = 0; s < x.taps; ++s) {
      *taps++ = to_acc(row[(x.kernel_first + s * x.kernel_step) * stride_w]);
    }
  }
}

// Rows [first, first + count) of one channel of the read image, of which `size` exist.
template <typename T>
NNOPS_INLINE void copy_band(acc_t<T>* rows, const T* channel, int64_t first, int64_t count,
                            int64_t size, const Strides4& strides, const PaddedRows& padded) {
  for (int64_t i = 0; i < count; ++i, rows += padded.pitch) {
    const int64_t h = first + i;
    padded.copy(rows, h >= 0 && h < size ? channel + h * strides.h : static_cast<const T*>(nullptr),
                strides.w);
  }
  write_zeros(rows, 2 * kLanes<acc_t<T>>);
}

template <typename A>
struct DepthwiseRowsPlan {
  PaddedRows padded;
  BandPlan bands;
  int64_t plane_size;
  DepthwiseRowsPlan(const PixelPass& pass, int threads)
      : padded(pass.x, pass.x.grid),
        bands(pass.y.grid, pass.y.step, padded.pitch * static_cast<int64_t>(sizeof(A)),
              pass.images * pass.groups, threads),
        plane_size(padded.size(read_rows(pass, bands.rows), kLanes<A>)) {}

  int64_t read_rows(const PixelPass& pass, int64_t rows) const {
    return (rows - 1) * pass.y.step + (pass.y.taps - 1) * pass.y.gap + 1;
  }
  int64_t thread_size() const { return bands.planes * plane_size; }
  int64_t workspace_bytes(int threads) const {
    return threads * thread_size() * static_cast<int64_t>(sizeof(A));
  }
};

template <typename T>
void run_depthwise_rows(T* written, const T* read, const T* weight, const T* bias,
                        const PixelPass& pass, void* workspace, int threads) {
  using A = acc_t<T>;
  const DepthwiseRowsPlan<A> plan(pass, threads);
  const BandPlan& bands = plan.bands;
  const DepthwiseRowsFunction<T> add = depthwise_rows_function<T>(pass.y, pass.x);
  int64_t columns[kConv2dLongestChain];
  for (int64_t s = 0; s < pass.x.taps; ++s) columns[s] = plan.padded.column_of_tap(s);
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t run = 0; run < bands.runs; ++run) {
      A* const buffer = static_cast<A*>(workspace) + thread_index() * plan.thread_size();
      const auto [first, last, y0, count] = bands.band(run);
      const auto read_plane = [&](int64_t plane) {
        return read + plane / pass.groups * pass.read.n + plane % pass.groups * pass.read.c;
      };
      for (int64_t plane = first; plane < last; ++plane) {
        copy_band(buffer + (plane - first) * plan.plane_size, read_plane(plane),
                  y0 * pass.y.step + pass.y.first, plan.read_rows(pass, count), pass.y.limit,
                  pass.read, plan.padded);
      }
      // Not of rows that lie apart: a piece of a wide image, or channels between the pixels.
      const bool rows_follow = pass.read.w == 1 && pass.read.h <= 2 * pass.x.limit;
      const Band next = bands.band(smaller(run + 1, bands.runs - 1));
      const int64_t next_row = larger(0, next.y0 * pass.y.step + pass.y.first);
      // Whole planes are written in ascending order: each may spill into the next.
      const auto band_of = [&](int64_t plane, int64_t row) {
        return written + plane / pass.groups * pass.written.n +
               (plane % pass.groups * pass.rows + row) * pass.written.c + y0 * pass.written.h;
      };
      T* const last_band = band_of(last - 1, pass.rows - 1);
      A taps[kConv2dLongestChain];
      DepthwiseRows<T> task{};
      task.written_pitch = pass.written.h;
      task.width = pass.x.grid;
      const int64_t band_length = (count - 1) * pass.written.h + pass.x.grid;
      task.pitch = plan.padded.pitch;
      task.step = pass.y.step;
      task.gap = pass.y.gap;
      task.columns = columns;
      task.weights = taps;
      task.y_taps = pass.y.taps;
      task.x_taps = pass.x.taps;
      for (int64_t plane = first; plane < last; ++plane) {
        const int64_t group = plane % pass.groups;
        task.rows = buffer + (plane - first) * plan.plane_size;
        task.ahead =
            read_plane(smaller(next.first + plane - first, next.last - 1)) + next_row * pass.read.h;
        for (int64_t row = 0; row < pass.rows; ++row) {
          task.ahead_numbers = row == 0 && rows_follow ? pass.y.step * pass.read.h : 0;
          gather_taps(taps, weight + group * pass.weight_group + row * pass.weight_row, pass.y,
                      pass.x, pass.weight_h, pass.weight_w);
          task.bias = bias != nullptr ? to_acc(bias[group * pass.rows + row]) : A{0};
          task.written = band_of(plane, row);
          task.end = (bands.bands > 1 ? task.written : last_band) + band_length;
          add(task, count);
        }
      }
    }
  });
}

// --- backward_input at stride 2 -----------------------------------------------------------------

// One row of the gradient: the even positions are sums over `even` taps a row, the odd ones over
// `odd`.
template <typename T>
struct PairedRow {
  T* written;
  int64_t width;
  const acc_t<T>* rows;
  int64_t row_gap, y_taps;  // of the copied rows
  const int64_t* columns;   // of the even positions' taps, then the odd ones'
  const acc_t<T>* weights;  // [kh][even taps, odd taps]
  int64_t even, odd;
};

// kEven and kOdd are the numbers of taps, or negative: then `row` tells.
template <typename T, int kEven, int kOdd>
void add_paired_taps(const PairedRow<T>& row) {
  using A = acc_t<T>;
  const int64_t even_taps = kEven < 0 ? row.even : kEven;
  const int64_t odd_taps = kOdd < 0 ? row.odd : kOdd;
  const int64_t* columns = row.columns;
  const A* weights = row.weights;
  const auto sums = [&](auto& even, auto& odd, auto pixels_at) __attribute__((always_inline)) {
    const A* weight = weights;
    const A* pixels = row.rows;
    for (int64_t r = 0; r < row.y_taps; ++r, pixels += row.row_gap) {
#pragma GCC unroll 4
      for (int64_t s = 0; s < even_taps; ++s) {
        even += weight[s] * pixels_at(pixels + columns[s]);
      }
#pragma GCC unroll 4
      for (int64_t s = even_taps; s < even_taps + odd_taps; ++s) {
        odd += weight[s] * pixels_at(pixels + columns[s]);
      }
      weight += even_taps + odd_taps;
    }
  };
  const auto single = [&](int64_t i, bool both) {
    A even = 0;
    A odd = 0;
    sums(even, odd, [&](const A* pixels) { return pixels[i]; });
    row.written[2 * i] = from_acc<T>(even);
    if (both) row.written[2 * i + 1] = from_acc<T>(odd);
  };
  for_lanes<T>(
      0, row.width / 2,
      [&](auto lanes, int64_t i) __attribute__((always_inline)) {
        constexpr int kCount = decltype(lanes)::kCount;
        Lanes<A, kCount> even = {};
        Lanes<A, kCount> odd = {};
        sums(even, odd, [&](const A* pixels) __attribute__((always_inline)) {
          return load_lanes<kCount>(pixels + i);
        });
        Lanes<A, kCount> low;
        Lanes<A, kCount> high;
        merge_pairs(even, odd, low, high);
        store_lanes<kCount>(row.written + 2 * i, low);
        store_lanes<kCount>(row.written + 2 * i + kCount, high);
      },
      [&](int64_t i) { single(i, true); });
  if (row.width % 2 != 0) single(row.width / 2, false);
}

template <typename T>
using PairedRowFunction = void (*)(const PairedRow<T>& row);

template <typename T>
PairedRowFunction<T> paired_row_function(int64_t even, int64_t odd) {
  if (even == 1 && odd == 1) return add_paired_taps<T, 1, 1>;
  if (even == 1 && odd == 2) return add_paired_taps<T, 1, 2>;
  if (even == 2 && odd == 1) return add_paired_taps<T, 2, 1>;
  if (even == 2 && odd == 3) return add_paired_taps<T, 2, 3>;
  if (even == 3 && odd == 2) return add_paired_taps<T, 3, 2>;
  if (even == 3 && odd == 4) return add_paired_taps<T, 3, 4>;
  if (even == 4 && odd == 3) return add_paired_taps<T, 4, 3>;
  return add_paired_taps<T, -1, -1>;
}

// The even and the odd positions of one axis, and what of the read image they see.
struct PairedAxis {
  TapAxis parity[2];
  int64_t lowest;  // position read for grid element 0
  int64_t reach;   // positions read for one grid element, by both parities
  PairedAxis(int64_t size, int64_t out_size, int64_t kernel, int64_t pad, int64_t dilation) {
    int64_t highest = 0;
    for (int64_t p = 0; p < 2; ++p) {
      TapAxis& axis = parity[p];
      axis = backward_axis(size, out_size, kernel, 2, pad, dilation, p);
      const int64_t last = axis.first + larger(0, axis.taps - 1) * axis.gap;
      lowest = p == 0 ? axis.first : smaller(lowest, axis.first);
      highest = p == 0 ? last : larger(highest, last);
    }
    reach = highest - lowest + 1;
  }
  int64_t grid() const { return parity[0].grid; }
  // As one axis whose every position between the lowest and the highest is read.
  TapAxis whole() const {
    TapAxis axis = parity[0];
    axis.taps = reach;
    axis.gap = 1;
    axis.first = lowest;
    return axis;
  }
};

template <typename A>
struct PairedPlan {
  PairedAxis y, x;
  PaddedRows padded;
  BandPlan bands;  // in pairs of rows
  PairedPlan(const Conv2dGeometry& g, int threads)
      : y(g.h, g.oh, g.kh, g.pad_top, g.dilation_h),
        x(g.w, g.ow, g.kw, g.pad_left, g.dilation_w),
        padded(one_sequence(x.whole())),
        bands(y.grid(), 1, padded.pitch * static_cast<int64_t>(sizeof(A)), g.n * g.c, threads) {}

  // A single tap as far as the copying is concerned, and a grid that covers all the others.
  static PaddedRows one_sequence(TapAxis axis) {
    axis.grid += axis.taps - 1;
    axis.taps = 1;
    return PaddedRows(axis, axis.grid);
  }
  int64_t plane_size() const { return padded.size(bands.rows + y.reach - 1, kLanes<A>); }
  int64_t thread_size() const { return bands.planes * plane_size(); }
  int64_t row_products() const {
    return x.parity[0].grid * x.parity[0].taps + x.parity[1].grid * x.parity[1].taps;
  }
};

template <typename T>
void run_depthwise_pairs(T* grad_input, const T* grad_output, const T* weight,
                         const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  const PairedPlan<A> plan(g, threads);
  const BandPlan& bands = plan.bands;
  const TapAxis& even = plan.x.parity[0];
  const TapAxis& odd = plan.x.parity[1];
  const int64_t row_taps = even.taps + odd.taps;
  const PairedRowFunction<T> add = paired_row_function<T>(even.taps, odd.taps);
  int64_t columns[kConv2dLongestChain];
  for (int64_t s = 0; s < even.taps; ++s) columns[s] = even.first + s * even.gap - plan.x.lowest;
  for (int64_t s = 0; s < odd.taps; ++s) {
    columns[even.taps + s] = odd.first + s * odd.gap - plan.x.lowest;
  }
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t run = 0; run < bands.runs; ++run) {
      A* const buffer = static_cast<A*>(workspace) + thread_index() * plan.thread_size();
      const auto [first, last, y0, pairs] = bands.band(run);
      for (int64_t plane = first; plane < last; ++plane) {
        copy_band(buffer + (plane - first) * plan.plane_size(),
                  grad_output + plane / g.c * g.output.n + plane % g.c * g.output.c,
                  y0 + plan.y.lowest, pairs + plan.y.reach - 1, g.oh, g.output, plan.padded);
      }
      A taps[kConv2dLongestChain];
      PairedRow<T> row{};
      row.width = g.w;
      row.columns = columns;
      row.even = even.taps;
      row.odd = odd.taps;
      for (int64_t plane = first; plane < last; ++plane) {
        const int64_t channel = plane % g.c;
        const A* parity_taps[2];
        A* target = taps;
        for (int p = 0; p < 2; ++p) {
          parity_taps[p] = target;
          TapAxis kernel_row = plan.y.parity[p];
          for (kernel_row.taps = 1; target < parity_taps[p] + plan.y.parity[p].taps * row_taps;
               target += row_taps) {
            const T* filter = weight + channel * g.weight.n;
            gather_taps(target, filter, kernel_row, even, g.weight.h, g.weight.w);
            gather_taps(target + even.taps, filter, kernel_row, odd, g.weight.h, g.weight.w);
            kernel_row.kernel_first += kernel_row.kernel_step;
          }
        }
        const A* rows = buffer + (plane - first) * plan.plane_size();
        T* channel_written = grad_input + plane / g.c * g.input.n + channel * g.input.c;
        for (int64_t h = 2 * y0; h < smaller(2 * (y0 + pairs), g.h); ++h) {
          const TapAxis& axis = plan.y.parity[h % 2];
          row.written = channel_written + h * g.input.h;
          row.rows = rows + (h / 2 - y0 + axis.first - plan.y.lowest) * plan.padded.pitch;
          row.row_gap = axis.gap * plan.padded.pitch;
          row.y_taps = axis.taps;
          row.weights = parity_taps[h % 2];
          add(row);
        }
      }
    }
  });
}

// --- the passes ---------------------------------------------------------------------------------

template <typename T>
void depthwise_rows_forward(void* output, const void* input, const void* weight, const void* bias,
                            const Conv2dGeometry& g, void* workspace, int threads) {
  run_depthwise_rows(static_cast<T*>(output), static_cast<const T*>(input),
                     static_cast<const T*>(weight), static_cast<const T*>(bias), forward_pass(g),
                     workspace, threads);
}

template <typename T>
void depthwise_rows_backward_input(void* grad_input, const void* grad_output, const void* weight,
                                   const Conv2dGeometry& g, void* workspace, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const T* w = static_cast<const T*>(weight);
  if (g.stride_h == 2) {
    run_depthwise_pairs(gx, gy, w, g, workspace, threads);
  } else {
    run_depthwise_rows(gx, gy, w, static_cast<const T*>(nullptr), backward_pass(g, 0, 0), workspace,
                       threads);
  }
}

template <typename T>
int64_t depthwise_rows_forward_workspace(const Conv2dGeometry& g, int threads) {
  const PixelPass pass = forward_pass(g);
  return DepthwiseRowsPlan<acc_t<T>>(pass, threads).workspace_bytes(threads);
}

template <typename T>
int64_t depthwise_rows_backward_input_workspace(const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  if (g.stride_h == 2) {
    return threads * PairedPlan<A>(g, threads).thread_size() * static_cast<int64_t>(sizeof(A));
  }
  const PixelPass pass = backward_pass(g, 0, 0);
  return DepthwiseRowsPlan<A>(pass, threads).workspace_bytes(threads);
}

template <typename A>
void visit_depthwise_rows(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
  const DepthwiseRowsPlan<A> plan(pass, threads);
  const int64_t row_products = pass.rows * pass.x.grid * pass.y.taps * pass.x.taps;
  visit_products(visitor, Schedule::kStatic, plan.bands.runs, [&](int64_t run) {
    const Band band = plan.bands.band(run);
    return (band.last - band.first) * band.rows * row_products;
  });
}

template <typename T>
void depthwise_rows_forward_partition(const Conv2dGeometry& g, int threads,
                                      const Conv2dPhaseVisitor& visitor) {
  visit_depthwise_rows<acc_t<T>>(forward_pass(g), threads, visitor);
}

template <typename T>
void depthwise_rows_backward_input_partition(const Conv2dGeometry& g, int threads,
                                             const Conv2dPhaseVisitor& visitor) {
  if (g.stride_h != 2) {
    visit_depthwise_rows<acc_t<T>>(backward_pass(g, 0, 0), threads, visitor);
    return;
  }
  const PairedPlan<acc_t<T>> plan(g, threads);
  visit_products(visitor, Schedule::kStatic, plan.bands.runs, [&](int64_t run) {
    const Band band = plan.bands.band(run);
    const int64_t odd_rows = smaller(2 * (band.y0 + band.rows), g.h) - 2 * band.y0 - band.rows;
    const int64_t row_taps = band.rows * plan.y.parity[0].taps + odd_rows * plan.y.parity[1].taps;
    return (band.last - band.first) * row_taps * plan.row_products();
  });
}

NNOPS_END_KERNELS
