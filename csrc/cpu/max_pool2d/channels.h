// max_pool2d forward, "channels": channels_last output, channels of the input contiguous. A vector
// holds neighbouring channels of one output, and goes through the taps of their window.
#pragma once

#include "cpu/max_pool2d/best.h"

NNOPS_BEGIN_KERNELS

// An input of more bytes lies beyond the caches, and is asked for some outputs ahead: a window is
// several streams of memory, which the hardware alone follows too late. Not where rows of windows
// overlap: they meet what others have brought.
constexpr int64_t kFarBytes = int64_t{16} << 20;
constexpr int64_t kOutputsAhead = 4;
template <typename T>
NNOPS_INLINE int64_t outputs_ahead(const Pool2dGeometry& g) {
  const int64_t bytes = g.n * g.c * g.h * g.w * static_cast<int64_t>(sizeof(T));
  return bytes >= kFarBytes && (g.kernel_h - 1) * g.dilation_h < g.stride_h ? kOutputsAhead : 0;
}

// `pixels` neighbouring outputs, whose windows have the tap rows and columns [0, tap_rows) x
// [0, tap_columns) from `first` on; the codes of the taps begin with `first_code`, those of indices
// count from `base` for the first pixel.
template <typename T, Record kRecord, int kKernelH, int kKernelW>
__attribute__((noinline)) void pool_pixels(T* output, Recorded<kRecord>* record, const T* first,
                                           const Pool2dGeometry& g, int64_t pixels,
                                           int64_t tap_rows, int64_t tap_columns,
                                           int64_t first_code, int64_t base, int64_t ahead) {
  const int64_t row_count = kKernelH > 0 ? kKernelH : tap_rows;
  const int64_t column_count = kKernelW > 0 ? kKernelW : tap_columns;
  const int64_t row_step = g.dilation_h * g.input_strides[2];
  const int64_t column_step = g.dilation_w * g.input_strides[3];
  const int64_t pixel_step = g.stride_w * g.input_strides[3];
  const int64_t channels = g.c;
  const TapCodes<kRecord> codes(g);
  // Columns of a window before those of the next one.
  const int64_t new_columns = smaller(g.stride_w, (column_count - 1) * g.dilation_w + 1);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const auto pool = [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
      constexpr int kN = decltype(lanes)::kCount;
      const T* row = first + channel;
      int64_t row_code = first_code;
      Best<T, kN, kRecord> best(load_lanes<kN>(row), row_code);
      for (int64_t kw = 1; kw < column_count; ++kw) {
        best.take(load_lanes<kN>(row + kw * column_step), row_code + kw * codes.column_step);
      }
      for (int64_t kh = 1; kh < row_count; ++kh) {
        row += row_step;
        row_code += codes.row_step;
        for (int64_t kw = 0; kw < column_count; ++kw) {
          best.take(load_lanes<kN>(row + kw * column_step), row_code + kw * codes.column_step);
        }
      }
      best.write(output + channel, kRecord == Record::kNone ? nullptr : record + channel, base, 0);
      if (kN == 1 || ahead == 0 || pixel + ahead >= pixels) return;
      const T* next = first + channel + ahead * pixel_step;
      for (int64_t kh = 0; kh < row_count; ++kh, next += row_step) {
        for (int64_t w = 0; w < new_columns; ++w) {
          __builtin_prefetch(next + w * g.input_strides[3], 0, 2);
        }
      }
    };
    for_lanes<acc_t<T>>(0, channels, pool, [&](int64_t channel) __attribute__((always_inline)) {
      pool(LaneCount<1>{}, channel);
    });
    first += pixel_step;
    output += channels;
    if constexpr (kRecord != Record::kNone) record += channels;
    base += kRecord == Record::kIndices ? g.stride_w : 0;
  }
}

template <typename T, Record kRecord, int kKernelH, int kKernelW>
NNOPS_INLINE void pool_channels(void* output, void* record, const void* input,
                                const Pool2dGeometry& g, int threads) {
  T* y = static_cast<T*>(output);
  Recorded<kRecord>* r = static_cast<Recorded<kRecord>*>(record);
  const T* x = static_cast<const T*>(input);
  const InnerWindows inner = inner_columns(g);
  const InnerWindows whole_rows = inner_rows(g);
  const TapCodes<kRecord> codes(g);
  const int64_t ahead = outputs_ahead<T>(g);
  for_output_rows(g, threads, [=, &g](int64_t image, int64_t, int64_t begin, int64_t end) {
    for (int64_t oh = begin; oh < end; ++oh) {
      const int64_t start_h = oh * g.stride_h - g.pad_h;
      const Range rows = taps_inside(start_h, g.kernel_h, g.dilation_h, g.h);
      const T* row = x + image * g.input_strides[0] + start_h * g.input_strides[2];
      const int64_t place = (image * g.oh + oh) * g.ow;
      for (int64_t ow = 0; ow < g.ow; ++ow) {
        const int64_t start_w = ow * g.stride_w - g.pad_w;
        T* output_pixel = y + (place + ow) * g.c;
        Recorded<kRecord>* record_pixel =
            kRecord == Record::kNone ? nullptr : r + (place + ow) * g.c;
        const T* window = row + start_w * g.input_strides[3];
        const int64_t base = codes.base(start_h, start_w);
        if (ow == inner.begin && inner.end > ow && whole_rows.contains(oh)) {
          const int64_t pixels = inner.end - inner.begin;
          pool_pixels<T, kRecord, kKernelH, kKernelW>(output_pixel, record_pixel, window, g, pixels,
                                                      g.kernel_h, g.kernel_w, 0, base, ahead);
          ow += pixels - 1;
          continue;
        }
        const Range columns = taps_inside(start_w, g.kernel_w, g.dilation_w, g.w);
        if (!rows.empty() && !columns.empty()) {
          pool_pixels<T, kRecord, 0, 0>(
              output_pixel, record_pixel,
              window + rows.begin * g.dilation_h * g.input_strides[2] +
                  columns.begin * g.dilation_w * g.input_strides[3],
              g, 1, rows.end - rows.begin, columns.end - columns.begin,
              rows.begin * codes.row_step + columns.begin * codes.column_step, base, 0);
          continue;
        }
        for (int64_t channel = 0; channel < g.c; ++channel) {
          output_pixel[channel] = from_acc<T>(lowest_value<T>());
          if constexpr (kRecord != Record::kNone) {
            record_pixel[channel] = kNothingRecorded<kRecord>;
          }
        }
      }
    }
  });
}

template <typename T, Record kRecord>
NNOPS_INLINE void choose_pool_channels(void* output, void* record, const void* input,
                                       const Pool2dGeometry& g, int threads) {
  if (g.kernel_h == 2 && g.kernel_w == 2) {
    pool_channels<T, kRecord, 2, 2>(output, record, input, g, threads);
  } else if (g.kernel_h == 3 && g.kernel_w == 3) {
    pool_channels<T, kRecord, 3, 3>(output, record, input, g, threads);
  } else {
    pool_channels<T, kRecord, 0, 0>(output, record, input, g, threads);
  }
}

NNOPS_END_KERNELS
