// nll_loss on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/nll_loss.h"

namespace nnops::cuda {

extern const NllLossKernels nll_loss_kernels = {};

}  // namespace nnops::cuda
