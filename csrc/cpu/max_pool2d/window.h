// What all max_pool2d kernels share: which taps of a window lie inside the input, and how the place
// of a maximum is recorded.
#pragma once

#include <type_traits>

#include "cpu/planes.h"
#include "ops/max_pool2d.h"

NNOPS_BEGIN_KERNELS

enum class Record { kNone, kOffsets, kIndices };

// Elements of `record`.
template <Record kRecord>
using Recorded = std::conditional_t<kRecord == Record::kIndices, int64_t, uint8_t>;
template <Record kRecord>
constexpr int64_t kNothingRecorded = kRecord == Record::kIndices ? kNoIndex : int64_t{kNoOffset};

// The largest number where nothing is larger: what a window without elements gives.
template <typename T>
NNOPS_INLINE acc_t<T> lowest_value() {
  if constexpr (kIsFloating<T>) {
    return -std::numeric_limits<acc_t<T>>::infinity();
  } else {
    return std::numeric_limits<T>::lowest();
  }
}

// Taps [begin, end) of a window along one axis that lie inside [0, size).
NNOPS_INLINE Range taps_inside(int64_t start, int64_t kernel, int64_t dilation, int64_t size) {
  const int64_t last = start + (kernel - 1) * dilation;
  if (start >= 0 && last < size) return {0, kernel};
  const int64_t begin = start < 0 ? (dilation - 1 - start) / dilation : 0;
  const int64_t end = start < size ? smaller(kernel, (size - 1 - start) / dilation + 1) : 0;
  return {begin, larger(begin, end)};
}

// Windows [begin, end) along one axis of which every tap lies inside the input.
struct InnerWindows {
  int64_t begin, end;

  InnerWindows(int64_t count, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
               int64_t size) {
    const int64_t room = size - (kernel - 1) * dilation - 1 + pad;
    begin = smaller(count, (pad + stride - 1) / stride);
    end = room < 0 ? begin : larger(begin, smaller(count, room / stride + 1));
  }
  bool contains(int64_t index) const { return begin <= index && index < end; }
  bool are_all(int64_t count) const { return begin == 0 && end == count; }
};
NNOPS_INLINE InnerWindows inner_rows(const Pool2dGeometry& g) {
  return {g.oh, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, g.h};
}
NNOPS_INLINE InnerWindows inner_columns(const Pool2dGeometry& g) {
  return {g.ow, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, g.w};
}

// The record of tap (kh, kw) of a window is base + kh * row_step + kw * column_step, `base` that of
// the window which starts at (start_h, start_w).
template <Record kRecord>
struct TapCodes {
  int64_t w, row_step, column_step;

  explicit TapCodes(const Pool2dGeometry& g)
      : w(g.w),
        row_step(kRecord == Record::kIndices ? g.dilation_h * g.w : g.kernel_w),
        column_step(kRecord == Record::kIndices ? g.dilation_w : 1) {}

  int64_t base(int64_t start_h, int64_t start_w) const {
    return kRecord == Record::kIndices ? start_h * w + start_w : 0;
  }
};

// One element of the output, for the edges: the window of output (oh, ow) in the plane `x`.
// Not inlined: it would crowd the registers of the loops that call it.
template <Record kRecord, typename T>
__attribute__((noinline)) void pool_element(T* output, Recorded<kRecord>* record, const T* x,
                                            const Pool2dGeometry& g, int64_t oh, int64_t ow) {
  const int64_t start_h = oh * g.stride_h - g.pad_h;
  const int64_t start_w = ow * g.stride_w - g.pad_w;
  const Range rows = taps_inside(start_h, g.kernel_h, g.dilation_h, g.h);
  const Range columns = taps_inside(start_w, g.kernel_w, g.dilation_w, g.w);
  if (rows.empty() || columns.empty()) {
    *output = from_acc<T>(lowest_value<T>());
    if constexpr (kRecord != Record::kNone) *record = kNothingRecorded<kRecord>;
    return;
  }
  const TapCodes<kRecord> codes(g);
  acc_t<T> best = 0;
  int64_t code = -1;
  for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
    for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
      const acc_t<T> value = to_acc(x[(start_h + kh * g.dilation_h) * g.input_strides[2] +
                                      (start_w + kw * g.dilation_w) * g.input_strides[3]]);
      if (code < 0 || value > best || value != value) {
        best = value;
        code = kh * codes.row_step + kw * codes.column_step;
      }
    }
  }
  *output = from_acc<T>(best);
  if constexpr (kRecord != Record::kNone) {
    *record = static_cast<Recorded<kRecord>>(codes.base(start_h, start_w) + code);
  }
}

// run(image, channel, begin, end) for all rows of the output, in parallel: rows [begin, end) of one
// plane, which is an image where channels are innermost.
template <typename Run>
NNOPS_INLINE void for_row_runs(const Pool2dGeometry& g, int64_t rows, int64_t row_elements,
                               int threads, Run run) {
  const int64_t planes = g.channels_last ? 1 : g.c;  // planes an image is split into
  // Enough chunks that threads get equal shares of a small problem.
  constexpr int64_t kChunksPerThread = 8;
  const int64_t total = g.n * planes * rows;
  const int64_t chunk = larger(
      1, smaller(kElementwiseChunk / row_elements, total / (kChunksPerThread * int64_t{threads})));
  parallel_chunks(total, chunk, threads, [&](int64_t begin, int64_t end) {
    int64_t row = begin % rows;
    int64_t channel = begin / rows % planes;
    int64_t image = begin / rows / planes;
    for (int64_t left = end - begin; left > 0; row = 0) {
      const int64_t count = smaller(rows - row, left);
      run(image, channel, row, row + count);
      left -= count;
      if (++channel == planes) {
        channel = 0;
        ++image;
      }
    }
  });
}
template <typename Run>
NNOPS_INLINE void for_output_rows(const Pool2dGeometry& g, int threads, Run run) {
  for_row_runs(g, g.oh, g.channels_last ? g.ow * g.c : g.ow, threads, run);
}
template <typename Run>
NNOPS_INLINE void for_input_rows(const Pool2dGeometry& g, int threads, Run run) {
  for_row_runs(g, g.h, g.channels_last ? g.w * g.c : g.w, threads, run);
}

NNOPS_END_KERNELS
