// Multiply stage of conv2d's implicit GEMMs on tensor cores (the interface is in tile.cuh).
//
// float16 and bfloat16 go through mma.m16n8k16, float32 through mma.m16n8k8 in TF32: a float32 with
// ten bits of mantissa, to which the operands are rounded here (the instruction would cut the rest
// off). Products and sums are float32.
//
// The warps of a block stand in a grid over its tile of C; each holds kWarpM x kWarpN of it. Who
// holds what of one mma is fixed by the instruction (PTX ISA, "Matrix fragments for mma"); with
// g = lane / 4 and t = lane % 4, and two neighbours along k in each register of 16-bit elements:
//
//   A, 16 x 16:  (g, 2t)  (g + 8, 2t)  (g, 2t + 8)  (g + 8, 2t + 8)    B, 8 x 16:  (g, 2t)  (g, 2t
//   + 8) A, 16 x 8:   (g, t)   (g + 8, t)   (g, t + 4)   (g + 8, t + 4)     B, 8 x 8:   (g, t) (g,
//   t + 4) C, 16 x 8:   (g, 2t)  (g, 2t + 1)  (g + 8, 2t)  (g + 8, 2t + 1)
//
// ldmatrix hands out squares of 8 rows of 16 bytes in just this way: lane l gets word t of row g,
// and lane l says where row l % 8 of square l / 8 begins.
#pragma once

#include "cuda/conv2d/tile.cuh"
#include "cuda/simt.h"

namespace nnops::cuda {

// A tile of kRows x kTileK in shared memory. A line goes along the order: it is a row, or all rows
// of one k. In each line the chunks of 16 bytes are permuted by an exclusive or with the line, so
// that the banks differ for eight lanes that write neighbouring chunks of a line and for eight that
// read the same chunk of neighbouring lines.
template <typename T, int kRows, int kTileK, TileOrder kOrder>
struct SwizzledTile {
  static constexpr int kElements = kRows * kTileK;

  static NNOPS_HOST_DEVICE int offset(int row, int k) {
    constexpr bool kAlongK = kOrder == TileOrder::kAlongK;
    const int line = kAlongK ? row : k;
    const int place = kAlongK ? k : row;
    return line * kLine + ((place / kChunk) ^ permutation(line)) * kChunk + place % kChunk;
  }

 private:
  static constexpr int kChunk = kVectorWidth<T>;
  static constexpr int kLine = kOrder == TileOrder::kAlongK ? kTileK : kRows;
  static constexpr int kChunks = kLine / kChunk;
  static constexpr int kAllBanks = 8;  // in chunks
  static_assert(kLine % kChunk == 0 && (kChunks % kAllBanks == 0 || kAllBanks % kChunks == 0));

  static NNOPS_HOST_DEVICE int permutation(int line) {
    if constexpr (kOrder == TileOrder::kAlongRows && sizeof(T) == 4) {
      // Read by elements: four lines and two chunks of each at a time.
      static_assert(kChunks >= kAllBanks);
      return line % 4 * 2;
    } else if constexpr (kChunks >= kAllBanks) {
      return line % kAllBanks;
    } else {
      return line / (kAllBanks / kChunks) % kChunks;
    }
  }
};

template <int kTileM_, int kTileN_, int kWarpM_, int kWarpN_>
struct MmaShape {
  static constexpr int kTileM = kTileM_, kTileN = kTileN_;
  static constexpr int kWarpM = kWarpM_, kWarpN = kWarpN_;
};

template <typename T, typename Shape, TileOrder kOrder_>
struct MmaMultiply {
  using Element = T;
  using Accumulator = float;
  static constexpr TileOrder kOrder = kOrder_;
  static constexpr int kTileM = Shape::kTileM;
  static constexpr int kTileN = Shape::kTileN;
  static constexpr int kTileK = 64 / static_cast<int>(sizeof(T));
  static constexpr int kStages = 3;
  static constexpr int kWarpsM = kTileM / Shape::kWarpM;
  static constexpr int kWarpsN = kTileN / Shape::kWarpN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpSize;
  // Registers allow 256 threads of 32 x 32 elements a warp, with the sums of two levels.
  static constexpr int kBlocksPerMultiprocessor =
      smaller(4, larger(1, 256 * 32 * 32 / (kThreads * Shape::kWarpM * Shape::kWarpN)));

  using TileA = SwizzledTile<T, kTileM, kTileK, kOrder>;
  using TileB = SwizzledTile<T, kTileN, kTileK, kOrder>;
  static constexpr int kElementsA = TileA::kElements;
  static constexpr int kElementsB = TileB::kElements;

  static constexpr bool kTf32 = std::is_same_v<T, float>;
  static_assert(kTf32 || std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>);
  static constexpr int kMmaM = 16;
  static constexpr int kMmaN = 8;
  static constexpr int kMmaK = kTf32 ? 8 : 16;
  static constexpr int kRun = 2;  // of C, in each of a lane's rows
  static constexpr int kMmasM = Shape::kWarpM / kMmaM;
  static constexpr int kMmasN = Shape::kWarpN / kMmaN;
  static_assert(kTileM % Shape::kWarpM == 0 && Shape::kWarpM % kMmaM == 0);
  static_assert(kTileN % Shape::kWarpN == 0 && Shape::kWarpN % (2 * kMmaN) == 0);
  static_assert(kTileK % kMmaK == 0);

  static NNOPS_HOST_DEVICE int offset_a(int row, int k) { return TileA::offset(row, k); }
  static NNOPS_HOST_DEVICE int offset_b(int row, int k) { return TileB::offset(row, k); }

  float sums[kMmasM][kMmasN][4];
  float totals[kMmasM][kMmasN][4];

  // Where the warp's part of the tile begins.
  static NNOPS_DEVICE int warp_m() { return warp_index() % kWarpsM * Shape::kWarpM; }
  static NNOPS_DEVICE int warp_n() { return warp_index() / kWarpsM * Shape::kWarpN; }

  NNOPS_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmasN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = totals[i][j][e] = 0.0f;
      }
    }
  }

  NNOPS_DEVICE void multiply(const T* a, const T* b) {
    const int m = warp_m();
    const int n = warp_n();
#pragma unroll
    for (int k = 0; k < kTileK; k += kMmaK) {
      uint32_t columns[kMmasN][2];
#pragma unroll
      for (int j = 0; j < kMmasN; j += 2) {
        uint32_t pair[4];
        load_columns(pair, b, n + j * kMmaN, k);
#pragma unroll
        for (int r = 0; r < 4; ++r) columns[j + r / 2][r % 2] = pair[r];
      }
#pragma unroll
      for (int i = 0; i < kMmasM; ++i) {
        uint32_t rows[4];
        load_rows(rows, a, m + i * kMmaM, k);
#pragma unroll
        for (int j = 0; j < kMmasN; ++j) {
          if constexpr (kTf32) {
            mma_m16n8k8_tf32(sums[i][j], rows, columns[j]);
          } else {
            mma_m16n8k16(sums[i][j], rows, columns[j], T{});
          }
        }
      }
    }
  }

  NNOPS_DEVICE void end_chain() {
#pragma unroll
    for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmasN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          totals[i][j][e] += sums[i][j][e];
          sums[i][j][e] = 0.0f;
        }
      }
    }
  }

  template <typename F>
  NNOPS_DEVICE void for_each_run(F f) const {
    const int m = warp_m() + lane_index() / 4;
    const int n = warp_n() + lane_index() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmasN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; e += kRun) {
          f(m + i * kMmaM + e / 2 * 8, n + j * kMmaN,
            Vector<float, kRun>{{totals[i][j][e], totals[i][j][e + 1]}});
        }
      }
    }
  }

 private:
  // The warp's registers of A[row..row + 16][k..k + kMmaK]: four squares, first along the rows.
  static NNOPS_DEVICE void load_rows(uint32_t (&registers)[4], const T* tile, int row, int k) {
    const int lane = lane_index();
    if constexpr (kOrder == TileOrder::kAlongK) {
      load_matrix_x4(registers, tile + offset_a(row + lane % 16, k + lane / 16 * (kMmaK / 2)));
    } else if constexpr (!kTf32) {
      load_matrix_x4_transposed(
          registers, tile + offset_a(row + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        registers[r] =
            bits_as<uint32_t>(tile[offset_a(row + r % 2 * 8 + lane / 4, k + r / 2 * 4 + lane % 4)]);
      }
    }
    round(registers);
  }

  // Those of B[row..row + 16][k..k + kMmaK], for two mmas: four squares, first along k.
  static NNOPS_DEVICE void load_columns(uint32_t (&registers)[4], const T* tile, int row, int k) {
    const int lane = lane_index();
    if constexpr (kOrder == TileOrder::kAlongK) {
      load_matrix_x4(registers, tile + offset_b(row + lane / 16 * 8 + lane % 8,
                                                k + lane / 8 % 2 * (kMmaK / 2)));
    } else if constexpr (!kTf32) {
      load_matrix_x4_transposed(
          registers, tile + offset_b(row + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        registers[r] =
            bits_as<uint32_t>(tile[offset_b(row + r / 2 * 8 + lane / 4, k + r % 2 * 4 + lane % 4)]);
      }
    }
    round(registers);
  }

  static NNOPS_DEVICE void round(uint32_t (&registers)[4]) {
    if constexpr (kTf32) {
#pragma unroll
      for (int r = 0; r < 4; ++r) registers[r] = to_tf32(bits_as<float>(registers[r]));
    }
  }
};

}  // namespace nnops::cuda
