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

// float32, float64, bfloat16 and float16, with which the enum begins.
constexpr bool is_floating(DType dtype) { return dtype <= DType::kFloat16; }

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

// The algorithm that choose_algorithm must take for `op` ("" for none): for tests and benchmarks.
void force_algorithm(const std::string& op, const std::string& algorithm);
std::string forced_algorithm(const char* op);

template <typename Kernels, typename Entry, typename Geometry>
struct Algorithm {
  const char* name;
  // "" if the algorithm can do it, else the reason why not. Never throws.
  std::string (*supports)(const Geometry& geometry, DType dtype);
  // Where the algorithm's kernels stand in the operator's kernel struct.
  Entry Kernels::* entry;
  // "" if it is likely the fastest of those that remain, else the reason why not: it is then taken
  // only when forced. Null for an algorithm that takes all it supports. Never throws.
  std::string (*pays)(const Geometry& geometry, DType dtype) = nullptr;
};

// The first algorithm of `list` that accepts the problem.
template <typename Kernels, typename Entry, typename Geometry, size_t kSize>
const Algorithm<Kernels, Entry, Geometry>& choose_algorithm(
    const char* op, const Algorithm<Kernels, Entry, Geometry> (&list)[kSize],
    const Geometry& geometry, DType dtype) {
  const std::string forced = forced_algorithm(op);
  for (const auto& algorithm : list) {
    std::string reason = algorithm.supports(geometry, dtype);
    if (!forced.empty()) {
      if (forced != algorithm.name) reason = "'" + forced + "' is forced";
    } else if (reason.empty() && algorithm.pays != nullptr) {
      reason = algorithm.pays(geometry, dtype);
    }
    if (reason.empty()) return algorithm;
    if (verbose_dispatch()) print_rejected(op, algorithm.name, reason);
  }
  NNOPS_CHECK(forced.empty(), op, ": the forced algorithm '", forced,
              "' cannot compute this problem in ", dtype_name(dtype));
  NNOPS_CHECK_NOT_IMPLEMENTED(false, op, ": not implemented for dtype ", dtype_name(dtype));
  return list[kSize - 1];
}

}  // namespace nnops
