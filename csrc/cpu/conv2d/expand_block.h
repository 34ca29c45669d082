// How expanded_planes.h copies what a strip reads to planes.
#pragma once

#include "cpu/conv2d/expanded_plan.h"
#include "cpu/transpose.h"

NNOPS_BEGIN_KERNELS

// How many rows ahead of the copying the read image is fetched, unless there are many channels.
constexpr int64_t kPrefetchRows = 8;

// Copies one channel of one image to planes[copy][sequence][pitch], and fetches the same rows of
// what stands at `ahead`, if anything does.
template <typename T>
void expand_channel(acc_t<T>* planes, acc_t<T>* staging, const T* channel, const T* ahead,
                    const int64_t* column_starts, int64_t y0, int64_t x0, const PixelPass& pass,
                    const StripPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  // The classes of kernel columns stand side by side in the staging rows, or in planes of their
  // own.
  A* first_row = plan.expanded ? staging : planes;
  const int64_t row_step = plan.expanded ? plan.staging_width : plan.pitch;
  for (int64_t x_cls = 0; x_cls < plan.x.class_count(); ++x_cls) {
    const int64_t count = plan.expanded ? plan.x.class_length(x_cls, plan.width) : plan.pitch;
    const InsideSpan columns =
        inside_span(plan.x.position(x_cls, x0), plan.x.step, count, plan.x.limit);
    // Rows follow each other on both sides.
    const bool one_run = columns.is_whole() && row_step == count && pass.read.h == count &&
                         plan.x.step * pass.read.w == 1 && plan.y.step == 1;
    A* row = first_row;
    for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
      const InsideSpan rows = inside_span(plan.y.position(cls, y0), plan.y.step,
                                          plan.y.class_length(cls, plan.height), plan.y.limit);
      const int64_t source_step = rows.step * pass.read.h;
      const int64_t source_row = rows.start * pass.read.h;
      if (x_cls == 0 && pass.read.w == 1 && ahead != nullptr) {
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          prefetch_span(ahead + source_row + i * source_step, plan.x.step * plan.width);
        }
      }
      const auto zero_rows = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          for (int64_t k = 0; k < count; ++k) row[i * row_step + k] = 0;
        }
      };
      zero_rows(0, rows.begin);
      if (one_run) {
        copy_span(row + rows.begin * count,
                  channel + source_row + rows.begin * source_step + columns.start,
                  (rows.end - rows.begin) * count);
      } else {
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          copy_inside(row + i * row_step, channel + source_row + i * source_step, pass.read.w,
                      columns);
        }
      }
      zero_rows(rows.end, rows.length);
      row += rows.length * row_step;
    }
    first_row += plan.expanded ? count : plan.plane_size;
  }
  if (!plan.expanded) return;
  const int64_t rows = plan.sequence_rows;
  const int64_t width = plan.width;
  const int64_t staging_width = plan.staging_width;
  for (int64_t s = 0; s < plan.x.taps; ++s) {
    const A* from = staging + column_starts[s];
    A* to = planes + s * plan.plane_size;
    // Whole vectors: what a row gets too much is overwritten by the next.
    for (int64_t i = 0; i < rows; ++i, from += staging_width, to += width) {
      for (int64_t k = 0; k < width; k += kLanes<A>) write(to + k, read<Wide<A>>(from + k));
    }
  }
}

// Copies `channels` channels, neighbours in memory, of one image, as far as `rows` and `columns`
// go: [channel][row][column].
template <typename T>
void transpose_channels(acc_t<T>* transposed, const T* image, int64_t channels, const Range& rows,
                        const Range& columns, const PixelPass& pass,
                        const StripPlan<acc_t<T>>& plan) {
  const int64_t width = columns.size();
  const bool rows_follow = pass.read.h == width * pass.read.w;
  const int64_t run = rows_follow ? rows.size() : 1;
  for (int64_t row = rows.begin; row < rows.end; row += run, transposed += width) {
    transpose(transposed, plan.read_plane_size,
              image + row * pass.read.h + columns.begin * pass.read.w, pass.read.w, 1, run * width,
              channels);
  }
}

// Copies a block of channels of all images of a strip, channel by channel.
template <typename T>
void expand_planes(acc_t<T>* planes, acc_t<T>* staging, const PassStrip<T>& strip, int64_t channel0,
                   int64_t channels, const int64_t* column_starts, const PixelPass& pass,
                   const StripPlan<acc_t<T>>& plan) {
  const int64_t ahead = channels > kFollowedStreams || pass.groups > 1
                            ? kPrefetchChannels * pass.read.c
                            : kPrefetchRows * pass.read.h;
  const T* channel = strip.read + channel0 * pass.read.c;
  for (int64_t c = 0; c < channels; ++c, channel += pass.read.c, planes += plan.channel_size()) {
    for (int64_t i = 0; i < strip.images; ++i) {
      const T* image = channel + i * pass.read.n;
      expand_channel(planes + i * plan.image_size, staging, image, image + ahead, column_starts,
                     strip.y0, strip.x0, pass, plan);
    }
  }
}

// The same of channels that are neighbours in memory, some of which are transposed at a time.
template <typename T>
void expand_pixels(acc_t<T>* planes, acc_t<T>* staging, acc_t<T>* transposed,
                   const PassStrip<T>& strip, int64_t channel0, int64_t channels,
                   const int64_t* column_starts, const PixelPass& pass,
                   const StripPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  const Range rows = positions_read(plan.y, {strip.y0, strip.y0 + plan.height}, 0);
  const Range columns = positions_read(plan.held_x, {strip.x0, strip.x0 + plan.width}, 0);
  PixelPass planar = pass;
  planar.read.h = columns.size();
  planar.read.w = 1;
  // Where its first row and column would stand.
  const A* first_plane = transposed - (rows.begin * columns.size() + columns.begin);
  const T* first_channel = strip.read + channel0;
  for (int64_t c0 = 0; c0 < channels; c0 += kLanes<A>, first_channel += kLanes<A>) {
    const int64_t count = smaller(kLanes<A>, channels - c0);
    for (int64_t i = 0; i < strip.images; ++i) {
      transpose_channels(transposed, first_channel + i * pass.read.n, count, rows, columns, pass,
                         plan);
      A* target = planes + c0 * plan.channel_size() + i * plan.image_size;
      for (int64_t c = 0; c < count; ++c, target += plan.channel_size()) {
        expand_channel<A>(target, staging, first_plane + c * plan.read_plane_size, nullptr,
                          column_starts, strip.y0, strip.x0, planar, plan);
      }
    }
  }
}

template <typename T>
void expand_block(acc_t<T>* planes, acc_t<T>* staging, acc_t<T>* transposed,
                  const PassStrip<T>& strip, int64_t channel0, int64_t channels,
                  const int64_t* column_starts, const PixelPass& pass,
                  const StripPlan<acc_t<T>>& plan) {
  if (plan.transposes) {
    expand_pixels(planes, staging, transposed, strip, channel0, channels, column_starts, pass,
                  plan);
  } else {
    expand_planes(planes, staging, strip, channel0, channels, column_starts, pass, plan);
  }
  // The last vector of a plane reads beyond its end.
  for (int64_t copy = 0; copy < channels * plan.copies; ++copy) {
    write(planes + copy * plan.plane_size + strip.images * plan.image_size, Wide<acc_t<T>>{});
  }
}

NNOPS_END_KERNELS
