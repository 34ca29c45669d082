#include "core/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "core/check.h"

namespace nnops {
namespace {

bool compiled_and_supported(Isa isa) {
  if (kCudaEmulated) return isa == Isa::kCuda;
  switch (isa) {
    case Isa::kDefault:
      return true;
    case Isa::kAvx2:
#ifdef NNOPS_HAVE_AVX2
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
#else
      return false;
#endif
    case Isa::kAvx512:
#ifdef NNOPS_HAVE_AVX512
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
      return false;
#endif
    case Isa::kCuda:  // no level of this CPU
      return false;
  }
  return false;
}

// The cap that an environment variable sets; the highest level when it is unset or unknown.
Isa environment_cap(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return Isa::kAvx512;
  const std::string_view name(value);
  if (name == "default") return Isa::kDefault;
  if (name == "avx2") return Isa::kAvx2;
  return Isa::kAvx512;
}

Isa initial_isa() {
  const Isa cap =
      std::min(environment_cap("ATEN_CPU_CAPABILITY"), environment_cap("NNOPS_CPU_CAPABILITY"));
  const std::vector<Isa> levels = available_isas();
  Isa best = levels.front();
  for (const Isa isa : levels) {
    if (isa <= cap) best = isa;
  }
  return best;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> level{initial_isa()};
  return level;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kDefault:
      return "default";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kCuda:
      return "cuda";
  }
  return "unknown";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> levels;
  for (const Isa isa : {Isa::kDefault, Isa::kAvx2, Isa::kAvx512, Isa::kCuda}) {
    if (compiled_and_supported(isa)) levels.push_back(isa);
  }
  return levels;
}

bool cpu_has_bfloat16_dots() {
#ifdef NNOPS_HAVE_AVX512
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_active_isa(const std::string& name) {
  for (const Isa isa : available_isas()) {
    if (name == isa_name(isa)) {
      active().store(isa, std::memory_order_relaxed);
      return;
    }
  }
  NNOPS_CHECK_VALUE(false, "set_isa: the level must be one that was compiled and that this CPU ",
                    "runs, but got '", name, "'");
}

}  // namespace nnops
