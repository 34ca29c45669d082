// max_pool2d on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/max_pool2d.h"

namespace nnops::cuda {

extern const MaxPool2dKernels max_pool2d_kernels = {};

}  // namespace nnops::cuda
