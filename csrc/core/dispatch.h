// From (operator, dtype, geometry) to the kernel that runs, and a record of what was chosen.
//
// An operator with several algorithms keeps an ordered list of `Algorithm`; each answers
// `supports(geometry, dtype)` with "" or the reason why not, the first that accepts runs, and the
// reference is last and always accepts. NNOPS_VERBOSE=dispatch prints the list with its reasons.
#pragma once

#include <string>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "core/isa.h"
#include "core/kernel_table.h"

namespace nnops {

const char* dtype_name(DType dtype);

struct Choice {
  const char* op = "";
  const char* algorithm = "";
  Isa isa = Isa::kDefault;
};

// What the calling thread ran last.
const Choice& last_choice();
void record_choice(const char* op, const char* algorithm, Isa isa);

bool verbose_dispatch();
void print_rejected(const char* op, const char* algorithm, const std::string& reason);

// Every algorithm list that operators registered, for `python -m nnops info`.
struct AlgorithmList {
  std::string op;
  std::vector<std::string> algorithms;
};
std::vector<AlgorithmList>& algorithm_lists();
struct RegisterAlgorithms {
  RegisterAlgorithms(const char* op, std::vector<std::string> algorithms) {
    algorithm_lists().push_back({op, std::move(algorithms)});
  }
};

template <typename Kernels>
const Kernels& active_kernels(const KernelTable<Kernels>& table) {
  return *table.per_isa[static_cast<int>(active_isa())];
}

template <typename Function>
Function kernel_for(const char* op, const char* algorithm, const PerDType<Function>& kernels,
                    DType dtype) {
  const Function function = kernels.entries[static_cast<int>(dtype)];
  NNOPS_CHECK_NOT_IMPLEMENTED(function != nullptr, op, ": not implemented for dtype ",
                              dtype_name(dtype));
  record_choice(op, algorithm, active_isa());
  return function;
}

template <typename Kernels, typename Geometry, typename Function>
struct Algorithm {
  const char* name;
  std::string (*supports)(const Geometry& geometry, DType dtype);
  PerDType<Function> Kernels::* kernels;
};

// The first algorithm of `list` that accepts the problem.
template <typename Kernels, typename Geometry, typename Function, size_t kSize>
Function choose_kernel(const char* op, const Algorithm<Kernels, Geometry, Function> (&list)[kSize],
                       const KernelTable<Kernels>& table, const Geometry& geometry, DType dtype) {
  for (const auto& algorithm : list) {
    const std::string reason = algorithm.supports(geometry, dtype);
    if (reason.empty()) {
      return kernel_for(op, algorithm.name, active_kernels(table).*algorithm.kernels, dtype);
    }
    if (verbose_dispatch()) print_rejected(op, algorithm.name, reason);
  }
  NNOPS_CHECK_NOT_IMPLEMENTED(false, op, ": not implemented for dtype ", dtype_name(dtype));
  return nullptr;
}

}  // namespace nnops
