// max_pool2d backward, "shifts": stride 1 and an output of the input's size, both layouts, any
// dilation. Tap (kh, kw) then lies one fixed distance behind its window, everywhere in memory:
//   grad_input[i] = sum over the taps t of grad_output[i - distance(t)] where the offset there is t
// and the whole tensor is one run, whatever its layout. Rows, planes and images need no borders: an
// element that the distance reaches beyond one is no tap inside the input, so no offset names it.
// Taps are visited from the last to the first, windows thus in row-major order: the sums have the
// bits of a scatter in that order.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/offset_check.h"

NNOPS_BEGIN_KERNELS

struct TapDistances {
  static constexpr int64_t kMost = 64;
  int64_t count;
  int64_t farthest = 0;
  int64_t distances[kMost];

  // `width` elements belong to a column.
  TapDistances(const Pool2dGeometry& g, int64_t width) : count(g.kernel_h * g.kernel_w) {
    for (int64_t tap = 0; tap < count; ++tap) {
      const int64_t row = tap / g.kernel_w * g.dilation_h - g.pad_h;
      const int64_t column = tap % g.kernel_w * g.dilation_w - g.pad_w;
      distances[tap] = (row * g.w + column) * width;
      farthest = larger(farthest, distances[tap] < 0 ? -distances[tap] : distances[tap]);
    }
  }
};

// N elements from `position` on of a run of `total`; windows outside of it do not count.
template <int N, typename T>
__attribute__((noinline)) void collect_at_end(T* gx, const T* gy, const uint8_t* offsets,
                                              int64_t position, int64_t total,
                                              const TapDistances& taps) {
  Lanes<acc_t<T>, N> sum = {};
  for (int64_t tap = taps.count - 1; tap >= 0; --tap) {
    const int64_t first = position - taps.distances[tap];
    const int64_t begin = smaller(N, larger(0, -first));
    const int64_t end = larger(begin, smaller(N, total - first));
    if (begin == end) continue;
    const auto count = static_cast<size_t>(end - begin);
    T gradients[N] = {};
    uint8_t codes[N];
    std::memset(codes, kNoOffset, sizeof(codes));
    std::memcpy(gradients + begin, gy + (first + begin), count * sizeof(T));
    std::memcpy(codes + begin, offsets + (first + begin), count);
    sum = add_where<acc_t<T>, N>(sum, load_lanes<N>(gradients), codes, static_cast<uint8_t>(tap));
  }
  store_lanes<N>(gx + position, sum);
}

// Elements [begin, end) of which every window lies inside the run. With kTaps, if not 0, their
// number is known.
template <int kTaps, typename T>
__attribute__((noinline)) void collect_run(T* gx, const T* gy, const uint8_t* offsets,
                                           int64_t begin, int64_t end, const TapDistances& taps) {
  const int64_t count = kTaps > 0 ? kTaps : taps.count;
  const auto collect = [&](auto lanes, int64_t position) __attribute__((always_inline)) {
    constexpr int kN = decltype(lanes)::kCount;
    Lanes<acc_t<T>, kN> sum = {};
    const T* gradients = gy + position;
    const uint8_t* codes = offsets + position;
#pragma GCC unroll 9
    for (int64_t tap = count - 1; tap >= 0; --tap) {
      const int64_t distance = taps.distances[tap];
      sum = add_where<acc_t<T>, kN>(sum, load_lanes<kN>(gradients - distance), codes - distance,
                                    static_cast<uint8_t>(tap));
    }
    store_lanes<kN>(gx + position, sum);
  };
  for_lanes<acc_t<T>>(begin, end, collect, [&](int64_t position) __attribute__((always_inline)) {
    collect(LaneCount<1>{}, position);
  });
}

// `length` elements from `position` on of a run of `total`.
template <typename T>
NNOPS_INLINE void collect_span(T* gx, const T* gy, const uint8_t* offsets, int64_t position,
                               int64_t length, int64_t total, const TapDistances& taps) {
  // What lies this far from both ends has its windows inside.
  const int64_t inner_begin = smaller(total, taps.farthest);
  const int64_t inner_end = larger(inner_begin, total - taps.farthest);
  const int64_t end = position + length;
  const auto ends = [&](int64_t until) {
    for_lanes<acc_t<T>>(
        position, until,
        [&](auto lanes, int64_t i) {
          collect_at_end<decltype(lanes)::kCount>(gx, gy, offsets, i, total, taps);
        },
        [&](int64_t i) { collect_at_end<1>(gx, gy, offsets, i, total, taps); });
    position = larger(position, until);
  };
  ends(smaller(end, inner_begin));
  const int64_t inner = smaller(end, inner_end);
  if (position < inner) {
    if (taps.count == 9) {
      collect_run<9>(gx, gy, offsets, position, inner, taps);
    } else {
      collect_run<0>(gx, gy, offsets, position, inner, taps);
    }
    position = inner;
  }
  ends(end);
}

template <typename T>
int64_t pool_backward_shifts(void* grad_input, const void* grad_output, const uint8_t* offsets,
                             float*, const Pool2dGeometry& g, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  const int64_t width = g.channels_last ? g.c : 1;  // elements of one column
  const TapDistances taps(g, width);
  const int64_t total = g.n * g.c * g.h * g.w;
  constexpr int64_t kStrip = 1024;
  for_input_rows(g, threads, [&](int64_t image, int64_t channel, int64_t begin, int64_t end) {
    const int64_t plane = g.channels_last ? image : image * g.c + channel;
    const int64_t row = g.w * width;
    const int64_t place = plane * g.h * row;
    check.rows_beginning_in(begin, end, place, width);
    if (row <= kStrip) {
      collect_span(gx, gy, offsets, place + begin * row, (end - begin) * row, total, taps);
      return;
    }
    // Strip by strip down the rows: what one row has read, the next finds in the first cache.
    for (int64_t strip = 0; strip < row; strip += kStrip) {
      const int64_t length = smaller(kStrip, row - strip);
      for (int64_t ih = begin; ih < end; ++ih) {
        collect_span(gx, gy, offsets, place + ih * row + strip, length, total, taps);
      }
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
