// Pairs of bfloat16 along the sum, for AVX512_BF16 (factors.h).
//
// A pair is a word: vdpbf16ps adds both of its products to a float sum, in half of the instructions
// that converted numbers would take. Where a sum has an odd number of channels, zero stands in the
// last pair's second place on both sides.
//
// vdpbf16ps rounds to nearest even, whatever the mode; it takes subnormal numbers for zero, and a
// subnormal sum becomes zero. Infinities and NaN are as in IEEE arithmetic.
#pragma once

#include "cpu/conv2d/factors.h"

NNOPS_BEGIN_KERNELS

struct BfloatPair {
  bfloat16 first, second;

  // Of floats that bfloat16 can hold: pairs of each of n numbers and of another one, or zero, in
  // the place of the numbers.
  static void join(float* numbers, const float* seconds, int64_t n);
  // Pairs without their second numbers.
  static void keep_first(float* pairs, int64_t n);
};
template <>
struct RegisterOf<BfloatPair> {
  typedef int32_t type __attribute__((vector_size(kRegisterBytes)));
};

template <>
constexpr int64_t kFactorNumbers<BfloatPair> = 2;

NNOPS_INLINE void add_products(Register<float>& sum, BfloatPair factor,
                               Register<BfloatPair> factors) {
  int32_t word = 0;
  std::memcpy(&word, &factor, sizeof(word));
  sum = reinterpret_cast<Register<float>>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(_mm512_set1_epi32(word)),
      reinterpret_cast<__m512bh>(factors)));
}

// To nearest, ties to even.
NNOPS_INLINE void store_rounded(bfloat16* target, Register<float> sums) {
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(sums));
  std::memcpy(target, &rounded, sizeof(rounded));
}

// Words, of which one half holds a number; the lower one is the first of a pair.
typedef uint32_t Halves __attribute__((vector_size(64)));

NNOPS_INLINE Halves load_words(const void* source) {
  Halves words;
  std::memcpy(&words, source, sizeof(words));
  return words;
}
NNOPS_INLINE void store_words(void* target, Halves words) {
  std::memcpy(target, &words, sizeof(words));
}

// All that a number has stands in the upper half of its float; what is no number may have anything
// in the lower one. n is a multiple of a vector.
inline void BfloatPair::join(float* numbers, const float* seconds, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const Halves second = seconds != nullptr ? load_words(seconds + i) & 0xffff0000 : Halves{};
    store_words(numbers + i, load_words(numbers + i) >> 16 | second);
  }
}
inline void BfloatPair::keep_first(float* pairs, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) store_words(pairs + i, load_words(pairs + i) & 0xffff);
}

// Of floats that bfloat16 can hold.
NNOPS_INLINE void store_factors(BfloatPair* target, const float* source, int64_t step,
                                int64_t channels) {
  const Halves second = channels > 1 ? load_words(source + step) : Halves{};
  store_words(target, load_words(source) >> 16 | second);
}

NNOPS_INLINE void transpose_factors(BfloatPair* target, int64_t target_stride,
                                    const bfloat16* source, int64_t row_stride,
                                    int64_t channel_stride, int64_t count, int64_t width,
                                    int64_t channels) {
  constexpr int64_t kChannels = 16;
  constexpr int64_t kWidth = kTileVectors * kLanes<float>;
  float numbers[kChannels * kWidth];
  for (int64_t c0 = 0; c0 < channels; c0 += kChannels) {
    const int64_t some = smaller(kChannels, channels - c0);
    transpose_factors(numbers, kWidth, source + c0 * channel_stride, row_stride, channel_stride,
                      count, width, some);
    for (int64_t c = 0; c < some; c += 2, target += target_stride) {
      for (int64_t i = 0; i < width; i += kLanes<float>) {
        store_factors(target + i, numbers + c * kWidth + i, kWidth, some - c);
      }
    }
  }
}

// The first n bits, of 32 at most.
NNOPS_INLINE __mmask32 first_bits(int64_t n) {
  return static_cast<__mmask32>((uint64_t{1} << smaller(n, 32)) - 1);
}

// The numbers source[i * step] in the lower halves of words, for i < n, 16 at most.
NNOPS_INLINE Halves load_halves(const bfloat16* source, int64_t step, int64_t n) {
  Halves words{};
  if (step == 1) {
    words = reinterpret_cast<Halves>(_mm512_maskz_cvtepu16_epi32(
        0xffff, _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_bits(n)), source)));
  } else if (step == 2) {
    words = reinterpret_cast<Halves>(_mm512_maskz_loadu_epi16(first_bits(2 * n - 1), source));
    words &= 0xffff;
  } else {
    for (int64_t i = 0; i < n; ++i) words[i] = source[i * step].bits;
  }
  return words;
}

// `channels` is 1 or 2, channel_stride from the first to the second.
NNOPS_INLINE void copy_planar_factors(BfloatPair* row, const bfloat16* source,
                                      int64_t channel_stride, int64_t stride, int64_t first,
                                      int64_t step, int64_t length, int64_t limit,
                                      int64_t channels) {
  const InsideSpan inside = inside_span(first, step, length, limit);
  for (int64_t i = 0; i < inside.begin; ++i) row[i] = BfloatPair{};
  const bfloat16* from = source + (first + inside.begin * step) * stride;
  const int64_t apart = stride * step;
  for (int64_t i = inside.begin; i < inside.end; i += 16, from += 16 * apart) {
    const int64_t n = smaller(16, inside.end - i);
    Halves words = load_halves(from, apart, n);
    if (channels > 1) words |= load_halves(from + channel_stride, apart, n) << 16;
    _mm512_mask_storeu_epi32(row + i, static_cast<__mmask16>(first_bits(n)),
                             reinterpret_cast<__m512i>(words));
  }
  for (int64_t i = inside.end; i < length; ++i) row[i] = BfloatPair{};
}

NNOPS_INLINE void copy_pixel_factors(BfloatPair* row, int64_t pixel_size, const bfloat16* source,
                                     int64_t stride, int64_t first, int64_t step, int64_t length,
                                     int64_t limit, int64_t channels) {
  const InsideSpan inside = inside_span(first, step, length, limit);
  const int64_t pairs = divide_up(channels, 2);
  const bfloat16* from = source + (first + inside.begin * step) * stride;
  for (int64_t i = 0; i < length; ++i, row += pixel_size) {
    const bool there = i >= inside.begin && i < inside.end;
    for (int64_t c = 0; c < pairs; c += 16) {
      const __mmask32 numbers = there ? first_bits(channels - 2 * c) : 0;
      _mm512_mask_storeu_epi32(row + c, static_cast<__mmask16>(first_bits(pairs - c)),
                               _mm512_maskz_loadu_epi16(numbers, from + 2 * c));
    }
    if (there) from += stride * step;
  }
}

NNOPS_END_KERNELS
