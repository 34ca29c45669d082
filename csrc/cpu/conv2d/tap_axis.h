// One axis (height or width) of a convolution as "which positions do the taps read".
//
// Element i of the written grid is a sum over taps t of what stands at position
//
//   i step + first + t gap          of the read image (zero outside of [0, limit))
//
// times the weight at kernel index kernel_first + t kernel_step, and is written at position
// out_first + i out_step. The forward pass is one such grid. backward_input is stride many: the
// input positions of one residue modulo the stride meet the same subset of the taps.
//
// Taps whose positions differ by a multiple of `step` read the same sequence of positions shifted.
// They form a class, and the sequence is stored once: `class_count` sequences, one behind the
// other, in which tap t starts at sequence_index(t). Where the shifts are longer than the grid
// (a large dilation) nothing would be shared, and every tap gets a sequence of its own.
#pragma once

#include "cpu/transpose.h"
#include "ops/conv2d.h"

NNOPS_BEGIN_KERNELS

// The least odd number of cache lines that holds `count` numbers: what stands so far apart does not
// share the cache's sets.
template <typename A>
NNOPS_INLINE int64_t odd_lines(int64_t count) {
  return (divide_up(count, kLanes<A>) | 1) * kLanes<A>;
}

NNOPS_INLINE int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

struct TapAxis {
  int64_t taps;                       // may be 0
  int64_t kernel_first, kernel_step;  // tap to kernel index
  int64_t first, gap, step;           // tap and grid element to position read
  int64_t limit;                      // size of the read image
  int64_t grid;                       // number of grid elements, may be 0
  int64_t out_first, out_step;        // grid element to position written
  int64_t most_taps;                  // of the residue that has most, if there are several

  // Taps t and t + period read positions that differ by shift steps; follow from gap and step.
  int64_t period, shift;

  int64_t class_count() const { return smaller(period, taps); }
  // Position of element i of the sequence of one class.
  int64_t position(int64_t index, int64_t i) const { return first + index * gap + i * step; }
  // Length of the sequence of one class for `n` grid elements.
  int64_t class_length(int64_t index, int64_t n) const {
    return n + (taps - 1 - index) / period * shift;
  }
  int64_t class_begin(int64_t index, int64_t n) const {
    int64_t begin = 0;
    for (int64_t i = 0; i < index; ++i) begin += class_length(i, n);
    return begin;
  }
  int64_t sequence_length(int64_t n) const { return class_begin(class_count(), n); }
  int64_t sequence_index(int64_t tap, int64_t n) const {
    return class_begin(tap % period, n) + tap / period * shift;
  }
};

// The axis for grids of `n` elements: taps share their sequences where that saves something.
NNOPS_INLINE TapAxis with_sequences(TapAxis axis, int64_t n) {
  const int64_t divisor = greatest_common_divisor(axis.gap, axis.step);
  axis.shift = axis.gap / divisor;
  axis.period = axis.shift < n ? axis.step / divisor : larger(axis.taps, 1);
  return axis;
}

NNOPS_INLINE TapAxis forward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride,
                                  int64_t pad, int64_t dilation) {
  return {kernel, 0, 1, -pad, dilation, stride, size, out_size, 0, 1, kernel, 1, 1};
}

// The grid of input positions phase, phase + stride, ...: position h is reached by tap k from
// output (h + pad - k dilation) / stride where that is whole. Taps run from the last to the first,
// so that positions ascend.
NNOPS_INLINE TapAxis backward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride,
                                   int64_t pad, int64_t dilation, int64_t phase) {
  const int64_t divisor = greatest_common_divisor(dilation, stride);
  const int64_t period = stride / divisor;
  TapAxis axis{};
  axis.gap = dilation / divisor;
  axis.step = 1;
  axis.limit = out_size;
  axis.grid = phase < size ? divide_up(size - phase, stride) : 0;
  axis.out_first = phase;
  axis.out_step = stride;
  axis.most_taps = divide_up(kernel, period);
  int64_t first_tap = 0;
  while (first_tap < smaller(period, kernel) &&
         (phase + pad - first_tap * dilation) % stride != 0) {
    ++first_tap;
  }
  if (first_tap >= smaller(period, kernel)) return axis;  // no tap: the gradient is zero
  axis.taps = divide_up(kernel - first_tap, period);
  axis.kernel_first = first_tap + (axis.taps - 1) * period;
  axis.kernel_step = -period;
  axis.first = (phase + pad - axis.kernel_first * dilation) / stride;
  return axis;
}

// The axis whose taps read what those of all residues do. Its grid is the longest of theirs.
NNOPS_INLINE TapAxis joined_backward_axis(int64_t size, int64_t out_size, int64_t kernel,
                                          int64_t stride, int64_t pad, int64_t dilation) {
  TapAxis joined{};
  int64_t last = 0;
  for (int64_t phase = 0; phase < smaller(stride, size); ++phase) {
    const TapAxis axis = backward_axis(size, out_size, kernel, stride, pad, dilation, phase);
    if (axis.taps == 0) continue;
    const int64_t axis_last = axis.first + (axis.taps - 1) * axis.gap;
    if (joined.taps == 0) {
      joined = axis;
      last = axis_last;
      continue;
    }
    last = larger(last, axis_last);
    joined.first = smaller(joined.first, axis.first);
    joined.gap = 1;
    joined.taps = last - joined.first + 1;
  }
  return joined;
}

NNOPS_INLINE bool reads_no_padding(const TapAxis& axis) {
  return axis.first >= 0 &&
         (axis.grid - 1) * axis.step + axis.first + (axis.taps - 1) * axis.gap < axis.limit;
}

// The positions that the taps read for a range of the grid, without those that are more than
// `margin` outside of the image.
NNOPS_INLINE Range positions_read(const TapAxis& axis, const Range& grid, int64_t margin) {
  const int64_t first = axis.first + grid.begin * axis.step;
  const int64_t last = axis.first + (grid.end - 1) * axis.step + (axis.taps - 1) * axis.gap;
  const int64_t begin = larger(first, -margin);
  return {begin, larger(begin, smaller(last + 1, axis.limit + margin))};
}

// How many positions inside of the image the taps read for any `n` neighbours of the grid, at most.
NNOPS_INLINE int64_t most_positions(const TapAxis& axis, int64_t n) {
  return larger(0, smaller(axis.limit, (n - 1) * axis.step + (axis.taps - 1) * axis.gap + 1));
}

// The elements [begin, end) of `length` whose positions, start + i step, lie inside of [0, limit).
struct InsideSpan {
  int64_t start, step, length;
  int64_t begin, end;
  bool is_whole() const { return begin == 0 && end == length; }
};
NNOPS_INLINE InsideSpan inside_span(int64_t start, int64_t step, int64_t length, int64_t limit) {
  const int64_t to_zero = start < 0 ? -start : 0;
  const int64_t to_limit = start < limit ? limit - start : 0;
  const int64_t begin = smaller(length, step == 1 ? to_zero : divide_up(to_zero, step));
  const int64_t end = smaller(length, step == 1 ? to_limit : divide_up(to_limit, step));
  return {start, step, length, begin, larger(begin, end)};
}

// target[i] = source[position * stride], zero where the position is outside.
template <typename T>
NNOPS_INLINE void copy_inside(acc_t<T>* target, const T* source, int64_t stride,
                              const InsideSpan& span) {
  for (int64_t i = 0; i < span.begin; ++i) target[i] = 0;
  if (span.begin < span.end) {
    const T* from = source + (span.start + span.begin * span.step) * stride;
    copy_strided(target + span.begin, from, stride * span.step, span.end - span.begin);
  }
  for (int64_t i = span.end; i < span.length; ++i) target[i] = 0;
}
template <typename T>
NNOPS_INLINE void copy_positions(acc_t<T>* target, const T* source, int64_t stride, int64_t start,
                                 int64_t step, int64_t length, int64_t limit) {
  copy_inside(target, source, stride, inside_span(start, step, length, limit));
}

// rows[i][channel] = the input at positions first + i step of one row, zero outside of [0, limit).
template <typename T>
NNOPS_INLINE void transpose_positions(acc_t<T>* rows, int64_t pixel_size, const T* source,
                                      int64_t channel_stride, int64_t pixel_stride, int64_t first,
                                      int64_t step, int64_t length, int64_t limit, int64_t channels,
                                      int64_t padded_channels) {
  const InsideSpan inside = inside_span(first, step, length, limit);
  const int64_t begin = inside.begin;
  const int64_t end = inside.end;
  for (int64_t i = 0; i < begin; ++i) {
    for (int64_t c = 0; c < padded_channels; ++c) rows[i * pixel_size + c] = 0;
  }
  transpose(rows + begin * pixel_size, pixel_size, source + (first + begin * step) * pixel_stride,
            channel_stride, step * pixel_stride, channels, end - begin);
  for (int64_t c = channels; c < padded_channels; ++c) {
    for (int64_t i = begin; i < end; ++i) rows[i * pixel_size + c] = 0;
  }
  for (int64_t i = end; i < length; ++i) {
    for (int64_t c = 0; c < padded_channels; ++c) rows[i * pixel_size + c] = 0;
  }
}

NNOPS_END_KERNELS
