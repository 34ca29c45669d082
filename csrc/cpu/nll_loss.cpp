// nll_loss on the CPU: loss_r = -w[t_r] x[n, t_r, s] for the rows r = (n, s), t_r their class.
//
// An ignored row loses nothing; mean divides by the sum of w[t_r] over the others. Only one logit
// a row is read, through the input's strides, and the gradient is zero everywhere else:
//   grad_input[n, c, s] = -w[c] g_r [c = t_r], g_r divided by the total weight for mean.
// Parallel over fixed chunks of rows; sums in double, chunk by chunk.
#include "ops/nll_loss.h"

#include "cpu/class_rows.h"
#include "cpu/wide.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kBlockRows = 64;

// A product that no sum is to swallow unrounded: reduction "sum" adds up what "none" gives.
template <typename A>
NNOPS_INLINE A rounded(A product) {
#if defined(__SSE2__)
  asm("" : "+x"(product));
#else
  asm("" : "+m"(product));
#endif
  return product;
}

template <typename T>
int64_t nll_loss_forward(void* loss, void* total_weight, const void* input, const void* target,
                         const void* weight, ClassSums* sums, const ClassGeometry& g, int threads) {
  using A = acc_t<T>;
  T* y = static_cast<T*>(loss);
  const T* x = static_cast<const T*>(input);
  const T* w = static_cast<const T*>(weight);
  clear_sums(sums, g);
  for_each_chunk(g, threads, [=, &g](int64_t index, const ClassChunk& chunk) {
    ClassSums total = sums[index];
    const auto logit = [=, &g](int64_t n, int64_t s, int64_t t) NNOPS_INLINE_LAMBDA {
      const bool is_class = t >= 0 && t < g.classes;
      return is_class ? to_acc(x[n * g.input.n + t * g.input.c + s * g.input.s]) : A{};
    };
    const auto add_row = [&](int64_t n, int64_t s, int64_t t, A value) NNOPS_INLINE_LAMBDA {
      const int64_t row = n * g.spatial + s;
      A lost{};
      if (classify(t, row, g, total) == RowKind::kCounts) {
        const A factor = w ? to_acc(w[t]) : A{1};
        lost = rounded(-factor * value);
        total.loss += lost;
        total.weight += factor;
      }
      if (g.reduction == Reduction::kNone) y[row] = from_acc<T>(lost);
    };
    if (g.spatial > 1) {
      for (int64_t n = chunk.n_begin; n < chunk.n_end; ++n) {
        for (int64_t s = chunk.s_begin; s < chunk.s_end; ++s) {
          const int64_t t = class_index(target, g, n, s);
          add_row(n, s, t, logit(n, s, t));
        }
      }
      sums[index] = total;
      return;
    }
    // Each logit lies in a row of its own, in a page of its own perhaps: the loads of a block come
    // before all else, so that many are under way at a time.
    for (int64_t begin = chunk.n_begin; begin < chunk.n_end; begin += kBlockRows) {
      int64_t targets[kBlockRows];
      A values[kBlockRows];
      const int64_t count = smaller(kBlockRows, chunk.n_end - begin);
      for (int64_t i = 0; i < count; ++i) {
        targets[i] = class_index(target, g, begin + i, 0);
        values[i] = logit(begin + i, 0, targets[i]);
      }
      for (int64_t i = 0; i < count; ++i) add_row(begin + i, 0, targets[i], values[i]);
    }
    sums[index] = total;
  });
  finish_loss(y, static_cast<A*>(total_weight), sums, g);
  return first_bad_row(sums, g);
}

template <typename T>
int64_t nll_loss_backward(void* grad_input, const void* grad_output, const void* target,
                          const void* weight, const void* total_weight, ClassSums* sums,
                          const ClassGeometry& g, int threads) {
  using A = acc_t<T>;
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const T* w = static_cast<const T*>(weight);
  const A* divisor = static_cast<const A*>(total_weight);
  clear_sums(sums, g);
  for_each_class_chunk(
      g, threads, [=, &g](int64_t chunk, int64_t n, int64_t s_begin, int64_t s_end) {
        T* image = gx + n * g.classes * g.spatial;
        const int64_t width = s_end - s_begin;
        if (width == g.spatial) {
          std::memset(image, 0, static_cast<size_t>(g.classes * g.spatial) * sizeof(T));
        } else {
          for (int64_t c = 0; c < g.classes; ++c) {
            std::memset(image + c * g.spatial + s_begin, 0, static_cast<size_t>(width) * sizeof(T));
          }
        }
        ClassSums total = sums[chunk];
        for (int64_t s = s_begin; s < s_end; ++s) {
          const int64_t t = class_index(target, g, n, s);
          if (classify(t, n * g.spatial + s, g, total) != RowKind::kCounts) continue;
          const A factor = w ? to_acc(w[t]) : A{1};
          image[t * g.spatial + s] = from_acc<T>(-factor * row_gradient(gy, divisor, g, n, s));
        }
        sums[chunk] = total;
      });
  return first_bad_row(sums, g);
}

}  // namespace

extern const NllLossKernels nll_loss_kernels = {NNOPS_FLOAT_DTYPES(nll_loss_forward),
                                                NNOPS_FLOAT_DTYPES(nll_loss_backward)};

}  // namespace NNOPS_ISA
}  // namespace nnops
