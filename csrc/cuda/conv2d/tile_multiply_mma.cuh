// Multiply stage of conv2d's implicit GEMMs on tensor cores (the interface is in tile.cuh).
//
// float16 and bfloat16 go through mma.m16n8k16, float32 through mma.m16n8k8 in TF32: a float32 with
// ten bits of mantissa, to which the operands are rounded here, where they are not yet (the
// instruction would cut the rest off; on sm_90 rounding takes three instructions, and a fragment of
// each operand is rounded as often as a warp reads it). Products and sums are float32, and all
// steps of k are one chain: what its roundings add up to stays below what the operands' rounding
// has lost, and sums of a second level would take the registers that make a warp's tile large. A
// large tile matters, because shared memory brings a warp of 64 x 64 elements 128 of them a k for
// 4096 products; 32 x 32 elements would need twice that for as many. Measured on an H200: see
// bench/results/cuda.md.
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

  // offset(first + 8 step + lane / 4, k + lane % 4) of 4-byte elements along rows, for a `first`
  // that is a multiple of 32 and a k of 4. Of what depends on the lane there are four values in
  // all, as the exclusive or is spelled out; the rest are constants.
  static NNOPS_DEVICE int offset_of_lane(int first, int step, int k) {
    static_assert(kOrder == TileOrder::kAlongRows && sizeof(T) == 4);
    const int lane = lane_index();
    const int chunk = lane / 16 ^ permutation(lane % 4) ^ step % 4 * 2;
    return (k + lane % 4) * kLine + first + step / 4 * 32 + chunk * kChunk + lane / 4 % 4;
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

// Which operands of TF32 are still to be rounded.
enum class Unrounded { kNone, kA, kBoth };

template <typename T, typename Shape, TileOrder kOrder_, Unrounded kUnrounded = Unrounded::kBoth>
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
  // Of a multiprocessor's 65536 registers a thread takes its sums and what the loaders need.
  static constexpr int kOtherRegisters = kOrder == TileOrder::kAlongK ? 96 : 128;
  static constexpr int kBlocksPerMultiprocessor = smaller(
      4, 65536 / (kThreads * (Shape::kWarpM * Shape::kWarpN / kWarpSize + kOtherRegisters)));

  using TileA = SwizzledTile<T, kTileM, kTileK, kOrder>;
  using TileB = SwizzledTile<T, kTileN, kTileK, kOrder>;
  static constexpr int kElementsA = TileA::kElements;
  static constexpr int kElementsB = TileB::kElements;

  static constexpr bool kTf32 = std::is_same_v<T, float>;
  static_assert(kTf32 || std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>);
  static constexpr int kMmaM = 16;
  static constexpr int kMmaN = 8;
  static constexpr int kMmaK = kTf32 ? 8 : 16;
  // Of C, in each of a lane's rows: two columns of an mma, or, where images of 16-bit elements are
  // written, the eight columns of a whole one, 16 bytes.
  static constexpr int kRun = kOrder == TileOrder::kAlongK && sizeof(T) == 2 ? kMmaN : 2;
  static constexpr int kMmasM = Shape::kWarpM / kMmaM;
  static constexpr int kMmasN = Shape::kWarpN / kMmaN;
  static_assert(kTileM % Shape::kWarpM == 0 && Shape::kWarpM % kMmaM == 0);
  static_assert(kTileN % Shape::kWarpN == 0 && Shape::kWarpN % (2 * kMmaN) == 0);
  static_assert(kTileK % kMmaK == 0);
  static_assert(kRun == 2 || kMmasN % 4 == 0);

  static NNOPS_HOST_DEVICE int offset_a(int row, int k) { return TileA::offset(row, k); }
  static NNOPS_HOST_DEVICE int offset_b(int row, int k) { return TileB::offset(row, k); }

  float sums[kMmasM][kMmasN][4];

  // Where the warp's part of the tile begins.
  static NNOPS_DEVICE int warp_m() { return warp_index() % kWarpsM * Shape::kWarpM; }
  static NNOPS_DEVICE int warp_n() { return warp_index() / kWarpsM * Shape::kWarpN; }

  NNOPS_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmasN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
      }
    }
  }

  NNOPS_DEVICE void multiply(const T* a, const T* b) {
    Fragments fragments[kFragments];
    if constexpr (kFragments == 2) load_fragments(fragments[0], a, b, 0);
#pragma unroll
    for (int k = 0; k < kTileK; k += kMmaK) {
      const int current = k / kMmaK % kFragments;
      if constexpr (kFragments == 1) {
        load_fragments(fragments[0], a, b, k);
      } else if (k + kMmaK < kTileK) {
        load_fragments(fragments[1 - current], a, b, k + kMmaK);
      }
#pragma unroll
      for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
        for (int j = 0; j < kMmasN; ++j) {
          if constexpr (kTf32) {
            mma_m16n8k8_tf32(sums[i][j], fragments[current].rows[i], fragments[current].columns[j]);
          } else {
            mma_m16n8k16(sums[i][j], fragments[current].rows[i], fragments[current].columns[j],
                         T{});
          }
        }
      }
    }
  }

  NNOPS_DEVICE void end_chain() {}

  template <typename F>
  NNOPS_DEVICE void for_each_run(F f) {
    const int m = warp_m() + lane_index() / 4;
    const int n = warp_n() + lane_index() % 4 * kRun;
    if constexpr (kRun == 2) {
#pragma unroll
      for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
        for (int j = 0; j < kMmasN; ++j) {
#pragma unroll
          for (int e = 0; e < 4; e += 2) {
            f(m + i * kMmaM + e / 2 * 8, n + j * kMmaN,
              Vector<float, 2>{{sums[i][j][e], sums[i][j][e + 1]}});
          }
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kMmasM; ++i) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
#pragma unroll
          for (int j = 0; j < kMmasN; j += 4) {
            Vector<float, kRun> run;
#pragma unroll
            for (int v = 0; v < 2; ++v) {
              float parts[4];
#pragma unroll
              for (int member = 0; member < 4; ++member) parts[member] = sums[i][j + member][e + v];
              transpose_quad(parts);
#pragma unroll
              for (int member = 0; member < 4; ++member) run[2 * member + v] = parts[member];
            }
            f(m + i * kMmaM + e / 2 * 8, n + j * kMmaN, run);
          }
        }
      }
    }
  }

 private:
  // With two, those of the next kMmaK are on their way while the present ones are multiplied; the
  // loaders of backward_weight leave no registers for that.
  static constexpr int kFragments = kOrder == TileOrder::kAlongK ? 2 : 1;

  struct Fragments {
    uint32_t rows[kMmasM][4];
    uint32_t columns[kMmasN][2];
  };

  static NNOPS_DEVICE void load_fragments(Fragments& fragments, const T* a, const T* b, int k) {
    const int m = warp_m();
    const int n = warp_n();
#pragma unroll
    for (int j = 0; j < kMmasN; j += 2) {
      uint32_t pair[4];
      load_columns(pair, b, n, j * kMmaN, k);
#pragma unroll
      for (int r = 0; r < 4; ++r) fragments.columns[j + r / 2][r % 2] = pair[r];
    }
#pragma unroll
    for (int i = 0; i < kMmasM; ++i) load_rows(fragments.rows[i], a, m, i * kMmaM, k);
  }

  // values[j] of lane i of four neighbours becomes values[i] of lane j.
  static NNOPS_DEVICE void transpose_quad(float (&values)[4]) {
    const int lane = lane_index();
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      const bool upper = (lane & distance) != 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if ((j & distance) != 0) continue;
        float& low = values[j];
        float& high = values[j + distance];
        const float other = shuffle_xor(upper ? low : high, distance);
        (upper ? low : high) = other;
      }
    }
  }

  // The warp's registers of A[first + row..first + row + 16][k..k + kMmaK], where `first` is its
  // own: four squares, first along the rows.
  static NNOPS_DEVICE void load_rows(uint32_t (&registers)[4], const T* tile, int first, int row,
                                     int k) {
    const int lane = lane_index();
    if constexpr (kOrder == TileOrder::kAlongK) {
      load_matrix_x4(registers,
                     tile + offset_a(first + row + lane % 16, k + lane / 16 * (kMmaK / 2)));
    } else if constexpr (!kTf32) {
      load_matrix_x4_transposed(
          registers, tile + offset_a(first + row + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
    } else {
      static_assert(Shape::kWarpM % 32 == 0);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        registers[r] =
            bits_as<uint32_t>(tile[TileA::offset_of_lane(first, row / 8 + r % 2, k + r / 2 * 4)]);
      }
    }
    if constexpr (kUnrounded != Unrounded::kNone) round(registers);
  }

  // Those of B[first + row..first + row + 16][k..k + kMmaK], for two mmas: four squares, first
  // along k.
  static NNOPS_DEVICE void load_columns(uint32_t (&registers)[4], const T* tile, int first, int row,
                                        int k) {
    const int lane = lane_index();
    if constexpr (kOrder == TileOrder::kAlongK) {
      load_matrix_x4(registers, tile + offset_b(first + row + lane / 16 * 8 + lane % 8,
                                                k + lane / 8 % 2 * (kMmaK / 2)));
    } else if constexpr (!kTf32) {
      load_matrix_x4_transposed(
          registers, tile + offset_b(first + row + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
    } else {
      static_assert(Shape::kWarpN % 32 == 0);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        registers[r] =
            bits_as<uint32_t>(tile[TileB::offset_of_lane(first, row / 8 + r / 2, k + r % 2 * 4)]);
      }
    }
    if constexpr (kUnrounded == Unrounded::kBoth) round(registers);
  }

  static NNOPS_DEVICE void round(uint32_t (&registers)[4]) {
    if constexpr (kTf32) {
#pragma unroll
      for (int r = 0; r < 4; ++r) registers[r] = to_tf32(bits_as<float>(registers[r]));
    }
  }
};

}  // namespace nnops::cuda
