// Fingerprints of memory: whether bytes are still those that were seen before, without a copy.
//
// Every block of kFingerprintBlock bytes (the last one padded with zeros) gets 128 bits, twice the
// sum over its pairs of 32-bit words (a, b) of
//
//   (a + key mod 2^32) (b + next key mod 2^32)      mod 2^64
//
// under two independent sets of random keys. That is the hash NH of Black, Halevi, Krawczyk,
// Krovetz and Rogaway (UMAC, CRYPTO 1999): whatever two different blocks of equal length are, the
// keys for which one such sum is equal for both are a share of at most 2^-32, so for both sums
// 2^-64. The keys are drawn when the process first needs them. Blocks are compared one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernel_table.h"

namespace nnops {

inline constexpr int64_t kFingerprintBlock = 2048;
inline constexpr int64_t kFingerprintWords = 2;  // of 64 bits, for each block

struct FingerprintKernels {
  // keys: kFingerprintWords sets of kFingerprintBlock bytes.
  void (*fingerprint)(uint64_t* result, const void* data, int64_t bytes, const uint32_t* keys,
                      int threads);
};
NNOPS_DECLARE_CPU_KERNELS(FingerprintKernels, fingerprint_kernels)

std::vector<uint64_t> fingerprint(const void* data, int64_t bytes, int threads);

}  // namespace nnops
