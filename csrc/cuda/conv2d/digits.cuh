// A counter of three digits: where a thread stands in a long index, without dividing on the way.
//
//   index = d0 + r0 (d1 + r1 d2)
//
// The kernels go through such indices in equal steps: k of the implicit GEMMs is (tap row, tap
// column, channel) or (image, row, column). A step has digits of its own, worked out once; to
// advance is three additions and two comparisons.
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

struct Digits {
  int d0, d1, d2;

  // Needs 0 <= index, and index / (r0 r1) within an int.
  static NNOPS_HOST_DEVICE Digits of(int64_t index, int r0, int r1) {
    Digits digits;
    if (index <= 0x7fffffff) {
      const auto low = static_cast<unsigned>(index);
      const unsigned rest = low / static_cast<unsigned>(r0);
      digits.d0 = static_cast<int>(low % static_cast<unsigned>(r0));
      digits.d1 = static_cast<int>(rest % static_cast<unsigned>(r1));
      digits.d2 = static_cast<int>(rest / static_cast<unsigned>(r1));
    } else {
      const int64_t rest = index / r0;
      digits.d0 = static_cast<int>(index % r0);
      digits.d1 = static_cast<int>(rest % r1);
      digits.d2 = static_cast<int>(rest / r1);
    }
    return digits;
  }

  // Adds a step of less than r0 r1 (1 + what d2 can still count).
  NNOPS_HOST_DEVICE void advance(const Digits& step, int r0, int r1) {
    d0 += step.d0;
    d1 += step.d1;
    d2 += step.d2;
    if (d0 >= r0) {
      d0 -= r0;
      ++d1;
    }
    if (d1 >= r1) {
      d1 -= r1;
      ++d2;
    }
  }
};

}  // namespace nnops::cuda
