#include "core/fingerprint.h"

#include <array>
#include <random>

#include "core/dispatch.h"

namespace nnops {
namespace {

constexpr KernelTable<FingerprintKernels> kTable = NNOPS_CPU_KERNEL_TABLE(fingerprint_kernels);

using Keys = std::array<uint32_t, kFingerprintWords * kFingerprintBlock / sizeof(uint32_t)>;

const Keys& process_keys() {
  static const Keys keys = [] {
    std::random_device source;
    Keys drawn{};
    for (uint32_t& key : drawn) key = source();
    return drawn;
  }();
  return keys;
}

}  // namespace

std::vector<uint64_t> fingerprint(const void* data, int64_t bytes, int threads) {
  const int64_t blocks = (bytes + kFingerprintBlock - 1) / kFingerprintBlock;
  std::vector<uint64_t> result(static_cast<size_t>(blocks * kFingerprintWords));
  active_kernels(kTable, active_isa())
      .fingerprint(result.data(), data, bytes, process_keys().data(), threads);
  return result;
}

}  // namespace nnops
