// max_pool2d backward, "phases": kernel 3x3, stride 2, row-major, dilation 1. Along an axis every
// second element of grad_input is the middle of one window, and the one between two of them is the
// last of a window and the first of the next. Windows side by side in a vector give a vector of
// each of the four phases, and these, merged, runs of two rows: every element is written once.
// Windows are visited in row-major order: the sums have the bits of a scatter in that order.
//
// Vectors of gradients reach from a plane into its neighbours, where no offset wants them, but no
// farther than kPhaseReach beyond a row: the first and the last plane are left to scatter.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/backward_scatter.h"

NNOPS_BEGIN_KERNELS

// Lanes of the vectors: wider ones would cross a cache line each time.
template <typename T>
constexpr int kPhaseLanes = (kRegisterBytes < 32 ? kRegisterBytes : 32) / int{sizeof(acc_t<T>)};

// Rows of offsets, copied to where vectors may reach beyond a row and a plane: each row ends with a
// window that has no maximum, which is the one before the next row as well. They are copied long
// before they are read: a vector from what was just stored in pieces waits for all of them.
class OffsetRows {
 public:
  static constexpr int64_t kMost = 4096;
  static_assert(kMost >= 3 * (kMostPhaseColumns + 1));

  explicit OffsetRows(const Pool2dGeometry& g)
      : g_(g), whole_rows_(inner_rows(g)), all_columns_(inner_columns(g).are_all(g.ow)) {
    offsets_[0] = kNoOffset;
    for (int64_t ow = 0; ow < g.ow; ++ow) {
      columns_[ow] = 255;
      columns_outside_[ow] = taps_outside(ow, g.stride_w, g.pad_w, g.w, kColumnTap);
    }
    for (int code = 0; code < 9; ++code) {
      taps_[code] = static_cast<uint8_t>((kRowTap << code / 3) | (kColumnTap << code % 3));
    }
  }

  int64_t pitch() const { return g_.ow + 1; }
  int64_t most() const { return kMost / pitch(); }
  const uint8_t* row(int64_t index) const { return offsets_ + 1 + index * pitch(); }

  // Copies rows [begin, end) of a plane; those outside of it have no maximum. Whether all offsets
  // have a place inside the input: if not, some here or in the next plane do not.
  bool copy(int64_t index, const uint8_t* plane, int64_t begin, int64_t end) {
    uint8_t* target = offsets_ + 1 + index * pitch();
    const int64_t first = larger(0, begin);
    const int64_t last = smaller(g_.oh, end);
    if (begin < first) copy_nothing(target);
    target += (first - begin) * pitch();
    Found found;
    const auto rows_until = [&](int64_t row, int64_t until, auto whole) {
      for (; row < until; ++row, target += pitch()) {
        copy_row<decltype(whole)::value>(target, plane + row * g_.ow, row, found);
      }
      return row;
    };
    int64_t row = first;
    if (all_columns_) {
      row = rows_until(row, smaller(last, whole_rows_.begin), std::false_type{});
      row = rows_until(row, smaller(last, whole_rows_.end), std::true_type{});
    }
    rows_until(row, last, std::false_type{});
    if (last < end) copy_nothing(target);
    return !any_byte(found.outside) && !any_byte(found.most > 9);
  }

 private:
  static constexpr int64_t kVector = 16;
  static_assert(kVector <= kPhaseReach);
  typedef uint8_t Bytes __attribute__((vector_size(kVector)));
  // Bits of the first row and the first column of taps; the others follow.
  static constexpr int kRowTap = 1;
  static constexpr int kColumnTap = 8;

  // Of the offsets seen: taps outside of the input, and the largest.
  struct Found {
    Bytes outside = {};
    Bytes most = {};
  };

  // Whole vectors: what is written behind the row is written again by the next one.
  template <bool kWhole>
  void copy_row(uint8_t* target, const uint8_t* source, int64_t row, Found& found) const {
    const int64_t width = g_.ow;
    const uint8_t row_outside =
        kWhole ? 0 : taps_outside(row, g_.stride_h, g_.pad_h, g_.h, kRowTap);
    for (int64_t i = 0; i < width; i += kVector) {
      const Bytes offsets = load_vector(source + i);
      std::memcpy(target + i, &offsets, kVector);
      // Of no maximum, 255, this makes a 0, and a 15.
      const Bytes shifted = offsets + 1;
      found.most = shifted > found.most ? shifted : found.most;
      if constexpr (kWhole) continue;
      const Bytes taps = look_up(taps_, offsets & 15);
      found.outside |= taps & (((Bytes{} + row_outside) & load_vector(columns_ + i)) |
                               load_vector(columns_outside_ + i));
    }
    target[width] = kNoOffset;
  }

  void copy_nothing(uint8_t* target) const {
    for (int64_t i = 0; i <= g_.ow; i += kVector) std::memset(target + i, kNoOffset, kVector);
  }

  static Bytes load_vector(const uint8_t* source) {
    Bytes result;
    std::memcpy(&result, source, sizeof(result));
    return result;
  }

  static Bytes look_up(Bytes table, Bytes places) {
#if defined(__AVX2__)
    return reinterpret_cast<Bytes>(
        _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(places)));
#else
    Bytes result;
    for (int i = 0; i < kVector; ++i) result[i] = table[places[i]];
    return result;
#endif
  }

  static uint8_t taps_outside(int64_t index, int64_t stride, int64_t pad, int64_t size,
                              int first_tap) {
    const Range inside = taps_inside(index * stride - pad, 3, 1, size);
    int bits = 0;
    for (int tap = 0; tap < 3; ++tap) {
      if (tap < inside.begin || tap >= inside.end) bits |= first_tap << tap;
    }
    return static_cast<uint8_t>(bits);
  }

  const Pool2dGeometry& g_;
  InnerWindows whole_rows_;
  bool all_columns_;
  Bytes taps_ = {};
  uint8_t columns_[kMostPhaseColumns + kVector] = {};
  uint8_t columns_outside_[kMostPhaseColumns + kVector] = {};
  uint8_t offsets_[kMost + 4 * kVector];
};

// `pairs` pairs of rows of grad_input, from `target` on, of each of `planes` planes side by side.
// `gy` and `offsets` are of the first two rows of windows, and of offsets there are `pairs` + 1
// rows a plane. Up to two vectors are written behind the last row.
template <int kPadH, int kPadW, typename T>
__attribute__((noinline)) void collect_row_pairs(T* target, const T* gy, const uint8_t* offsets,
                                                 const Pool2dGeometry& g, int64_t pairs,
                                                 int64_t planes) {
  using A = acc_t<T>;
  constexpr int kN = kPhaseLanes<T>;
  using V = Lanes<A, kN>;
  const int64_t width = g.w;
  const int64_t columns = g.ow;
  const int64_t pitch = columns + 1;
  const int64_t target_step = (g.h - 2 * pairs) * width;
  const int64_t gy_step = (g.oh - pairs) * columns;
  const int64_t last = (width - 1) / (2 * kN) * kN;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int64_t row = 0; row < pairs; ++row) {
      // What is written behind a row is written again by the next one, and so, from the right to
      // the left, is what its last vector leaves in the row below.
      for (int64_t pair = last; pair >= 0; pair -= kN) {
        V between[2] = {};
        V middle[2] = {};
        const auto add_row = [&](int line, int64_t below, int tap) __attribute__((always_inline)) {
          const T* gradients = gy + below * columns + pair;
          const uint8_t* codes = offsets + below * pitch + pair;
          const auto add_window = [&](V& sum, int64_t behind,
                                      int code) __attribute__((always_inline)) {
            sum = add_where<A, kN>(sum, load_lanes<kN>(gradients + behind), codes + behind,
                                   static_cast<uint8_t>(code));
          };
          // Without padding a window's middle lies behind what it shares with the one before.
          add_window(between[line], kPadW - 1, tap + 2);
          add_window(between[line], kPadW, tap);
          add_window(middle[line], 0, tap + 1);
        };
        add_row(kPadH, 0, 6);
        add_row(kPadH, 1, 0);
        add_row(1 - kPadH, 1 - kPadH, 3);
        T* place = target + 2 * pair;
#pragma GCC unroll 2
        for (int line = 0; line < 2; ++line) {
          V low;
          V high;
          merge_pairs(kPadW == 0 ? between[line] : middle[line],
                      kPadW == 0 ? middle[line] : between[line], low, high);
          store_lanes<kN>(place, low);
          store_lanes<kN>(place + kN, high);
          place += width;
        }
      }
      target += 2 * width;
      gy += columns;
      offsets += pitch;
    }
    target += target_step;
    gy += gy_step;
    offsets += pitch;
  }
}

// The same of one plane, where nothing may be written at `limit` or behind it.
template <int kPadH, int kPadW, typename T>
NNOPS_INLINE void collect_row_pairs_until(const T* limit, T* target, const T* gy,
                                          const uint8_t* offsets, const Pool2dGeometry& g,
                                          int64_t pairs) {
  constexpr int64_t kBehind = 2 * kPhaseLanes<T>;
  int64_t pair = larger(0, smaller(pairs, (limit - target - kBehind) / (2 * g.w)));
  collect_row_pairs<kPadH, kPadW>(target, gy, offsets, g, pair, 1);
  for (; pair < pairs; ++pair) {
    T lines[4 * (kMostPhaseColumns + 1) + kBehind];
    collect_row_pairs<kPadH, kPadW>(lines, gy + pair * g.ow, offsets + pair * (g.ow + 1), g, 1, 1);
    T* last = target + 2 * pair * g.w;
    std::memcpy(last, lines, static_cast<size_t>(smaller(2 * g.w, limit - last)) * sizeof(T));
  }
}

// Planes side by side, none of which is the tensor's first or last. Whether all offsets have a
// place inside the input.
template <int kPadH, int kPadW, typename T>
__attribute__((noinline)) bool collect_phases(T* gx, const T* gy, const uint8_t* offsets,
                                              const Pool2dGeometry& g, int64_t planes) {
  OffsetRows rows(g);
  bool inside = true;
  const int64_t pixels = g.h * g.w;
  const int64_t windows = g.oh * g.ow;
  const int64_t pairs = (g.h + 1) / 2;
  const T* limit = gx + planes * pixels;
  // Of windows there is one row more than pairs.
  const int64_t block_pairs = smaller(pairs, rows.most() - 1);
  const int64_t block_planes = rows.most() / (block_pairs + 1);
  for (int64_t plane = 0; plane < planes; plane += block_planes) {
    const int64_t plane_count = smaller(block_planes, planes - plane);
    for (int64_t begin = 0; begin < pairs; begin += block_pairs) {
      const int64_t count = smaller(block_pairs, pairs - begin);
      for (int64_t i = 0; i < plane_count; ++i) {
        inside &= rows.copy(i * (count + 1), offsets + (plane + i) * windows, begin - 1 + kPadH,
                            begin + count + kPadH);
      }
      T* target = gx + plane * pixels + 2 * begin * g.w;
      const T* first = gy + plane * windows + (begin - 1 + kPadH) * g.ow;
      // The last of all planes by itself.
      const int64_t others = plane + plane_count == planes ? plane_count - 1 : plane_count;
      collect_row_pairs<kPadH, kPadW>(target, first, rows.row(0), g, count, others);
      if (others < plane_count) {
        collect_row_pairs_until<kPadH, kPadW>(limit, target + others * pixels,
                                              first + others * windows,
                                              rows.row(others * (count + 1)), g, count);
      }
    }
  }
  return inside;
}

template <typename T>
int64_t pool_backward_phases(void* grad_input, const void* grad_output, const uint8_t* offsets,
                             float* scratch, const Pool2dGeometry& g, int threads) {
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  const WindowStarts starts(g);
  const int64_t pixels = g.h * g.w;
  const int64_t windows = g.oh * g.ow;
  constexpr decltype(&collect_phases<0, 0, T>) kCollect[2][2] = {
      {collect_phases<0, 0, T>, collect_phases<0, 1, T>},
      {collect_phases<1, 0, T>, collect_phases<1, 1, T>}};
  const int64_t inner = g.n * g.c - 2;
  const int64_t chunk =
      larger(1, smaller(inner / (4 * int64_t{threads}), 2 * kElementwiseChunk / pixels));
  parallel_chunks(inner, chunk, threads, [&](int64_t begin, int64_t end) {
    const int64_t first = begin + 1;
    const bool inside = kCollect[g.pad_h][g.pad_w](gx + first * pixels, gy + first * windows,
                                                   offsets + first * windows, g, end - begin);
    for (int64_t plane = first; !inside && plane <= end; ++plane) {
      check.rows_beginning_in(0, g.h, plane * windows, 1);
    }
    if (begin == 0) scatter_plane(gx, gy, offsets, scratch, 0, g, 0, check, starts, &wrong);
    if (end == inner) {
      const int64_t slot = threads > 1 ? 1 : 0;  // perhaps at the same time
      scatter_plane(gx, gy, offsets, scratch, slot, g, inner + 1, check, starts, &wrong);
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
