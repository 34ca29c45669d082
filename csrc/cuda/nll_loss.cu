// Launches the kernels of nll_loss.
#include "cuda/nll_loss.cuh"

#include "ops/nll_loss.h"

namespace nnops::cuda {

template <typename T>
static int64_t nll_loss_forward(void* loss, void* total_weight, const void* input,
                                const void* target, const void* weight, ClassSums*,
                                const ClassGeometry& geometry, int) {
  const ClassGeometry g = joined_rows(geometry);
  const unsigned blocks = summing_blocks(g, kNllThreads);
  const ClassScratch scratch(blocks);
  if (blocks > 0) {
    NNOPS_LAUNCH((nll_loss_forward_kernel<T>), blocks, kNllThreads, 0, static_cast<T*>(loss),
                 static_cast<const T*>(input), target, static_cast<const T*>(weight),
                 scratch.blocks, &scratch.words->bad_row, g);
  }
  NNOPS_LAUNCH((finish_loss<T>), 1, kFinishThreads, 0, static_cast<T*>(loss),
               static_cast<acc_t<T>*>(total_weight), static_cast<const RowSums*>(scratch.blocks),
               static_cast<int>(blocks), RowSums{}, g.reduction, false);
  return blocks > 0 ? scratch.first_bad_row() : -1;
}

// Narrower planes would leave most of a warp's stores apart from each other.
constexpr int64_t kLeastPlane = kWarpSize;
// With more classes than this, the second pass over each row's one value costs next to nothing.
constexpr int64_t kMostPlaneClasses = 256;

template <typename T>
static int64_t nll_loss_backward(void* grad_input, const void* grad_output, const void* target,
                                 const void* weight, const void* total_weight, ClassSums*,
                                 const ClassGeometry& geometry, int) {
  if (row_count(geometry) == 0) return -1;
  ClassGeometry g = geometry;
  g.grad_input = {g.classes * g.spatial, g.spatial, 1};
  const bool planes = g.spatial >= kLeastPlane && g.classes <= kMostPlaneClasses;
  if (!planes) {
    set_zero(grad_input, row_count(g) * g.classes * static_cast<int64_t>(sizeof(T)));
  }
  g = joined_rows(g);
  const ClassScratch scratch(0);
  const unsigned blocks = grid_stride_blocks(row_count(g), kNllThreads);
  T* to = static_cast<T*>(grad_input);
  const T* from = static_cast<const T*>(grad_output);
  const T* weights = static_cast<const T*>(weight);
  const acc_t<T>* total = static_cast<const acc_t<T>*>(total_weight);
  BadRow* bad_row = &scratch.words->bad_row;
  if (planes) {
    NNOPS_LAUNCH((nll_loss_planes_kernel<T>), blocks, kNllThreads, 0, to, from, target, weights,
                 total, bad_row, g);
  } else {
    NNOPS_LAUNCH((nll_loss_scatter_kernel<T>), blocks, kNllThreads, 0, to, from, target, weights,
                 total, bad_row, g);
  }
  return scratch.first_bad_row();
}

extern const NllLossKernels nll_loss_kernels = {NNOPS_FLOAT_DTYPES(nll_loss_forward),
                                                NNOPS_FLOAT_DTYPES(nll_loss_backward)};

}  // namespace nnops::cuda
