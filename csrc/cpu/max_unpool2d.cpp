// max_unpool2d on the CPU and its relatives, on values (n, c, positions), indices of the same
// sizes and planes (n, c, plane):
//   assign: planes[n, c, index] = value, else 0      (max_unpool2d)
//   add:    planes[n, c, index] += value             (max_pool2d_with_indices_backward)
//   gather: values = planes[n, c, index]             (max_unpool2d_backward)
//
// Each thread owns whole channel groups and works through them in row-major order: of equal
// indices the last one is assigned, and every sum has one order. bfloat16 and float16 are added up
// in float scratch planes. Indices were checked before: in [0, plane), or -1 for none.
#include "ops/max_unpool2d.h"

#include "cpu/planes.h"
#include "ops/max_pool2d.h"

NNOPS_BEGIN_KERNELS

int64_t find_invalid(const int64_t* indices, int64_t count, int64_t lowest, int64_t limit,
                     int threads) {
  LowestPosition wrong;
  parallel_chunks(count, kElementwiseChunk, threads, [&](int64_t begin, int64_t end) {
    bool any = false;
    for (int64_t i = begin; i < end; ++i) any |= (indices[i] < lowest) | (indices[i] >= limit);
    if (!any) return;
    int64_t i = begin;
    while (indices[i] >= lowest && indices[i] < limit) ++i;
    wrong.report(i);
  });
  return wrong.or_minus_one();
}

// body(slot, place of the group's first value, place of its first plane element, step from one
// position to the next in either, channels of the group), for each channel group.
template <typename Body>
NNOPS_INLINE void for_each_group(const IndexedPlanes& g, int threads, Body body) {
  const int64_t block = g.channels_last ? smaller(g.c, kChannelBlock) : 1;
  parallel_slots(channel_group_count(g.n, g.c, block), threads, [&](int64_t slot, int64_t index) {
    const ChannelGroup group = channel_group(index, g.c, block);
    const int64_t first = group.image * g.c;
    if (g.channels_last) {
      body(slot, first * g.positions + group.channel, first * g.plane + group.channel, g.c,
           group.channels);
    } else {
      const int64_t plane = first + group.channel;
      body(slot, plane * g.positions, plane * g.plane, int64_t{1}, int64_t{1});
    }
  });
}

template <typename T>
NNOPS_INLINE void clear_plane(T* plane, int64_t pixels, int64_t step, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t channel = 0; channel < channels; ++channel) plane[pixel * step + channel] = T{};
  }
}

template <typename T>
void assign_planes(void* planes, const void* values, const int64_t* indices, const IndexedPlanes& g,
                   int threads) {
  for_each_group(g, threads,
                 [&](int64_t, int64_t value, int64_t plane, int64_t step, int64_t channels) {
                   T* target = static_cast<T*>(planes) + plane;
                   const T* source = static_cast<const T*>(values) + value;
                   clear_plane(target, g.plane, step, channels);
                   for (int64_t position = 0; position < g.positions; ++position) {
                     for (int64_t channel = 0; channel < channels; ++channel) {
                       const int64_t place = position * step + channel;
                       target[indices[value + place] * step + channel] = source[place];
                     }
                   }
                 });
}

template <typename T>
void add_planes(void* planes, const void* values, const int64_t* indices, float* scratch,
                const IndexedPlanes& g, int threads) {
  constexpr bool kDirect = sizeof(acc_t<T>) == sizeof(T);
  const int64_t block = g.channels_last ? smaller(g.c, kChannelBlock) : 1;
  for_each_group(
      g, threads, [&](int64_t slot, int64_t value, int64_t plane, int64_t step, int64_t channels) {
        T* target = static_cast<T*>(planes) + plane;
        const T* source = static_cast<const T*>(values) + value;
        const int64_t sum_step = kDirect ? step : block;
        acc_t<T>* sums = nullptr;
        if constexpr (kDirect) {
          sums = target;
        } else {
          sums = scratch + slot * block * g.plane;
        }
        clear_plane(sums, g.plane, sum_step, channels);
        for (int64_t position = 0; position < g.positions; ++position) {
          for (int64_t channel = 0; channel < channels; ++channel) {
            const int64_t place = position * step + channel;
            const int64_t index = indices[value + place];
            if (index >= 0) sums[index * sum_step + channel] += to_acc(source[place]);
          }
        }
        if constexpr (!kDirect) {
          for (int64_t pixel = 0; pixel < g.plane; ++pixel) {
            for (int64_t channel = 0; channel < channels; ++channel) {
              target[pixel * step + channel] = from_acc<T>(sums[pixel * sum_step + channel]);
            }
          }
        }
      });
}

template <typename T>
void gather_planes(void* values, const void* planes, const int64_t* indices, const IndexedPlanes& g,
                   int threads) {
  for_each_group(g, threads,
                 [&](int64_t, int64_t value, int64_t plane, int64_t step, int64_t channels) {
                   T* target = static_cast<T*>(values) + value;
                   const T* source = static_cast<const T*>(planes) + plane;
                   for (int64_t position = 0; position < g.positions; ++position) {
                     for (int64_t channel = 0; channel < channels; ++channel) {
                       const int64_t place = position * step + channel;
                       const int64_t index = indices[value + place];
                       target[place] = index < 0 ? T{} : source[index * step + channel];
                     }
                   }
                 });
}

}  // namespace

extern const MaxUnpool2dKernels max_unpool2d_kernels = {
    find_invalid, NNOPS_FLOAT_DTYPES(assign_planes), NNOPS_FLOAT_DTYPES(add_planes),
    NNOPS_FLOAT_DTYPES(gather_planes)};

}  // namespace NNOPS_ISA
}  // namespace nnops
