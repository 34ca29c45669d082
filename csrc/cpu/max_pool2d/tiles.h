// max_pool2d forward, "tiles": every dtype, window and stride; what the other algorithms do not
// take.
//
// A tile of running maxima (and of their records) lies on the stack and is updated tap by tap: a
// piece of an output row (row-major output) or a piece of the channels of one output pixel
// (channels_last).
#pragma once

#include "cpu/max_pool2d/window.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kTile = 128;

// Offsets are kept in lanes as wide as the values, so that one mask serves both.
template <int kBytes>
struct LaneInteger;
template <>
struct LaneInteger<1> {
  using type = uint8_t;
};
template <>
struct LaneInteger<2> {
  using type = int16_t;
};
template <>
struct LaneInteger<4> {
  using type = int32_t;
};
template <>
struct LaneInteger<8> {
  using type = int64_t;
};

template <typename T, Record kRecord>
struct Tile {
  using Value = acc_t<T>;
  using Code = typename LaneInteger<kRecord == Record::kIndices ? 8 : int{sizeof(Value)}>::type;
  static constexpr Code kNoCode = static_cast<Code>(kNothingRecorded<kRecord>);

  Value best[kTile];
  Code code[kRecord == Record::kNone ? 1 : kTile];

  __attribute__((always_inline)) void clear(int64_t count) {
    for (int64_t j = 0; j < count; ++j) best[j] = lowest_value<T>();
    if constexpr (kRecord != Record::kNone) {
      for (int64_t j = 0; j < count; ++j) code[j] = kNoCode;
    }
  }

  // Elements [begin, end) of the tile see x[0], x[step], ...; their codes are first_code,
  // first_code + code_step, ...
  template <int64_t kStep>
  __attribute__((always_inline)) void take(int64_t begin, int64_t end, const T* x, int64_t step,
                                           int64_t first_code, int64_t code_step) {
    const int64_t count = end - begin;
    Value* __restrict values = best + begin;
    for (int64_t j = 0; j < count; ++j) {
      const Value value = to_acc(x[j * (kStep > 0 ? kStep : step)]);
      const bool better = (value > values[j]) | (value != value);
      values[j] = better ? value : values[j];
      if constexpr (kRecord != Record::kNone) {
        Code* __restrict codes = code + begin;
        codes[j] = better ? static_cast<Code>(first_code + j * code_step) : codes[j];
      }
    }
  }

  __attribute__((always_inline)) void take(int64_t begin, int64_t end, const T* x, int64_t step,
                                           int64_t first_code, int64_t code_step) {
    if (step == 1) {
      take<1>(begin, end, x, step, first_code, code_step);
    } else if (step == 2) {
      take<2>(begin, end, x, step, first_code, code_step);
    } else {
      take<0>(begin, end, x, step, first_code, code_step);
    }
  }

  // Writes the tile at `place` of the output. `first_element(j)` is the code of the window's first
  // element, or kNoCode: nothing in a window of -inf was ever larger than the start value.
  template <typename FirstElement>
  __attribute__((always_inline)) void write(void* output, void* record, int64_t place,
                                            int64_t count, FirstElement first_element) {
    T* y = static_cast<T*>(output) + place;
    for (int64_t j = 0; j < count; ++j) y[j] = from_acc<T>(best[j]);
    if constexpr (kRecord != Record::kNone) {
      for (int64_t j = 0; j < count; ++j) {
        if (code[j] == kNoCode) code[j] = static_cast<Code>(first_element(j));
      }
      Recorded<kRecord>* r = static_cast<Recorded<kRecord>*>(record) + place;
      for (int64_t j = 0; j < count; ++j) r[j] = static_cast<Recorded<kRecord>>(code[j]);
    }
  }
};

// The record of tap (kh, kw) of the window that starts at (start_h, start_w).
template <Record kRecord>
NNOPS_INLINE int64_t code_of(const Pool2dGeometry& g, int64_t start_h, int64_t start_w, int64_t kh,
                             int64_t kw) {
  if constexpr (kRecord == Record::kIndices) {
    return (start_h + kh * g.dilation_h) * g.w + start_w + kw * g.dilation_w;
  } else {
    return kh * g.kernel_w + kw;
  }
}

// Columns [from, to) of one row of row-major output; `x` is the plane, `place` that of column 0.
template <typename T, Record kRecord>
NNOPS_INLINE void pool_column_tile(void* output, void* record, const T* x, const Pool2dGeometry& g,
                                   int64_t oh, int64_t from, int64_t to, int64_t place) {
  const int64_t start_h = oh * g.stride_h - g.pad_h;
  const Range rows = taps_inside(start_h, g.kernel_h, g.dilation_h, g.h);
  const int64_t first_w = from * g.stride_w - g.pad_w;
  const int64_t last_w = (to - 1) * g.stride_w - g.pad_w;
  // Taps that any column of the tile has inside the input: a huge kernel costs no more than w.
  const int64_t tap_begin = taps_inside(last_w, g.kernel_w, g.dilation_w, g.w).begin;
  const int64_t tap_end = taps_inside(first_w, g.kernel_w, g.dilation_w, g.w).end;
  const bool all_inside = first_w >= 0 && last_w + (g.kernel_w - 1) * g.dilation_w < g.w;
  const int64_t step = g.stride_w * g.input_strides[3];

  Tile<T, kRecord> tile;
  tile.clear(to - from);
  for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
    const T* row = x + (start_h + kh * g.dilation_h) * g.input_strides[2];
    for (int64_t kw = tap_begin; kw < tap_end; ++kw) {
      int64_t begin = from;
      int64_t end = to;
      if (!all_inside) {
        const int64_t shift = g.pad_w - kw * g.dilation_w;  // iw = ow * stride_w - shift
        if (g.w - 1 + shift < 0) continue;
        begin = larger(from, shift > 0 ? (shift + g.stride_w - 1) / g.stride_w : 0);
        end = smaller(to, (g.w - 1 + shift) / g.stride_w + 1);
        if (begin >= end) continue;
      }
      const int64_t iw = begin * g.stride_w - g.pad_w + kw * g.dilation_w;
      const int64_t code = code_of<kRecord>(g, start_h, begin * g.stride_w - g.pad_w, kh, kw);
      tile.take(begin - from, end - from, row + iw * g.input_strides[3], step, code,
                kRecord == Record::kIndices ? g.stride_w : 0);
    }
  }
  tile.write(output, record, place + from, to - from, [&](int64_t j) -> int64_t {
    const int64_t start_w = (from + j) * g.stride_w - g.pad_w;
    const Range columns = taps_inside(start_w, g.kernel_w, g.dilation_w, g.w);
    if (rows.begin == rows.end || columns.begin == columns.end) {
      return Tile<T, kRecord>::kNoCode;
    }
    return code_of<kRecord>(g, start_h, start_w, rows.begin, columns.begin);
  });
}

// One pixel of channels_last output; `x` is the image, `place` that of its first channel.
template <typename T, Record kRecord>
NNOPS_INLINE void pool_channel_tiles(void* output, void* record, const T* x,
                                     const Pool2dGeometry& g, int64_t oh, int64_t ow,
                                     int64_t place) {
  const int64_t start_h = oh * g.stride_h - g.pad_h;
  const int64_t start_w = ow * g.stride_w - g.pad_w;
  const Range rows = taps_inside(start_h, g.kernel_h, g.dilation_h, g.h);
  const Range columns = taps_inside(start_w, g.kernel_w, g.dilation_w, g.w);
  const bool empty = rows.begin == rows.end || columns.begin == columns.end;
  const int64_t first_code = empty
                                 ? int64_t{Tile<T, kRecord>::kNoCode}
                                 : code_of<kRecord>(g, start_h, start_w, rows.begin, columns.begin);
  for (int64_t from = 0; from < g.c; from += kTile) {
    const int64_t count = smaller(kTile, g.c - from);
    Tile<T, kRecord> tile;
    tile.clear(count);
    for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
      for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
        const T* pixel = x + (start_h + kh * g.dilation_h) * g.input_strides[2] +
                         (start_w + kw * g.dilation_w) * g.input_strides[3];
        tile.take(0, count, pixel + from * g.input_strides[1], g.input_strides[1],
                  code_of<kRecord>(g, start_h, start_w, kh, kw), 0);
      }
    }
    tile.write(output, record, place + from, count, [=](int64_t) { return first_code; });
  }
}

template <typename T, Record kRecord>
NNOPS_INLINE void pool_tiles(void* output, void* record, const void* input, const Pool2dGeometry& g,
                             int threads) {
  const T* x = static_cast<const T*>(input);
  for_output_rows(g, threads, [=, &g](int64_t image, int64_t channel, int64_t begin, int64_t end) {
    const T* source = x + image * g.input_strides[0] + channel * g.input_strides[1];
    const int64_t plane = image * g.output_strides[0] + channel * g.output_strides[1];
    for (int64_t oh = begin; oh < end; ++oh) {
      const int64_t place = plane + oh * g.output_strides[2];
      if (g.channels_last) {
        for (int64_t ow = 0; ow < g.ow; ++ow) {
          pool_channel_tiles<T, kRecord>(output, record, source, g, oh, ow, place + ow * g.c);
        }
      } else {
        for (int64_t from = 0; from < g.ow; from += kTile) {
          const int64_t to = smaller(g.ow, from + kTile);
          pool_column_tile<T, kRecord>(output, record, source, g, oh, from, to, place);
        }
      }
    }
  });
}

NNOPS_END_KERNELS
