// Vectors as wide as the ISA's registers, and shorter ones down to one lane, for kernels in which
// lanes do not meet: without a sum over lanes the width changes no bit.
//
// Lanes<T, N> holds N values of float or double, LaneMask<T, N> N integers of their width: masks
// and codes. bfloat16 and float16 load to and store from float lanes. A run of n >= N elements is
// covered by for_lanes: whole vectors, and one that overlaps its predecessor.
#pragma once

#include <utility>

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

template <typename T, int N>
struct LanesOf;

#define NNOPS_LANES_OF(T, I, N)                                    \
  template <>                                                      \
  struct LanesOf<T, N> {                                           \
    typedef T type __attribute__((vector_size(N * sizeof(T))));    \
    typedef I mask __attribute__((vector_size(N * sizeof(T))));    \
    typedef uint8_t bytes __attribute__((vector_size(N)));         \
    typedef uint16_t halves __attribute__((vector_size(2 * N)));   \
    typedef int64_t quadwords __attribute__((vector_size(8 * N))); \
  };
NNOPS_LANES_OF(float, int32_t, 1)
NNOPS_LANES_OF(float, int32_t, 2)
NNOPS_LANES_OF(float, int32_t, 4)
NNOPS_LANES_OF(float, int32_t, 8)
NNOPS_LANES_OF(float, int32_t, 16)
NNOPS_LANES_OF(double, int64_t, 1)
NNOPS_LANES_OF(double, int64_t, 2)
NNOPS_LANES_OF(double, int64_t, 4)
NNOPS_LANES_OF(double, int64_t, 8)
#undef NNOPS_LANES_OF

template <typename T, int N>
using Lanes = typename LanesOf<T, N>::type;
template <typename T, int N>
using LaneMask = typename LanesOf<T, N>::mask;

// Lanes of the widest and of the narrowest vector that compute a T.
template <typename T>
constexpr int kMostLanes = kRegisterBytes / int{sizeof(acc_t<T>)};
template <typename T>
constexpr int kLeastLanes = 16 / int{sizeof(acc_t<T>)};

// --- load and store -----------------------------------------------------------------------------

template <int N, typename T>
NNOPS_INLINE Lanes<acc_t<T>, N> load_lanes(const T* pointer) {
  Lanes<acc_t<T>, N> result;
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    std::memcpy(&result, pointer, sizeof(result));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    typename LanesOf<float, N>::halves bits;
    std::memcpy(&bits, pointer, sizeof(bits));
    result =
        reinterpret_cast<Lanes<float, N>>(__builtin_convertvector(bits, LaneMask<float, N>) << 16);
  } else {
#if defined(__F16C__)
    if constexpr (N == 4) {
      const __m128 lanes = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pointer)));
      std::memcpy(&result, &lanes, sizeof(result));
    } else if constexpr (N == 8) {
      const __m256 lanes =
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pointer)));
      std::memcpy(&result, &lanes, sizeof(result));
    } else if constexpr (N == 16) {
      result = read<Lanes<float, N>>(pointer);
    } else {
      for (int i = 0; i < N; ++i) result[i] = static_cast<float>(pointer[i]);
    }
#else
    for (int i = 0; i < N; ++i) result[i] = static_cast<float>(pointer[i]);
#endif
  }
  return result;
}

template <int N, typename T>
NNOPS_INLINE void store_lanes(T* pointer, Lanes<acc_t<T>, N> value) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    std::memcpy(pointer, &value, sizeof(value));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    // Round to nearest, ties to even; a NaN stays a quiet NaN.
    typedef typename LanesOf<float, N>::halves Halves;
    typedef LaneMask<float, N> Bits;
    const Bits bits = reinterpret_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits quiet = Bits{} + 0x7fc0;
    const Halves result = __builtin_convertvector(value != value ? quiet : rounded, Halves);
    std::memcpy(pointer, &result, sizeof(result));
  } else {
#if defined(__F16C__)
    if constexpr (N == 4) {
      __m128 lanes;
      std::memcpy(&lanes, &value, sizeof(lanes));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(pointer),
                       _mm_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT));
    } else if constexpr (N == 8) {
      __m256 lanes;
      std::memcpy(&lanes, &value, sizeof(lanes));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pointer),
                       _mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT));
    } else if constexpr (N == 16) {
      write(pointer, value);
    } else {
      for (int i = 0; i < N; ++i) pointer[i] = static_cast<float16>(value[i]);
    }
#else
    for (int i = 0; i < N; ++i) pointer[i] = static_cast<float16>(value[i]);
#endif
  }
}

// Keeps a vector that several products read in a register: GCC would load it again for each, which
// where vectors lie across cache lines costs more than the products.
template <typename V>
NNOPS_INLINE void load_once([[maybe_unused]] V& vector) {
#if defined(__x86_64__)
  if constexpr (sizeof(V) >= 16 && sizeof(V) <= kRegisterBytes) asm("" : "+v"(vector));
#endif
}

// N bytes as integers of T's width, and back: codes between 0 and 255. (GCC 12 converts vectors of
// bytes element by element, hence the intrinsics.)
template <typename T, int N>
NNOPS_INLINE LaneMask<T, N> load_bytes(const uint8_t* pointer) {
  LaneMask<T, N> result;
  [[maybe_unused]] typename LanesOf<T, N>::bytes bytes;
  std::memcpy(&bytes, pointer, sizeof(bytes));
#if defined(__AVX2__)
  if constexpr (N >= 2) {
    __m128i lanes = _mm_setzero_si128();
    std::memcpy(&lanes, &bytes, sizeof(bytes));
    if constexpr (sizeof(T) == 4 && N == 4) {
      result = reinterpret_cast<LaneMask<T, N>>(_mm_cvtepu8_epi32(lanes));
    } else if constexpr (sizeof(T) == 4 && N == 8) {
      result = reinterpret_cast<LaneMask<T, N>>(_mm256_cvtepu8_epi32(lanes));
    } else if constexpr (sizeof(T) == 8 && N == 2) {
      result = reinterpret_cast<LaneMask<T, N>>(_mm_cvtepu8_epi64(lanes));
    } else if constexpr (sizeof(T) == 8 && N == 4) {
      result = reinterpret_cast<LaneMask<T, N>>(_mm256_cvtepu8_epi64(lanes));
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && N == 16) {
      result = reinterpret_cast<LaneMask<T, N>>(_mm512_cvtepu8_epi32(lanes));
    } else if constexpr (sizeof(T) == 8 && N == 8) {
      result = reinterpret_cast<LaneMask<T, N>>(_mm512_cvtepu8_epi64(lanes));
    }
#endif
    return result;
  }
#endif
  result = __builtin_convertvector(bytes, LaneMask<T, N>);
  return result;
}
template <typename T, int N>
NNOPS_INLINE void store_bytes(uint8_t* pointer, LaneMask<T, N> codes) {
  const auto bytes = __builtin_convertvector(codes, typename LanesOf<T, N>::bytes);
  std::memcpy(pointer, &bytes, sizeof(bytes));
}

// sum + value in the lanes whose byte, of N from `codes` on, is `code`; sum, which is never -0, in
// the others. (AVX-512 compares the bytes as they are: half the instructions, and this is the inner
// loop of a pooling's backward.)
template <typename T, int N>
NNOPS_INLINE Lanes<T, N> add_where(Lanes<T, N> sum, Lanes<T, N> value, const uint8_t* codes,
                                   uint8_t code) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(T) == 4 && N == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __mmask16 match = _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(static_cast<char>(code)));
    const __m512 before = reinterpret_cast<__m512>(sum);
    return reinterpret_cast<Lanes<T, N>>(
        _mm512_mask_add_ps(before, match, before, reinterpret_cast<__m512>(value)));
  }
  if constexpr (sizeof(T) == 4 && N == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __mmask16 match = _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(static_cast<char>(code)));
    const __m256 before = reinterpret_cast<__m256>(sum);
    return reinterpret_cast<Lanes<T, N>>(_mm256_mask_add_ps(
        before, static_cast<__mmask8>(match), before, reinterpret_cast<__m256>(value)));
  }
#endif
  using Code = std::remove_reference_t<decltype(LaneMask<T, N>{}[0])>;
  const LaneMask<T, N> lanes = load_bytes<T, N>(codes);
  return sum + (lanes == static_cast<Code>(code) ? value : Lanes<T, N>{});
}

// `value` in the lanes whose byte, of N from `codes` on, is `code`, else 0.
template <typename T, int N>
NNOPS_INLINE Lanes<T, N> keep_where(Lanes<T, N> value, const uint8_t* codes, uint8_t code) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(T) == 4 && N == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __mmask16 match = _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(static_cast<char>(code)));
    return reinterpret_cast<Lanes<T, N>>(
        _mm512_maskz_mov_ps(match, reinterpret_cast<__m512>(value)));
  }
#endif
  using Code = std::remove_reference_t<decltype(LaneMask<T, N>{}[0])>;
  const LaneMask<T, N> lanes = load_bytes<T, N>(codes);
  return lanes == static_cast<Code>(code) ? value : Lanes<T, N>{};
}

// --- even and odd lanes -------------------------------------------------------------------------

template <int kGroup, typename V, int... kLane>
NNOPS_INLINE void split_lanes(V low, V high, V& even, V& odd,
                              std::integer_sequence<int, kLane...>) {
  even = __builtin_shufflevector(low, high, (kLane / kGroup * kGroup + kLane)...);
  odd = __builtin_shufflevector(low, high, (kLane / kGroup * kGroup + kGroup + kLane)...);
}
// Groups 0, 2, 4, ... and 1, 3, 5, ... of kGroup lanes each, of 2 N consecutive ones.
template <int kGroup, typename V>
NNOPS_INLINE void split_groups(V low, V high, V& even, V& odd) {
  constexpr int kCount = sizeof(V) / sizeof(low[0]);
  split_lanes<kGroup>(low, high, even, odd, std::make_integer_sequence<int, kCount>{});
}
// Lanes 0, 2, 4, ... and 1, 3, 5, ...
template <typename V>
NNOPS_INLINE void split_pairs(V low, V high, V& even, V& odd) {
  split_groups<1>(low, high, even, odd);
}

template <int kFirst, typename V, int... kLane>
NNOPS_INLINE V alternate_lanes(V even, V odd, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shufflevector(even, odd, (kFirst + kLane / 2 + kLane % 2 * kCount)...);
}
// The inverse of split_pairs.
template <typename V>
NNOPS_INLINE void merge_pairs(V even, V odd, V& low, V& high) {
  constexpr int kCount = sizeof(V) / sizeof(even[0]);
  static_assert(kCount > 1);
  constexpr auto kLanesInOrder = std::make_integer_sequence<int, kCount>{};
  low = alternate_lanes<0>(even, odd, kLanesInOrder);
  high = alternate_lanes<kCount / 2>(even, odd, kLanesInOrder);
}

// --- runs ---------------------------------------------------------------------------------------

template <int N>
struct LaneCount {
  static constexpr int kCount = N;
};

// Calls vectors(LaneCount<N>{}, position) so that [begin, end) is covered by vectors of N lanes,
// the widest that fit, of which the last may overlap the one before; runs shorter than every vector
// of T go to single(position) one by one.
template <typename T, int N = kMostLanes<T>, typename Vectors, typename Single>
NNOPS_INLINE void for_lanes(int64_t begin, int64_t end, Vectors vectors, Single single) {
  if (end - begin >= N) {
    int64_t position = begin;
    for (; position + N <= end; position += N) vectors(LaneCount<N>{}, position);
    if (position < end) vectors(LaneCount<N>{}, end - N);
  } else if constexpr (N > kLeastLanes<T>) {
    for_lanes<T, N / 2>(begin, end, vectors, single);
  } else {
    for (int64_t position = begin; position < end; ++position) single(position);
  }
}

// Whether `count` lanes are one vector of which at most `count` lanes are left over.
template <typename T>
NNOPS_INLINE bool is_one_vector(int64_t count) {
  return count <= kMostLanes<T> && 2 * count >= kLeastLanes<T>;
}
// Calls vectors(LaneCount<N>{}) with that vector, for runs behind which memory may be read and
// overwritten.
template <typename T, int N = kLeastLanes<T>, typename Vectors>
NNOPS_INLINE void one_vector(int64_t count, Vectors vectors) {
  if constexpr (N < kMostLanes<T>) {
    if (count > N) return one_vector<T, 2 * N>(count, vectors);
  }
  vectors(LaneCount<N>{});
}

// --- strided runs -------------------------------------------------------------------------------

// The first lanes of every kStep of the kStep * N numbers at `source`; kStep is a power of 2.
template <int kStep, int N, typename T>
NNOPS_INLINE Lanes<acc_t<T>, N> load_every(const T* source) {
  if constexpr (kStep == 1) {
    return load_lanes<N>(source);
  } else {
    Lanes<acc_t<T>, N> even;
    Lanes<acc_t<T>, N> odd;
    split_pairs(load_every<kStep / 2, N>(source), load_every<kStep / 2, N>(source + kStep / 2 * N),
                even, odd);
    return even;
  }
}

// target[i] = source[i * kStep]; only what lies between the first and the last of them is read.
template <int kStep, typename T>
NNOPS_INLINE void copy_every(acc_t<T>* target, const T* source, int64_t n) {
  // The last vector reads kStep - 1 numbers beyond its last: it is left to the short ones.
  for_lanes<T>(
      0, n - 1,
      [&](auto lanes, int64_t i) {
        constexpr int kCount = lanes.kCount;
        store_lanes<kCount>(target + i, load_every<kStep, kCount>(source + i * kStep));
      },
      [&](int64_t i) { target[i] = to_acc(source[i * kStep]); });
  if (n > 0) target[n - 1] = to_acc(source[(n - 1) * kStep]);
}

// target[i] = source[i * stride]
template <typename T>
NNOPS_INLINE void copy_strided(acc_t<T>* target, const T* source, int64_t stride, int64_t n) {
  if (stride == 1) {
    copy_span(target, source, n);
  } else if (stride == 2) {
    copy_every<2>(target, source, n);
  } else if (stride == 4) {
    copy_every<4>(target, source, n);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i] = to_acc(source[i * stride]);
  }
}

NNOPS_END_KERNELS
