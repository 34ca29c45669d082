// What the kernels of nll_loss and cross_entropy share: the walk over the rows, class indices, and
// the sum over chunks. Everything lives in the ISA's namespace.
#pragma once

#include "cpu/simd.h"
#include "ops/class_geometry.h"

NNOPS_BEGIN_KERNELS

// The rows of a chunk, (n, s).
struct ClassChunk {
  int64_t n_begin, n_end;
  int64_t s_begin, s_end;
};

// body(index, chunk) for every chunk, in parallel over them.
template <typename Body>
NNOPS_INLINE void for_each_chunk(const ClassGeometry& g, int threads, Body body) {
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t index = 0; index < g.chunks; ++index) {
      const int64_t n = index / g.s_chunks * g.n_step;
      const int64_t s = index % g.s_chunks * g.s_step;
      body(index, ClassChunk{n, n + g.n_step < g.batch ? n + g.n_step : g.batch, s,
                             s + g.s_step < g.spatial ? s + g.s_step : g.spatial});
    }
  });
}

// body(index of the chunk, n, s_begin, s_end) for every n of every chunk; rows are visited in the
// order of their numbers within a chunk.
template <typename Body>
NNOPS_INLINE void for_each_class_chunk(const ClassGeometry& g, int threads, Body body) {
  for_each_chunk(g, threads, [&](int64_t index, const ClassChunk& chunk) {
    for (int64_t n = chunk.n_begin; n < chunk.n_end; ++n) {
      body(index, n, chunk.s_begin, chunk.s_end);
    }
  });
}

// `zero` is where sums of losses start: torch's sum of no probabilities is -0.0.
NNOPS_INLINE void clear_sums(ClassSums* sums, const ClassGeometry& g, double zero = 0.0) {
  for (int64_t chunk = 0; chunk < g.chunks; ++chunk) sums[chunk] = ClassSums{zero, 0, 0, -1};
}

NNOPS_INLINE int64_t first_bad_row(const ClassSums* sums, const ClassGeometry& g) {
  int64_t first = -1;
  for (int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    const int64_t row = sums[chunk].bad_row;
    if (row >= 0 && (first < 0 || row < first)) first = row;
  }
  return first;
}

NNOPS_INLINE int64_t class_index(const void* target, const ClassGeometry& g, int64_t n, int64_t s) {
  const int64_t offset = n * g.target.n + s * g.target.s;
  return g.byte_targets ? int64_t{static_cast<const uint8_t*>(target)[offset]}
                        : static_cast<const int64_t*>(target)[offset];
}

enum class RowKind { kCounts, kIgnored, kBad };

// A bad row is noted in `sums`.
NNOPS_INLINE RowKind classify(int64_t index, int64_t row, const ClassGeometry& g, ClassSums& sums) {
  if (index == g.ignore_index) return RowKind::kIgnored;
  if (index >= 0 && index < g.classes) return RowKind::kCounts;
  if (sums.bad_row < 0 || row < sums.bad_row) sums.bad_row = row;
  return RowKind::kBad;
}

// Adds the chunks up, in their order, into total_weight[0] and, if the loss is reduced, loss[0].
// The two parts of the loss are divided one by one: a total weight of 0 gives NaN, as in torch.
template <typename T>
NNOPS_INLINE void finish_loss(T* loss, acc_t<T>* total_weight, const ClassSums* sums,
                              const ClassGeometry& g, bool probabilities = false) {
  double total = probabilities ? -0.0 : 0.0;
  // NaN without classes, even without rows.
  double smoothed = 0 * (g.label_smoothing / static_cast<double>(g.classes));
  double weight = 0;
  for (int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    total += sums[chunk].loss;
    smoothed += sums[chunk].smoothed;
    weight += sums[chunk].weight;
  }
  *total_weight = static_cast<acc_t<T>>(weight);
  if (g.reduction == Reduction::kNone) return;
  if (g.reduction == Reduction::kMean) {
    total /= weight;
    smoothed /= weight;
  }
  // Not where nothing is smoothed: 0 / 0 is NaN.
  if (g.label_smoothing > 0 && !probabilities) total += smoothed;
  *loss = from_acc<T>(static_cast<acc_t<T>>(total));
}

// d(reduced loss) / d(loss of the row): the factor that all of the row's gradients share.
template <typename T>
NNOPS_INLINE acc_t<T> row_gradient(const T* grad_output, const acc_t<T>* total_weight,
                                   const ClassGeometry& g, int64_t n, int64_t s) {
  const acc_t<T> gradient = to_acc(grad_output[n * g.grad_output.n + s * g.grad_output.s]);
  return g.reduction == Reduction::kMean ? gradient / *total_weight : gradient;
}

NNOPS_END_KERNELS
