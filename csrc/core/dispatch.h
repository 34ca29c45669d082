// From (operator, dtype, geometry) to the kernel that runs, and a record of what was chosen.
//
// An operator with several algorithms keeps an ordered list of `Algorithm`; each answers
// `supports(geometry, dtype)` with "" or the reason why not, the first that accepts runs, and the
// reference is last and always accepts. NNOPS_VERBOSE=dispatch prints the list with its reasons,
// and a trace hands them to Python (`nnops.explain`).
//
// A choice is made anew at every call: for conv2d it takes less than 0.1 us (Xeon with AVX-512), so
// there is no table of earlier ones. Where an operator has one of measured winners, such a winner
// goes before the order of the list.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "core/isa.h"
#include "core/kernel_table.h"

namespace nnops {

const char* dtype_name(DType dtype);
// ValueError for a name that no dtype has.
DType dtype_named(const std::string& name);

// float32, float64, bfloat16 and float16, with which the enum begins.
constexpr bool is_floating(DType dtype) { return dtype <= DType::kFloat16; }

struct Choice {
  const char* op = "";
  const char* algorithm = "";
  Isa isa = Isa::kDefault;
};

// What the calling thread ran last.
const Choice& last_choice();
void record_choice(const char* op, const char* algorithm, DType dtype, Isa isa);

// One candidate of a choice: the reason why it was not taken, "" for the one that was.
struct Candidacy {
  std::string algorithm;
  std::string reason;
};
struct TracedCall {
  std::string op;
  DType dtype = DType::kFloat32;
  Isa isa = Isa::kDefault;
  int threads = 0;  // 0 where the kernel did not ask (nothing to compute)
  std::vector<Candidacy> candidates;
};

// The calls of the calling thread from start_trace on, in order; stop_trace hands them over.
void start_trace();
std::vector<TracedCall> stop_trace();

// Whether somebody wants the reasons: a trace, or NNOPS_VERBOSE=dispatch.
bool reasons_wanted();
// The candidates of the call whose kernel record_choice will name.
void record_candidates(std::vector<Candidacy> candidates);
void record_threads(int threads);

// Every algorithm list that operators registered, for `python -m nnops info`. CUDA's are those of
// the CPU where an operator registers none for CUDA.
struct AlgorithmList {
  std::string op;
  std::vector<std::string> algorithms;
  std::vector<std::string> cuda_algorithms;
};
std::vector<AlgorithmList>& algorithm_lists();
struct RegisterAlgorithms {
  RegisterAlgorithms(const char* op, std::vector<std::string> algorithms,
                     std::vector<std::string> cuda_algorithms = {}) {
    if (cuda_algorithms.empty()) cuda_algorithms = algorithms;
    algorithm_lists().push_back({op, std::move(algorithms), std::move(cuda_algorithms)});
  }
};

// `isa` is the call's: DeviceScope::isa().
template <typename Kernels>
const Kernels& active_kernels(const KernelTable<Kernels>& table, Isa isa) {
  return *table.per_isa[static_cast<int>(isa)];
}

template <typename Function>
Function kernel_for(const char* op, const char* algorithm, const PerDType<Function>& kernels,
                    DType dtype, Isa isa) {
  const Function function = kernels.entries[static_cast<int>(dtype)];
  NNOPS_CHECK_NOT_IMPLEMENTED(function != nullptr, op, ": not implemented for dtype ",
                              dtype_name(dtype), isa == Isa::kCuda ? " on CUDA" : "");
  record_choice(op, algorithm, dtype, isa);
  return function;
}

// The algorithm that choose_algorithm must take for `op` on the calling thread ("" for none): for
// `nnops.conv_algorithm`, tests and benchmarks. Returns the one before; ValueError for one that
// `op` does not have.
std::string force_algorithm(const std::string& op, const std::string& algorithm);
const std::string& forced_algorithm(const char* op);
bool is_any_forced();  // on the calling thread

// The reason why not, of two that must both be empty.
inline std::string first_reason(std::string first, std::string second) {
  return first.empty() ? std::move(second) : std::move(first);
}

template <typename Kernels, typename Entry, typename Geometry>
struct Algorithm {
  const char* name;
  // "" if the algorithm can do it, else the reason why not. Never throws.
  std::string (*supports)(const Geometry& geometry, DType dtype);
  // Where the algorithm's kernels stand in the operator's kernel struct.
  Entry Kernels::* entry;
  // "" if it is likely the fastest of those that remain, else the reason why not: it is then taken
  // only when forced or measured. Null for an algorithm that takes all it supports. Never throws.
  std::string (*pays)(const Geometry& geometry, DType dtype) = nullptr;
  // "" if the settings of the call allow it, else the reason why not: it is then taken only when
  // forced. Null for an algorithm that is always allowed. Never throws.
  std::string (*allowed)(const Geometry& geometry, DType dtype) = nullptr;
};

// "" if a choice may take the algorithm, whether or not it pays.
template <typename Algorithm, typename Geometry>
std::string reason_against(const Algorithm& algorithm, const Geometry& geometry, DType dtype) {
  std::string reason = algorithm.supports(geometry, dtype);
  if (reason.empty() && algorithm.allowed != nullptr) reason = algorithm.allowed(geometry, dtype);
  return reason;
}

// The algorithms of an operator with lists of its own for the CPU and for CUDA.
template <typename Algorithm>
struct AlgorithmsByDevice {
  std::span<const Algorithm> cpu;
  std::span<const Algorithm> cuda;

  std::span<const Algorithm> of(Isa isa) const { return isa == Isa::kCuda ? cuda : cpu; }
};

template <typename Algorithm>
std::vector<std::string> names_of(std::span<const Algorithm> list) {
  std::vector<std::string> names;
  for (const Algorithm& algorithm : list) names.emplace_back(algorithm.name);
  return names;
}

// The algorithm of that name; null if it may not be taken, and without a name.
template <typename Algorithm, typename Geometry>
const Algorithm* measured_choice(std::span<const Algorithm> list, const char* measured,
                                 const Geometry& geometry, DType dtype) {
  if (measured == nullptr) return nullptr;
  for (const Algorithm& algorithm : list) {
    if (std::string_view(algorithm.name) != measured) continue;
    return reason_against(algorithm, geometry, dtype).empty() ? &algorithm : nullptr;
  }
  return nullptr;
}

// The one that is forced; or else `measured`, the name of the fastest of those measured (null if
// none was), if it may be taken; or else the first algorithm of `list` that accepts the problem.
template <typename Algorithm, typename Geometry>
const Algorithm& choose_algorithm(const char* op, std::span<const Algorithm> list,
                                  const Geometry& geometry, DType dtype,
                                  const char* measured = nullptr) {
  const std::string& forced = forced_algorithm(op);
  const bool explain = reasons_wanted();
  if (forced.empty()) {
    const Algorithm* fastest = measured_choice(list, measured, geometry, dtype);
    if (fastest != nullptr) {
      if (explain) {
        std::vector<Candidacy> candidates;
        for (const Algorithm& algorithm : list) {
          const bool chosen = &algorithm == fastest;
          candidates.push_back(
              {algorithm.name,
               chosen ? "" : concat(measured, " is the fastest of those measured")});
        }
        record_candidates(std::move(candidates));
      }
      return *fastest;
    }
  }
  const Algorithm* chosen = nullptr;
  std::vector<Candidacy> candidates;
  for (const Algorithm& algorithm : list) {
    std::string reason;
    if (chosen != nullptr) {
      reason = concat("after ", chosen->name);
    } else {
      if (forced.empty()) {
        reason = reason_against(algorithm, geometry, dtype);
        if (reason.empty() && algorithm.pays != nullptr) reason = algorithm.pays(geometry, dtype);
      } else if (forced == algorithm.name) {
        reason = algorithm.supports(geometry, dtype);
      } else {
        reason = concat(forced, " is forced");
      }
      if (reason.empty()) chosen = &algorithm;
    }
    if (explain) {
      candidates.push_back({algorithm.name, std::move(reason)});
    } else if (chosen != nullptr) {
      break;
    }
  }
  if (explain) record_candidates(std::move(candidates));
  if (chosen != nullptr) return *chosen;
  NNOPS_CHECK(forced.empty(), op, ": the forced algorithm '", forced,
              "' cannot compute this problem in ", dtype_name(dtype));
  NNOPS_CHECK_NOT_IMPLEMENTED(false, op, ": not implemented for dtype ", dtype_name(dtype));
  return list.back();
}

}  // namespace nnops
