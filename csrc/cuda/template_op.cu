// template_op on CUDA: no kernels yet, so that its operators answer with NotImplementedError.
#include "ops/template_op.h"

namespace nnops::cuda {

extern const TemplateOpKernels template_op_kernels = {};

}  // namespace nnops::cuda
