// nll_loss on CUDA: loss_r = -w[t_r] x[n, t_r, s] for the rows r = (n, s), t_r their class.
//
// An ignored row loses nothing; mean divides by the sum of w[t_r] over the others. A thread takes a
// row, reads its one logit through the input's strides and adds up in double; finish_loss joins the
// blocks. The gradient, packed [batch, classes, spatial], is zero everywhere else:
//   grad_input[n, c, s] = -w[c] g_r [c = t_r], g_r divided by the total weight for mean.
// Where the neighbours of a row in memory are rows, a thread writes all classes of its row, each
// with a warp's other rows side by side; otherwise the memory is cleared first, and then each row's
// one value written.
#pragma once

#include "cuda/class_rows.cuh"

namespace nnops::cuda {

constexpr int kNllThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kNllThreads)
    nll_loss_forward_kernel(T* __restrict__ loss, const T* __restrict__ input,
                            const void* __restrict__ target, const T* __restrict__ weight,
                            RowSums* __restrict__ blocks, BadRow* bad_row, const ClassGeometry g) {
  using A = acc_t<T>;
  NNOPS_SHARED(double, shared, kNllThreads / kWarpSize);
  RowSums total{};
  for_grid_stride(g.batch * g.spatial, [&](int64_t row) {
    const RowPosition at = row_position(row, g);
    const int64_t t = counted_class(target, row, at, g, bad_row, true);
    A value{};
    if (t >= 0) {
      const A factor = weight_at(weight, t);
      value = -factor * to_acc(input[offset_of(at, g.input) + t * g.input.c]);
      total.loss += value;
      total.weight += factor;
    }
    if (g.reduction == Reduction::kNone) loss[row] = from_acc<T>(value);
  });
  total = join_block<kNllThreads>(total, shared);
  if (threadIdx.x == 0) blocks[blockIdx.x] = total;
}

// The one entry of a row's gradient that may differ from zero, at its class (-1: none).
template <typename T>
struct NllEntry {
  int64_t t;
  T value;
};
template <typename T>
NNOPS_DEVICE NllEntry<T> nll_entry(int64_t row, RowPosition at, const T* grad_output,
                                   const void* target, const T* weight,
                                   const acc_t<T>* total_weight, BadRow* bad_row,
                                   const ClassGeometry& g) {
  const int64_t t = counted_class(target, row, at, g, bad_row, true);
  if (t < 0) return {-1, T{}};
  return {t, from_acc<T>(-weight_at(weight, t) * row_gradient(grad_output, *total_weight, at, g))};
}

// Writes one value a row; the memory holds zeros.
template <typename T>
__global__ void __launch_bounds__(kNllThreads)
    nll_loss_scatter_kernel(T* __restrict__ grad_input, const T* __restrict__ grad_output,
                            const void* __restrict__ target, const T* __restrict__ weight,
                            const acc_t<T>* __restrict__ total_weight, BadRow* bad_row,
                            const ClassGeometry g) {
  for_grid_stride(g.batch * g.spatial, [&](int64_t row) {
    const RowPosition at = row_position(row, g);
    const NllEntry<T> entry =
        nll_entry(row, at, grad_output, target, weight, total_weight, bad_row, g);
    if (entry.t >= 0) {
      grad_input[offset_of(at, g.grad_input) + entry.t * g.grad_input.c] = entry.value;
    }
  });
}

// Writes all classes of each row.
template <typename T>
__global__ void __launch_bounds__(kNllThreads)
    nll_loss_planes_kernel(T* __restrict__ grad_input, const T* __restrict__ grad_output,
                           const void* __restrict__ target, const T* __restrict__ weight,
                           const acc_t<T>* __restrict__ total_weight, BadRow* bad_row,
                           const ClassGeometry g) {
  for_grid_stride(g.batch * g.spatial, [&](int64_t row) {
    const RowPosition at = row_position(row, g);
    const NllEntry<T> entry =
        nll_entry(row, at, grad_output, target, weight, total_weight, bad_row, g);
    T* gradient = grad_input + offset_of(at, g.grad_input);
    for (int64_t c = 0; c < g.classes; ++c, gradient += g.grad_input.c) {
      *gradient = c == entry.t ? entry.value : T{};
    }
  });
}

}  // namespace nnops::cuda
