// conv2d on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/conv2d.h"

namespace nnops::cuda {

extern const Conv2dKernels conv2d_kernels = {};

}  // namespace nnops::cuda
