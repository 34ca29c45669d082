// What is done to a sum of forward on its way out: epilogue(sum, channel of the written image).
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

template <typename T>
struct AddBias {
  const T* bias;  // or null: nothing is added
  NNOPS_DEVICE T operator()(acc_t<T> sum, int channel) const {
    return from_acc<T>(bias != nullptr ? sum + to_acc(bias[channel]) : sum);
  }
};

}  // namespace nnops::cuda
