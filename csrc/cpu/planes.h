// What the kernels over (n, c, h, w) planes share: the way they are split over threads, and the
// record of the first bad position. Included by kernels that are compiled once per ISA.
#pragma once

#include "cpu/simd.h"

NNOPS_BEGIN_KERNELS

// The lowest of the positions that any thread reports, the same however work was split.
struct LowestPosition {
  static constexpr int64_t kNone = INT64_MAX;
  int64_t position = kNone;

  void report(int64_t candidate) {
    int64_t seen = __atomic_load_n(&position, __ATOMIC_RELAXED);
    while (candidate < seen && !__atomic_compare_exchange_n(&position, &seen, candidate, true,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  int64_t or_minus_one() const { return position == kNone ? -1 : position; }
};

// A group of channels of one image: a single channel, or up to `block` that lie side by side.
struct ChannelGroup {
  int64_t image, channel, channels;
};

NNOPS_INLINE int64_t channel_group_count(int64_t n, int64_t c, int64_t block) {
  return n * divide_up(c, block);
}
NNOPS_INLINE ChannelGroup channel_group(int64_t index, int64_t c, int64_t block) {
  if (block == 1) {
    const int64_t image = index / c;
    return {image, index - image * c, 1};
  }
  const int64_t groups = divide_up(c, block);
  const int64_t channel = index % groups * block;
  return {index / groups, channel, smaller(block, c - channel)};
}

// body(slot, index) for every index in [0, n): each of `threads` slots takes one run of
// consecutive indices, so that it can own a piece of scratch memory.
template <typename Body>
NNOPS_INLINE void parallel_slots(int64_t n, int threads, Body body) {
  const int64_t slots = smaller(threads, n);
  parallel_chunks(slots, 1, static_cast<int>(slots), [=](int64_t slot, int64_t) {
    const int64_t share = n / slots;
    const int64_t rest = n % slots;
    const int64_t begin = slot * share + smaller(slot, rest);
    const int64_t end = begin + share + (slot < rest ? 1 : 0);
    for (int64_t index = begin; index < end; ++index) body(slot, index);
  });
}

NNOPS_END_KERNELS
