// One row of cross_entropy whose classes lie side by side: vectors run along the classes.
#pragma once

#include "cpu/cross_entropy/blocks.h"

NNOPS_BEGIN_KERNELS

// From this many classes on, the next row is fetched into the cache while one is computed on: the
// sweep for the maximum would wait for memory, the one for the exponentials keeps memory idle.
constexpr int64_t kPrefetchClasses = 256;

// The sum over the classes of term(read), where read(p) is the vector of p's values for the classes
// at hand: lane by lane, then the lanes.
template <typename T, typename Term>
NNOPS_INLINE acc_t<T> sum_over_classes(int64_t classes, Term term) {
  using V = Wide<acc_t<T>>;
  const int64_t vectors = classes / kLaneCount<V>;
  V sum = blocked_sum<V>(vectors, [=](int64_t i) NNOPS_INLINE_LAMBDA {
    return term([i](const T* p) NNOPS_INLINE_LAMBDA { return read<V>(p + i * kLaneCount<V>); });
  });
  const int64_t done = vectors * kLaneCount<V>;
  if (done < classes) {
    const int64_t count = classes - done;
    const V last =
        term([=](const T* p) NNOPS_INLINE_LAMBDA { return read_first<V>(p + done, count); });
    sum += select(first_lanes<V>(count), last, V{});
  }
  return lane_sum(sum);
}

// output[c] = function(inputs[c]...) for all classes.
template <typename T, typename Function, typename... Inputs>
NNOPS_INLINE void map_classes(T* output, int64_t classes, Function function,
                              const Inputs*... inputs) {
  using V = Wide<acc_t<T>>;
  int64_t c = 0;
  for (; c + kLaneCount<V> <= classes; c += kLaneCount<V>) {
    write(output + c, function(read<V>(inputs + c)...));
  }
  if (c < classes) {
    write_first(output + c, function(read_first<V>(inputs + c, classes - c)...), classes - c);
  }
}

// A NaN is passed over here and comes back through the sum of the exponentials.
template <typename T>
NNOPS_INLINE acc_t<T> max_over_classes(const T* x, int64_t classes) {
  using A = acc_t<T>;
  using V = Wide<A>;
  constexpr int64_t kWidth = kLaneCount<V>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const auto larger = [](V next, V highest)
                          NNOPS_INLINE_LAMBDA { return select(next > highest, next, highest); };
  V highest = splat<V>(kLowest);
  V others = highest;
  int64_t i = 0;
  for (; i + 2 * kWidth <= classes; i += 2 * kWidth) {
    highest = larger(read<V>(x + i), highest);
    others = larger(read<V>(x + i + kWidth), others);
  }
  if (i + kWidth <= classes) {
    highest = larger(read<V>(x + i), highest);
    i += kWidth;
  }
  if (i < classes) others = larger(read_first<V>(x + i, classes - i, from_acc<T>(kLowest)), others);
  return lane_max(larger(others, highest));
}

template <typename T>
NNOPS_INLINE acc_t<T> rest_over_classes(const T* x, int64_t classes, acc_t<T> max) {
  using A = acc_t<T>;
  using V = Wide<A>;
  const V highest = splat<V>(max);
  const int64_t vectors = classes / kLaneCount<V>;
  const int64_t done = vectors * kLaneCount<V>;
  // The rows after this one come into the cache while this one is computed on.
  const bool ahead = classes >= kPrefetchClasses;
  auto total =
      blocked_sums<RestSum<V>>(vectors, [=](RestSum<V>& rest, int64_t i) NNOPS_INLINE_LAMBDA {
        const T* p = x + i * kLaneCount<V>;
        if (ahead) __builtin_prefetch(p + classes, 0, 2);
        add_exponential(rest, read<V>(p), highest);
      });
  if (done == classes) return lane_sum(total.rest) + (lane_sum(total.ties) - 1);
  // The missing lanes are ties too: the exponential of -infinity would be a slow underflow.
  const int64_t count = classes - done;
  add_exponential(total, read_first<V>(x + done, count, from_acc<T>(max)), highest);
  const A missing = static_cast<A>(kLaneCount<V> - count);
  return lane_sum(total.rest) + (lane_sum(total.ties) - 1 - missing);
}

NNOPS_END_KERNELS
