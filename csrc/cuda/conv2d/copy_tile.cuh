// Pieces of the loaders: copies from global to shared memory, with zeros where there is nothing.
#pragma once

#include "cuda/conv2d/tile.cuh"

namespace nnops::cuda {

// 16 bytes.
template <typename T>
NNOPS_DEVICE void copy_chunk(T* shared, const T* global, bool valid) {
  copy_async<16>(shared, global, valid);
}

// One element. There is no asynchronous copy of two bytes.
template <typename T>
NNOPS_DEVICE void copy_element(T* shared, const T* global, bool valid) {
  if constexpr (sizeof(T) >= 4) {
    copy_async<sizeof(T)>(shared, global, valid);
  } else {
    T value{};
    if (valid) value = *global;
    *shared = value;
  }
}

// The walk along k that both GEMMs have in common: `load(a, b)` starts the copies of the next step
// to shared memory. `shared` holds kTileBytes. It may be used anew after the next barrier.
template <typename Multiply, typename Load>
NNOPS_DEVICE void multiply_steps(Multiply& tile, typename Multiply::Element* shared, int steps,
                                 Load load) {
  constexpr int kStages = Multiply::kStages;
  constexpr int kStage = Multiply::kElementsA + Multiply::kElementsB;
  static_assert(kStages >= 2 && kConv2dLongestChain % Multiply::kTileK == 0);
  int write_stage = 0;
  int read_stage = 0;
  int left_of_chain = kTilesPerChain<Multiply>;
  tile.clear();
  // The first rounds only load.
  for (int step = 1 - kStages; step < steps; ++step) {
    if (step >= 0) {
      // The copies of this step have landed, and nobody reads the stage of the last step any more.
      copy_async_wait<kStages - 2>();
      __syncthreads();
    }
    if (step + kStages - 1 < steps) {
      load(shared + write_stage * kStage, shared + write_stage * kStage + Multiply::kElementsA);
      write_stage = write_stage + 1 == kStages ? 0 : write_stage + 1;
    }
    copy_async_commit();
    if (step < 0) continue;
    const auto* a = shared + read_stage * kStage;
    tile.multiply(a, a + Multiply::kElementsA);
    read_stage = read_stage + 1 == kStages ? 0 : read_stage + 1;
    if (--left_of_chain == 0) {
      tile.end_chain();
      left_of_chain = kTilesPerChain<Multiply>;
    }
  }
  tile.end_chain();
}

}  // namespace nnops::cuda
