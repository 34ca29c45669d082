// Looks for offsets that point outside of their window or of the input: only a caller of
// torch.ops.nnops can hand over such. A kernel that compares offsets with the taps would pass over
// them in silence.
#pragma once

#include "cpu/max_pool2d/window.h"

NNOPS_BEGIN_KERNELS

// Whether one of `count` offsets is `limit` or more.
NNOPS_INLINE bool any_from(uint8_t limit, const uint8_t* offsets, int64_t count) {
  typedef uint8_t u8x64 __attribute__((vector_size(64)));
  typedef uint8_t u8x16 __attribute__((vector_size(16)));
  uint64_t found = 0;
  const auto visit = [&](auto block, int64_t position) __attribute__((always_inline)) {
    std::memcpy(&block, offsets + position, sizeof(block));
    const auto beyond = block >= limit;
    uint64_t words[sizeof(block) / 8];
    std::memcpy(words, &beyond, sizeof(words));
    for (const uint64_t word : words) found |= word;
  };
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) visit(u8x64{}, i);
  for (; i + 16 <= count; i += 16) visit(u8x16{}, i);
  for (; i < count; ++i) found |= offsets[i] >= limit;
  return found != 0;
}

// From an offset to its distance from the window's start. An offset beyond the window is sent far
// outside of every input, so that the test of the position catches it too.
struct OffsetTable {
  static constexpr int64_t kFarOutside = INT64_MIN / 2;
  int64_t rows[256];
  int64_t columns[256];
  int64_t places[256];  // in a row-major plane; of taps alone

  explicit OffsetTable(const Pool2dGeometry& g) {
    for (int64_t& row : rows) row = kFarOutside;
    for (int64_t& column : columns) column = kFarOutside;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
        rows[kh * g.kernel_w + kw] = kh * g.dilation_h;
        columns[kh * g.kernel_w + kw] = kw * g.dilation_w;
        places[kh * g.kernel_w + kw] = kh * g.dilation_h * g.w + kw * g.dilation_w;
      }
    }
  }
};

class OffsetCheck {
 public:
  OffsetCheck(const uint8_t* offsets, const Pool2dGeometry& geometry, LowestPosition* wrong)
      : offsets_(offsets),
        g_(geometry),
        whole_rows_(inner_rows(geometry)),
        inner_(inner_columns(geometry)),
        all_windows_inside_(whole_rows_.begin == 0 && whole_rows_.end == geometry.oh &&
                            inner_.begin == 0 && inner_.end == geometry.ow),
        table_(geometry),
        wrong_(wrong) {}

  const OffsetTable& table() const { return table_; }

  // Whether the offsets of the windows that lie inside, in row `oh`, are all taps of them. `place`
  // is the position of the row's first offset; `width` offsets belong to one column: the channels
  // where they are innermost, else 1.
  bool inner_are_taps(int64_t oh, int64_t place, int64_t width) const {
    if (!whole_rows_.contains(oh)) return false;
    return !any_from(static_cast<uint8_t>(g_.kernel_h * g_.kernel_w),
                     offsets_ + place + inner_.begin * width, (inner_.end - inner_.begin) * width);
  }

  // Whether all offsets of `planes` row-major planes are taps that lie inside the input.
  bool all_are_taps(int64_t place, int64_t planes) const {
    const int64_t count = g_.oh * g_.ow;
    const uint8_t taps = static_cast<uint8_t>(g_.kernel_h * g_.kernel_w);
    bool inside = !any_from(taps, offsets_ + place, planes * count);
    if (all_windows_inside_) return inside;
    for (int64_t plane = 0; inside && plane < planes; ++plane) {
      inside = edges_are_taps(offsets_ + place + plane * count);
    }
    return inside;
  }

  // The output rows whose windows begin in input rows [begin, end); those that begin before the
  // first or behind the last row belong to that row: over all input rows, each output row once.
  void rows_beginning_in(int64_t begin, int64_t end, int64_t plane_place, int64_t width) const {
    int64_t oh = begin == 0 ? 0 : (begin + g_.pad_h + g_.stride_h - 1) / g_.stride_h;
    for (; oh < g_.oh && (end == g_.h || oh * g_.stride_h - g_.pad_h < end); ++oh) {
      const int64_t place = plane_place + oh * g_.ow * width;
      if (inner_are_taps(oh, place, width)) {
        windows(oh, 0, inner_.begin, place, width);
        windows(oh, inner_.end, g_.ow, place, width);
      } else {
        windows(oh, 0, g_.ow, place, width);
      }
    }
  }

 private:
  bool edges_are_taps(const uint8_t* plane) const {
    bool inside = true;
    for (int64_t oh = 0; oh < g_.oh; ++oh) {
      const bool whole = whole_rows_.contains(oh);
      const int64_t left_end = whole ? inner_.begin : g_.ow;
      const int64_t right_begin = whole ? inner_.end : g_.ow;
      for (int64_t ow = 0; ow < left_end; ++ow) inside &= is_inside(plane[oh * g_.ow + ow], oh, ow);
      for (int64_t ow = right_begin; ow < g_.ow; ++ow) {
        inside &= is_inside(plane[oh * g_.ow + ow], oh, ow);
      }
    }
    return inside;
  }

  bool is_inside(uint8_t offset, int64_t oh, int64_t ow) const {
    const int64_t ih = oh * g_.stride_h - g_.pad_h + table_.rows[offset];
    const int64_t iw = ow * g_.stride_w - g_.pad_w + table_.columns[offset];
    return static_cast<uint64_t>(ih) < static_cast<uint64_t>(g_.h) &&
           static_cast<uint64_t>(iw) < static_cast<uint64_t>(g_.w);
  }

  void windows(int64_t oh, int64_t begin, int64_t end, int64_t place, int64_t width) const {
    for (int64_t ow = begin; ow < end; ++ow) {
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
