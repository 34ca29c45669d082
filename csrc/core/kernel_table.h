// The kernel table: from an operator's kernel struct to the copy compiled for the active ISA.
//
// Every operator declares one struct of function pointers in csrc/ops/<op>.h. csrc/cpu/<op>.cpp
// defines a constant of that struct and is compiled once per ISA level, each time in a namespace
// of its own. NNOPS_DECLARE_KERNELS declares all the copies, NNOPS_KERNEL_TABLE collects them.
// No torch headers, and nothing here has a constructor that runs at load time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

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

// To be used inside namespace nnops.
#define NNOPS_DECLARE_KERNELS(Kernels, name) \
  namespace cpu_default {                    \
  extern const Kernels name;                 \
  }                                          \
  NNOPS_DECLARE_AVX2(Kernels, name)          \
  NNOPS_DECLARE_AVX512(Kernels, name)

#define NNOPS_KERNEL_TABLE(name)                                           \
  {                                                                        \
    {                                                                      \
      &cpu_default::name, NNOPS_AVX2_ENTRY(name), NNOPS_AVX512_ENTRY(name) \
    }                                                                      \
  }

namespace nnops {

// Indexed by Isa (core/isa.h).
template <typename Kernels>
struct KernelTable {
  const Kernels* per_isa[3];
};

}  // namespace nnops
