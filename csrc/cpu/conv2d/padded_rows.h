// Rows of one channel copied with their padding, for the kernels that go along the rows of a single
// channel.
//
// A copied row holds the sequences of the classes of kernel columns (tap_axis.h) one behind the
// other: a vector of grid elements under tap s is a vector of the row from column_of_tap(s) on,
// whatever stride and dilation are. Rows are written in ascending order and each by whole vectors,
// so that what one writes too much is overwritten by the next; behind the last there must be room
// for a vector.
#pragma once

#include "cpu/conv2d/tap_axis.h"
#include "cpu/lanes.h"

NNOPS_BEGIN_KERNELS

template <typename A>
NNOPS_INLINE void write_zeros(A* target, int64_t n) {
  constexpr int kCount = kMostLanes<A>;
  for (int64_t i = 0; i < n; i += kCount) store_lanes<kCount>(target + i, Lanes<A, kCount>{});
}

struct PaddedRows {
  TapAxis x;
  int64_t classes;
  int64_t length;  // of a sequence: at least what the grid needs, the rest is zeros
  int64_t pitch;   // of the rows

  // Room for `width` >= axis.grid elements, of which those beyond the grid are zeros.
  PaddedRows(const TapAxis& axis, int64_t width) {
    x = with_sequences(axis, axis.grid);
    classes = larger(x.class_count(), 1);
    length = x.class_length(0, width);
    pitch = classes * length;
    for (int64_t cls = 0; cls < classes; ++cls) {
      spans_[cls] =
          inside_span(x.position(cls, 0), x.step, x.class_length(cls, axis.grid), x.limit);
    }
  }
  int64_t column_of_tap(int64_t tap) const {
    return tap % x.period * length + tap / x.period * x.shift;
  }
  int64_t size(int64_t rows, int64_t lanes) const {
    return round_up(rows * pitch, lanes) + 2 * lanes;
  }

  // One row; `source` is null for one of padding, whose pixels are `stride` apart.
  template <typename T>
  void copy(acc_t<T>* row, const T* source, int64_t stride) const {
    if (source == nullptr) {
      write_zeros(row, pitch);
      return;
    }
    for (int64_t cls = 0; cls < classes; ++cls, row += length) {
      const InsideSpan& span = spans_[cls];
      write_zeros(row, span.begin);
      copy_strided(row + span.begin, source + (span.start + span.begin * span.step) * stride,
                   span.step * stride, span.end - span.begin);
      write_zeros(row + span.end, length - span.end);
    }
  }

 private:
  InsideSpan spans_[kConv2dLongestChain];  // of the sequences
};

NNOPS_END_KERNELS
