// A walk over the maxima of a pooling, from their offsets.
#pragma once

#include "cpu/max_pool2d/offset_check.h"

NNOPS_BEGIN_KERNELS

// visit(channel in the group, place in memory of the output element, ih, iw) for the elements of a
// channel group in columns [begin, end) of row `oh` whose offset points into the input, in
// row-major order, and skip(place) for those that have none; a wrong offset is reported.
template <typename Visit, typename Skip>
NNOPS_INLINE void for_each_maximum(const uint8_t* offsets, const OffsetTable& table,
                                   const Pool2dGeometry& g, const ChannelGroup& group, int64_t oh,
                                   int64_t begin, int64_t end, LowestPosition* wrong, Visit visit,
                                   Skip skip) {
  const int64_t* strides = g.output_strides;
  const int64_t base = group.image * strides[0] + group.channel * strides[1] + oh * strides[2];
  const int64_t start_h = oh * g.stride_h - g.pad_h;
  for (int64_t ow = begin; ow < end; ++ow) {
    const int64_t start_w = ow * g.stride_w - g.pad_w;
    const int64_t place = base + ow * strides[3];
    for (int64_t channel = 0; channel < group.channels; ++channel) {
      const uint8_t offset = offsets[place + channel];
      const int64_t ih = start_h + table.rows[offset];
      const int64_t iw = start_w + table.columns[offset];
      if (static_cast<uint64_t>(ih) < static_cast<uint64_t>(g.h) &&
          static_cast<uint64_t>(iw) < static_cast<uint64_t>(g.w)) {
        visit(channel, place + channel, ih, iw);
      } else {
        skip(place + channel);
        if (offset != kNoOffset) wrong->report(place + channel);
      }
    }
  }
}

NNOPS_END_KERNELS
