// max_pool2d forward, "rows": row-major output, rows of the input contiguous, stride 1 or 2 along
// them. A vector holds neighbouring outputs of one row.
//
// The maximum of each row of the windows comes first, then the maximum of those: the order of the
// rows and of the taps in a row is kept, so ties and NaN come out as in row-major order. For stride
// 2 two loads are split into even and odd columns, which serve two taps. No vector reads outside
// of its windows; the few outputs whose window hangs over the left or right end are computed one by
// one. Where rows of two, four or eight 2x2 windows tile the input, a vector holds several of them;
// not with indices, which count from another base in each row.
#pragma once

#include "cpu/max_pool2d/best.h"

NNOPS_BEGIN_KERNELS

// Columns 2 i and 2 i + 1 of `x`, for N values of i.
template <int N, typename T>
NNOPS_INLINE void load_pairs(const T* x, Lanes<acc_t<T>, N>& even, Lanes<acc_t<T>, N>& odd) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    // A pair is one word, whose halves are the upper halves of floats.
    LaneMask<float, N> words;
    std::memcpy(&words, x, sizeof(words));
    even = reinterpret_cast<Lanes<float, N>>(words << 16);
    odd = reinterpret_cast<Lanes<float, N>>(words & static_cast<int32_t>(0xffff0000));
  } else {
    split_pairs(load_lanes<N>(x), load_lanes<N>(x + N), even, odd);
  }
}

// The maxima over one row of N windows; `x` is the first tap of the first window.
template <typename T, int N, Record kRecord, int kKernelW, int kStride>
NNOPS_INLINE Best<T, N, kRecord> best_of_row(const T* x, int64_t kernel_w, int64_t row_code,
                                             int64_t column_code) {
  const int64_t taps = kKernelW > 0 ? kKernelW : kernel_w;
  if constexpr (kStride == 1) {
    Best<T, N, kRecord> best(load_lanes<N>(x), row_code);
    for (int64_t kw = 1; kw < taps; ++kw) {
      best.take(load_lanes<N>(x + kw), row_code + kw * column_code);
    }
    return best;
  } else {
    Lanes<acc_t<T>, N> even;
    Lanes<acc_t<T>, N> odd;
    load_pairs<N>(x, even, odd);
    Best<T, N, kRecord> best(even, row_code);
    best.take(odd, row_code + column_code);
    for (int64_t kw = 2; kw + 1 < taps; kw += 2) {
      load_pairs<N>(x + kw, even, odd);
      best.take(even, row_code + kw * column_code);
      best.take(odd, row_code + (kw + 1) * column_code);
    }
    if (taps % 2 != 0) {
      // Loaded one column earlier: nothing behind the last window is touched.
      load_pairs<N>(x + taps - 2, even, odd);
      best.take(odd, row_code + (taps - 1) * column_code);
    }
    return best;
  }
}

// Rows of kColumns windows of 2x2 that tile the input, whose rows lie one behind the other: as many
// of the first `rows` ones as fill vectors. Returns how many those are.
template <typename T, Record kRecord, int kColumns>
NNOPS_INLINE int64_t pool_narrow_rows(T* output, Recorded<kRecord>* record, const T* x,
                                      int64_t rows) {
  constexpr int kN = kMostLanes<T>;
  constexpr int64_t kRows = kN / kColumns;
  const int64_t whole = rows / kRows * kRows;
  for (int64_t row = 0; row < whole; row += kRows) {
    const auto low = best_of_row<T, kN, kRecord, 2, 2>(x, 2, 0, 1);
    const auto high = best_of_row<T, kN, kRecord, 2, 2>(x + 2 * kN, 2, 0, 1);
    auto upper = low;
    auto lower = high;
    split_groups<kColumns>(low.value, high.value, upper.value, lower.value);
    split_groups<kColumns>(low.code, high.code, upper.code, lower.code);
    upper.take(lower.value, lower.code + 2);
    upper.write(output, record, 0, 0);
    x += 4 * kN;
    output += kN;
    if constexpr (kRecord != Record::kNone) record += kN;
  }
  return whole;
}
template <typename T, Record kRecord>
NNOPS_INLINE int64_t pool_narrow_rows(T* output, Recorded<kRecord>* record, const T* x,
                                      int64_t rows, int64_t columns) {
  constexpr int kN = kMostLanes<T>;
  if constexpr (kN > 2) {
    if (columns == 2) return pool_narrow_rows<T, kRecord, 2>(output, record, x, rows);
  }
  if constexpr (kN > 4) {
    if (columns == 4) return pool_narrow_rows<T, kRecord, 4>(output, record, x, rows);
  }
  if constexpr (kN > 8) {
    if (columns == 8) return pool_narrow_rows<T, kRecord, 8>(output, record, x, rows);
  }
  return 0;
}

// One plane: where it begins in the tensors.
template <typename T, Record kRecord>
struct PoolPlane {
  T* output;
  Recorded<kRecord>* record;
  const T* input;

  Recorded<kRecord>* record_at(int64_t place) const {
    return kRecord == Record::kNone ? nullptr : record + place;
  }
};

template <typename T, Record kRecord>
NNOPS_INLINE void pool_edge(const PoolPlane<T, kRecord>& plane, const Pool2dGeometry& g, int64_t oh,
                            int64_t begin, int64_t end) {
  for (int64_t ow = begin; ow < end; ++ow) {
    const int64_t place = oh * g.ow + ow;
    pool_element<kRecord>(plane.output + place, plane.record_at(place), plane.input, g, oh, ow);
  }
}

// Rows [begin, end) of the output, whose windows have the tap rows `taps` inside the input, in the
// columns `inner`.
template <typename T, Record kRecord, int kKernelH, int kKernelW, int kStride>
__attribute__((noinline)) void pool_row_run(const PoolPlane<T, kRecord>& plane,
                                            const Pool2dGeometry& g, int64_t begin, int64_t end,
                                            const Range& taps, const InnerWindows& inner) {
  const TapCodes<kRecord> codes(g);
  const int64_t kernel_w = g.kernel_w;
  const int64_t tap_begin = taps.begin;
  const int64_t tap_count = kKernelH > 0 ? kKernelH : taps.end - taps.begin;
  const int64_t tap_step = g.dilation_h * g.input_strides[2];
  const int64_t columns = inner.end - inner.begin;
  const int64_t start_w = inner.begin * kStride - g.pad_w;
  if constexpr (kKernelH == 2 && kKernelW == 2 && kStride == 2 && kRecord != Record::kIndices) {
    const bool tiles = g.stride_h == 2 && g.dilation_h == 1 && start_w == 0 && columns == g.ow &&
                       g.w == 2 * columns && g.input_strides[2] == g.w;
    if (tiles) {
      begin += pool_narrow_rows<T, kRecord>(
          plane.output + begin * columns, plane.record_at(begin * columns),
          plane.input + (begin * 2 - g.pad_h) * g.w, end - begin, columns);
    }
  }
  for (int64_t oh = begin; oh < end; ++oh) {
    const int64_t start_h = oh * g.stride_h - g.pad_h;
    const int64_t place = oh * g.ow + inner.begin;
    T* output = plane.output + place;
    Recorded<kRecord>* record = plane.record_at(place);
    const T* first = plane.input + start_h * g.input_strides[2] + tap_begin * tap_step + start_w;
    const int64_t base = codes.base(start_h, start_w);
    for_lanes<acc_t<T>>(
        0, columns,
        [&](auto lanes, int64_t column) __attribute__((always_inline)) {
          constexpr int kN = decltype(lanes)::kCount;
          const T* x = first + column * kStride;
          int64_t row_code = tap_begin * codes.row_step;
          auto best = best_of_row<T, kN, kRecord, kKernelW, kStride>(x, kernel_w, row_code,
                                                                     codes.column_step);
          for (int64_t tap = 1; tap < tap_count; ++tap) {
            x += tap_step;
            row_code += codes.row_step;
            best.take(best_of_row<T, kN, kRecord, kKernelW, kStride>(x, kernel_w, row_code,
                                                                     codes.column_step));
          }
          best.write(output + column, kRecord == Record::kNone ? nullptr : record + column,
                     base + column * kStride, kStride);
        },
        [&](int64_t column) {
          pool_edge(plane, g, oh, inner.begin + column, inner.begin + column + 1);
        });
  }
}

template <typename T, Record kRecord, int kKernelH, int kKernelW, int kStride>
NNOPS_INLINE void pool_rows(void* output, void* record, const void* input, const Pool2dGeometry& g,
                            int threads) {
  const InnerWindows inner = inner_columns(g);
  const InnerWindows whole = inner_rows(g);
  const PoolPlane<T, kRecord> all{static_cast<T*>(output), static_cast<Recorded<kRecord>*>(record),
                                  static_cast<const T*>(input)};
  for_output_rows(g, threads, [&](int64_t image, int64_t channel, int64_t begin, int64_t end) {
    const int64_t place = image * g.output_strides[0] + channel * g.output_strides[1];
    const PoolPlane<T, kRecord> plane{
        all.output + place, all.record_at(place),
        all.input + image * g.input_strides[0] + channel * g.input_strides[1]};
    const int64_t whole_begin = smaller(larger(begin, whole.begin), end);
    const int64_t whole_end = larger(whole_begin, smaller(end, whole.end));
    for (int64_t oh = begin; oh < end; ++oh) {
      if (oh == whole_begin && whole_end > whole_begin) {
        pool_row_run<T, kRecord, kKernelH, kKernelW, kStride>(plane, g, whole_begin, whole_end,
                                                              {0, g.kernel_h}, inner);
        oh = whole_end - 1;
        continue;
      }
      const Range taps = taps_inside(oh * g.stride_h - g.pad_h, g.kernel_h, g.dilation_h, g.h);
      if (taps.empty()) {
        pool_edge(plane, g, oh, inner.begin, inner.end);
      } else {
        pool_row_run<T, kRecord, 0, kKernelW, kStride>(plane, g, oh, oh + 1, taps, inner);
      }
    }
    if (inner.begin > 0 || inner.end < g.ow) {
      for (int64_t oh = begin; oh < end; ++oh) {
        pool_edge(plane, g, oh, 0, inner.begin);
        pool_edge(plane, g, oh, inner.end, g.ow);
      }
    }
  });
}

// The windows that most nets use have code of their own.
template <typename T, Record kRecord>
NNOPS_INLINE void choose_pool_rows(void* output, void* record, const void* input,
                                   const Pool2dGeometry& g, int threads) {
  if (g.stride_w == 2 && g.kernel_h == 2 && g.kernel_w == 2) {
    pool_rows<T, kRecord, 2, 2, 2>(output, record, input, g, threads);
  } else if (g.stride_w == 2 && g.kernel_h == 3 && g.kernel_w == 3) {
    pool_rows<T, kRecord, 3, 3, 2>(output, record, input, g, threads);
  } else if (g.stride_w == 1 && g.kernel_h == 3 && g.kernel_w == 3) {
    pool_rows<T, kRecord, 3, 3, 1>(output, record, input, g, threads);
  } else if (g.stride_w == 2) {
    pool_rows<T, kRecord, 0, 0, 2>(output, record, input, g, threads);
  } else {
    pool_rows<T, kRecord, 0, 0, 1>(output, record, input, g, threads);
  }
}

NNOPS_END_KERNELS
