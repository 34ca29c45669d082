// A linear layer on the CPU, for a few rows of input: see ops/linear.h.
//
// A sum goes along the input in virtual lanes, kRows outputs at a time so that the additions do not
// wait for each other; lanes are added pairwise after kBlock elements, and the blocks' sums in
// order. The bias comes last. bfloat16 and float16 are summed in float.
//
// The weight comes from memory once for every kImages rows of the input: a piece of it is
// multiplied with all of them while it is in L1, and the next piece is fetched meanwhile.
//
// Parallel over outputs; no sum is split.
#include "ops/linear.h"

#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kRows = 4;
constexpr int64_t kImages = 8;
constexpr int64_t kChain = 128;  // terms that a lane adds up
constexpr int64_t kPieces = 4;   // of a block
// Weights that the caches hold need not be fetched.
constexpr int64_t kLeastFetchedBytes = int64_t{256} << 10;

// Adds a piece's products of kCount rows of the weight with a row of the input, in lanes. What lies
// `ahead` of kFetched rows is fetched.
template <typename T, int kCount, int kFetched>
NNOPS_INLINE void add_piece(Wide<acc_t<T>>* totals, bool begins, const T* x, const T* rows,
                            int64_t stride, int64_t size, const T* ahead) {
  using A = acc_t<T>;
  using V = Wide<A>;
  V total[kCount] = {};
  if (!begins) {
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) total[r] = totals[r];
  }
  int64_t i = 0;
  for (; i + kLanes<A> <= size; i += kLanes<A>) {
    const V v = read<V>(x + i);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) total[r] += read<V>(rows + r * stride + i) * v;
#pragma GCC unroll 4
    for (int r = 0; r < kFetched; ++r) __builtin_prefetch(ahead + r * stride + i, 0, 3);
  }
  if (i < size) {
    const V v = read_first<V>(x + i, size - i);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) total[r] += read_first<V>(rows + r * stride + i, size - i) * v;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) totals[r] = total[r];
}

// kCount sums over `size` elements for each of `images` rows of the input, at most kMost. While a
// piece is multiplied with all rows of the input but the first, which has waited for it, the next
// piece is fetched: kFetched rows of it at a time.
template <typename T, int kCount, int kFetched, int64_t kMost>
NNOPS_INLINE void dot_rows(acc_t<T> (*sums)[kRows], const T* x, int64_t images, const T* rows,
                           int64_t size) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = kChain * kLanes<A>;
  constexpr int64_t kLength = kMost == 1 ? kBlock : kBlock / kPieces;
  if (kMost == 1) images = 1;
  for (int64_t n = 0; n < images; ++n) {
    for (int r = 0; r < kCount; ++r) sums[n][r] = 0;
  }
  Wide<A> totals[kMost][kCount];
  for (int64_t begin = 0; begin < size; begin += kLength) {
    const bool begins = kMost == 1 || begin % kBlock == 0;
    const int64_t piece = smaller(kLength, size - begin);
    const int64_t fetched_images = size - begin < 2 * kLength ? 0 : kCount / larger(1, kFetched);
    for (int64_t n = 0; n < images; ++n) {
      const T* read = x + n * size + begin;
      if (kFetched > 0 && n > 0 && n <= fetched_images) {
        const T* ahead = rows + (n - 1) * kFetched * size + begin + kLength;
        add_piece<T, kCount, kFetched>(totals[n], begins, read, rows + begin, size, piece, ahead);
      } else {
        add_piece<T, kCount, 0>(totals[n], begins, read, rows + begin, size, piece, nullptr);
      }
    }
    const bool ends = kMost == 1 || (begin + piece) % kBlock == 0 || begin + piece == size;
    if (!ends) continue;
    for (int64_t n = 0; n < images; ++n) {
      for (int r = 0; r < kCount; ++r) sums[n][r] += lane_sum(totals[n][r]);
    }
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
  const bool fetches = g.in * g.out * static_cast<int64_t>(sizeof(T)) > kLeastFetchedBytes;
  parallel_chunks(g.out, kRows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n0 = 0; n0 < g.n; n0 += kImages) {
      const int64_t images = smaller(kImages, g.n - n0);
      const T* first = x + n0 * g.in;
      A sums[kImages][kRows];
      const T* rows = w + begin * g.in;
      if (end - begin < kRows) {
        for (int64_t o = begin; o < end; ++o) {
          A sum[kImages][kRows];
          dot_rows<T, 1, 0, kImages>(sum, first, images, w + o * g.in, g.in);
          for (int64_t n = 0; n < images; ++n) sums[n][o - begin] = sum[n][0];
        }
      } else if (images == 1) {
        dot_rows<T, kRows, 0, 1>(sums, first, images, rows, g.in);
      } else if (!fetches) {
        dot_rows<T, kRows, 0, kImages>(sums, first, images, rows, g.in);
      } else if (images <= kRows) {
        dot_rows<T, kRows, kRows / 2, kImages>(sums, first, images, rows, g.in);
      } else {
        dot_rows<T, kRows, 1, kImages>(sums, first, images, rows, g.in);
      }
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t o = begin; o < end; ++o) {
          A sum = sums[n][o - begin];
          if (b != nullptr) sum += to_acc(b[o]);
          y[(n0 + n) * g.out + o] = from_acc<T>(g.relu && sum < 0 ? A{0} : sum);
        }
      }
    }
  });
}

}  // namespace

extern const LinearKernels linear_kernels = {NNOPS_FLOAT_DTYPES(linear_forward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
