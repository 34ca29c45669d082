// max_pool2d on CUDA: y[n, c, oh, ow] = max of the window of x, see ops/max_pool2d.h; its backward
// and the gather at offsets.
//
// The maximum is the first of equal ones in row-major order; a NaN counts as larger than anything
// before it, so the last NaN wins; a window of -inf alone has its first element. These are torch's
// rules. A window without any element inside the input gives the dtype's lowest value and the
// record "none". bfloat16 and float16 are compared, and their gradients summed, as float.
//
// Threads go through the written tensor in the order of its memory, which is packed: neighbouring
// threads write side by side, and read side by side along the rows (row-major) or the channels
// (channels_last), up to 16 bytes each. As there are no more threads than elements in memory, a
// grid of one dimension holds them all. The overlap of windows is left to the caches. Backward is a
// gather: each element of the gradient sums the windows that chose it, in row-major order, which
// needs no atomics and gives the bits of the CPU's scatter.
//
// A kernel is compiled for an Index type: int32_t, for images below 2^30 elements, of which a
// launch takes so many that positions stay below 2^31; or int64_t, which holds everything.
#pragma once

#include <limits>

#include "cuda/fast_division.cuh"
#include "ops/max_pool2d.h"

namespace nnops::cuda {

inline constexpr int kPoolThreads = 256;
// Blocks that a multiprocessor must hold at least: bounds the registers, and keeps ptxas from
// spilling some for the sake of one block more.
template <int kLanes>
inline constexpr int kPoolBlocks = kLanes < 8 ? 4 : 2;

enum class Record { kNone, kOffsets, kIndices };

// Elements of `record`.
template <Record kRecord>
using Recorded = std::conditional_t<kRecord == Record::kIndices, int64_t, uint8_t>;
template <Record kRecord>
inline constexpr int64_t kNothingRecorded =
    kRecord == Record::kIndices ? kNoIndex : int64_t{kNoOffset};

template <typename T, bool = kIsFloating<T>>
inline constexpr acc_t<T> kLowestValue = -std::numeric_limits<acc_t<T>>::infinity();
template <typename T>
inline constexpr T kLowestValue<T, false> = std::numeric_limits<T>::lowest();

// --- where things lie ---------------------------------------------------------------------------

// A vector of neighbouring elements of an (n, c, h, w) tensor.
template <typename Index>
struct ImagePlace {
  Index image, channel, row, column;
};

// A packed (n, c, h, w) tensor, cut into vectors: of channels where they are innermost
// (channels_last), else of columns. Sizes and places count vectors along that axis.
template <typename Index>
struct PackedImages {
  FastDivision<Index> channels, rows, columns;
  bool channels_last;

  NNOPS_HOST_DEVICE ImagePlace<Index> place(Index position) const {
    ImagePlace<Index> result;
    if (channels_last) {
      result.image = channels.divide(position);
      result.channel = position;
      position = result.image;
      result.image = columns.divide(position);
      result.column = position;
      position = result.image;
      result.image = rows.divide(position);
      result.row = position;
    } else {
      result.image = columns.divide(position);
      result.column = position;
      position = result.image;
      result.image = rows.divide(position);
      result.row = position;
      position = result.image;
      result.image = channels.divide(position);
      result.channel = position;
    }
    return result;
  }
};

// Taps [begin, end) of a window along one axis that lie inside the input.
template <typename Index>
struct TapRange {
  Index begin, end;
};

// Windows that hold a position along one axis, in ascending order: `window`, of which the position
// is tap `tap`, then each `window_step` further and `tap_step` lower, while tap >= 0 and window <
// the number of windows.
template <typename Index>
struct AxisWindows {
  Index window, tap;
};

// One axis of a pooling: window o holds the positions o * stride - pad + tap * dilation.
template <typename Index>
struct PoolAxis {
  Index size, windows, kernel, pad;
  FastDivision<Index> stride, dilation;
  Index dilation_strides, dilation_rest;  // dilation = strides * stride + rest
  Index window_step, tap_step;            // dilation and stride without their common divisor

  NNOPS_HOST_DEVICE Index start(Index window) const { return window * stride.divisor() - pad; }

  NNOPS_HOST_DEVICE TapRange<Index> taps_inside(Index start) const {
    TapRange<Index> taps;
    taps.begin = start < 0 ? dilation.quotient(dilation.divisor() - 1 - start) : 0;
    taps.end = start < size ? smaller<Index>(kernel, dilation.quotient(size - 1 - start) + 1) : 0;
    return taps;
  }

  NNOPS_HOST_DEVICE AxisWindows<Index> windows_of(Index position) const {
    AxisWindows<Index> result;
    result.tap = kernel - 1;
    Index place = position + pad - result.tap * dilation.divisor();  // where its window begins
    if (place < 0) {
      const Index later = dilation.quotient(dilation.divisor() - 1 - place);
      result.tap -= later;
      place += later * dilation.divisor();
    }
    // Most taps are those of no window where the stride is larger than 1.
    result.window = stride.divide(place);
    while (place != 0 && result.tap >= 0) {
      --result.tap;
      result.window += dilation_strides;
      place += dilation_rest;
      if (place >= stride.divisor()) {
        place -= stride.divisor();
        ++result.window;
      }
    }
    return result;
  }
};

// `written` is the tensor that threads go through, the other one has the strides: in elements, of
// any layout where it is the input.
template <typename Index>
struct PoolProblem {
  PackedImages<Index> written;
  PoolAxis<Index> rows, columns;
  int64_t image_stride, channel_stride;
  Index row_stride, column_stride;

  // The place of channel `channel` of an image on the other side.
  NNOPS_HOST_DEVICE int64_t plane(Index image, Index channel) const {
    return image * image_stride + channel * channel_stride;
  }
};

// --- forward ------------------------------------------------------------------------------------

// The running maxima of kLanes windows and the codes of where they were found. The code of a tap is
// its offset, or its index less that of the window's first element.
template <typename T, int kLanes, Record kRecord, typename Index>
struct Best {
  Vector<acc_t<T>, kLanes> values;
  Vector<Index, kLanes> codes;

  // `first_code` is that of the first element inside the input: nothing in a window of -inf is ever
  // larger than the value to begin with.
  NNOPS_DEVICE explicit Best(Index first_code) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      values[i] = kLowestValue<T>;
      codes[i] = first_code;
    }
  }

  NNOPS_DEVICE void take(int lane, acc_t<T> value, Index code) {
    const bool better = value > values[lane] || value != value;
    values[lane] = better ? value : values[lane];
    codes[lane] = better ? code : codes[lane];
  }
  NNOPS_DEVICE void take(const Vector<acc_t<T>, kLanes>& candidates, Index code) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) take(i, candidates[i], code);
  }

  // The record of lane i is base + i * step + its code.
  NNOPS_DEVICE void write(T* output, Recorded<kRecord>* record, int64_t position, int64_t base,
                          int64_t step) const {
    store_acc<kLanes>(output + position * kLanes, values);
    if constexpr (kRecord != Record::kNone) {
      Vector<Recorded<kRecord>, kLanes> records;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        records[i] = static_cast<Recorded<kRecord>>(base + i * step + codes[i]);
      }
      store_vector<kLanes>(record + position * kLanes, records);
    }
  }
};

// One vector of kLanes channels (channels_last) or one element of the output a thread. kKernel > 0:
// square windows of that size, stride 2 and dilation 1, of which all have an element inside.
template <typename T, Record kRecord, int kLanes, int kKernel, typename Index>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<kLanes>)
    pool_windows(T* __restrict__ output, Recorded<kRecord>* __restrict__ record,
                 const T* __restrict__ input, int64_t count, PoolProblem<Index> problem) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const ImagePlace<Index> place = problem.written.place(static_cast<Index>(position));
  const PoolAxis<Index>& rows = problem.rows;
  const PoolAxis<Index>& columns = problem.columns;
  const T* plane = input + problem.plane(place.image, place.channel * kLanes);
  constexpr bool kIndices = kRecord == Record::kIndices;

  if constexpr (kKernel > 0) {
    const Index start_h = place.row * 2 - rows.pad;
    const Index start_w = place.column * 2 - columns.pad;
    const Index row_code = kIndices ? columns.size : kKernel;
    Best<T, kLanes, kRecord, Index> best(larger<Index>(-start_h, 0) * row_code +
                                         larger<Index>(-start_w, 0));
#pragma unroll
    for (int kh = 0; kh < kKernel; ++kh) {
#pragma unroll
      for (int kw = 0; kw < kKernel; ++kw) {
        const Index ih = start_h + kh;
        const Index iw = start_w + kw;
        Vector<acc_t<T>, kLanes> candidates;
        if (ih >= 0 && ih < rows.size && iw >= 0 && iw < columns.size) {
          candidates =
              load_acc<kLanes>(plane + (ih * problem.row_stride + iw * problem.column_stride));
        } else {
#pragma unroll
          for (int i = 0; i < kLanes; ++i) candidates[i] = kLowestValue<T>;
        }
        best.take(candidates, kh * row_code + kw);
      }
    }
    best.write(output, record, position, kIndices ? start_h * columns.size + start_w : 0, 0);
  } else {
    const Index start_h = rows.start(place.row);
    const Index start_w = columns.start(place.column);
    const TapRange<Index> taps_h = rows.taps_inside(start_h);
    const TapRange<Index> taps_w = columns.taps_inside(start_w);
    if (taps_h.begin >= taps_h.end || taps_w.begin >= taps_w.end) {
      const Best<T, kLanes, kRecord, Index> none(0);
      none.write(output, record, position, kNothingRecorded<kRecord>, 0);
      return;
    }
    const Index dilation_h = rows.dilation.divisor();
    const Index dilation_w = columns.dilation.divisor();
    // From one tap to the next, in the input and in the codes.
    const Index row_step = dilation_h * problem.row_stride;
    const Index column_step = dilation_w * problem.column_stride;
    const Index row_code = kIndices ? dilation_h * columns.size : columns.kernel;
    const Index column_code = kIndices ? dilation_w : 1;
    const T* row = plane + ((start_h + taps_h.begin * dilation_h) * problem.row_stride +
                            (start_w + taps_w.begin * dilation_w) * problem.column_stride);
    Index first_code = taps_h.begin * row_code + taps_w.begin * column_code;
    Best<T, kLanes, kRecord, Index> best(first_code);
    for (Index kh = taps_h.begin; kh < taps_h.end; ++kh) {
      const T* tap = row;
      Index code = first_code;
#pragma unroll(sizeof(Index) == 4 ? 4 : 1)
      for (Index kw = taps_w.begin; kw < taps_w.end; ++kw) {
        best.take(load_acc<kLanes>(tap), code);
        tap += column_step;
        code += column_code;
      }
      row += row_step;
      first_code += row_code;
    }
    best.write(output, record, position, kIndices ? start_h * columns.size + start_w : 0, 0);
  }
}

// Row-major, 2x2 windows of stride 2 without padding: 16 bytes of two rows a thread. The written
// vectors have half as many elements.
template <typename T, Record kRecord>
__global__ void __launch_bounds__(kPoolThreads)
    pool_pairs(T* __restrict__ output, Recorded<kRecord>* __restrict__ record,
               const T* __restrict__ input, int64_t count, PoolProblem<int32_t> problem) {
  constexpr int kLanes = kVectorWidth<T>;
  constexpr int kOutputs = kLanes / 2;
  const int64_t position = grid_index();
  if (position >= count) return;
  const ImagePlace<int32_t> place = problem.written.place(static_cast<int32_t>(position));
  const T* row = input + problem.plane(place.image, place.channel) +
                 (2 * place.row * problem.row_stride + place.column * kLanes);
  const Vector<acc_t<T>, kLanes> upper = load_acc<kLanes>(row);
  const Vector<acc_t<T>, kLanes> lower = load_acc<kLanes>(row + problem.row_stride);
  constexpr bool kIndices = kRecord == Record::kIndices;
  const int32_t width = problem.columns.size;
  const int32_t row_code = kIndices ? width : 2;
  Best<T, kOutputs, kRecord, int32_t> best(0);
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    best.take(i, upper[2 * i], 0);
    best.take(i, upper[2 * i + 1], 1);
    best.take(i, lower[2 * i], row_code);
    best.take(i, lower[2 * i + 1], row_code + 1);
  }
  best.write(output, record, position, kIndices ? 2 * place.row * width + place.column * kLanes : 0,
             kIndices ? 2 : 0);
}

// --- backward -----------------------------------------------------------------------------------

// Adds the gradients of kLanes windows whose offset is `code`.
template <typename T, int kLanes>
NNOPS_DEVICE void add_where(Vector<acc_t<T>, kLanes>& sums,
                            const Vector<acc_t<T>, kLanes>& gradients,
                            const Vector<uint8_t, kLanes>& offsets, int code) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (offsets[i] == code) sums[i] += gradients[i];
  }
}

// One vector of kLanes channels (channels_last) or one element of the input's gradient a thread.
// kKernel > 0: square windows of that size, stride 2 and dilation 1.
template <typename T, int kLanes, int kKernel, typename Index>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<kLanes>)
    pool_backward(T* __restrict__ grad_input, const T* __restrict__ grad_output,
                  const uint8_t* __restrict__ offsets, int64_t count, PoolProblem<Index> problem) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const ImagePlace<Index> place = problem.written.place(static_cast<Index>(position));
  const PoolAxis<Index>& rows = problem.rows;
  const PoolAxis<Index>& columns = problem.columns;
  const int64_t plane = problem.plane(place.image, place.channel * kLanes);
  grad_output += plane;
  offsets += plane;
  Vector<acc_t<T>, kLanes> sums{};

  if constexpr (kKernel > 0) {
    constexpr int kMostWindows = (kKernel + 1) / 2;  // that hold an element, along an axis
    const Index place_h = place.row + rows.pad;
    const Index place_w = place.column + columns.pad;
    const Index first_h = (place_h - kKernel + 2) >> 1;
    const Index first_w = (place_w - kKernel + 2) >> 1;
#pragma unroll
    for (int i = 0; i < kMostWindows; ++i) {
#pragma unroll
      for (int j = 0; j < kMostWindows; ++j) {
        const Index oh = first_h + i;
        const Index ow = first_w + j;
        const Index tap_h = place_h - 2 * oh;
        const Index tap_w = place_w - 2 * ow;
        if (tap_h >= 0 && oh >= 0 && oh < rows.windows && tap_w >= 0 && ow >= 0 &&
            ow < columns.windows) {
          const Index window = oh * problem.row_stride + ow * problem.column_stride;
          add_where<T, kLanes>(sums, load_acc<kLanes>(grad_output + window),
                               load_vector<kLanes>(offsets + window),
                               static_cast<int>(tap_h * kKernel + tap_w));
        }
      }
    }
  } else {
    const AxisWindows<Index> first_w = columns.windows_of(place.column);
    AxisWindows<Index> h = rows.windows_of(place.row);
    for (; h.tap >= 0 && h.window < rows.windows; h.tap -= rows.tap_step) {
      AxisWindows<Index> w = first_w;
      for (; w.tap >= 0 && w.window < columns.windows; w.tap -= columns.tap_step) {
        const Index window = h.window * problem.row_stride + w.window * problem.column_stride;
        add_where<T, kLanes>(sums, load_acc<kLanes>(grad_output + window),
                             load_vector<kLanes>(offsets + window),
                             static_cast<int>(h.tap * columns.kernel + w.tap));
        w.window += columns.window_step;
      }
      h.window += rows.window_step;
    }
  }
  store_acc<kLanes>(grad_input + position * kLanes, sums);
}

// Row-major, 2x2 windows of stride 2 without padding: 16 bytes of two rows of the gradient a
// thread. The last row of an odd height belongs to no window.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads)
    pool_backward_pairs(T* __restrict__ grad_input, const T* __restrict__ grad_output,
                        const uint8_t* __restrict__ offsets, int64_t count,
                        PoolProblem<int32_t> problem) {
  constexpr int kLanes = kVectorWidth<T>;
  constexpr int kWindows = kLanes / 2;
  const int64_t position = grid_index();
  if (position >= count) return;
  const ImagePlace<int32_t> place = problem.written.place(static_cast<int32_t>(position));
  const bool tapped = place.row < problem.rows.windows;
  Vector<acc_t<T>, kLanes> upper{};
  Vector<acc_t<T>, kLanes> lower{};
  if (tapped) {
    const int64_t window = problem.plane(place.image, place.channel) +
                           (place.row * problem.row_stride + place.column * kWindows);
    const Vector<acc_t<T>, kWindows> gradients = load_acc<kWindows>(grad_output + window);
    const Vector<uint8_t, kWindows> codes = load_vector<kWindows>(offsets + window);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const acc_t<T> gradient = acc_t<T>{0} + gradients[i / 2];  // a sum: -0 becomes 0
      upper[i] = codes[i / 2] == i % 2 ? gradient : acc_t<T>{0};
      lower[i] = codes[i / 2] == 2 + i % 2 ? gradient : acc_t<T>{0};
    }
  }
  const int32_t width = problem.columns.size;
  const int64_t plane = int64_t{place.image} * problem.written.channels.divisor() + place.channel;
  const int32_t row = 2 * place.row;
  T* target = grad_input + (plane * problem.rows.size + row) * width + place.column * kLanes;
  store_acc<kLanes>(target, upper);
  if (row + 1 < problem.rows.size) store_acc<kLanes>(target + width, lower);
}

// --- gather -------------------------------------------------------------------------------------

// The input's elements at the offsets; 0 where there is none, or where it points outside of the
// input.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads)
    pool_gather(T* __restrict__ output, const T* __restrict__ input,
                const uint8_t* __restrict__ offsets, int64_t count, PoolProblem<int64_t> problem,
                FastDivision<int32_t> kernel_w) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const ImagePlace<int64_t> place = problem.written.place(position);
  int32_t tap_w = offsets[position];
  const int32_t tap_h = kernel_w.divide(tap_w);
  const int64_t ih = problem.rows.start(place.row) + tap_h * problem.rows.dilation.divisor();
  const int64_t iw =
      problem.columns.start(place.column) + tap_w * problem.columns.dilation.divisor();
  const bool inside = tap_h < problem.rows.kernel && ih >= 0 && ih < problem.rows.size && iw >= 0 &&
                      iw < problem.columns.size;
  output[position] = inside ? input[problem.plane(place.image, place.channel) +
                                    ih * problem.row_stride + iw * problem.column_stride]
                            : T{};
}

}  // namespace nnops::cuda
