// max_pool2d backward, "channels": channels_last, dilation 1. Every pixel of grad_input collects
// from the windows that hold it, a vector of channels at a time, and is written once. The windows
// are visited in row-major order: the sums have the bits of a scatter in that order.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/offset_check.h"

NNOPS_BEGIN_KERNELS

// Row `ih` of one image; `rows` are the output rows whose windows hold it.
template <typename T>
__attribute__((noinline)) void collect_pixel_row(T* gx, const T* gy, const uint8_t* offsets,
                                                 const Pool2dGeometry& g, int64_t ih,
                                                 const WindowRange& rows) {
  const int64_t channels = g.c;
  const int64_t stride_w = g.stride_w;
  const int64_t row_elements = g.ow * channels;
  const int64_t code_step = g.stride_h * g.kernel_w;
  WindowRange columns = windows_of(0, g.ow, g.kernel_w, stride_w, g.pad_w);
  for (int64_t iw = 0; iw < g.w; ++iw) {
    move_to(columns, iw, g.ow, g.kernel_w, stride_w, g.pad_w);
    // The first window that holds the pixel, and the pixel's code in it.
    const int64_t place = rows.begin * row_elements + columns.begin * channels;
    const int64_t first_code = (ih + g.pad_h - rows.begin * g.stride_h) * g.kernel_w + iw +
                               g.pad_w - columns.begin * stride_w;
    const int64_t column_count = columns.end - columns.begin;
    const auto collect = [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
      constexpr int kN = decltype(lanes)::kCount;
      using V = Lanes<acc_t<T>, kN>;
      using I = LaneMask<acc_t<T>, kN>;
      using Code = std::remove_reference_t<decltype(I{}[0])>;
      V sum = {};
      int64_t window_row = place + channel;
      int64_t row_code = first_code;
      for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
        int64_t window = window_row;
        int64_t code = row_code;
        for (int64_t column = 0; column < column_count; ++column) {
          const I codes = load_bytes<acc_t<T>, kN>(offsets + window);
          sum += codes == static_cast<Code>(code) ? load_lanes<kN>(gy + window) : V{};
          window += channels;
          code -= stride_w;
        }
        window_row += row_elements;
        row_code -= code_step;
      }
      store_lanes<kN>(gx + channel, sum);
    };
    for_lanes<acc_t<T>>(0, channels, collect, [&](int64_t channel) __attribute__((always_inline)) {
      collect(LaneCount<1>{}, channel);
    });
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
      collect_pixel_row(gx + (image * g.h + ih) * g.w * g.c, gy + place, offsets + place, g, ih,
                        rows);
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
