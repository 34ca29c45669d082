// conv2d on CUDA: the kernel struct.
#include "cuda/conv2d/launchers.h"

// The dtypes that tensor cores multiply, float32 as TF32.
#define NNOPS_TENSOR_CORE_DTYPES(function)                            \
  {                                                                   \
    {                                                                 \
      function<float>, nullptr, function<bfloat16>, function<float16> \
    }                                                                 \
  }

namespace nnops::cuda {

extern const Conv2dKernels conv2d_kernels = {
    .forward_reference = {.run = NNOPS_ALL_DTYPES(reference_forward)},
    .backward_input_reference = {.run = NNOPS_ALL_DTYPES(reference_backward_input)},
    .backward_weight_reference = {.run = NNOPS_ALL_DTYPES(reference_backward_weight)},
    .forward_direct = {NNOPS_FLOAT_DTYPES(direct_forward_workspace),
                       NNOPS_FLOAT_DTYPES(direct_forward)},
    .backward_input_direct = {NNOPS_FLOAT_DTYPES(direct_backward_input_workspace),
                              NNOPS_FLOAT_DTYPES(direct_backward_input)},
    .backward_weight_direct = {NNOPS_FLOAT_DTYPES(direct_backward_weight_workspace),
                               NNOPS_FLOAT_DTYPES(direct_backward_weight)},
    .forward_implicit_gemm = {NNOPS_FLOAT_DTYPES(implicit_gemm_forward_workspace),
                              NNOPS_FLOAT_DTYPES(implicit_gemm_forward)},
    .backward_input_implicit_gemm = {NNOPS_FLOAT_DTYPES(implicit_gemm_backward_input_workspace),
                                     NNOPS_FLOAT_DTYPES(implicit_gemm_backward_input)},
    .backward_weight_implicit_gemm = {NNOPS_FLOAT_DTYPES(implicit_gemm_backward_weight_workspace),
                                      NNOPS_FLOAT_DTYPES(implicit_gemm_backward_weight)},
    .forward_tensor_cores = {NNOPS_TENSOR_CORE_DTYPES(tensor_cores_forward_workspace),
                             NNOPS_TENSOR_CORE_DTYPES(tensor_cores_forward)},
    .backward_input_tensor_cores = {NNOPS_TENSOR_CORE_DTYPES(tensor_cores_backward_input_workspace),
                                    NNOPS_TENSOR_CORE_DTYPES(tensor_cores_backward_input)},
    .backward_weight_tensor_cores = {NNOPS_TENSOR_CORE_DTYPES(
                                         tensor_cores_backward_weight_workspace),
                                     NNOPS_TENSOR_CORE_DTYPES(tensor_cores_backward_weight)},
    .tensor_core_architecture = tensor_core_architecture,
};

}  // namespace nnops::cuda
