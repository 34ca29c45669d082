// relu on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/relu.h"

namespace nnops::cuda {

extern const ReluKernels relu_kernels = {};

}  // namespace nnops::cuda
