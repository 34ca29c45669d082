// From a vector of flags to one bit a lane, and back.
#pragma once

#include "cpu/simd.h"

NNOPS_BEGIN_KERNELS

// Bit i is the sign bit of lane i: set where the lane of a mask is true.
NNOPS_INLINE uint32_t lane_bits(Mask<float> mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  __m256 halves[2];
  std::memcpy(halves, &mask, sizeof(mask));
  return static_cast<uint32_t>(_mm256_movemask_ps(halves[0])) |
         static_cast<uint32_t>(_mm256_movemask_ps(halves[1])) << 8;
#else
  const Mask<float> place = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                             1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  return static_cast<uint32_t>(sum_lanes(mask & place));
#endif
}
NNOPS_INLINE uint32_t lane_bits(Mask<double> mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi64_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  __m256d halves[2];
  std::memcpy(halves, &mask, sizeof(mask));
  return static_cast<uint32_t>(_mm256_movemask_pd(halves[0])) |
         static_cast<uint32_t>(_mm256_movemask_pd(halves[1])) << 4;
#else
  const Mask<double> place = {1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7};
  return static_cast<uint32_t>(sum_lanes(mask & place));
#endif
}

// The mask whose lane i is true where bit i is set.
template <typename T>
NNOPS_INLINE Mask<T> mask_from_bits(uint32_t bits) {
  using Lane = std::remove_reference_t<decltype(Mask<T>{}[0])>;
  const Mask<T> all = Mask<T>{} + static_cast<Lane>(bits);
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512DQ__)
    return reinterpret_cast<Mask<T>>(_mm512_movm_epi32(static_cast<__mmask16>(bits)));
#endif
    const Mask<T> place = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                           1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    return (all & place) != 0;
  } else {
#if defined(__AVX512DQ__)
    return reinterpret_cast<Mask<T>>(_mm512_movm_epi64(static_cast<__mmask8>(bits)));
#endif
    const Mask<T> place = {1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7};
    return (all & place) != 0;
  }
}

NNOPS_END_KERNELS
