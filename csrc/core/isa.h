// Which instruction-set level the CPU kernels run at; CUDA counts as one more set.
//
// The level is the lowest of: what was compiled, what cpuid reports, the environment variable
// ATEN_CPU_CAPABILITY (torch's own) and NNOPS_CPU_CAPABILITY ("default", "avx2", "avx512"). What a
// call runs is that level for CPU tensors and kCuda for CUDA tensors (core/device_scope.h). In the
// emulated extension, whose only kernels are CUDA's, kCuda is the one level.
// This file and isa.cpp are compiled without ISA flags.
#pragma once

#include <string>
#include <vector>

namespace nnops {

enum class Isa : int { kDefault = 0, kAvx2 = 1, kAvx512 = 2, kCuda = 3 };
inline constexpr int kIsaCount = 4;

// NNOPS_HAVE_CUDA says that CUDA kernels are linked; NNOPS_CUDA_EMULATED that they were compiled
// for the emulator and get CPU tensors.
#ifdef NNOPS_HAVE_CUDA
inline constexpr bool kHaveCuda = true;
#else
inline constexpr bool kHaveCuda = false;
#endif
#ifdef NNOPS_CUDA_EMULATED
inline constexpr bool kCudaEmulated = true;
#else
inline constexpr bool kCudaEmulated = false;
#endif

const char* isa_name(Isa isa);

// Levels for CPU tensors that are compiled in and that this CPU runs, lowest first.
std::vector<Isa> available_isas();

Isa active_isa();

// Whether AVX512_BF16's dot products are compiled in, and this CPU has them. Kernels of the AVX-512
// level that use them are chosen for that; it is no level of its own.
bool cpu_has_bfloat16_dots();

// Switches the level of the whole process; throws std::invalid_argument for an unavailable one.
void set_active_isa(const std::string& name);

}  // namespace nnops
