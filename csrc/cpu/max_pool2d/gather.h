// max_pool2d_gather: the input's elements at the offsets, 0 where there is none. Parallel as
// "scatter" is, whose adjoint it is.
#pragma once

#include "cpu/max_pool2d/maxima.h"

NNOPS_BEGIN_KERNELS

template <typename T>
int64_t pool_gather(void* output, const void* input, const uint8_t* offsets,
                    const Pool2dGeometry& g, int threads) {
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  const OffsetTable table(g);
  LowestPosition wrong;
  const int64_t block = g.channels_last ? smaller(g.c, kChannelBlock) : 1;
  parallel_slots(channel_group_count(g.n, g.c, block), threads, [&](int64_t, int64_t index) {
    const ChannelGroup group = channel_group(index, g.c, block);
    const T* source = x + group.image * g.input_strides[0] + group.channel * g.input_strides[1];
    for (int64_t oh = 0; oh < g.oh; ++oh) {
      for_each_maximum(
          offsets, table, g, group, oh, 0, g.ow, &wrong,
          [&](int64_t channel, int64_t place, int64_t ih, int64_t iw) {
            y[place] = source[channel * g.input_strides[1] + ih * g.input_strides[2] +
                              iw * g.input_strides[3]];
          },
          [&](int64_t place) { y[place] = T{}; });
    }
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
