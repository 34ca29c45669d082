// What the kernels of nll_loss and cross_entropy share: rows and their classes, and the sum over
// rows.
//
// Each block adds up its rows in double and leaves one RowSums; finish_loss joins them in a fixed
// order and writes the loss and the total weight, so nothing of this passes through the host. Which
// rows a block takes depends on the sizes alone, so that the sums have the same bits on any device.
//
// The first row whose target is no class is kept, complemented, in a word that begins as 0 (none):
// the largest complement is the least row, whatever order the threads run in.
#pragma once

#include "core/cuda.h"
#include "cuda/numbers.cuh"
#include "ops/class_geometry.h"

namespace nnops::cuda {

struct RowPosition {
  int64_t n;
  int64_t s;
};

NNOPS_DEVICE RowPosition row_position(int64_t row, const ClassGeometry& g) {
  if (g.batch == 1) return {0, row};
  int64_t n;
  if (((row | g.spatial) >> 32) == 0) {  // the short division
    n = static_cast<uint32_t>(row) / static_cast<uint32_t>(g.spatial);
  } else {
    n = row / g.spatial;
  }
  return {n, row - n * g.spatial};
}

NNOPS_DEVICE int64_t offset_of(RowPosition at, const ClassStrides& strides) {
  return at.n * strides.n + at.s * strides.s;
}

using BadRow = unsigned long long;

// The row's class, or -1 for a row that does not count. The thread that `reports` notes a target
// that is no class.
NNOPS_DEVICE int64_t counted_class(const void* target, int64_t row, RowPosition at,
                                   const ClassGeometry& g, BadRow* bad_row, bool reports) {
  const int64_t offset = offset_of(at, g.target);
  const int64_t index = g.byte_targets ? int64_t{static_cast<const uint8_t*>(target)[offset]}
                                       : static_cast<const int64_t*>(target)[offset];
  if (index == g.ignore_index) return -1;
  if (index >= 0 && index < g.classes) return index;
  if (reports) atomicMax(bad_row, ~static_cast<BadRow>(row));
  return -1;
}

template <typename T>
NNOPS_DEVICE acc_t<T> weight_at(const T* weight, int64_t i) {
  return weight ? to_acc(weight[i]) : acc_t<T>{1};
}

// d(reduced loss) / d(loss of the row): the factor that all of the row's gradients share.
template <typename T>
NNOPS_DEVICE acc_t<T> row_gradient(const T* grad_output, acc_t<T> total_weight, RowPosition at,
                                   const ClassGeometry& g) {
  const acc_t<T> gradient = to_acc(grad_output[offset_of(at, g.grad_output)]);
  return g.reduction == Reduction::kMean ? gradient / total_weight : gradient;
}

struct RowSums {
  double loss;
  double smoothed;
  double weight;
};

// The sums over all threads of the block, for each of them. `shared` has one double a warp.
template <int kThreads>
NNOPS_DEVICE RowSums join_block(RowSums sums, double* shared) {
  sums.loss = block_sum<kThreads>(sums.loss, shared);
  sums.smoothed = block_sum<kThreads>(sums.smoothed, shared);
  sums.weight = block_sum<kThreads>(sums.weight, shared);
  return sums;
}

constexpr int kFinishThreads = 256;

// Joins the sums of `count` blocks into total_weight[0] and, if the loss is reduced, loss[0]; one
// block. `start` is what the sum of no rows is. The two parts of the loss are divided one by one: a
// total weight of 0 gives NaN, as in torch.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_loss(T* __restrict__ loss, acc_t<T>* __restrict__ total_weight,
                const RowSums* __restrict__ blocks, int count, RowSums start, Reduction reduction,
                bool smooths) {
  NNOPS_SHARED(double, shared, kFinishThreads / kWarpSize);
  RowSums total = start;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kFinishThreads) {
    total.loss += blocks[i].loss;
    total.smoothed += blocks[i].smoothed;
    total.weight += blocks[i].weight;
  }
  total = join_block<kFinishThreads>(total, shared);
  if (threadIdx.x != 0) return;
  *total_weight = static_cast<acc_t<T>>(total.weight);
  if (reduction == Reduction::kNone) return;
  if (reduction == Reduction::kMean) {
    total.loss /= total.weight;
    total.smoothed /= total.weight;
  }
  // Not where nothing is smoothed: 0 / 0 is NaN.
  if (smooths) total.loss += total.smoothed;
  *loss = from_acc<T>(static_cast<acc_t<T>>(total.loss));
}

// --- the launchers' side ------------------------------------------------------------------------

inline int64_t row_count(const ClassGeometry& g) { return g.batch * g.spatial; }

// Most blocks of a kernel that leaves RowSums: four rounds of finish_loss's threads' loads.
constexpr int64_t kMostSummingBlocks = 2048;
inline unsigned summing_blocks(const ClassGeometry& g, int rows_per_block) {
  return grid_stride_blocks(row_count(g), rows_per_block, kMostSummingBlocks);
}

// A call's device memory.
struct ClassWords {
  BadRow bad_row;
  double weight_sum;  // of all classes
};
struct ClassScratch {
  ClassWords* words;
  RowSums* blocks;

  explicit ClassScratch(unsigned block_count)
      : words(static_cast<ClassWords*>(cuda_scratch(
            static_cast<int64_t>(sizeof(ClassWords) + block_count * sizeof(RowSums))))),
        blocks(reinterpret_cast<RowSums*>(words + 1)) {
    set_zero(&words->bad_row, sizeof(BadRow));
  }

  // Waits for the kernels before it. -1 if every target was a class.
  int64_t first_bad_row() const {
    BadRow word = 0;
    copy_to_host(&word, &words->bad_row, sizeof(word));
    return static_cast<int64_t>(~word);
  }
};

// Where all rows have one spatial position, or the strides allow it, the rows are one long line:
// their positions then take no division.
inline ClassGeometry joined_rows(ClassGeometry g) {
  ClassStrides* const all[] = {&g.input, &g.target, &g.grad_output, &g.grad_input};
  for (const ClassStrides* strides : all) {
    if (g.spatial != 1 && strides->n != g.spatial * strides->s) return g;
  }
  if (g.spatial == 1) {
    for (ClassStrides* strides : all) strides->s = strides->n;
  }
  g.spatial *= g.batch;
  g.batch = 1;
  return g;
}

}  // namespace nnops::cuda
