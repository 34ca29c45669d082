// max_pool2d backward, "tiles": windows that tile the input: kernel 2x2, stride 2, no padding.
// Every output has its four elements of grad_input to itself, which are written at once.
//
// Rows that fill vectors are spread straight from the gradients. The narrowest maps, and channels
// that leave a part of their vectors empty, do not: there a block of gradients is first doubled in
// scratch memory, each pixel for its left and its right column, and then both input rows of a
// window row are one long run, written in whole cache lines.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/offset_check.h"

NNOPS_BEGIN_KERNELS

// Output rows [begin, end) of one row-major plane, and their input rows.
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
      for_lanes<acc_t<T>>(0, channels, spread, [&](int64_t channel) __attribute__((always_inline)) {
        spread(LaneCount<1>{}, channel);
      });
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

// Gradients and codes of a block of windows, both doubled: [pixel][left, right][channel]. The codes
// of the right column are 1 less, so that 0 means the upper and 2 the lower row in either.
template <typename A>
struct DoubledWindows {
  static constexpr int64_t kMost = 2048;
  static constexpr uint8_t kUpper = 0;
  static constexpr uint8_t kLower = 2;
  // Vectors may be written beyond the last pixel.
  A gradients[kMost + 2 * kMostLanes<A>];
  uint8_t codes[kMost + 2 * kMostLanes<A>];
};

// `count` windows side by side, channels apart.
template <typename T>
NNOPS_INLINE void double_windows(DoubledWindows<acc_t<T>>& doubled, const T* gy,
                                 const uint8_t* offsets, int64_t count) {
  using A = acc_t<T>;
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  const auto codes_of_16 = [&](int64_t i) __attribute__((always_inline)) {
    Bytes left;
    std::memcpy(&left, offsets + i, sizeof(left));
    const Bytes right = left - 1;
    const Bytes low = __builtin_shufflevector(left, right, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                              6, 22, 7, 23);
    const Bytes high = __builtin_shufflevector(left, right, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                               13, 29, 14, 30, 15, 31);
    std::memcpy(doubled.codes + 2 * i, &low, sizeof(low));
    std::memcpy(doubled.codes + 2 * i + 16, &high, sizeof(high));
  };
  if (count >= 16) {
    for (int64_t i = 0; i < count; i += 16) codes_of_16(smaller(i, count - 16));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      doubled.codes[2 * i] = offsets[i];
      doubled.codes[2 * i + 1] = static_cast<uint8_t>(offsets[i] - 1);
    }
  }
  for_lanes<A>(
      0, count,
      [&](auto lanes, int64_t i) __attribute__((always_inline)) {
        constexpr int kN = decltype(lanes)::kCount;
        const Lanes<A, kN> gradient = load_lanes<kN>(gy + i);
        Lanes<A, kN> low;
        Lanes<A, kN> high;
        merge_pairs(gradient, gradient, low, high);
        store_lanes<kN>(doubled.gradients + 2 * i, low);
        store_lanes<kN>(doubled.gradients + 2 * i + kN, high);
      },
      [&](int64_t i) {
        doubled.gradients[2 * i] = to_acc(gy[i]);
        doubled.gradients[2 * i + 1] = to_acc(gy[i]);
      });
}

// `pixels` windows side by side of `channels` innermost channels.
template <typename T>
NNOPS_INLINE void double_pixels(DoubledWindows<acc_t<T>>& doubled, const T* gy,
                                const uint8_t* offsets, int64_t pixels, int64_t channels) {
  using A = acc_t<T>;
  A* gradients = doubled.gradients;
  uint8_t* codes = doubled.codes;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const auto copy = [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
      constexpr int kN = decltype(lanes)::kCount;
      typename LanesOf<A, kN>::bytes left;
      std::memcpy(&left, offsets + channel, sizeof(left));
      const auto right = left - 1;
      std::memcpy(codes + channel, &left, sizeof(left));
      std::memcpy(codes + channels + channel, &right, sizeof(right));
      const Lanes<A, kN> gradient = load_lanes<kN>(gy + channel);
      store_lanes<kN>(gradients + channel, gradient);
      store_lanes<kN>(gradients + channels + channel, gradient);
    };
    if (is_one_vector<A>(channels) && pixel + 1 < pixels) {
      // What stands in lanes behind the pixel is written again by the next one.
      one_vector<A>(channels, [&](auto lanes) __attribute__((always_inline)) { copy(lanes, 0); });
    } else {
      for_lanes<A>(0, channels, copy, [&](int64_t channel) __attribute__((always_inline)) {
        copy(LaneCount<1>{}, channel);
      });
    }
    gy += channels;
    offsets += channels;
    gradients += 2 * channels;
    codes += 2 * channels;
  }
}

// target[i] = gradients[i] where codes[i] is `code`, else 0, for kN of them.
template <int kN, typename T>
NNOPS_INLINE void select_vector(T* target, const acc_t<T>* gradients, const uint8_t* codes,
                                uint8_t code) {
  using A = acc_t<T>;
  store_lanes<kN>(target, keep_where<A, kN>(load_lanes<kN>(gradients), codes, code));
}

// The same for a run of any length. Behind the first vector the stores of a long run are aligned:
// one that crosses cache lines costs two.
template <typename T>
NNOPS_INLINE void select_run(T* target, const acc_t<T>* gradients, const uint8_t* codes,
                             uint8_t code, int64_t count) {
  using A = acc_t<T>;
  constexpr int kMost = kMostLanes<A>;
  const auto select = [&](auto lanes, int64_t i) __attribute__((always_inline)) {
    select_vector<lanes.kCount>(target + i, gradients + i, codes + i, code);
  };
  int64_t begin = 0;
  if (count >= 4 * kMost) {
    constexpr int64_t kBytes = kMost * int64_t{sizeof(T)};
    select(LaneCount<kMost>{}, 0);
    begin = kMost - static_cast<int64_t>(reinterpret_cast<uintptr_t>(target) % kBytes / sizeof(T));
  }
  for_lanes<A>(begin, count, select,
               [&](int64_t i) __attribute__((always_inline)) { select(LaneCount<1>{}, i); });
}

// Output rows [begin, end) of one plane, or of one image with `channels` innermost.
template <typename T>
__attribute__((noinline)) void spread_doubled(T* gx, const T* gy, const uint8_t* offsets,
                                              const Pool2dGeometry& g, int64_t channels,
                                              int64_t begin, int64_t end) {
  using Doubled = DoubledWindows<acc_t<T>>;
  Doubled doubled;
  const int64_t row_elements = g.w * channels;
  // A block is several rows, or a part of one.
  const int64_t most_pixels = Doubled::kMost / 2 / channels;
  const int64_t block_rows = larger(1, most_pixels / g.ow);
  const int64_t block_columns = smaller(g.ow, most_pixels);
  for (int64_t oh = begin; oh < end; oh += block_rows) {
    const int64_t rows = smaller(block_rows, end - oh);
    for (int64_t ow = 0; ow < g.ow; ow += block_columns) {
      const int64_t columns = smaller(block_columns, g.ow - ow);
      const int64_t place = (oh * g.ow + ow) * channels;
      if (channels == 1) {
        double_windows(doubled, gy + place, offsets + place, rows * columns);
      } else {
        double_pixels(doubled, gy + place, offsets + place, rows * columns, channels);
      }
      const int64_t run = 2 * columns * channels;
      T* target = gx + 2 * oh * row_elements + 2 * ow * channels;
      const acc_t<T>* gradients = doubled.gradients;
      const uint8_t* codes = doubled.codes;
      const auto select_rows = [&](int64_t count, auto select) __attribute__((always_inline)) {
        for (int64_t row = 0; row < count; ++row) {
          select(target, gradients, codes, Doubled::kUpper);
          select(target + row_elements, gradients, codes, Doubled::kLower);
          target += 2 * row_elements;
          gradients += run;
          codes += run;
        }
      };
      const bool one = is_one_vector<acc_t<T>>(run);
      if (one) {
        // What stands in lanes behind a run is written again by the next one.
        one_vector<acc_t<T>>(run, [&](auto lanes) __attribute__((always_inline)) {
          select_rows(rows - 1, [](auto... operands) __attribute__((always_inline)) {
            select_vector<decltype(lanes)::kCount>(operands...);
          });
        });
      }
      select_rows(one ? 1 : rows, [run](auto... operands) __attribute__((always_inline)) {
        select_run(operands..., run);
      });
    }
    // The last column of an odd width belongs to no window.
    for (int64_t ih = 2 * oh; ih < 2 * (oh + rows); ++ih) {
      for (int64_t i = 2 * g.ow * channels; i < row_elements; ++i) gx[ih * row_elements + i] = T{};
    }
  }
}

// Whether rows, or pixels, are spread straight from the gradients.
template <typename T>
NNOPS_INLINE bool fill_vectors(const Pool2dGeometry& g) {
  if (!g.channels_last) return g.ow >= 2 * kLeastLanes<T>;
  return g.c % kMostLanes<T> == 0 || g.c >= 16 * kMostLanes<T>;
}

template <typename T>
int64_t pool_backward_tiles(void* grad_input, const void* grad_output, const uint8_t* offsets,
                            float*, const Pool2dGeometry& g, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  const int64_t width = g.channels_last ? g.c : 1;  // offsets of one column
  const bool straight = fill_vectors<T>(g);
  for_output_rows(g, threads, [&](int64_t image, int64_t channel, int64_t begin, int64_t end) {
    const int64_t plane = g.channels_last ? image : image * g.c + channel;
    const int64_t place = plane * g.oh * g.ow * width;
    const int64_t row = g.ow * width;
    if (any_from<true>(4, offsets + place + begin * row, (end - begin) * row)) {
      check.rows_beginning_in(2 * begin, 2 * end, place, width);
    }
    const int64_t row_elements = g.w * width;
    T* target = gx + plane * g.h * row_elements;
    if (!straight) {
      spread_doubled(target, gy + place, offsets + place, g, width, begin, end);
    } else if (g.channels_last) {
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
