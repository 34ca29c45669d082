// Geometry of the classification losses (nll_loss, cross_entropy). No torch headers.
//
// The input is seen as [batch, classes, spatial] and read through its strides; a row is one
// (n, s), its number is n * spatial + s, and everything that holds one value a row (loss,
// log_sum_exp) is packed in that order.
#pragma once

#include <cstdint>

namespace nnops {

enum class Reduction : int32_t { kNone = 0, kMean = 1, kSum = 2 };

struct ClassStrides {
  int64_t n = 0;
  int64_t c = 0;
  int64_t s = 0;
};

struct ClassGeometry {
  int64_t batch = 0;
  int64_t classes = 0;
  int64_t spatial = 0;
  ClassStrides input;
  ClassStrides target;       // c is 0 for class indices
  ClassStrides grad_output;  // all 0 where the loss is reduced to one value
  ClassStrides grad_input;   // or the gradient of the target, where that is what is computed
  int64_t ignore_index = 0;
  double label_smoothing = 0;
  Reduction reduction = Reduction::kNone;
  bool byte_targets = false;  // class indices are uint8 instead of int64
  // A row's classes lie side by side in every tensor of the call: vectors run along the classes.
  // Otherwise they run along s, and each lane is a row.
  bool class_vectors = false;
  // Rows are handled in chunks of n_step times s_step; s_chunks of them cover one n. They depend
  // on the sizes alone, so sums over chunks have the same bits on any number of threads. None on
  // CUDA, whose kernels share their rows by themselves.
  int64_t n_step = 1;
  int64_t s_step = 1;
  int64_t s_chunks = 1;
  int64_t chunks = 0;
};

// What a chunk of rows adds up to; the operator provides one for each chunk.
struct ClassSums {
  double loss;      // without the share of label smoothing,
  double smoothed;  // which is here
  double weight;
  int64_t bad_row;  // least number of a row whose target is no class, -1 if there is none
};

}  // namespace nnops
