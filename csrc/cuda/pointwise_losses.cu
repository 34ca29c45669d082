// pointwise_losses on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/pointwise_losses.h"

namespace nnops::cuda {

extern const PointwiseLossKernels pointwise_loss_kernels = {};

}  // namespace nnops::cuda
