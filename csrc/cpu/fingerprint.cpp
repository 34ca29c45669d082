// Fingerprints of memory (core/fingerprint.h). Integers alone: the same on every ISA.
//
// Parallel over blocks. A read of the memory and nothing else: a block's keys stay in L1.
#include "core/fingerprint.h"

#include "cpu/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

NNOPS_BEGIN_KERNELS

typedef uint32_t Words __attribute__((vector_size(kRegisterBytes)));
typedef uint64_t Products __attribute__((vector_size(kRegisterBytes)));
constexpr int64_t kWords = kRegisterBytes / sizeof(uint32_t);

NNOPS_INLINE Words load_words(const void* pointer) {
  Words words;
  std::memcpy(&words, pointer, sizeof(words));
  return words;
}

// Of each pair of words. GCC makes three multiplications of a product of 64-bit lanes.
NNOPS_INLINE Products pair_products(Words words) {
  const Products pairs = reinterpret_cast<Products>(words);
#if defined(__AVX512F__)
  return reinterpret_cast<Products>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(pairs), reinterpret_cast<__m512i>(pairs >> 32)));
#elif defined(__AVX2__)
  return reinterpret_cast<Products>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(pairs), reinterpret_cast<__m256i>(pairs >> 32)));
#elif defined(__SSE2__)
  return reinterpret_cast<Products>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(pairs), reinterpret_cast<__m128i>(pairs >> 32)));
#else
  return (pairs & 0xffffffff) * (pairs >> 32);
#endif
}

NNOPS_INLINE void fingerprint_block(uint64_t* result, const char* block, int64_t bytes,
                                    const uint32_t* keys) {
  constexpr int64_t kKeys = kFingerprintBlock / sizeof(uint32_t);
  Products first{};
  Products second{};
  for (int64_t i = 0; i < bytes; i += kRegisterBytes, keys += kWords) {
    const Words words = load_words(block + i);
    first += pair_products(words + load_words(keys));
    second += pair_products(words + load_words(keys + kKeys));
  }
  result[0] = result[1] = 0;
  for (int lane = 0; lane < kRegisterBytes / 8; ++lane) {
    result[0] += first[lane];
    result[1] += second[lane];
  }
}

void fingerprint_bytes(uint64_t* result, const void* data, int64_t bytes, const uint32_t* keys,
                       int threads) {
  const char* from = static_cast<const char*>(data);
  const int64_t whole = bytes / kFingerprintBlock;
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < whole; ++i) {
      fingerprint_block(result + i * kFingerprintWords, from + i * kFingerprintBlock,
                        kFingerprintBlock, keys);
    }
  });
  const int64_t rest = bytes % kFingerprintBlock;
  if (rest > 0) {
    char block[kFingerprintBlock];
    std::memcpy(block, from + whole * kFingerprintBlock, static_cast<size_t>(rest));
    std::memset(block + rest, 0, static_cast<size_t>(kFingerprintBlock - rest));
    fingerprint_block(result + whole * kFingerprintWords, block, kFingerprintBlock, keys);
  }
}

}  // namespace

extern const FingerprintKernels fingerprint_kernels = {.fingerprint = fingerprint_bytes};

}  // namespace NNOPS_ISA
}  // namespace nnops
