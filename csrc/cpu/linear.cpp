// A linear layer on the CPU, for a few rows of input: see ops/linear.h.
//
// A sum goes along the input in virtual lanes, kRows outputs at a time so that the additions do not
// wait for each other; lanes are added pairwise after kBlock elements, and the blocks' sums in
// order. The bias comes last. bfloat16 and float16 are summed in float. The weight is read once for
// each row of the input: what remains in the cache is read from there.
//
// Parallel over outputs; no sum is split.
#include "ops/linear.h"

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kRows = 4;
constexpr int64_t kChain = 128;  // terms that a lane adds up

// kCount sums over `size` elements.
template <typename T, int kCount>
NNOPS_INLINE void dot_rows(acc_t<T>* sums, const T* x, const T* rows, int64_t size) {
  using A = acc_t<T>;
  using V = Wide<A>;
  constexpr int64_t kBlock = kChain * kLanes<A>;
  for (int r = 0; r < kCount; ++r) sums[r] = 0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = smaller(size, begin + kBlock);
    V total[kCount] = {};
    int64_t i = begin;
    for (; i + kLanes<A> <= end; i += kLanes<A>) {
      const V v = read<V>(x + i);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) total[r] += read<V>(rows + r * size + i) * v;
    }
    if (i < end) {
      const V v = read_first<V>(x + i, end - i);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) total[r] += read_first<V>(rows + r * size + i, end - i) * v;
    }
    for (int r = 0; r < kCount; ++r) sums[r] += lane_sum(total[r]);
  }
}

template <typename T>
void linear_forward(void* output, const void* input, const void* weight, const void* bias,
                    const LinearGeometry& g, int threads) {
  using A = acc_t<T>;
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  const T* w = static_cast<const T*>(weight);
  const T* b = static_cast<const T*>(bias);
  parallel_chunks(g.out, kRows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < g.n; ++n) {
      A sums[kRows];
      const T* row = x + n * g.in;
      if (end - begin == kRows) {
        dot_rows<T, kRows>(sums, row, w + begin * g.in, g.in);
      } else {
        for (int64_t o = begin; o < end; ++o) {
          dot_rows<T, 1>(sums + (o - begin), row, w + o * g.in, g.in);
        }
      }
      for (int64_t o = begin; o < end; ++o) {
        A sum = sums[o - begin];
        if (b != nullptr) sum += to_acc(b[o]);
        y[n * g.out + o] = from_acc<T>(g.relu && sum < 0 ? A{0} : sum);
      }
    }
  });
}

}  // namespace

extern const LinearKernels linear_kernels = {NNOPS_FLOAT_DTYPES(linear_forward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
