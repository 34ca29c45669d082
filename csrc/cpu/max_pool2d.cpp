// max_pool2d on the CPU: y[n, c, oh, ow] = max of the window of x, see ops/max_pool2d.h.
//
// The maximum is the first of equal ones in row-major order; a NaN counts as larger than anything
// before it, so the last NaN wins; a window of -inf alone has its first element. These are torch's
// rules. A window without any element inside the input gives the dtype's lowest value and the
// record "none".
//
// Forward keeps a tile of running maxima (and of their records) on the stack and updates it tap by
// tap: a tile is a piece of an output row (row-major output) or a piece of the channels of one
// output pixel (channels_last). Input of any strides. bfloat16 and float16 are compared as float.
// Parallel over output rows.
//
// Backward scatters grad_output into zeroed planes in row-major order, which fixes the order of
// every sum. Parallel over channel groups (n, c) or (n, block of c). Sums of bfloat16 and float16
// are accumulated in float scratch planes.
#include "ops/max_pool2d.h"

#include "cpu/planes.h"

NNOPS_BEGIN_KERNELS

enum class Record { kNone, kOffsets, kIndices };

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
  static constexpr Code kNoCode =
      static_cast<Code>(kRecord == Record::kIndices ? kNoIndex : int64_t{kNoOffset});

  Value best[kTile];
  Code code[kRecord == Record::kNone ? 1 : kTile];

  __attribute__((always_inline)) static Value lowest() {
    if constexpr (kIsFloating<T>) {
      return -std::numeric_limits<Value>::infinity();
    } else {
      return std::numeric_limits<Value>::lowest();
    }
  }

  __attribute__((always_inline)) void clear(int64_t count) {
    for (int64_t j = 0; j < count; ++j) best[j] = lowest();
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
      using Stored = typename LaneInteger<kRecord == Record::kIndices ? 8 : 1>::type;
      for (int64_t j = 0; j < count; ++j) {
        if (code[j] == kNoCode) code[j] = static_cast<Code>(first_element(j));
      }
      Stored* r = static_cast<Stored*>(record) + place;
      for (int64_t j = 0; j < count; ++j) r[j] = static_cast<Stored>(code[j]);
    }
  }
};

// Taps [begin, end) of a window along one axis that lie inside [0, size).
struct TapRange {
  int64_t begin, end;
};
NNOPS_INLINE TapRange taps_inside(int64_t start, int64_t kernel, int64_t dilation, int64_t size) {
  const int64_t last = start + (kernel - 1) * dilation;
  if (start >= 0 && last < size) return {0, kernel};
  const int64_t begin = start < 0 ? (dilation - 1 - start) / dilation : 0;
  const int64_t end = start < size ? smaller(kernel, (size - 1 - start) / dilation + 1) : 0;
  return {begin, larger(begin, end)};
}

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
NNOPS_INLINE void pool_columns(void* output, void* record, const T* x, const Pool2dGeometry& g,
                               int64_t oh, int64_t from, int64_t to, int64_t place) {
  const int64_t start_h = oh * g.stride_h - g.pad_h;
  const TapRange rows = taps_inside(start_h, g.kernel_h, g.dilation_h, g.h);
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
    const TapRange columns = taps_inside(start_w, g.kernel_w, g.dilation_w, g.w);
    if (rows.begin == rows.end || columns.begin == columns.end) {
      return Tile<T, kRecord>::kNoCode;
    }
    return code_of<kRecord>(g, start_h, start_w, rows.begin, columns.begin);
  });
}

// One pixel of channels_last output; `x` is the image, `place` that of its first channel.
template <typename T, Record kRecord>
NNOPS_INLINE void pool_channels(void* output, void* record, const T* x, const Pool2dGeometry& g,
                                int64_t oh, int64_t ow, int64_t place) {
  const int64_t start_h = oh * g.stride_h - g.pad_h;
  const int64_t start_w = ow * g.stride_w - g.pad_w;
  const TapRange rows = taps_inside(start_h, g.kernel_h, g.dilation_h, g.h);
  const TapRange columns = taps_inside(start_w, g.kernel_w, g.dilation_w, g.w);
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
NNOPS_INLINE void pool(void* output, void* record, const void* input, const Pool2dGeometry& g,
                       int threads) {
  const T* x = static_cast<const T*>(input);
  const int64_t row_elements = g.channels_last ? g.ow * g.c : g.ow;
  const int64_t planes = g.channels_last ? 1 : g.c;  // planes an image is split into
  const int64_t chunk = larger(1, kElementwiseChunk / row_elements);
  parallel_chunks(g.n * planes * g.oh, chunk, threads, [=, &g](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t oh = row % g.oh;
      const int64_t plane = row / g.oh;
      const int64_t image = plane / planes;
      const int64_t channel = plane % planes;
      const T* source = x + image * g.input_strides[0] + channel * g.input_strides[1];
      const int64_t place = row * row_elements;
      if (g.channels_last) {
        for (int64_t ow = 0; ow < g.ow; ++ow) {
          pool_channels<T, kRecord>(output, record, source, g, oh, ow, place + ow * g.c);
        }
      } else {
        for (int64_t from = 0; from < g.ow; from += kTile) {
          const int64_t to = smaller(g.ow, from + kTile);
          pool_columns<T, kRecord>(output, record, source, g, oh, from, to, place);
        }
      }
    }
  });
}

template <typename T>
void pool_values(void* output, void* record, const void* input, const Pool2dGeometry& g,
                 int threads) {
  pool<T, Record::kNone>(output, record, input, g, threads);
}
template <typename T>
void pool_offsets(void* output, void* record, const void* input, const Pool2dGeometry& g,
                  int threads) {
  pool<T, Record::kOffsets>(output, record, input, g, threads);
}
template <typename T>
void pool_indices(void* output, void* record, const void* input, const Pool2dGeometry& g,
                  int threads) {
  pool<T, Record::kIndices>(output, record, input, g, threads);
}

// From an offset to its distance from the window's start. An offset beyond the window is sent far
// outside of every input, so that the test of the position catches it too.
struct OffsetTable {
  static constexpr int64_t kFarOutside = INT64_MIN / 2;
  int64_t rows[256];
  int64_t columns[256];

  explicit OffsetTable(const Pool2dGeometry& g) {
    for (int64_t& row : rows) row = kFarOutside;
    for (int64_t& column : columns) column = kFarOutside;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
        rows[kh * g.kernel_w + kw] = kh * g.dilation_h;
        columns[kh * g.kernel_w + kw] = kw * g.dilation_w;
      }
    }
  }
};

// visit(channel in the group, place in memory of the output element, ih, iw) for all elements of
// a channel group whose offset points into the input, in row-major order, and skip(place) for
// those that have none; a wrong offset is reported.
template <typename Visit, typename Skip>
NNOPS_INLINE void for_each_maximum(const uint8_t* offsets, const OffsetTable& table,
                                   const Pool2dGeometry& g, const ChannelGroup& group,
                                   LowestPosition* wrong, Visit visit, Skip skip) {
  const int64_t* strides = g.output_strides;
  const int64_t base = group.image * strides[0] + group.channel * strides[1];
  for (int64_t oh = 0; oh < g.oh; ++oh) {
    const int64_t start_h = oh * g.stride_h - g.pad_h;
    for (int64_t ow = 0; ow < g.ow; ++ow) {
      const int64_t start_w = ow * g.stride_w - g.pad_w;
      const int64_t place = base + oh * strides[2] + ow * strides[3];
      for (int64_t channel = 0; channel < group.channels; ++channel) {
        const uint8_t offset = offsets[place + channel];
        const int64_t ih = start_h + table.rows[offset];
        const int64_t iw = start_w + table.columns[offset];
        if (static_cast<uint64_t>(ih) < static_cast<uint64_t>(g.h) &&
            static_cast<uint64_t>(iw) < static_cast<uint64_t>(g.w)) {
          visit(channel, place + channel, ih, iw);
        } else {
          skip(place + channel);
          if (offset != kNoOffset) wrong->report(place + channel);
        }
      }
    }
  }
}

template <typename T>
int64_t pool_backward(void* grad_input, const void* grad_output, const uint8_t* offsets,
                      float* scratch, const Pool2dGeometry& g, int threads) {
  constexpr bool kDirect = sizeof(acc_t<T>) == sizeof(T);
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const OffsetTable table(g);
  LowestPosition wrong;
  const int64_t block = g.channels_last ? smaller(g.c, kChannelBlock) : 1;
  const int64_t pixels = g.h * g.w;
  parallel_slots(channel_group_count(g.n, g.c, block), threads, [&](int64_t slot, int64_t index) {
    const ChannelGroup group = channel_group(index, g.c, block);
    T* target = gx + group.image * g.input_strides[0] + group.channel * g.input_strides[1];
    // From one pixel to the next, in the gradient and in what is accumulated.
    const int64_t pixel_step = g.channels_last ? g.c : 1;
    const int64_t sum_step = kDirect ? pixel_step : block;
    acc_t<T>* sums = nullptr;
    if constexpr (kDirect) {
      sums = target;
    } else {
      sums = scratch + slot * block * pixels;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t channel = 0; channel < group.channels; ++channel) {
        sums[pixel * sum_step + channel] = 0;
      }
    }
    for_each_maximum(
        offsets, table, g, group, &wrong,
        [&](int64_t channel, int64_t place, int64_t ih, int64_t iw) {
          sums[(ih * g.w + iw) * sum_step + channel] += to_acc(gy[place]);
        },
        [](int64_t) {});
    if constexpr (!kDirect) {
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t channel = 0; channel < group.channels; ++channel) {
          target[pixel * pixel_step + channel] = from_acc<T>(sums[pixel * sum_step + channel]);
        }
      }
    }
  });
  return wrong.or_minus_one();
}

template <typename T>
int64_t pool_gather(void* output, const void* input, const uint8_t* offsets,
                    const Pool2dGeometry& g, int threads) {
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  const OffsetTable table(g);
  LowestPosition wrong;
  const int64_t block = g.channels_last ? smaller(g.c, kChannelBlock) : 1;
  parallel_slots(channel_group_count(g.n, g.c, block), threads, [&](int64_t, int64_t index) {
    const ChannelGroup group = channel_group(index, g.c, block);
    const T* source = x + group.image * g.input_strides[0] + group.channel * g.input_strides[1];
    for_each_maximum(
        offsets, table, g, group, &wrong,
        [&](int64_t channel, int64_t place, int64_t ih, int64_t iw) {
          y[place] = source[channel * g.input_strides[1] + ih * g.input_strides[2] +
                            iw * g.input_strides[3]];
        },
        [&](int64_t place) { y[place] = T{}; });
  });
  return wrong.or_minus_one();
}

}  // namespace

extern const MaxPool2dKernels max_pool2d_kernels = {
    NNOPS_ALL_DTYPES(pool_values), NNOPS_ALL_DTYPES(pool_offsets), NNOPS_ALL_DTYPES(pool_indices),
    NNOPS_FLOAT_DTYPES(pool_backward), NNOPS_FLOAT_DTYPES(pool_gather)};

}  // namespace NNOPS_ISA
}  // namespace nnops
