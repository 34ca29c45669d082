// template_op on CUDA: y = scale * x^2, elementwise over dense memory (elementwise.cuh).
//
// Floating dtypes; bfloat16 and float16 compute in float32. No accumulation.
#pragma once

#include "cuda/elementwise.cuh"

namespace nnops::cuda {

template <typename T>
struct TemplateOpForward : MapOperation<T> {
  using typename MapOperation<T>::Nothing;
  const T* input;
  acc_t<T> scale;

  template <int N>
  using Operands = Vector<T, N>;
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return load_vector<N>(input + i);
  }
  template <int N>
  NNOPS_DEVICE T value(const Vector<T, N>& x, int lane, Nothing) const {
    const acc_t<T> v = to_acc(x[lane]);
    return from_acc<T>(scale * v * v);
  }
};

template <typename T>
struct TemplateOpBackward : MapOperation<T> {
  using typename MapOperation<T>::Nothing;
  const T* grad_output;
  const T* input;
  acc_t<T> double_scale;

  template <int N>
  struct Operands {
    Vector<T, N> grad_output;
    Vector<T, N> input;
  };
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return {load_vector<N>(grad_output + i), load_vector<N>(input + i)};
  }
  template <int N>
  NNOPS_DEVICE T value(const Operands<N>& operands, int lane, Nothing) const {
    return from_acc<T>(double_scale * to_acc(operands.input[lane]) *
                       to_acc(operands.grad_output[lane]));
  }
};

}  // namespace nnops::cuda
