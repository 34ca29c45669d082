// The gradients of cross_entropy: by its input, and by a target of probabilities.
#pragma once

#include "cuda/cross_entropy/softmax_sum.cuh"

namespace nnops::cuda {

template <typename T>
struct BackwardCall {
  using A = acc_t<T>;
  T* gradient;  // of the input or of the target
  const T* grad_output;
  const T* input;
  const void* target;
  const T* weight;
  const A* row_max;
  const A* row_log_sum;
  const A* total_weight;
  const double* weight_sum;  // of all classes; null: no weights, or of no concern
  BadRow* bad_row;
  ClassGeometry g;
  Smoothing<A> smoothing;
  int lanes;     // a row
  bool aligned;  // for vectors
};

// The sum of all weights, by one block.
constexpr int kWeightSumThreads = 256;
template <typename T>
__global__ void __launch_bounds__(kWeightSumThreads)
    sum_weights(double* __restrict__ result, const T* __restrict__ weight, int64_t classes) {
  NNOPS_SHARED(double, shared, kWeightSumThreads / kWarpSize);
  double sum = 0;
  for (int64_t c = threadIdx.x; c < classes; c += kWeightSumThreads) sum += to_acc(weight[c]);
  sum = block_sum<kWeightSumThreads>(sum, shared);
  if (threadIdx.x == 0) *result = sum;
}

// The factors of a row with a class: grad_i = gradient (p_i mass - share w_i). An ignored row has
// all three 0, so that its gradient is 0, or NaN where p is, as torch's.
template <typename A>
struct ClassRow {
  A gradient;
  A mass;
  A share;
  int64_t t;        // -1: none
  A gradient_of_t;  // only in the lane that has class t
};

template <typename T, bool kWideRows>
NNOPS_DEVICE ClassRow<acc_t<T>> class_row(const BackwardCall<T>& call, const T* x, int64_t row,
                                          RowPosition at, acc_t<T> weight_sum,
                                          const RowLanes<T, kWideRows>& lanes) {
  using A = acc_t<T>;
  const ClassGeometry& g = call.g;
  const Smoothing<A>& smoothing = call.smoothing;
  const int64_t t = counted_class(call.target, row, at, g, call.bad_row, lanes.index == 0);
  if (t < 0) return {0, 0, 0, -1, 0};
  const A factor = weight_at(call.weight, t);
  const A mass = smoothing.keep * factor + smoothing.share * weight_sum;
  A gradient = row_gradient(call.grad_output, *call.total_weight, at, g);
  if (smoothing.on && g.reduction == Reduction::kMean && *call.total_weight == 0) {
    gradient = kNaN<A>;  // as the loss is
  }
  ClassRow<A> result{gradient, mass, smoothing.share, t, 0};
  // p Q - q with q = (1 - e) w_t + share w_t, in the form that does not cancel where p is near 1.
  if (lanes.has_class(t)) {
    const A log_p = (to_acc(x[t * g.input.c]) - call.row_max[row]) - call.row_log_sum[row];
    const A others = smoothing.share * (weight_sum - factor);
    result.gradient_of_t = gradient * (exponential_less_one(log_p) * mass + others);
  }
  return result;
}

template <typename T, bool kWideRows>
__global__ void __launch_bounds__(RowShape<T, kWideRows>::kThreads, RowShape<T, kWideRows>::kBlocks)
    cross_entropy_backward_indices_kernel(const BackwardCall<T> call) {
  using A = acc_t<T>;
  using Shape = RowShape<T, kWideRows>;
  const ClassGeometry& g = call.g;
  const int index = static_cast<int>(threadIdx.x) & (call.lanes - 1);
  const A weight_sum =
      call.weight_sum ? static_cast<A>(*call.weight_sum) : static_cast<A>(g.classes);
  const RowLanes<T, kWideRows> lanes{call.lanes, index, call.aligned, g.classes};

  for_each_row(g, call.lanes, [&](int64_t row, RowPosition at, bool exists) {
    if (!exists) return;
    const T* x = call.input + offset_of(at, g.input);
    T* gradient = call.gradient + offset_of(at, g.grad_input);
    const ClassRow<A> factors = class_row(call, x, row, at, weight_sum, lanes);
    const A max = call.row_max[row];
    const A log_sum = call.row_log_sum[row];
    const A scale = factors.gradient * factors.mass;
    lanes.for_each_step([&](auto step) {
      typename RowLanes<T, kWideRows>::Values values;
      lanes.load(values, x, g.input.c, step);
#pragma unroll
      for (int j = 0; j < Shape::kValues; ++j) {
        values[j] = exponential((values[j] - max) - log_sum);
      }
      if (call.smoothing.on) {
        typename RowLanes<T, kWideRows>::Values weights;
        if (call.weight) lanes.load(weights, call.weight, 1, step);
#pragma unroll
        for (int j = 0; j < Shape::kValues; ++j) {
          const A share = call.weight ? factors.share * weights[j] : factors.share;
          values[j] = factors.gradient * (values[j] * factors.mass - share);
        }
      } else {
#pragma unroll
        for (int j = 0; j < Shape::kValues; ++j) values[j] *= scale;
      }
      const int own = step.offset_of(factors.t);
#pragma unroll
      for (int j = 0; j < Shape::kValues; ++j) {
        if (lanes.class_offset(j) == own) values[j] = factors.gradient_of_t;
      }
      lanes.store(gradient, g.grad_input.c, values, step);
    });
  });
}

template <typename T, bool kWideRows>
__global__ void __launch_bounds__(RowShape<T, kWideRows>::kThreads, RowShape<T, kWideRows>::kBlocks)
    cross_entropy_backward_probabilities_kernel(const BackwardCall<T> call) {
  using A = acc_t<T>;
  using Shape = RowShape<T, kWideRows>;
  // One of each warp, twice: the next row's are written while this row's are read.
  NNOPS_SHARED(A, shared_masses, 2 * Shape::kWarps);
  const ClassGeometry& g = call.g;
  const int index = static_cast<int>(threadIdx.x) & (call.lanes - 1);
  A* warps = shared_masses;

  for_each_row(g, call.lanes, [&](int64_t row, RowPosition at, bool exists) {
    const T* x = call.input + offset_of(at, g.input);
    const T* target = static_cast<const T*>(call.target) + offset_of(at, g.target);
    T* gradient = call.gradient + offset_of(at, g.grad_input);
    const RowLanes<T, kWideRows> lanes{call.lanes, index, call.aligned, exists ? g.classes : 0};
    const auto load_q = [&](auto& q, auto step) {
      typename RowLanes<T, kWideRows>::Values weights;
      lanes.load(q, target, g.target.c, step);
      if (call.weight) lanes.load(weights, call.weight, 1, step);
#pragma unroll
      for (int j = 0; j < Shape::kValues; ++j) {
        q[j] = smoothed(q[j], call.weight ? weights[j] : A{1}, call.smoothing);
      }
    };

    A mass{};
    A part{};
    int steps = 0;
    lanes.for_each_step([&](auto step) {
      typename RowLanes<T, kWideRows>::Values q;
      load_q(q, step);
      A sum{};
#pragma unroll
      for (int j = 0; j < Shape::kValues; ++j) {
        if (lanes.is_class(step, j)) sum += q[j];
      }
      part += sum;
      if (++steps % kStepsPerSum == 0) {
        mass += part;
        part = 0;
      }
    });
    mass += part;
    mass = join_lanes(mass, smaller(call.lanes, kWarpSize), Sum{});
    if (kWideRows && call.lanes > kWarpSize) {
      if (lane_index() == 0) warps[warp_index()] = mass;
      __syncthreads();
      mass = join_lanes(warps[lane_index() % Shape::kWarps], Shape::kWarps, Sum{});
      warps = warps == shared_masses ? shared_masses + Shape::kWarps : shared_masses;
    }
    if (!exists) return;

    const A max = call.row_max[row];
    const A log_sum = call.row_log_sum[row];
    const A factor = row_gradient(call.grad_output, *call.total_weight, at, g);
    lanes.for_each_step([&](auto step) {
      typename RowLanes<T, kWideRows>::Values values;
      typename RowLanes<T, kWideRows>::Values q;
      lanes.load(values, x, g.input.c, step);
      load_q(q, step);
#pragma unroll
      for (int j = 0; j < Shape::kValues; ++j) {
        values[j] = factor * (exponential((values[j] - max) - log_sum) * mass - q[j]);
      }
      lanes.store(gradient, g.grad_input.c, values, step);
    });
  });
}

template <typename T, bool kWideRows>
__global__ void __launch_bounds__(RowShape<T, kWideRows>::kThreads, RowShape<T, kWideRows>::kBlocks)
    cross_entropy_backward_target_kernel(const BackwardCall<T> call) {
  using A = acc_t<T>;
  using Shape = RowShape<T, kWideRows>;
  const ClassGeometry& g = call.g;
  const int index = static_cast<int>(threadIdx.x) & (call.lanes - 1);
  const A rows = static_cast<A>(g.batch * g.spatial);
  const RowLanes<T, kWideRows> lanes{call.lanes, index, call.aligned, g.classes};

  for_each_row(g, call.lanes, [&](int64_t row, RowPosition at, bool exists) {
    if (!exists) return;
    const T* x = call.input + offset_of(at, g.input);
    T* gradient = call.gradient + offset_of(at, g.grad_input);
    const A max = call.row_max[row];
    const A log_sum = call.row_log_sum[row];
    const A factor = -call.smoothing.keep * row_gradient(call.grad_output, rows, at, g);
    lanes.for_each_step([&](auto step) {
      typename RowLanes<T, kWideRows>::Values values;
      typename RowLanes<T, kWideRows>::Values weights;
      lanes.load(values, x, g.input.c, step);
      if (call.weight) lanes.load(weights, call.weight, 1, step);
#pragma unroll
      for (int j = 0; j < Shape::kValues; ++j) {
        const A scale = call.weight ? factor * weights[j] : factor;
        values[j] = ((values[j] - max) - log_sum) * scale;
      }
      lanes.store(gradient, g.grad_input.c, values, step);
    });
  });
}

}  // namespace nnops::cuda
