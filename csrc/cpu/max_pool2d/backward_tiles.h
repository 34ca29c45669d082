// max_pool2d backward, "tiles": row-major, windows that tile the input: kernel 2x2, stride 2, no
// padding. Every output has its four elements of grad_input to itself, which are written at once.
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
      constexpr int N = decltype(lanes)::value;
      using V = Lanes<acc_t<T>, N>;
      const V gradient = load_lanes<N>(gy + ow);
      const auto codes = load_bytes<acc_t<T>, N>(offsets + ow);
      T* target = gx + 2 * ow;
      for (int row = 0; row < 2; ++row) {
        V low;
        V high;
        const V even = codes == 2 * row ? gradient : V{};
        merge_pairs(even, codes == 2 * row + 1 ? gradient : V{}, low, high);
        store_lanes<N>(target, low);
        store_lanes<N>(target + N, high);
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

template <typename T>
int64_t pool_backward_tiles(void* grad_input, const void* grad_output, const uint8_t* offsets,
                            float*, const Pool2dGeometry& g, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  for_output_rows(g, threads, [&](int64_t image, int64_t channel, int64_t begin, int64_t end) {
    const int64_t plane = image * g.c + channel;
    const int64_t place = plane * g.oh * g.ow;
    if (any_from(4, offsets + place + begin * g.ow, (end - begin) * g.ow)) {
      check.rows_beginning_in(2 * begin, 2 * end, place, 1);
    }
    T* target = gx + plane * g.h * g.w;
    spread_tiles(target, gy + place, offsets + place, g, begin, end);
    // The last row of an odd height belongs to no window.
    if (end == g.oh) {
      for (int64_t i = 2 * g.oh * g.w; i < g.h * g.w; ++i) target[i] = T{};
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
