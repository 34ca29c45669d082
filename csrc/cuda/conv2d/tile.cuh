// Tiles of the implicit GEMMs of conv2d, and what their multiply stage must offer.
//
//   C[m][n] = sum over k of A[m][k] B[n][k]
//
// A block of threads computes a tile of kTileM x kTileN of C. It walks along k in steps of kTileK;
// the loaders of the kernels (pixel_gemm.cuh, weight_gemm.cuh) bring the tiles of A and B of a step
// to shared memory, zero where they end, and the multiply stage adds their product to what the
// threads hold. On CUDA cores the steps k are added up in chains of kTilesPerChain steps, and the
// sums of the chains in order: the rounding error grows with the length of a chain and with the
// number of chains instead of with their product. No bit depends on how m and n are cut into tiles.
//
// A multiply stage ("policy") is a struct that every thread of the block has one of:
//
//   using Element = float;                  what lies in shared memory: the images' own type
//   using Accumulator = float;
//   static constexpr int kThreads;          of the block, which is one-dimensional
//   static constexpr int kTileM, kTileN, kTileK;   kTileK divides kConv2dLongestChain
//   static constexpr TileOrder kOrder;      which way the 16-byte chunks of both tiles go
//   static constexpr int kStages;           steps in shared memory at a time, 2 or more
//   static constexpr int kBlocksPerMultiprocessor;   for __launch_bounds__
//   static constexpr int kElementsA, kElementsB;     of a tile in shared memory, padding included;
//                                           multiples of 16 bytes
//   static int offset_a(int row, int k);    where an element of a tile lies, in elements. Chunks of
//   static int offset_b(int row, int k);    16 bytes that begin at a multiple of their width along
//                                           kOrder stay together and aligned; all else (padding,
//                                           swizzle) is the policy's own business
//   void clear();                           everything zero
//   void multiply(const Element* a, const Element* b);   one step; tiles are complete and visible
//   void end_chain();                       after every kTilesPerChain steps, and after the last; a
//                                           stage may make nothing of it, and say why
//   static constexpr int kRun;              columns that a thread holds side by side, a power of
//                                           two
//   template <typename F> void for_each_run(F f);   after end_chain(), f(row, column, values) for
//                                           all that the thread holds of C: each time a
//                                           Vector<Accumulator, kRun> from `column`, a multiple of
//                                           kRun, on
//
// All threads of the block call each of these together (warp operations are allowed, barriers are
// not needed: the kernel has them).
#pragma once

#include "cuda/numbers.cuh"
#include "ops/conv2d.h"

namespace nnops::cuda {

// kAlongK: the elements of a chunk are neighbours in k (images in channels_last order in forward
// and backward_input). kAlongRows: they are neighbouring rows of the same k (backward_weight).
enum class TileOrder { kAlongK, kAlongRows };

// Steps in a chain.
template <typename Multiply>
inline constexpr int kTilesPerChain = static_cast<int>(kConv2dLongestChain) / Multiply::kTileK;

template <typename Multiply>
inline constexpr int kTileBytes =
    Multiply::kStages * (Multiply::kElementsA + Multiply::kElementsB) *
    static_cast<int>(sizeof(typename Multiply::Element));

}  // namespace nnops::cuda
