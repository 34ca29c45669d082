// cross_entropy on CUDA: softmax and negative log likelihood in one, without a tensor of
// log-probabilities.
//
// For a row r = (n, s) with logits x_i, m = max x_i and l = log(sum exp(x_i - m)):
//   log p_i = (x_i - m) - l
//   loss_r  = -sum_i q_i log p_i,      Q = sum_i q_i
//   grad_i  = g_r (p_i Q - q_i)        g_r: gradient of the row's loss, over total weight for mean;
//                                      by expm1 for the row's own class, where p_i may be near 1
// with the effective target q, e the label smoothing and C classes:
//   class t:          q_i = (1 - e) w_t [i = t] + (e / C) w_i; nothing for an ignored row
//   probabilities t:  q_i = w_i ((1 - e) t_i + e / C), whose gradient is -g_r (1 - e) w_i log p_i
// m and l are kept for backward, in float32 for the half types, which compute in it.
//
// Forward reads every logit once (softmax_sum.cuh), backward reads it once and writes its gradient;
// probabilities are read twice in backward, for Q and for q, the second time from the cache where
// it holds a row. How rows are dealt out to threads: row_lanes.cuh. Sums of rows in double, joined
// on the device (cuda/class_rows.cuh).
//
// This file launches the kernels. Calls with class indices wait for the device, to learn whether a
// target was no class; the others do not.
#include "cuda/cross_entropy/backward.cuh"
#include "cuda/cross_entropy/forward.cuh"
#include "ops/cross_entropy.h"

namespace nnops::cuda {

// Rows whose classes lie side by side are 8 lanes' up to this many classes, then a warp's, then a
// block's.
constexpr int64_t kMostNarrowClasses = 64;
constexpr int64_t kMostWarpClasses = 2048;

struct RowPlan {
  bool wide;
  int lanes;
  int rows_per_block;
};

template <typename T>
static RowPlan row_plan(const ClassGeometry& g) {
  if (!g.class_vectors || g.classes <= kMostNarrowClasses) {
    const int lanes = g.class_vectors ? 8 : 1;
    return {false, lanes, RowShape<T, false>::kThreads / lanes};
  }
  constexpr int kThreads = RowShape<T, true>::kThreads;
  const int lanes = g.classes <= kMostWarpClasses ? kWarpSize : kThreads;
  return {true, lanes, kThreads / lanes};
}

// launch(wide, blocks, threads) for the kind of rows that the call has.
template <typename T, typename Launch>
static void launch_rows(const RowPlan& plan, unsigned blocks, Launch launch) {
  if (plan.wide) {
    launch(std::true_type{}, blocks, RowShape<T, true>::kThreads);
  } else {
    launch(std::false_type{}, blocks, RowShape<T, false>::kThreads);
  }
}

// A plan's blocks for a kernel without sums.
static unsigned row_blocks(const RowPlan& plan, const ClassGeometry& g) {
  return grid_stride_blocks(row_count(g), plan.rows_per_block);
}

// Whether every row begins at a multiple of 16 bytes.
template <typename T>
static bool rows_are_aligned(const T* data, const ClassStrides& strides) {
  return are_aligned(data) && strides.n % kVectorWidth<T> == 0 && strides.s % kVectorWidth<T> == 0;
}

template <typename A>
static Smoothing<A> smoothing_of(const ClassGeometry& g) {
  const double e = g.label_smoothing;
  if (e == 0) return {A{1}, A{0}, false};
  return {static_cast<A>(1 - e), static_cast<A>(e / static_cast<double>(g.classes)), true};
}

template <typename T, bool kProbabilities>
static int64_t forward(void* loss, void* log_sum_exp, void* total_weight, const void* input,
                       const void* target, const void* weight, const ClassGeometry& geometry) {
  using A = acc_t<T>;
  ForwardCall<T> call;
  call.loss = static_cast<T*>(loss);
  call.row_max = static_cast<A*>(log_sum_exp);
  call.row_log_sum = call.row_max + row_count(geometry);
  call.input = static_cast<const T*>(input);
  call.target = target;
  call.weight = static_cast<const T*>(weight);
  call.g = joined_rows(geometry);
  call.smoothing = smoothing_of<A>(call.g);
  const ClassGeometry& g = call.g;
  const RowPlan plan = row_plan<T>(g);
  call.lanes = plan.lanes;
  call.aligned = rows_are_aligned(call.input, g.input) && are_aligned(call.weight);
  if (kProbabilities) {
    call.aligned = call.aligned && rows_are_aligned(static_cast<const T*>(target), g.target);
  }

  const unsigned blocks = summing_blocks(g, plan.rows_per_block);
  const ClassScratch scratch(blocks);
  call.blocks = scratch.blocks;
  call.bad_row = &scratch.words->bad_row;
  if (blocks > 0) {
    launch_rows<T>(plan, blocks, [&](auto wide, unsigned grid, int threads) {
      constexpr bool kWide = decltype(wide)::value;
      if (kProbabilities || call.smoothing.on) {
        NNOPS_LAUNCH((cross_entropy_forward_kernel<T, kProbabilities, true, kWide>), grid, threads,
                     0, call);
      } else {
        // Without kProbabilities in the name, its instance for probabilities is not made.
        NNOPS_LAUNCH((cross_entropy_forward_kernel<T, false, false, kWide>), grid, threads, 0,
                     call);
      }
    });
  }
  // The smoothed part of no rows is NaN where there are no classes. torch's sum of no probabilities
  // is -0.0.
  const RowSums start{kProbabilities ? -0.0 : 0.0,
                      0 * (g.label_smoothing / static_cast<double>(g.classes)), 0};
  NNOPS_LAUNCH((finish_loss<T>), 1, kFinishThreads, 0, call.loss, static_cast<A*>(total_weight),
               static_cast<const RowSums*>(scratch.blocks), static_cast<int>(blocks), start,
               g.reduction, g.label_smoothing > 0 && !kProbabilities);
  return kProbabilities || blocks == 0 ? -1 : scratch.first_bad_row();
}

template <typename T>
static BackwardCall<T> backward_call(void* gradient, const void* grad_output, const void* input,
                                     const void* weight, const void* log_sum_exp,
                                     const ClassGeometry& geometry) {
  BackwardCall<T> call{};
  call.gradient = static_cast<T*>(gradient);
  call.grad_output = static_cast<const T*>(grad_output);
  call.input = static_cast<const T*>(input);
  call.weight = static_cast<const T*>(weight);
  call.row_max = static_cast<const acc_t<T>*>(log_sum_exp);
  call.row_log_sum = call.row_max + row_count(geometry);
  call.g = joined_rows(geometry);
  call.smoothing = smoothing_of<acc_t<T>>(call.g);
  call.lanes = row_plan<T>(call.g).lanes;
  call.aligned = rows_are_aligned(call.input, call.g.input) &&
                 rows_are_aligned(call.gradient, call.g.grad_input) && are_aligned(call.weight);
  return call;
}

template <typename T>
static int64_t forward_indices(void* loss, void* log_sum_exp, void* total_weight, const void* input,
                               const void* target, const void* weight, ClassSums*,
                               const ClassGeometry& g, int) {
  return forward<T, false>(loss, log_sum_exp, total_weight, input, target, weight, g);
}

template <typename T>
static int64_t forward_probabilities(void* loss, void* log_sum_exp, void* total_weight,
                                     const void* input, const void* target, const void* weight,
                                     ClassSums*, const ClassGeometry& g, int) {
  return forward<T, true>(loss, log_sum_exp, total_weight, input, target, weight, g);
}

template <typename T>
static int64_t backward_indices(void* grad_input, const void* grad_output, const void* input,
                                const void* target, const void* weight, const void* log_sum_exp,
                                const void* total_weight, ClassSums*, const ClassGeometry& g, int) {
  if (row_count(g) == 0) return -1;
  BackwardCall<T> call = backward_call<T>(grad_input, grad_output, input, weight, log_sum_exp, g);
  call.target = target;
  call.total_weight = static_cast<const acc_t<T>*>(total_weight);
  const ClassScratch scratch(0);
  call.bad_row = &scratch.words->bad_row;
  if (weight && call.smoothing.on) {
    call.weight_sum = &scratch.words->weight_sum;
    NNOPS_LAUNCH((sum_weights<T>), 1, kWeightSumThreads, 0, &scratch.words->weight_sum, call.weight,
                 g.classes);
  }
  const RowPlan plan = row_plan<T>(call.g);
  launch_rows<T>(plan, row_blocks(plan, call.g), [&](auto wide, unsigned grid, int threads) {
    NNOPS_LAUNCH((cross_entropy_backward_indices_kernel<T, decltype(wide)::value>), grid, threads,
                 0, call);
  });
  return scratch.first_bad_row();
}

template <typename T>
static int64_t backward_probabilities(void* grad_input, const void* grad_output, const void* input,
                                      const void* target, const void* weight,
                                      const void* log_sum_exp, const void* total_weight, ClassSums*,
                                      const ClassGeometry& g, int) {
  if (row_count(g) == 0) return -1;
  BackwardCall<T> call = backward_call<T>(grad_input, grad_output, input, weight, log_sum_exp, g);
  call.target = target;
  call.total_weight = static_cast<const acc_t<T>*>(total_weight);
  call.aligned = call.aligned && rows_are_aligned(static_cast<const T*>(target), call.g.target);
  const RowPlan plan = row_plan<T>(call.g);
  launch_rows<T>(plan, row_blocks(plan, call.g), [&](auto wide, unsigned grid, int threads) {
    NNOPS_LAUNCH((cross_entropy_backward_probabilities_kernel<T, decltype(wide)::value>), grid,
                 threads, 0, call);
  });
  return -1;
}

template <typename T>
static void backward_target(void* grad_target, const void* grad_output, const void* input,
                            const void* weight, const void* log_sum_exp, const ClassGeometry& g,
                            int) {
  if (row_count(g) == 0) return;
  BackwardCall<T> call = backward_call<T>(grad_target, grad_output, input, weight, log_sum_exp, g);
  const RowPlan plan = row_plan<T>(call.g);
  launch_rows<T>(plan, row_blocks(plan, call.g), [&](auto wide, unsigned grid, int threads) {
    NNOPS_LAUNCH((cross_entropy_backward_target_kernel<T, decltype(wide)::value>), grid, threads, 0,
                 call);
  });
}

extern const CrossEntropyKernels cross_entropy_kernels = {
    NNOPS_FLOAT_DTYPES(forward_indices), NNOPS_FLOAT_DTYPES(forward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_indices), NNOPS_FLOAT_DTYPES(backward_probabilities),
    NNOPS_FLOAT_DTYPES(backward_target)};

}  // namespace nnops::cuda
