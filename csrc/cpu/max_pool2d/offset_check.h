// Looks for offsets that point outside of their window or of the input: only a caller of
// torch.ops.nnops can hand over such. A kernel that compares offsets with the taps would pass over
// them in silence.
#pragma once

#include "cpu/max_pool2d/window.h"

NNOPS_BEGIN_KERNELS

// Calls visit(bytes) with vectors that cover `count` offsets; the last of a width may overlap the
// one before. single(offset) gets those of a run shorter than every vector.
template <typename Visit, typename Single>
NNOPS_INLINE void for_offset_vectors(const uint8_t* offsets, int64_t count, Visit visit,
                                     Single single) {
  typedef uint8_t Widest __attribute__((vector_size(kRegisterBytes)));
  typedef uint8_t Narrow __attribute__((vector_size(16)));
  const auto cover = [&](auto bytes) __attribute__((always_inline)) {
    constexpr int64_t kWidth = sizeof(bytes);
    for (int64_t i = 0; i < count; i += kWidth) {
      std::memcpy(&bytes, offsets + smaller(i, count - kWidth), kWidth);
      visit(bytes);
    }
  };
  if (count >= kRegisterBytes) {
    cover(Widest{});
  } else if (count >= 16) {
    cover(Narrow{});
  } else {
    for (int64_t i = 0; i < count; ++i) single(offsets[i]);
  }
}

// Whether a byte of a vector is not 0.
template <typename Bytes>
NNOPS_INLINE bool any_byte(Bytes bytes) {
  uint64_t words[sizeof(bytes) / 8];
  std::memcpy(words, &bytes, sizeof(bytes));
  uint64_t found = 0;
  for (const uint64_t word : words) found |= word;
  return found != 0;
}

// Whether one of `count` offsets is `limit` or more; with kPassNone, and is not kNoOffset, which is
// what a net's dead ReLUs leave in every call.
template <bool kPassNone>
NNOPS_INLINE bool any_from(uint8_t limit, const uint8_t* offsets, int64_t count) {
  typedef uint8_t Widest __attribute__((vector_size(kRegisterBytes)));
  typedef uint8_t Narrow __attribute__((vector_size(16)));
  // One more makes 0 of kNoOffset.
  constexpr uint8_t kShift = kPassNone ? 1 : 0;
  static_assert(kNoOffset == 255);
  Widest wide = {};
  Narrow narrow = {};
  uint8_t most = 0;
  const auto visit = [&](auto bytes) __attribute__((always_inline)) {
    bytes += kShift;
    if constexpr (sizeof(bytes) == sizeof(wide)) {
      wide = bytes > wide ? bytes : wide;
    } else {
      narrow = bytes > narrow ? bytes : narrow;
    }
  };
  for_offset_vectors(offsets, count, visit, [&](uint8_t offset) {
    const auto shifted = static_cast<uint8_t>(offset + kShift);
    most = shifted > most ? shifted : most;
  });
  const auto least = static_cast<uint8_t>(limit + kShift);
  return most >= least || any_byte(wide >= least) || any_byte(narrow >= least);
}

// From an offset to its distance from the window's start. An offset beyond the window is sent far
// outside of every input, so that the test of the position catches it too.
struct OffsetTable {
  static constexpr int64_t kFarOutside = INT64_MIN / 2;
  int64_t rows[256];
  int64_t columns[256];
  // In a row-major plane; of taps, and of kNoOffset the place where a window would begin without
  // padding.
  int64_t places[256];

  explicit OffsetTable(const Pool2dGeometry& g) {
    for (int64_t& row : rows) row = kFarOutside;
    for (int64_t& column : columns) column = kFarOutside;
    places[kNoOffset] = g.pad_h * g.w + g.pad_w;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
        rows[kh * g.kernel_w + kw] = kh * g.dilation_h;
        columns[kh * g.kernel_w + kw] = kw * g.dilation_w;
        places[kh * g.kernel_w + kw] = kh * g.dilation_h * g.w + kw * g.dilation_w;
      }
    }
  }
};

// Whether an OffsetTable has places inside the input for some offsets: all are taps inside it, or
// some are kNoOffset and the others are, or neither.
enum class Places { kOfAll, kOfNoneToo, kNot };

class OffsetCheck {
 public:
  OffsetCheck(const uint8_t* offsets, const Pool2dGeometry& geometry, LowestPosition* wrong)
      : offsets_(offsets),
        g_(geometry),
        whole_rows_(inner_rows(geometry)),
        inner_(inner_columns(geometry)),
        all_windows_inside_(whole_rows_.are_all(geometry.oh) && inner_.are_all(geometry.ow)),
        table_(geometry),
        wrong_(wrong) {}

  const OffsetTable& table() const { return table_; }

  // What the offsets of `planes` row-major planes have places for.
  Places places_of(int64_t place, int64_t planes) const {
    const int64_t count = g_.oh * g_.ow;
    const uint8_t* offsets = offsets_ + place;
    const bool none_has_place =
        (g_.oh - 1) * g_.stride_h < g_.h && (g_.ow - 1) * g_.stride_w < g_.w;
    Places places = Places::kOfAll;
    if (any_from<false>(taps(), offsets, planes * count)) {
      if (!none_has_place || any_from<true>(taps(), offsets, planes * count)) return Places::kNot;
      places = Places::kOfNoneToo;
    }
    if (all_windows_inside_) return places;
    for (int64_t plane = 0; plane < planes; ++plane) {
      if (!edges_are_inside(0, g_.oh, place + plane * count, 1)) return Places::kNot;
    }
    return places;
  }

  // The output rows whose windows begin in input rows [begin, end); those that begin before the
  // first or behind the last row belong to that row: over all input rows, each output row once.
  // `width` offsets belong to one column: the channels where they are innermost, else 1.
  void rows_beginning_in(int64_t begin, int64_t end, int64_t plane_place, int64_t width) const {
    const int64_t first = begin == 0 ? 0 : row_beginning_at(begin);
    const int64_t last = end == g_.h ? g_.oh : row_beginning_at(end);
    if (first >= last) return;
    const int64_t row = g_.ow * width;
    const bool all_taps =
        !any_from<true>(taps(), offsets_ + plane_place + first * row, (last - first) * row);
    if (all_taps && (all_windows_inside_ || edges_are_inside(first, last, plane_place, width))) {
      return;
    }
    for (int64_t oh = first; oh < last; ++oh) report_wrong(oh, plane_place + oh * row, width);
  }

 private:
  uint8_t taps() const { return static_cast<uint8_t>(g_.kernel_h * g_.kernel_w); }

  // The first output row whose windows begin in input row `ih` or behind it.
  int64_t row_beginning_at(int64_t ih) const {
    return smaller(g_.oh, (ih + g_.pad_h + g_.stride_h - 1) / g_.stride_h);
  }

  // Whether the offsets of output rows [begin, end), which all are taps or none, lie inside the
  // input.
  bool edges_are_inside(int64_t begin, int64_t end, int64_t plane_place, int64_t width) const {
    bool inside = true;
    for (int64_t oh = begin; oh < end; ++oh) {
      const bool whole = whole_rows_.contains(oh);
      if (whole && width == 1) continue;  // column by column below
      const int64_t place = plane_place + oh * g_.ow * width;
      for (int64_t ow = 0; ow < inner_.begin; ++ow) {
        inside &= run_is_inside(oh, ow, ow + 1, place, width);
      }
      if (!whole) inside &= run_is_inside(oh, inner_.begin, inner_.end, place, width);
      for (int64_t ow = inner_.end; ow < g_.ow; ++ow) {
        inside &= run_is_inside(oh, ow, ow + 1, place, width);
      }
    }
    if (width > 1) return inside;
    begin = larger(begin, whole_rows_.begin);
    end = smaller(end, whole_rows_.end);
    for (int64_t ow = 0; ow < inner_.begin; ++ow) {
      inside &= column_is_inside(ow, begin, end, plane_place);
    }
    for (int64_t ow = inner_.end; ow < g_.ow; ++ow) {
      inside &= column_is_inside(ow, begin, end, plane_place);
    }
    return inside;
  }

  // One column of a row-major plane in whole rows, of which no tap lies above or below the input.
  bool column_is_inside(int64_t ow, int64_t begin, int64_t end, int64_t plane_place) const {
    const int64_t start = ow * g_.stride_w - g_.pad_w;
    const auto size = static_cast<uint64_t>(g_.w);
    const uint8_t* column = offsets_ + plane_place + ow;
    bool inside = true;
    for (int64_t oh = begin; oh < end; ++oh) {
      const uint8_t offset = column[oh * g_.ow];
      inside &= offset == kNoOffset || static_cast<uint64_t>(start + table_.columns[offset]) < size;
    }
    return inside;
  }

  // The same of columns [begin, end) of one row, whose windows have the same columns of taps
  // inside.
  bool run_is_inside(int64_t oh, int64_t begin, int64_t end, int64_t place, int64_t width) const {
    const Range rows = taps_inside(oh * g_.stride_h - g_.pad_h, g_.kernel_h, g_.dilation_h, g_.h);
    const Range columns =
        taps_inside(begin * g_.stride_w - g_.pad_w, g_.kernel_w, g_.dilation_w, g_.w);
    bool inside = true;
    const auto visit = [&](auto bytes) __attribute__((always_inline)) {
      using Bytes = std::remove_reference_t<decltype(bytes)>;
      auto found = reinterpret_cast<Bytes>(bytes == kNoOffset);
      for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
        for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
          const auto code = static_cast<uint8_t>(kh * g_.kernel_w + kw);
          found |= reinterpret_cast<Bytes>(bytes == code);
        }
      }
      inside &= !any_byte(~found);
    };
    for_offset_vectors(
        offsets_ + place + begin * width, (end - begin) * width, visit,
        [&](uint8_t offset) { inside &= offset == kNoOffset || is_inside(offset, oh, begin); });
    return inside;
  }

  bool is_inside(uint8_t offset, int64_t oh, int64_t ow) const {
    const int64_t ih = oh * g_.stride_h - g_.pad_h + table_.rows[offset];
    const int64_t iw = ow * g_.stride_w - g_.pad_w + table_.columns[offset];
    return static_cast<bool>(
        static_cast<int>(static_cast<uint64_t>(ih) < static_cast<uint64_t>(g_.h)) &
        static_cast<int>(static_cast<uint64_t>(iw) < static_cast<uint64_t>(g_.w)));
  }

  void report_wrong(int64_t oh, int64_t place, int64_t width) const {
    for (int64_t ow = 0; ow < g_.ow; ++ow) {
      for (int64_t i = place + ow * width; i < place + (ow + 1) * width; ++i) {
        const uint8_t offset = offsets_[i];
        if (offset != kNoOffset && !is_inside(offset, oh, ow)) wrong_->report(i);
      }
    }
  }

  const uint8_t* offsets_;
  const Pool2dGeometry& g_;
  InnerWindows whole_rows_;
  InnerWindows inner_;
  bool all_windows_inside_;
  OffsetTable table_;
  LowestPosition* wrong_;
};

// Windows [begin, end) along one axis that hold input element `position`; dilation 1.
struct WindowRange {
  int64_t begin, end;
};
NNOPS_INLINE WindowRange windows_of(int64_t position, int64_t count, int64_t kernel, int64_t stride,
                                    int64_t pad) {
  const int64_t place = position + pad;
  const int64_t before = place - kernel + 1;  // windows that begin earlier end earlier
  return {before <= 0 ? 0 : (before + stride - 1) / stride, smaller(count, place / stride + 1)};
}
// The same for a position further on, without a division: both ends only ever move on.
NNOPS_INLINE void move_to(WindowRange& range, int64_t position, int64_t count, int64_t kernel,
                          int64_t stride, int64_t pad) {
  while (range.begin * stride + kernel <= position + pad) ++range.begin;
  while (range.end < count && range.end * stride <= position + pad) ++range.end;
}

NNOPS_END_KERNELS
