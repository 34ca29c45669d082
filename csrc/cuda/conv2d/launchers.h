// The functions of conv2d's algorithms on CUDA, each defined and instantiated in one .cu file and
// named in the table of conv2d.cu. The signatures are those of ops/conv2d.h.
#pragma once

#include "cuda/numbers.cuh"
#include "ops/conv2d.h"

namespace nnops::cuda {

// implicit_gemm.cu
template <typename T>
int64_t implicit_gemm_forward_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void implicit_gemm_forward(void* output, const void* input, const void* weight, const void* bias,
                           const Conv2dGeometry& geometry, void* workspace, int threads);
template <typename T>
int64_t implicit_gemm_backward_input_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void implicit_gemm_backward_input(void* grad_input, const void* grad_output, const void* weight,
                                  const Conv2dGeometry& geometry, void* workspace, int threads);

// implicit_gemm_weight.cu
template <typename T>
int64_t implicit_gemm_backward_weight_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void implicit_gemm_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                   const Conv2dGeometry& geometry, void* workspace, int threads);

// direct.cu
template <typename T>
int64_t direct_forward_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void direct_forward(void* output, const void* input, const void* weight, const void* bias,
                    const Conv2dGeometry& geometry, void* workspace, int threads);
template <typename T>
int64_t direct_backward_input_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void direct_backward_input(void* grad_input, const void* grad_output, const void* weight,
                           const Conv2dGeometry& geometry, void* workspace, int threads);
template <typename T>
int64_t direct_backward_weight_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void direct_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                            const Conv2dGeometry& geometry, void* workspace, int threads);

// tensor_cores.cu; float stands for TF32.
int tensor_core_architecture();
template <typename T>
int64_t tensor_cores_forward_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void tensor_cores_forward(void* output, const void* input, const void* weight, const void* bias,
                          const Conv2dGeometry& geometry, void* workspace, int threads);
template <typename T>
int64_t tensor_cores_backward_input_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void tensor_cores_backward_input(void* grad_input, const void* grad_output, const void* weight,
                                 const Conv2dGeometry& geometry, void* workspace, int threads);

// tensor_cores_weight.cu
template <typename T>
int64_t tensor_cores_backward_weight_workspace(const Conv2dGeometry& geometry, int threads);
template <typename T>
void tensor_cores_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                  const Conv2dGeometry& geometry, void* workspace, int threads);

// reference.cu
template <typename T>
void reference_forward(void* output, const void* input, const void* weight, const void* bias,
                       const Conv2dGeometry& geometry, void* workspace, int threads);
template <typename T>
void reference_backward_input(void* grad_input, const void* grad_output, const void* weight,
                              const Conv2dGeometry& geometry, void* workspace, int threads);
template <typename T>
void reference_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                               const Conv2dGeometry& geometry, void* workspace, int threads);

}  // namespace nnops::cuda
