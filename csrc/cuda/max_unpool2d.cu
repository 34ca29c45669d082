// max_unpool2d on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/max_unpool2d.h"

namespace nnops::cuda {

extern const MaxUnpool2dKernels max_unpool2d_kernels = {};

}  // namespace nnops::cuda
