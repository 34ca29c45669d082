// A vector of running maxima and the codes of where they were found.
#pragma once

#include "cpu/lanes.h"
#include "cpu/max_pool2d/window.h"

NNOPS_BEGIN_KERNELS

// It begins with its window's first element, takes whatever is larger than what it has, and every
// NaN: the first of equal ones and the last NaN win, as in torch.
template <typename T, int N, Record kRecord>
struct Best {
  using Value = Lanes<acc_t<T>, N>;
  using Code = LaneMask<acc_t<T>, N>;
  using Scalar = std::remove_reference_t<decltype(Code{}[0])>;

  Value value;
  Code code;

  __attribute__((always_inline)) Best(Value first, int64_t first_code)
      : value(first), code(Code{} + static_cast<Scalar>(first_code)) {}

  __attribute__((always_inline)) void take(Value candidate, Code candidate_code) {
    if constexpr (kRecord == Record::kNone) {
      value = candidate > value ? candidate : value;
      value = candidate != candidate ? candidate : value;
    } else {
      const Code better = (candidate > value) | (candidate != candidate);
      value = better ? candidate : value;
      code = better ? candidate_code : code;
    }
  }
  __attribute__((always_inline)) void take(Value candidate, int64_t candidate_code) {
    take(candidate, Code{} + static_cast<Scalar>(candidate_code));
  }
  // The maxima of a later row of the same windows.
  __attribute__((always_inline)) void take(const Best& later) { take(later.value, later.code); }

  // `base` is added to the codes of indices, lane after lane `step` more.
  __attribute__((always_inline)) void write(T* output, Recorded<kRecord>* record, int64_t base,
                                            int64_t step) const {
    store_lanes<N>(output, value);
    if constexpr (kRecord == Record::kOffsets) {
      store_bytes<acc_t<T>, N>(record, code);
    } else if constexpr (kRecord == Record::kIndices) {
      Scalar codes[N];
      std::memcpy(codes, &code, sizeof(codes));
      for (int64_t i = 0; i < N; ++i) record[i] = base + i * step + codes[i];
    }
  }
};

NNOPS_END_KERNELS
