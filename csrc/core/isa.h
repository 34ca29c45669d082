// Which instruction-set level the CPU kernels run at.
//
// The level is the lowest of: what was compiled, what cpuid reports, the environment variable
// ATEN_CPU_CAPABILITY (torch's own) and NNOPS_CPU_CAPABILITY ("default", "avx2", "avx512").
// This file and isa.cpp are compiled without ISA flags.
#pragma once

#include <string>
#include <vector>

namespace nnops {

enum class Isa : int { kDefault = 0, kAvx2 = 1, kAvx512 = 2 };
inline constexpr int kIsaCount = 3;

const char* isa_name(Isa isa);

// Levels that are compiled in and that this CPU runs, lowest first.
std::vector<Isa> available_isas();

Isa active_isa();

// Switches the level of the whole process; throws std::invalid_argument for an unavailable one.
void set_active_isa(const std::string& name);

}  // namespace nnops
