// The kernel table: from an operator's kernel struct to the copy compiled for the ISA of a call.
//
// Every operator declares one struct of function pointers in csrc/ops/<op>.h. csrc/cpu/<op>.cpp
// defines a constant of that struct and is compiled once per ISA level, each time in a namespace
// of its own; csrc/cuda/<op>.cu defines another one in the namespace cuda. NNOPS_DECLARE_KERNELS
// declares all the copies, NNOPS_KERNEL_TABLE collects them. The emulated extension
// (NNOPS_CUDA_EMULATED) has no CPU kernels: CUDA's entry is the only one there.
// No torch headers, and nothing here has a constructor that runs at load time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"

#ifdef NNOPS_HAVE_AVX2
#define NNOPS_DECLARE_AVX2(Kernels, name) \
  namespace cpu_avx2 {                    \
  extern const Kernels name;              \
  }
#define NNOPS_AVX2_ENTRY(name) &cpu_avx2::name
#else
#define NNOPS_DECLARE_AVX2(Kernels, name)
#define NNOPS_AVX2_ENTRY(name) nullptr
#endif

#ifdef NNOPS_HAVE_AVX512
#define NNOPS_DECLARE_AVX512(Kernels, name) \
  namespace cpu_avx512 {                    \
  extern const Kernels name;                \
  }
#define NNOPS_AVX512_ENTRY(name) &cpu_avx512::name
#else
#define NNOPS_DECLARE_AVX512(Kernels, name)
#define NNOPS_AVX512_ENTRY(name) nullptr
#endif

#ifdef NNOPS_HAVE_CUDA
#define NNOPS_DECLARE_CUDA(Kernels, name) \
  namespace cuda {                        \
  extern const Kernels name;              \
  }
#define NNOPS_CUDA_ENTRY(name) &cuda::name
#else
#define NNOPS_DECLARE_CUDA(Kernels, name)
#define NNOPS_CUDA_ENTRY(name) nullptr
#endif

// To be used inside namespace nnops. The kernels of csrc/core itself have no copy for CUDA.
#ifdef NNOPS_CUDA_EMULATED
#define NNOPS_DECLARE_CPU_KERNELS(Kernels, name)
#define NNOPS_CPU_ENTRIES(name) nullptr, nullptr, nullptr
#else
#define NNOPS_DECLARE_CPU_KERNELS(Kernels, name) \
  namespace cpu_default {                        \
  extern const Kernels name;                     \
  }                                              \
  NNOPS_DECLARE_AVX2(Kernels, name)              \
  NNOPS_DECLARE_AVX512(Kernels, name)
#define NNOPS_CPU_ENTRIES(name) &cpu_default::name, NNOPS_AVX2_ENTRY(name), NNOPS_AVX512_ENTRY(name)
#endif

#define NNOPS_DECLARE_KERNELS(Kernels, name) \
  NNOPS_DECLARE_CPU_KERNELS(Kernels, name)   \
  NNOPS_DECLARE_CUDA(Kernels, name)

#define NNOPS_KERNEL_TABLE(name)                      \
  {                                                   \
    {                                                 \
      NNOPS_CPU_ENTRIES(name), NNOPS_CUDA_ENTRY(name) \
    }                                                 \
  }
#define NNOPS_CPU_KERNEL_TABLE(name)   \
  {                                    \
    {                                  \
      NNOPS_CPU_ENTRIES(name), nullptr \
    }                                  \
  }

namespace nnops {

// Indexed by Isa.
template <typename Kernels>
struct KernelTable {
  const Kernels* per_isa[kIsaCount];
};

}  // namespace nnops
