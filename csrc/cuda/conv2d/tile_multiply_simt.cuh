// Multiply stage of conv2d's implicit GEMMs on CUDA cores (the interface is in tile.cuh).
//
// Each thread holds kRows x kColumns elements of C in registers. In shared memory,
//   kAlongK:     element (row, k) in a row of 64 bytes (kTileK elements); its four 16-byte chunks
//   are
//                swizzled so that eight lanes that read the same chunk of eight neighbouring rows
//                meet eight different groups of four banks,
//   kAlongRows:  element (row, k) in a row of the tile's width for each k, 16 bytes longer than
//   that,
//                so that lanes that write different k to the same row meet different banks.
// Both are read by vectors of kVector elements. A warp is 4 x 8 threads: what it reads of A and B
// for one step is 12 different vectors; the rest is broadcast. Products are fused multiply-adds in
// the order of k.
#pragma once

#include "cuda/conv2d/tile.cuh"

namespace nnops::cuda {

// kThreadsM x kThreadsN threads with kRows x kColumns elements each.
template <int kThreadsM_, int kThreadsN_, int kRows_, int kColumns_>
struct SimtShape {
  static constexpr int kThreadsM = kThreadsM_, kThreadsN = kThreadsN_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
};

template <typename T, typename Shape, TileOrder kOrder_>
struct SimtMultiply {
  using Element = T;
  using Accumulator = acc_t<T>;
  static constexpr TileOrder kOrder = kOrder_;
  static constexpr int kThreads = Shape::kThreadsM * Shape::kThreadsN;
  static constexpr int kTileM = Shape::kThreadsM * Shape::kRows;
  static constexpr int kTileN = Shape::kThreadsN * Shape::kColumns;
  static constexpr int kTileK = 64 / static_cast<int>(sizeof(T));
  static constexpr int kStages = 3;
  static constexpr int kChunk = kVectorWidth<T>;
  // float's: a chunk; 16-bit types: half a chunk, as their products take as many registers as
  // float's.
  static constexpr int kVector = smaller(4, kChunk);
  static constexpr bool kAlongK = kOrder == TileOrder::kAlongK;
  static constexpr int kRun = kAlongK ? 1 : kVector;
  // Sums of two levels where the type is so short that it matters.
  static constexpr bool kTotals = sizeof(Accumulator) == 4;
  // What a thread's sums leave of a multiprocessor's 65536 registers.
  static constexpr int kSumRegisters = Shape::kRows * Shape::kColumns * (kTotals ? 2 : 1) *
                                       static_cast<int>(sizeof(Accumulator)) / 4;
  static constexpr int kBlocksPerMultiprocessor = (kSumRegisters > 64   ? 256
                                                   : kSumRegisters > 32 ? 384
                                                                        : 512) /
                                                  kThreads;
  static_assert(Shape::kThreadsM % 4 == 0 && Shape::kThreadsN % 8 == 0);
  static_assert(Shape::kRows % kVector == 0 && Shape::kColumns % kVector == 0);

  static constexpr int kElementsA = kAlongK ? kTileM * kTileK : kTileK * (kTileM + kChunk);
  static constexpr int kElementsB = kAlongK ? kTileN * kTileK : kTileK * (kTileN + kChunk);

  static NNOPS_HOST_DEVICE int offset(int row, int k, int rows) {
    if constexpr (kAlongK) {
      const int chunk = (k / kChunk) ^ (row / 2 % 4);
      return row * kTileK + chunk * kChunk + k % kChunk;
    } else {
      return k * (rows + kChunk) + row;
    }
  }
  static NNOPS_HOST_DEVICE int offset_a(int row, int k) { return offset(row, k, kTileM); }
  static NNOPS_HOST_DEVICE int offset_b(int row, int k) { return offset(row, k, kTileN); }

  Accumulator sums[Shape::kRows][Shape::kColumns];
  Accumulator totals[Shape::kRows][Shape::kColumns];

  // The place of the thread among kThreadsM x kThreadsN: a warp is 4 x 8 of them.
  static NNOPS_DEVICE int thread_m() {
    return warp_index() % (Shape::kThreadsM / 4) * 4 + lane_index() / 8;
  }
  static NNOPS_DEVICE int thread_n() {
    return warp_index() / (Shape::kThreadsM / 4) * 8 + lane_index() % 8;
  }
  // Row or column i of the thread, in the tile. Along k the lanes have neighbouring rows, along
  // rows neighbouring vectors.
  static NNOPS_DEVICE int row_of(int i, int thread, int threads) {
    if constexpr (kAlongK) {
      return i * threads + thread;
    } else {
      return (i / kVector * threads + thread) * kVector + i % kVector;
    }
  }

  NNOPS_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kColumns; ++j) sums[i][j] = totals[i][j] = Accumulator{0};
    }
  }

  NNOPS_DEVICE void multiply(const T* a, const T* b) {
    const int m = thread_m();
    const int n = thread_n();
    if constexpr (kAlongK) {
      // All of a thread's rows are swizzled alike. Not unrolled: the registers hold one vector of
      // each column, and shall not be asked for the next ones.
      static_assert(Shape::kThreadsM % 8 == 0 && Shape::kThreadsN % 8 == 0);
#pragma unroll 1
      for (int k = 0; k < kTileK; k += kVector) {
        const T* a_rows = a + offset_a(m, k);
        const T* b_rows = b + offset_b(n, k);
        Vector<Accumulator, kVector> columns[Shape::kColumns];
#pragma unroll
        for (int j = 0; j < Shape::kColumns; ++j) {
          columns[j] = load_acc<kVector>(b_rows + j * Shape::kThreadsN * kTileK);
        }
#pragma unroll
        for (int i = 0; i < Shape::kRows; ++i) {
          const auto row = load_acc<kVector>(a_rows + i * Shape::kThreadsM * kTileK);
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
#pragma unroll
            for (int j = 0; j < Shape::kColumns; ++j) sums[i][j] += row[v] * columns[j][v];
          }
        }
      }
    } else {
#pragma unroll 8
      for (int k = 0; k < kTileK; ++k) {
        Vector<Accumulator, kVector> rows[Shape::kRows / kVector];
        Vector<Accumulator, kVector> columns[Shape::kColumns / kVector];
#pragma unroll
        for (int i = 0; i < Shape::kRows / kVector; ++i) {
          rows[i] = load_acc<kVector>(a + offset_a(row_of(i * kVector, m, Shape::kThreadsM), k));
        }
#pragma unroll
        for (int j = 0; j < Shape::kColumns / kVector; ++j) {
          columns[j] = load_acc<kVector>(b + offset_b(row_of(j * kVector, n, Shape::kThreadsN), k));
        }
#pragma unroll
        for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
          for (int j = 0; j < Shape::kColumns; ++j) {
            sums[i][j] += rows[i / kVector][i % kVector] * columns[j / kVector][j % kVector];
          }
        }
      }
    }
  }

  NNOPS_DEVICE void end_chain() {
    if constexpr (kTotals) {
#pragma unroll
      for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Shape::kColumns; ++j) {
          totals[i][j] += sums[i][j];
          sums[i][j] = Accumulator{0};
        }
      }
    }
  }

  template <typename F>
  NNOPS_DEVICE void for_each_run(F f) const {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kColumns; j += kRun) {
        Vector<Accumulator, kRun> values;
#pragma unroll
        for (int v = 0; v < kRun; ++v) values[v] = kTotals ? totals[i][j + v] : sums[i][j + v];
        f(row_of(i, thread_m(), Shape::kThreadsM), row_of(j, thread_n(), Shape::kThreadsN), values);
      }
    }
  }
};

}  // namespace nnops::cuda
