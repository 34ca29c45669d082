// relu on CUDA: y = max(x, 0), elementwise over dense memory (elementwise.cuh).
//
// A NaN stays NaN and -0.0 stays -0.0: what passes is copied bit by bit. backward works from the
// output: the gradient passes where y is positive or NaN; mask_backward from one bit an element
// that says so, a 32nd of the bytes. The lanes that share a byte of the mask join their bits in
// registers, so that each byte has one writer. No accumulation.
#pragma once

#include "cuda/elementwise.cuh"

namespace nnops::cuda {

template <typename T>
NNOPS_DEVICE bool is_negative(T value) {
  if constexpr (std::is_unsigned_v<T>) {
    return false;
  } else {
    return to_acc(value) < 0;
  }
}

template <typename T>
struct ReluForward : MapOperation<T> {
  using typename MapOperation<T>::Nothing;
  const T* input;

  template <int N>
  using Operands = Vector<T, N>;
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return load_vector<N>(input + i);
  }
  template <int N>
  NNOPS_DEVICE T value(const Vector<T, N>& x, int lane, Nothing) const {
    return is_negative(x[lane]) ? T{} : x[lane];
  }
};

template <typename T>
struct ReluBackward : MapOperation<T> {
  using typename MapOperation<T>::Nothing;
  const T* grad_output;
  const T* relu_output;

  template <int N>
  struct Operands {
    Vector<T, N> grad_output;
    Vector<T, N> relu_output;
  };
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return {load_vector<N>(grad_output + i), load_vector<N>(relu_output + i)};
  }
  template <int N>
  NNOPS_DEVICE T value(const Operands<N>& operands, int lane, Nothing) const {
    return to_acc(operands.relu_output[lane]) <= 0 ? T{} : operands.grad_output[lane];
  }
};

template <typename T>
struct ReluForwardWithMask : ReluForward<T> {
  uint8_t* mask;

  // Bit i % 8 of mask[i / 8] is element i's: 8 / N lanes beside each other fill a byte.
  template <int N>
  NNOPS_DEVICE void finish(const Vector<T, N>& x, int64_t i, bool inside) const {
    unsigned bits = 0;
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      bits |= static_cast<unsigned>(inside && !(to_acc(x[lane]) <= 0)) << lane;
    }
    bits <<= static_cast<unsigned>(i) % 8;
    bits = warp_reduce<8 / N>(bits, [](unsigned a, unsigned b) { return a | b; });
    if (static_cast<unsigned>(i) % 8 == 0 && inside) mask[i / 8] = static_cast<uint8_t>(bits);
  }
};

template <typename T>
struct ReluMaskBackward : MapOperation<T> {
  using typename MapOperation<T>::Nothing;
  const T* grad_output;
  const uint8_t* mask;

  template <int N>
  struct Operands {
    Vector<T, N> grad_output;
    unsigned bits;
  };
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return {load_vector<N>(grad_output + i), unsigned{mask[i / 8]} >> static_cast<unsigned>(i) % 8};
  }
  template <int N>
  NNOPS_DEVICE T value(const Operands<N>& operands, int lane, Nothing) const {
    return (operands.bits >> lane & 1) != 0 ? operands.grad_output[lane] : T{};
  }
};

}  // namespace nnops::cuda
