// From a vector of flags to one bit a lane, and back.
#pragma once

#include "cpu/lanes.h"

NNOPS_BEGIN_KERNELS

// Bit i is set where lane i of `mask` is true.
template <typename T, int N>
NNOPS_INLINE uint32_t lane_bits(LaneMask<T, N> mask) {
#if defined(__AVX512DQ__)
  if constexpr (N * sizeof(T) == 64 && sizeof(T) == 4) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  } else if constexpr (N * sizeof(T) == 64) {
    return _mm512_movepi64_mask(reinterpret_cast<__m512i>(mask));
  }
#elif defined(__AVX2__)
  if constexpr (N * sizeof(T) == 32 && sizeof(T) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
  } else if constexpr (N * sizeof(T) == 32) {
    return static_cast<uint32_t>(_mm256_movemask_pd(reinterpret_cast<__m256d>(mask)));
  }
#endif
  uint32_t bits = 0;
  for (int i = 0; i < N; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
}

// The mask whose lane i is true where bit i is set.
template <typename T, int N>
NNOPS_INLINE LaneMask<T, N> mask_from_bits(uint32_t bits) {
  using Mask = LaneMask<T, N>;
#if defined(__AVX512DQ__)
  if constexpr (N * sizeof(T) == 64 && sizeof(T) == 4) {
    return reinterpret_cast<Mask>(_mm512_movm_epi32(static_cast<__mmask16>(bits)));
  } else if constexpr (N * sizeof(T) == 64) {
    return reinterpret_cast<Mask>(_mm512_movm_epi64(static_cast<__mmask8>(bits)));
  }
#endif
  using Lane = std::remove_reference_t<decltype(Mask{}[0])>;
  Mask place;
  for (int i = 0; i < N; ++i) place[i] = Lane{1} << i;
  return (place & static_cast<Lane>(bits)) != 0;
}

NNOPS_END_KERNELS
