// max_pool2d backward, "channels": channels_last, dilation 1. Every pixel of grad_input collects
// from the windows that hold it, a vector of channels at a time, and is written once. The windows
// are visited in row-major order: the sums have the bits of a scatter in that order.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/offset_check.h"

NNOPS_BEGIN_KERNELS

// The windows that hold a pixel: `rows` x `columns` of them, the pixel's code in the first, and how
// much less it is in the next row and column.
struct PixelWindows {
  int64_t rows, columns;
  int64_t code, row_step, column_step;
};

// One pixel from the windows of which the first has the gradients `gy` and the offsets `offsets`.
// With kRows and kColumns, if not 0, their numbers are known.
template <typename T, int kRows, int kColumns>
NNOPS_INLINE void collect_pixel(T* gx, const T* gy, const uint8_t* offsets, int64_t channels,
                                int64_t row_elements, const PixelWindows& windows) {
  const int64_t row_count = kRows > 0 ? kRows : windows.rows;
  const int64_t column_count = kColumns > 0 ? kColumns : windows.columns;
  const auto collect = [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
    constexpr int kN = decltype(lanes)::kCount;
    Lanes<acc_t<T>, kN> sum = {};
    for (int64_t row = 0; row < row_count; ++row) {
      for (int64_t column = 0; column < column_count; ++column) {
        const int64_t place = row * row_elements + column * channels + channel;
        const int64_t code = windows.code - row * windows.row_step - column * windows.column_step;
        sum = add_where<acc_t<T>, kN>(sum, load_lanes<kN>(gy + place), offsets + place,
                                      static_cast<uint8_t>(code));
      }
    }
    store_lanes<kN>(gx + channel, sum);
  };
  for_lanes<acc_t<T>>(0, channels, collect, [&](int64_t channel) __attribute__((always_inline)) {
    collect(LaneCount<1>{}, channel);
  });
}

// Row `ih` of one image; `rows` are the output rows whose windows hold it, kRows of them if it is
// not 0.
template <typename T, int kRows>
__attribute__((noinline)) void collect_pixel_row(T* gx, const T* gy, const uint8_t* offsets,
                                                 const Pool2dGeometry& g, int64_t ih,
                                                 const WindowRange& rows) {
  const int64_t channels = g.c;
  const int64_t stride_w = g.stride_w;
  const int64_t row_elements = g.ow * channels;
  WindowRange columns = windows_of(0, g.ow, g.kernel_w, stride_w, g.pad_w);
  for (int64_t iw = 0; iw < g.w; ++iw) {
    move_to(columns, iw, g.ow, g.kernel_w, stride_w, g.pad_w);
    const int64_t place = (rows.begin * g.ow + columns.begin) * channels;
    const PixelWindows windows = {rows.end - rows.begin, columns.end - columns.begin,
                                  (ih + g.pad_h - rows.begin * g.stride_h) * g.kernel_w + iw +
                                      g.pad_w - columns.begin * stride_w,
                                  g.stride_h * g.kernel_w, stride_w};
    const auto collect = [&](auto known_columns) __attribute__((always_inline)) {
      constexpr int kColumns = decltype(known_columns)::value;
      constexpr int kKnownRows = kColumns > 0 ? kRows : 0;
      collect_pixel<T, kKnownRows, kColumns>(gx, gy + place, offsets + place, channels,
                                             row_elements, windows);
    };
    switch (kRows > 0 ? windows.columns : 0) {
      case 1:
        collect(std::integral_constant<int, 1>{});
        break;
      case 2:
        collect(std::integral_constant<int, 2>{});
        break;
      case 3:
        collect(std::integral_constant<int, 3>{});
        break;
      default:
        collect(std::integral_constant<int, 0>{});
    }
    gx += channels;
  }
}

template <typename T>
int64_t pool_backward_channels(void* grad_input, const void* grad_output, const uint8_t* offsets,
                               float*, const Pool2dGeometry& g, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  for_input_rows(g, threads, [&](int64_t image, int64_t, int64_t begin, int64_t end) {
    const int64_t place = image * g.oh * g.ow * g.c;
    check.rows_beginning_in(begin, end, place, g.c);
    for (int64_t ih = begin; ih < end; ++ih) {
      const WindowRange rows = windows_of(ih, g.oh, g.kernel_h, g.stride_h, g.pad_h);
      T* row = gx + (image * g.h + ih) * g.w * g.c;
      // As many as the windows of most nets have get loops of a known length.
      switch (rows.end - rows.begin) {
        case 1:
          collect_pixel_row<T, 1>(row, gy + place, offsets + place, g, ih, rows);
          break;
        case 2:
          collect_pixel_row<T, 2>(row, gy + place, offsets + place, g, ih, rows);
          break;
        case 3:
          collect_pixel_row<T, 3>(row, gy + place, offsets + place, g, ih, rows);
          break;
        default:
          collect_pixel_row<T, 0>(row, gy + place, offsets + place, g, ih, rows);
      }
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
