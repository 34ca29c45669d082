// Division of indices by a number that is known at launch: a multiplication, an addition and a
// shift, because GPUs have no integer division and take some 20 (32 bits) to 100 (64 bits)
// instructions for one.
//
// Granlund and Montgomery, "Division by invariant integers using multiplication" (PLDI 1994).
// For N bits, 1 <= d < 2^(N-1), l = ceil(log2 d) and m = floor(2^N (2^l - d) / d) + 1:
//   floor(n / d) = (floor(m n / 2^N) + n) >> l   for 0 <= n < 2^(N-1).
// Proof. M = m + 2^N = floor(2^(N+l) / d) + 1, so 2^(N+l) < M d <= 2^(N+l) + d, and the right side,
// floor(M n / 2^(N+l)), lies between n/d and n/d + n / 2^(N+l). The last term is below 1/d, because
// d <= 2^l and n < 2^N: too little to reach the next integer. m < 2^N, so that the sum stays below
// 2 n < 2^N.
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

template <typename Index>
struct DivisionWords;
template <>
struct DivisionWords<int32_t> {
  using Word = uint32_t;
  using Wide = uint64_t;
};
template <>
struct DivisionWords<int64_t> {
  using Word = uint64_t;
  __extension__ using Wide = unsigned __int128;
};

// Quotients of non-negative numbers by a positive `divisor`.
template <typename Index>
class FastDivision {
  using Word = typename DivisionWords<Index>::Word;
  using Wide = typename DivisionWords<Index>::Wide;
  static constexpr int kBits = 8 * static_cast<int>(sizeof(Word));

 public:
  FastDivision() = default;
  explicit FastDivision(Index divisor) : divisor_(static_cast<Word>(divisor)) {
    while ((Word{1} << shift_) < divisor_) ++shift_;
    const Wide rest = (Word{1} << shift_) - divisor_;
    multiplier_ = static_cast<Word>((rest << kBits) / divisor_ + 1);
  }

  NNOPS_HOST_DEVICE Index divisor() const { return static_cast<Index>(divisor_); }
  NNOPS_HOST_DEVICE Index quotient(Index dividend) const {
    const Word n = static_cast<Word>(dividend);
    const Word high = static_cast<Word>((static_cast<Wide>(multiplier_) * n) >> kBits);
    return static_cast<Index>((high + n) >> shift_);
  }
  // Returns the quotient and leaves the rest in `dividend`'s place.
  NNOPS_HOST_DEVICE Index divide(Index& dividend) const {
    const Index result = quotient(dividend);
    dividend -= result * divisor();
    return result;
  }

 private:
  Word divisor_ = 1;
  Word multiplier_ = 1;
  int shift_ = 0;
};

}  // namespace nnops::cuda
