// simt.h under nvcc: CUDA's own, with wrappers around inline PTX.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "core/cuda.h"

#define NNOPS_SHARED(type, name, count) __shared__ __align__(16) type name[count]

// One name for all kernels of a file, which must agree on its type.
extern __shared__ uint4 nnops_dynamic_shared[];
#define NNOPS_SHARED_DYNAMIC(type, name) \
  type* const name = reinterpret_cast<type*>(::nnops_dynamic_shared)

#define NNOPS_LAUNCH(kernel, grid, block, dynamic_shared_bytes, ...)                     \
  do {                                                                                   \
    const size_t nnops_shared_bytes = (dynamic_shared_bytes);                            \
    ::nnops::cuda::allow_shared_bytes(reinterpret_cast<const void*>(&(kernel)), #kernel, \
                                      nnops_shared_bytes);                               \
    (kernel)<<<(grid), (block), nnops_shared_bytes,                                      \
               static_cast<cudaStream_t>(::nnops::cuda_stream())>>>(__VA_ARGS__);        \
    ::nnops::cuda::check(cudaGetLastError(), #kernel);                                   \
  } while (false)

namespace nnops::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // said once: the next launch is not to blame
  throw_cuda_error(what, cudaGetErrorString(error));
}

// A launch with more than 48 KiB must be announced, and a kernel's static arrays count too: of
// those a kernel that has a dynamic one declares at most 8 KiB.
inline void allow_shared_bytes(const void* kernel, const char* name, size_t bytes) {
  if (bytes <= 40 << 10) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        name);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }
// 75 for sm_75.
inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
         device_attribute(cudaDevAttrComputeCapabilityMinor);
}
// What the code of a kernel was compiled for that the current device runs: less than the device's
// compute capability where the binary has only PTX for it, and 0 where it has nothing.
template <auto kKernel>
int architecture_of() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  int architecture = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (architecture == 0) {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kKernel)) != cudaSuccess) {
      (void)cudaGetLastError();  // a launch will say it
      return 0;
    }
    architecture = attributes.ptxVersion;
    if (device < kDevices) known[device].store(architecture, std::memory_order_relaxed);
  }
  return architecture;
}
inline size_t shared_memory_limit() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

inline void copy_to_host(void* host, const void* device, size_t bytes) {
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda_stream());
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}
inline void set_zero(void* device, size_t bytes) {
  check(cudaMemsetAsync(device, 0, bytes, static_cast<cudaStream_t>(cuda_stream())),
        "cudaMemsetAsync");
}

// What only sm_80 and later have is compiled for them alone.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define NNOPS_SM_80 0
#else
#define NNOPS_SM_80 1
#endif

// --- asynchronous copies ------------------------------------------------------------------------

namespace detail {

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

template <int kBytes>
using Word =
    std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 8, uint2, uint4>>;

}  // namespace detail

template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if NNOPS_SM_80
  const uint32_t target = detail::shared_address(shared);
  const int source_bytes = valid ? kBytes : 0;  // the rest is filled with zeros
  if constexpr (kBytes == 16) {
    // .cg: by way of L2 alone, which only 16 bytes have; the lines are wanted once per block.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global),
                 "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
#else
  using Word = detail::Word<kBytes>;
  *static_cast<Word*>(shared) = valid ? *static_cast<const Word*>(global) : Word{};
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if NNOPS_SM_80
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kGroupsInFlight>
__device__ __forceinline__ void copy_async_wait() {
#if NNOPS_SM_80
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsInFlight) : "memory");
#endif
}

// --- matrices -----------------------------------------------------------------------------------

struct bfloat16;
struct float16;

#if NNOPS_SM_80
inline constexpr bool kMmaHasBFloat16 = true;
#else
inline constexpr bool kMmaHasBFloat16 = false;
#endif

__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(detail::shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4],
                                                          const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(detail::shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void load_matrix_x2(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(detail::shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void load_matrix_x2_transposed(uint32_t (&r)[2],
                                                          const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(detail::shared_address(shared_row))
               : "memory");
}

// The lanes of a warp meet in mma: volatile, so that no branch comes around it.
template <typename Number>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], Number) {
  static_assert(std::is_same_v<Number, bfloat16> || std::is_same_v<Number, float16>);
#if NNOPS_SM_80
  if constexpr (std::is_same_v<Number, bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  if constexpr (std::is_same_v<Number, float16>) {
    // k = 0 to 7 are in the first halves of both fragments.
    for (int half = 0; half < 2; ++half) {
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
          "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
  } else {
    __trap();  // the launcher takes another algorithm there
  }
#endif
}

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
#if NNOPS_SM_80
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // the launcher takes another algorithm there
#endif
}

// Rounds to TF32, ties away from zero; the bits that mma_m16n8k8_tf32 takes.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#if NNOPS_SM_80
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return __float_as_uint(value);
#endif
}

}  // namespace nnops::cuda
