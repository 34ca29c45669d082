// A linear layer on the CPU and its gradients, for a few rows of input: see ops/linear.h. The
// weight is larger than anything else: it is read, or its gradient written, as rarely as can be.
// bfloat16 and float16 are summed in float.
//
// forward. A sum goes along the input in virtual lanes, kRows outputs at a time so that the
// additions do not wait for each other; lanes are added pairwise after kBlock elements, and the
// blocks' sums in order. The bias comes last. The weight comes from memory once for every kImages
// rows of the input: a piece of it is multiplied with all of them while it is in L1, and the next
// piece is fetched meanwhile. Parallel over outputs.
//
// backward_input. Vectors go along the inputs, some columns of the weight at a time: kChain rows of
// them stay in the cache while the sums of all rows of the gradient are added to, kRows products at
// a time; the next rows are fetched meanwhile. A sum is chains of kChain outputs, added in order.
// Parallel over columns.
//
// backward_weight. Vectors go along the inputs, too; a sum is one chain over the rows of input.
// Some columns of these stay in the cache while the weight's rows are written. Parallel over them.
//
// No sum is split among threads, and none of forward or backward_input knows of other rows.
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

// --- the gradient of the input ------------------------------------------------------------------

constexpr int64_t kColumns = 512;
constexpr int64_t kTogether = 4;       // images whose sums are added to together
constexpr int64_t kMostTogether = 16;  // images for which the weight comes from memory once

// sums[n][i] += the products of `count` rows of the weight, for kCount images n, whose sums are
// `width` apart, and `columns` columns; `gradients` points at the rows' first factors, `pitch`
// apart from image to image.
template <typename T, int kCount>
NNOPS_INLINE void add_rows(acc_t<T>* sums, int64_t width, const T* gradients, int64_t pitch,
                           const T* rows, int64_t stride, int64_t columns, int64_t count,
                           bool fetches) {
  using A = acc_t<T>;
  using V = Wide<A>;
  const auto add = [&](auto rows_at_once, const T* weight, const T* factors) NNOPS_INLINE_LAMBDA {
    constexpr int kAtOnce = decltype(rows_at_once)::value;
    A factor[kCount][kAtOnce];
#pragma GCC unroll 4
    for (int n = 0; n < kCount; ++n) {
#pragma GCC unroll 4
      for (int r = 0; r < kAtOnce; ++r) factor[n][r] = to_acc(factors[n * pitch + r]);
    }
    const auto add_vector = [&](int64_t i, auto read_row) NNOPS_INLINE_LAMBDA {
      V weights[kAtOnce];
#pragma GCC unroll 4
      for (int r = 0; r < kAtOnce; ++r) weights[r] = read_row(weight + r * stride + i);
#pragma GCC unroll 4
      for (int n = 0; n < kCount; ++n) {
        V sum = read<V>(static_cast<const A*>(sums) + n * width + i);
#pragma GCC unroll 4
        for (int r = 0; r < kAtOnce; ++r) sum += weights[r] * factor[n][r];
        write(sums + n * width + i, sum);
      }
    };
    int64_t i = 0;
    for (; i + kLanes<A> <= columns; i += kLanes<A>) {
      add_vector(i, [](const T* p) NNOPS_INLINE_LAMBDA { return read<V>(p); });
      if (fetches) {
#pragma GCC unroll 4
        for (int r = 0; r < kAtOnce; ++r) {
          __builtin_prefetch(weight + (kAtOnce + r) * stride + i, 0, 3);
        }
      }
    }
    if (i < columns) {
      add_vector(i, [&](const T* p) NNOPS_INLINE_LAMBDA { return read_first<V>(p, columns - i); });
    }
  };
  int64_t o = 0;
  for (; o + kRows <= count; o += kRows) {
    add(std::integral_constant<int, kRows>{}, rows + o * stride, gradients + o);
  }
  for (; o < count; ++o) {
    add(std::integral_constant<int, 1>{}, rows + o * stride, gradients + o);
  }
}

template <typename T>
void linear_backward_input(void* grad_input, const void* grad_output, const void* weight,
                           const LinearGeometry& g, int threads) {
  using A = acc_t<T>;
  using V = Wide<A>;
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const T* w = static_cast<const T*>(weight);
  // Of few images the sums of more columns fit: long runs of memory are read faster.
  const int64_t most = g.n < kTogether ? kTogether * kColumns : kColumns;
  const int64_t share = divide_up(g.in, threads);
  const int64_t width = smaller(most, share / kLanes<A> * kLanes<A> + kLanes<A>);
  parallel_chunks(g.in, width, threads, [&](int64_t begin, int64_t end) {
    const int64_t columns = end - begin;
    alignas(64) A totals[kMostTogether * kColumns];
    alignas(64) A sums[kTogether * kColumns];
    for (int64_t n0 = 0; n0 < g.n; n0 += kMostTogether) {
      const int64_t images = smaller(kMostTogether, g.n - n0);
      for (int64_t i = 0; i < images * width; ++i) totals[i] = 0;
      for (int64_t o = 0; o < g.out; o += kChain) {
        const int64_t count = smaller(kChain, g.out - o);
        const T* rows = w + o * g.in + begin;
        for (int64_t n = 0; n < images;) {
          const int64_t together = n + kTogether <= images ? kTogether : 1;
          for (int64_t i = 0; i < together * width; ++i) sums[i] = 0;
          const T* factors = gy + (n0 + n) * g.out + o;
          if (together == kTogether) {
            add_rows<T, kTogether>(sums, width, factors, g.out, rows, g.in, columns, count, n == 0);
          } else {
            add_rows<T, 1>(sums, width, factors, g.out, rows, g.in, columns, count, n == 0);
          }
          A* total = totals + n * width;
          for (int64_t i = 0; i < together * width; i += kLanes<A>) {
            write(total + i, read<V>(static_cast<const A*>(total) + i) +
                                 read<V>(static_cast<const A*>(sums) + i));
          }
          n += together;
        }
      }
      for (int64_t n = 0; n < images; ++n) {
        T* row = gx + (n0 + n) * g.in + begin;
        for (int64_t i = 0; i < columns; ++i) row[i] = from_acc<T>(totals[n * width + i]);
      }
    }
  });
}

// --- the gradient of the weight -----------------------------------------------------------------

// kCount rows of the gradient, `columns` of their columns.
template <typename T, int kCount>
NNOPS_INLINE void write_rows(T* written, const T* gradients, const T* x, const LinearGeometry& g,
                             int64_t columns) {
  using A = acc_t<T>;
  using V = Wide<A>;
  const auto sums_of = [&](V* sums, auto read_row) NNOPS_INLINE_LAMBDA {
    for (int64_t n = 0; n < g.n; ++n) {
      const V pixels = read_row(x + n * g.in);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) sums[r] += pixels * to_acc(gradients[n * g.out + r]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= columns; i += kLanes<A>) {
    V sums[kCount] = {};
    sums_of(sums, [&](const T* p) NNOPS_INLINE_LAMBDA { return read<V>(p + i); });
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) write(written + r * g.in + i, sums[r]);
  }
  if (i < columns) {
    V sums[kCount] = {};
    sums_of(sums,
            [&](const T* p) NNOPS_INLINE_LAMBDA { return read_first<V>(p + i, columns - i); });
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) write_first(written + r * g.in + i, sums[r], columns - i);
  }
}

template <typename T>
void linear_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                            const LinearGeometry& g, int threads) {
  T* gw = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  // Rows enough that the columns' pieces of the input are worth fetching.
  constexpr int64_t kWrittenRows = 16 * kRows;
  parallel_chunks(g.out, kWrittenRows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < g.in; i += kColumns) {
      const int64_t columns = smaller(kColumns, g.in - i);
      int64_t o = begin;
      for (; o + kRows <= end; o += kRows) {
        write_rows<T, kRows>(gw + o * g.in + i, gy + o, x + i, g, columns);
      }
      for (; o < end; ++o) write_rows<T, 1>(gw + o * g.in + i, gy + o, x + i, g, columns);
    }
  });
}

}  // namespace

extern const LinearKernels linear_kernels = {NNOPS_FLOAT_DTYPES(linear_forward),
                                             NNOPS_FLOAT_DTYPES(linear_backward_input),
                                             NNOPS_FLOAT_DTYPES(linear_backward_weight)};

}  // namespace NNOPS_ISA
}  // namespace nnops
