// The order in which an emulated launch runs its threads and blocks.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

namespace nnops::emulation {

class Order {
 public:
  // NNOPS_CUDA_ORDER: seq (the default), rev or rand:SEED.
  static Order from_environment() {
    const char* value = std::getenv("NNOPS_CUDA_ORDER");
    const std::string name = value == nullptr || *value == 0 ? "seq" : value;
    Order order;
    if (name == "rev") {
      order.kind_ = kReversed;
    } else if (name.rfind("rand:", 0) == 0) {
      order.kind_ = kRandom;
      order.random_.seed(static_cast<uint32_t>(std::strtoul(name.c_str() + 5, nullptr, 10)) + 1);
    } else if (name != "seq") {
      throw std::runtime_error("NNOPS_CUDA_ORDER must be seq, rev or rand:SEED, but got " + name);
    }
    return order;
  }

  // The number of one of the bits that are set.
  int choose(uint32_t bits) {
    if (kind_ == kSequential) return __builtin_ctz(bits);
    if (kind_ == kReversed) return 31 - __builtin_clz(bits);
    for (uint32_t skip = random_() % __builtin_popcount(bits); skip > 0; --skip) bits &= bits - 1;
    return __builtin_ctz(bits);
  }

  // Must be called once for n blocks; then block(i) is the one that runs as number i.
  void begin_blocks(uint64_t n) {
    blocks_ = n;
    if (kind_ != kRandom || n == 1) return;
    first_ = random_() % n;
    do {
      step_ = 1 + random_() % (n - 1);
    } while (std::gcd(step_, n) != 1);
  }
  uint64_t block(uint64_t i) const {
    if (kind_ == kReversed) return blocks_ - 1 - i;
    return (first_ + i * step_) % blocks_;
  }

 private:
  enum { kSequential, kReversed, kRandom } kind_ = kSequential;
  std::minstd_rand random_;
  uint64_t blocks_ = 1, first_ = 0, step_ = 1;
};

}  // namespace nnops::emulation
