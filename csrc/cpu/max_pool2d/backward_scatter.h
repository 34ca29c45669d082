// max_pool2d backward, "scatter": every window and stride. grad_output is added at the maxima into
// zeroed planes, in row-major order, which fixes the order of every sum. Parallel over channel
// groups (n, c) or (n, block of c), small planes several at a time. Sums of bfloat16 and float16
// are accumulated in float scratch planes. Where all offsets of a row-major plane have places
// inside the input, which is looked at first, no window is checked; windows without a maximum add
// zero to an element of the input.
#pragma once

#include "cpu/max_pool2d/maxima.h"

NNOPS_BEGIN_KERNELS

// Where the windows of a small plane begin, so that one loop goes through all of them.
struct WindowStarts {
  static constexpr int64_t kMost = 1024;
  int64_t count;
  int64_t places[kMost];

  explicit WindowStarts(const Pool2dGeometry& g) : count(g.oh * g.ow <= kMost ? g.oh * g.ow : 0) {
    for (int64_t i = 0; i < count; ++i) {
      places[i] = (i / g.ow * g.stride_h - g.pad_h) * g.w + i % g.ow * g.stride_w - g.pad_w;
    }
  }
};

// The gradient that a window adds at its offset's place. With kNoneToo zero where it has no
// maximum, by the bits, as nobody foresees which windows have one.
template <bool kNoneToo, typename T>
NNOPS_INLINE acc_t<T> added(const T* gy, const uint8_t* offset) {
  using A = acc_t<T>;
  using Bits = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
  A value = to_acc(*gy);
  if constexpr (!kNoneToo) return value;
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits &= Bits{0} - static_cast<Bits>(*offset != kNoOffset);
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

// kPlanes neighbouring small planes, whose offsets have places inside the input; `sums` is zeroed
// here. Windows side by side often share their maximum, and then wait for each other's sum: those
// of several planes do not.
template <int kPlanes, bool kNoneToo, typename T>
NNOPS_INLINE void scatter_taps(acc_t<T>* sums, const T* gy, const uint8_t* offsets,
                               const OffsetTable& table, int64_t pixels,
                               const WindowStarts& starts) {
  std::memset(sums, 0, static_cast<size_t>(kPlanes * pixels) * sizeof(sums[0]));
  const int64_t count = starts.count;
  for (int64_t i = 0; i < count; ++i) {
    acc_t<T>* window = sums + starts.places[i];
#pragma GCC unroll 4
    for (int64_t plane = 0; plane < kPlanes; ++plane) {
      const int64_t place = plane * count + i;
      window[plane * pixels + table.places[offsets[place]]] +=
          added<kNoneToo>(gy + place, offsets + place);
    }
  }
}

// One plane, row-major; `sums` is zeroed here.
template <typename T>
__attribute__((noinline)) void add_plane(acc_t<T>* sums, const T* gy, const uint8_t* offsets,
                                         const Pool2dGeometry& g, int64_t plane,
                                         const OffsetCheck& check, const WindowStarts& starts,
                                         LowestPosition* wrong) {
  const OffsetTable& table = check.table();
  const ChannelGroup group = channel_group(plane, g.c, 1);
  const int64_t base = plane * g.oh * g.ow;
  const int64_t pixels = g.h * g.w;
  const int64_t stride_w = g.stride_w;
  const Places places = check.places_of(base, 1);
  if (places != Places::kNot && starts.count > 0) {
    scatter_taps<1, true>(sums, gy + base, offsets + base, table, pixels, starts);
    return;
  }
  std::memset(sums, 0, static_cast<size_t>(pixels) * sizeof(sums[0]));
  for (int64_t oh = 0; oh < g.oh; ++oh) {
    if (places == Places::kNot) {
      for_each_maximum(
          offsets, table, g, group, oh, 0, g.ow, wrong,
          [&](int64_t, int64_t place, int64_t ih, int64_t iw) {
            sums[ih * g.w + iw] += to_acc(gy[place]);
          },
          [](int64_t) {});
      continue;
    }
    const T* row = gy + base + oh * g.ow;
    const uint8_t* row_offsets = offsets + base + oh * g.ow;
    // Of the window's first element, which may lie before the plane: the maximum does not.
    int64_t start = (oh * g.stride_h - g.pad_h) * g.w - g.pad_w;
    const auto scatter_row = [&](auto none_too) __attribute__((always_inline)) {
      for (int64_t ow = 0; ow < g.ow; ++ow) {
        sums[start + table.places[row_offsets[ow]]] +=
            added<decltype(none_too)::value>(row + ow, row_offsets + ow);
        start += stride_w;
      }
    };
    if (places == Places::kOfAll) {
      scatter_row(std::false_type{});
    } else {
      scatter_row(std::true_type{});
    }
  }
}

// One plane of grad_input, row-major; of bfloat16 and float16 by way of the plane `slot` of
// `scratch`.
template <typename T>
NNOPS_INLINE void scatter_plane(T* gx, const T* gy, const uint8_t* offsets, float* scratch,
                                int64_t slot, const Pool2dGeometry& g, int64_t plane,
                                const OffsetCheck& check, const WindowStarts& starts,
                                LowestPosition* wrong) {
  const int64_t pixels = g.h * g.w;
  T* target = gx + plane * pixels;
  if constexpr (sizeof(acc_t<T>) == sizeof(T)) {
    add_plane(target, gy, offsets, g, plane, check, starts, wrong);
  } else {
    float* sums = scratch + slot * pixels;
    add_plane(sums, gy, offsets, g, plane, check, starts, wrong);
    for (int64_t i = 0; i < pixels; ++i) target[i] = from_acc<T>(sums[i]);
  }
}

// A block of channels where they are innermost: `sum_step` from pixel to pixel in `sums`.
template <typename T>
NNOPS_INLINE void scatter_channels(acc_t<T>* sums, int64_t sum_step, const T* gy,
                                   const uint8_t* offsets, const OffsetTable& table,
                                   const Pool2dGeometry& g, const ChannelGroup& group,
                                   LowestPosition* wrong) {
  for (int64_t pixel = 0; pixel < g.h * g.w; ++pixel) {
    for (int64_t channel = 0; channel < group.channels; ++channel) {
      sums[pixel * sum_step + channel] = 0;
    }
  }
  for (int64_t oh = 0; oh < g.oh; ++oh) {
    for_each_maximum(
        offsets, table, g, group, oh, 0, g.ow, wrong,
        [&](int64_t channel, int64_t place, int64_t ih, int64_t iw) {
          sums[(ih * g.w + iw) * sum_step + channel] += to_acc(gy[place]);
        },
        [](int64_t) {});
  }
}

template <typename T>
int64_t pool_backward_scatter(void* grad_input, const void* grad_output, const uint8_t* offsets,
                              float* scratch, const Pool2dGeometry& g, int threads) {
  constexpr bool kDirect = sizeof(acc_t<T>) == sizeof(T);
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  LowestPosition wrong;
  const OffsetCheck check(offsets, g, &wrong);
  const OffsetTable& table = check.table();
  const int64_t pixels = g.h * g.w;
  if (g.channels_last) {
    const int64_t block = smaller(g.c, kChannelBlock);
    parallel_slots(channel_group_count(g.n, g.c, block), threads, [&](int64_t slot, int64_t index) {
      const ChannelGroup group = channel_group(index, g.c, block);
      T* target = gx + group.image * g.input_strides[0] + group.channel * g.input_strides[1];
      if constexpr (kDirect) {
        scatter_channels(target, g.c, gy, offsets, table, g, group, &wrong);
      } else {
        acc_t<T>* sums = scratch + slot * block * pixels;
        scatter_channels(sums, block, gy, offsets, table, g, group, &wrong);
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          for (int64_t channel = 0; channel < group.channels; ++channel) {
            target[pixel * g.c + channel] = from_acc<T>(sums[pixel * block + channel]);
          }
        }
      }
    });
    return wrong.or_minus_one();
  }
  const WindowStarts starts(g);
  if (kDirect && starts.count > 0) {
    constexpr int64_t kPlanes = 4;
    parallel_chunks(g.n * g.c, kPlanes, threads, [&](int64_t begin, int64_t end) {
      const int64_t place = begin * starts.count;
      auto* sums = reinterpret_cast<acc_t<T>*>(gx) + begin * pixels;
      const Places places = end - begin == kPlanes ? check.places_of(place, kPlanes) : Places::kNot;
      if (places == Places::kOfAll) {
        scatter_taps<kPlanes, false>(sums, gy + place, offsets + place, table, pixels, starts);
        return;
      }
      if (places == Places::kOfNoneToo) {
        scatter_taps<kPlanes, true>(sums, gy + place, offsets + place, table, pixels, starts);
        return;
      }
      for (int64_t plane = begin; plane < end; ++plane) {
        scatter_plane(gx, gy, offsets, scratch, 0, g, plane, check, starts, &wrong);
      }
    });
    return wrong.or_minus_one();
  }
  parallel_slots(g.n * g.c, threads, [&](int64_t slot, int64_t plane) {
    scatter_plane(gx, gy, offsets, scratch, slot, g, plane, check, starts, &wrong);
  });
  return wrong.or_minus_one();
}

NNOPS_END_KERNELS
