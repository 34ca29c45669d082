// How cross_entropy's kernels deal out a row's classes: to one thread, to 8, to a warp or to a
// block, by the width of the row; all of them are the row's lanes.
//
// Narrow rows, and rows whose classes are strided (planes, where the neighbours in memory are
// rows): 1 or 8 lanes, and a lane takes single classes, so that a warp reads neighbouring rows in
// one piece. Wide rows with their classes side by side: 32 lanes or the whole block, and a lane
// takes vectors of 16 bytes. Which classes a lane has does not depend on the alignment of the
// memory (unaligned vectors are read element by element), so neither do the bits of a row's sums.
//
// A step of a lane is kValues classes, all loaded before the first is used.
#pragma once

#include "cuda/class_rows.cuh"

namespace nnops::cuda {

template <typename T, bool kWideRows>
struct RowShape {
  static constexpr int kWidth = kWideRows ? kVectorWidth<T> : 1;  // of a vector
  // In a step: 8 values, of float64 4. More of them do not fit into the registers.
  static constexpr int kVectors = (sizeof(T) == 8 ? 4 : 8) / kWidth;
  static constexpr int kValues = kWidth * kVectors;
  static constexpr int kThreads = kWideRows ? 256 : 128;
  static constexpr int kWarps = kThreads / kWarpSize;
  // Blocks that a multiprocessor must hold at least, or 0: what ptxas makes of it by itself, which
  // with float64 is to spill for the sake of more of them.
  static constexpr int kBlocks = sizeof(T) == 8 ? 512 / kThreads : 0;
};

// The values of a lane from class `first` on. `count` is how many classes there are from there on,
// no more than the step reaches over; it does so entirely unless kPartial.
template <bool kPartial_>
struct LaneStep {
  static constexpr bool kPartial = kPartial_;
  int64_t first;
  int count;

  // From the first class to class c, -1 where the step does not reach it.
  NNOPS_DEVICE int offset_of(int64_t c) const {
    return c >= first && c - first < count ? static_cast<int>(c - first) : -1;
  }
};

// A row's lanes, as its thread number `index` sees them.
template <typename T, bool kWideRows>
struct RowLanes {
  using Shape = RowShape<T, kWideRows>;
  using A = acc_t<T>;
  using Values = A[Shape::kValues];
  static constexpr int kWidth = Shape::kWidth;

  int count;  // a power of two
  int index;
  bool aligned;  // vectors may be loaded and stored in one piece
  int64_t classes;

  // Between the vectors of a step.
  NNOPS_DEVICE int apart() const { return count * kWidth; }
  // From the first class of a step to that of value j, and beyond the last.
  NNOPS_DEVICE int class_offset(int j) const { return j / kWidth * apart() + j % kWidth; }
  NNOPS_DEVICE int reach() const { return class_offset(Shape::kValues - 1) + 1; }

  NNOPS_DEVICE bool has_class(int64_t c) const { return ((c / kWidth) & (count - 1)) == index; }

  template <typename Step>
  NNOPS_DEVICE bool is_class(const Step& step, int j) const {
    return !Step::kPartial || class_offset(j) < step.count;
  }

  // body(step) for all of the lane's steps.
  template <typename Body>
  NNOPS_DEVICE void for_each_step(Body body) const {
    int64_t c = index * kWidth;
    for (; c + reach() <= classes; c += Shape::kVectors * apart()) {
      body(LaneStep<false>{c, reach()});
    }
    if (c < classes) body(LaneStep<true>{c, static_cast<int>(classes - c)});
  }

  // The values of a row, whose classes lie `stride` apart, or side by side where rows are wide.
  // What is no class is 0.
  template <typename Step>
  NNOPS_DEVICE void load(Values& values, const T* row, int64_t stride, const Step& step) const {
    const T* vector = row + step.first * (kWideRows ? 1 : stride);
    const int64_t distance = apart() * (kWideRows ? 1 : stride);
#pragma unroll
    for (int v = 0; v < Shape::kVectors; ++v, vector += distance) {
      const int begin = v * kWidth;
      if (kWideRows && aligned && is_class(step, begin + kWidth - 1)) {
        const Vector<A, kWidth> loaded = load_acc<kWidth>(vector);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[begin + j] = loaded[j];
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          values[begin + j] = is_class(step, begin + j) ? to_acc(vector[j]) : A{};
        }
      }
    }
  }

  template <typename Step>
  NNOPS_DEVICE void store(T* row, int64_t stride, const Values& values, const Step& step) const {
    T* vector = row + step.first * (kWideRows ? 1 : stride);
    const int64_t distance = apart() * (kWideRows ? 1 : stride);
#pragma unroll
    for (int v = 0; v < Shape::kVectors; ++v, vector += distance) {
      const int begin = v * kWidth;
      if (kWideRows && aligned && is_class(step, begin + kWidth - 1)) {
        Vector<A, kWidth> stored;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) stored[j] = values[begin + j];
        store_acc(vector, stored);
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (is_class(step, begin + j)) vector[j] = from_acc<T>(values[begin + j]);
        }
      }
    }
  }
};

// Joins what a row's lanes have, pairwise in a fixed order; every lane gets the result. At most 32
// lanes; all lanes of the warp must take part.
template <typename Value, typename Join>
NNOPS_DEVICE Value join_lanes(Value value, int count, Join join) {
  for (int distance = count / 2; distance > 0; distance /= 2) {
    value = join(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

// The rows that a block visits, all threads of it at once: body(row, position, exists), with the
// last row in place of one that does not exist.
template <typename Body>
NNOPS_DEVICE void for_each_row(const ClassGeometry& g, int lanes, Body body) {
  const int64_t rows = g.batch * g.spatial;
  const int shift = __ffs(lanes) - 1;  // lanes are a power of two
  const int64_t rows_per_block = blockDim.x >> shift;
  const int64_t mine = threadIdx.x >> shift;
  for (int64_t first = blockIdx.x * rows_per_block; first < rows;
       first += gridDim.x * rows_per_block) {
    const int64_t row = smaller(first + mine, rows - 1);
    body(row, row_position(row, g), first + mine < rows);
  }
}

// --- the effective target -----------------------------------------------------------------------

template <typename A>
struct Smoothing {
  A keep;   // 1 - e
  A share;  // e / C
  bool on;
};

// q_i for probabilities. The same expression in the sum Q and in p Q - q: where p is 1 the two must
// cancel.
template <typename A>
NNOPS_DEVICE A smoothed(A probability, A weight, const Smoothing<A>& smoothing) {
  return probability * (weight * smoothing.keep) + weight * smoothing.share;
}

}  // namespace nnops::cuda
