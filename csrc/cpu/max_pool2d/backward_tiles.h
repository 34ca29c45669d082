// max_pool2d backward, "tiles": windows that tile the input: kernel 2x2, stride 2, no padding.
// Every output has its four elements of grad_input to itself, which are written at once.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/offset_check.h"

NNOPS_BEGIN_KERNELS

// Output rows [begin, end) of one plane, and their input rows.
template <typename T>
__attribute__((noinline)) void spread_tiles(T* gx, const T* gy, const uint8_t* offsets,
                                            const Pool2dGeometry& g, int64_t begin, int64_t end) {
  const int64_t width = g.ow;
  const int64_t row_elements = g.w;
  gy += begin * width;
  offsets += begin * width;
  gx += 2 * begin * row_elements;
  for (int64_t oh = begin; oh < end; ++oh) {
    const auto spread = [&](auto lanes, int64_t ow) __attribute__((always_inline)) {
      constexpr int kN = decltype(lanes)::kCount;
      using V = Lanes<acc_t<T>, kN>;
      const V gradient = load_lanes<kN>(gy + ow);
      const auto codes = load_bytes<acc_t<T>, kN>(offsets + ow);
      T* target = gx + 2 * ow;
      for (int row = 0; row < 2; ++row) {
        V low;
        V high;
        const V even = codes == 2 * row ? gradient : V{};
        merge_pairs(even, codes == 2 * row + 1 ? gradient : V{}, low, high);
        store_lanes<kN>(target, low);
        store_lanes<kN>(target + kN, high);
        target += row_elements;
      }
    };
    for_lanes<acc_t<T>>(0, width, spread, [&](int64_t ow) {
      for (int64_t tap = 0; tap < 4; ++tap) {
        gx[tap / 2 * row_elements + 2 * ow + tap % 2] = offsets[ow] == tap ? gy[ow] : T{};
      }
    });
    if (row_elements > 2 * width) {
      gx[2 * width] = T{};
      gx[row_elements + 2 * width] = T{};
    }
    gy += width;
    offsets += width;
    gx += 2 * row_elements;
  }
}

// The same where channels are innermost, of one image.
template <typename T>
__attribute__((noinline)) void spread_pixel_tiles(T* gx, const T* gy, const uint8_t* offsets,
                                                  const Pool2dGeometry& g, int64_t begin,
                                                  int64_t end) {
  const int64_t channels = g.c;
  const int64_t row_elements = g.w * channels;
  gy += begin * g.ow * channels;
  offsets += begin * g.ow * channels;
  for (int64_t oh = begin; oh < end; ++oh) {
    T* target = gx + 2 * oh * row_elements;
    for (int64_t ow = 0; ow < g.ow; ++ow) {
      const auto spread = [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
        constexpr int kN = decltype(lanes)::kCount;
        using V = Lanes<acc_t<T>, kN>;
        const V gradient = load_lanes<kN>(gy + channel);
        const auto codes = load_bytes<acc_t<T>, kN>(offsets + channel);
        T* pixel = target + channel;
        store_lanes<kN>(pixel, codes == 0 ? gradient : V{});
        store_lanes<kN>(pixel + channels, codes == 1 ? gradient : V{});
        store_lanes<kN>(pixel + row_elements, codes == 2 ? gradient : V{});
        store_lanes<kN>(pixel + row_elements + channels, codes == 3 ? gradient : V{});
      };
      if (is_one_vector<T>(channels) && ow + 1 < g.ow) {
        // What stands in lanes behind the pixel is written again by the next one.
        one_vector<T>(channels,
                      [&](auto lanes) __attribute__((always_inline)) { spread(lanes, 0); });
      } else {
        const auto single = [&](int64_t channel)
                                __attribute__((always_inline)) { spread(LaneCount<1>{}, channel); };
        for_lanes<acc_t<T>>(0, channels, spread, single);
      }
      gy += channels;
      offsets += channels;
      target += 2 * channels;
    }
    // The last column of an odd width belongs to no window.
    for (int64_t i = 2 * g.ow * channels; i < row_elements; ++i) {
      gx[2 * oh * row_elements + i] = T{};
      gx[(2 * oh + 1) * row_elements + i] = T{};
    }
  }
}

template <typename T>
int64_t pool_backward_tiles(void* grad_input, const void* grad_output, const uint8_t* offsets,
                            float*, const Pool2dGeometry& g, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  const int64_t width = g.channels_last ? g.c : 1;  // offsets of one column
  for_output_rows(g, threads, [&](int64_t image, int64_t channel, int64_t begin, int64_t end) {
    const int64_t plane = g.channels_last ? image : image * g.c + channel;
    const int64_t place = plane * g.oh * g.ow * width;
    const int64_t row = g.ow * width;
    if (any_from(4, offsets + place + begin * row, (end - begin) * row)) {
      check.rows_beginning_in(2 * begin, 2 * end, place, width);
    }
    const int64_t row_elements = g.w * width;
    T* target = gx + plane * g.h * row_elements;
    if (g.channels_last) {
      spread_pixel_tiles(target, gy + place, offsets + place, g, begin, end);
    } else {
      spread_tiles(target, gy + place, offsets + place, g, begin, end);
    }
    // The last row of an odd height belongs to no window.
    if (end == g.oh) {
      for (int64_t i = 2 * g.oh * row_elements; i < g.h * row_elements; ++i) target[i] = T{};
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
