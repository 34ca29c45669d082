// The part of CUDA that nnops' kernels may use, for two compilers.
//
// Under nvcc it is CUDA itself. Under g++ with NNOPS_CUDA_EMULATED it is an emulator, which runs
// every thread of a launch on the CPU and reports what they do wrong (emulation/README.md). Kernels
// include no other header of CUDA. Plain CUDA is spelled plainly: __global__, threadIdx,
// __syncthreads, __syncthreads_or/and/count, __syncwarp, __shfl_*_sync, __ballot/any/all_sync,
// atomicAdd/Max/Min/Or/Exch/CAS on integers, __ldg, float4 and its kin, __popc, __ffs, __clz.
// Spelled differently, for the emulator's sake:
//
//   NNOPS_SHARED(type, name, count);          a shared array, aligned to 16 bytes
//   NNOPS_SHARED_DYNAMIC(type, name);         the dynamic one; one per kernel
//   NNOPS_LAUNCH((kernel<float, 4>), grid, block, dynamic_shared_bytes, arguments...);
//                                             on the stream of the call; throws what goes wrong
//   copy_async<bytes>(shared, global, valid)  cp.async of 4, 8 or 16 bytes; zeros where !valid,
//   copy_async_commit(), copy_async_wait<N>() where `global` is not read; plain copies on sm_75
//   load_matrix_x4, _x2, _x4_transposed, _x2_transposed      ldmatrix of matrices of 8 x 8 halves
//   mma_m16n8k16(d, a, b, float16() or bfloat16()), mma_m16n8k8_tf32(d, a, b), to_tf32(x)
//                                             warp-wide D += A B in float32, fragments as in PTX;
//                                             bfloat16 and TF32 from sm_80 on: in device code
//                                             kMmaHasBFloat16, in a launcher architecture_of
//   copy_to_host(host, device, bytes)         waits for the stream
//   set_zero(device, bytes)
//   multiprocessor_count(), compute_capability(), shared_memory_limit()
//                                             of the current device: 80 for sm_80; bytes that a
//                                             block may have at most
//   architecture_of<kernel>()                 80 where the current device runs a kernel's code for
//                                             sm_80, however new the device is
//
// Functions of nnops are in namespace nnops::cuda.
#pragma once

#if defined(NNOPS_CUDA_EMULATED)
#include "cuda/emulation/device.h"
#else
#include "cuda/simt_nvcc.h"
#endif
