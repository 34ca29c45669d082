// The forward pass of cross_entropy: the loss, and each row's maximum and log of the sum.
#pragma once

#include "cuda/cross_entropy/softmax_sum.cuh"

namespace nnops::cuda {

template <typename T>
struct ForwardCall {
  using A = acc_t<T>;
  T* loss;
  A* row_max;
  A* row_log_sum;
  const T* input;
  const void* target;
  const T* weight;
  RowSums* blocks;
  BadRow* bad_row;
  ClassGeometry g;
  Smoothing<A> smoothing;
  int lanes;     // a row
  bool aligned;  // for vectors
};

// What the loss of a row is made of, by the row's first lane.
template <typename T, bool kProbabilities>
NNOPS_DEVICE void finish_row(const ForwardCall<T>& call, int64_t row, int64_t t, acc_t<T> logit,
                             acc_t<T> max, acc_t<T> log_sum, acc_t<T> dot, RowSums& total) {
  using A = acc_t<T>;
  const Smoothing<A>& smoothing = call.smoothing;
  call.row_max[row] = max;
  call.row_log_sum[row] = log_sum;
  A value{};
  if constexpr (kProbabilities) {
    value = -dot;
    total.loss += value;
    total.weight += call.g.classes > 0 ? 1 : 0;
  } else {
    // Without classes an ignored row is NaN, as in torch: 0 times an infinite share.
    A smoothed_part = A{0} * smoothing.share;
    if (t >= 0) {
      const A factor = weight_at(call.weight, t);
      value = -factor * ((logit - max) - log_sum);
      if (smoothing.on) {
        value *= smoothing.keep;
        smoothed_part = -smoothing.share * dot;
      }
      total.loss += value;
      total.weight += factor;
    }
    if (smoothing.on) {
      total.smoothed += smoothed_part;
      value += smoothed_part;
    }
  }
  if (call.g.reduction == Reduction::kNone) call.loss[row] = from_acc<T>(value);
}

// kDot: the whole row takes part in the loss, because the target is probabilities or smoothed.
template <typename T, bool kProbabilities, bool kDot, bool kWideRows>
__global__ void __launch_bounds__(RowShape<T, kWideRows>::kThreads, RowShape<T, kWideRows>::kBlocks)
    cross_entropy_forward_kernel(const ForwardCall<T> call) {
  using A = acc_t<T>;
  using Shape = RowShape<T, kWideRows>;
  NNOPS_SHARED(double, shared_sums, Shape::kWarps);
  // One of each warp, twice: the next row's are written while this row's are read.
  NNOPS_SHARED(SoftmaxSum<A>, shared_rows, 2 * Shape::kWarps);
  const ClassGeometry& g = call.g;
  const int index = static_cast<int>(threadIdx.x) & (call.lanes - 1);
  const double zero = kProbabilities ? -0.0 : 0.0;
  RowSums total{zero, 0, 0};
  SoftmaxSum<A>* warps = shared_rows;

  for_each_row(g, call.lanes, [&](int64_t row, RowPosition at, bool exists) {
    const T* x = call.input + offset_of(at, g.input);
    int64_t t = -1;
    A logit{};
    if (!kProbabilities && exists && index == 0) {
      t = counted_class(call.target, row, at, g, call.bad_row, true);
      if (t >= 0) logit = to_acc(x[t * g.input.c]);
    }
    const RowLanes<T, kWideRows> lanes{call.lanes, index, call.aligned, exists ? g.classes : 0};
    SoftmaxSum<A> sum = empty_softmax_sum<A>();
    SoftmaxSum<A> part = empty_softmax_sum<A>();
    int steps = 0;
    lanes.for_each_step([&](auto step) {
      typename RowLanes<T, kWideRows>::Values values;
      typename RowLanes<T, kWideRows>::Values q;
      lanes.load(values, x, g.input.c, step);
      if constexpr (kDot) {
        if (call.weight) {
          lanes.load(q, call.weight, 1, step);
        } else {
#pragma unroll
          for (int j = 0; j < Shape::kValues; ++j) q[j] = 1;
        }
      }
      if constexpr (kProbabilities) {
        typename RowLanes<T, kWideRows>::Values probabilities;
        lanes.load(probabilities, static_cast<const T*>(call.target) + offset_of(at, g.target),
                   g.target.c, step);
#pragma unroll
        for (int j = 0; j < Shape::kValues; ++j) {
          q[j] = smoothed(probabilities[j], q[j], call.smoothing);
        }
      }
      add_step<kDot>(part, values, q, [&](int j) { return lanes.is_class(step, j); });
      if (++steps % kStepsPerSum == 0) move_into<kDot>(sum, part);
    });

    move_into<kDot>(sum, part);
    join_softmax_sums<kDot>(sum, smaller(call.lanes, kWarpSize));
    if (kWideRows && call.lanes > kWarpSize) {
      if (lane_index() == 0) warps[warp_index()] = sum;
      __syncthreads();
      sum = warps[lane_index() % Shape::kWarps];
      warps = warps == shared_rows ? shared_rows + Shape::kWarps : shared_rows;
      join_softmax_sums<kDot>(sum, Shape::kWarps);
    }
    if (exists && index == 0) {
      // NaN where a logit is NaN or the maximum infinite.
      const A log_sum = log_one_plus(sum.rest + (sum.ties - 1)) + (sum.max - sum.max);
      // The sum of nothing is 0, although without classes the logarithm is no number.
      const A dot = g.classes > 0 ? sum.dot - log_sum * sum.mass : A{0};
      finish_row<T, kProbabilities>(call, row, t, logit, sum.max, log_sum, dot, total);
    }
  });
  total = join_block<Shape::kThreads>(total, shared_sums);
  if (threadIdx.x == 0) call.blocks[blockIdx.x] = total;
}

}  // namespace nnops::cuda
