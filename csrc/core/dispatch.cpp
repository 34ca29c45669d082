#include "core/dispatch.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>

namespace nnops {
namespace {

thread_local Choice t_last_choice;
thread_local std::optional<std::vector<TracedCall>> t_trace;
thread_local std::vector<Candidacy> t_candidates;  // of the call that is being made
thread_local std::map<std::string, std::string, std::less<>> t_forced;

bool verbose_dispatch() {
  static const bool verbose = [] {
    const char* value = std::getenv("NNOPS_VERBOSE");
    return value != nullptr && std::strstr(value, "dispatch") != nullptr;
  }();
  return verbose;
}

}  // namespace

const char* dtype_name(DType dtype) {
  static constexpr const char* kNames[kDTypeCount] = {
      "float32", "float64", "bfloat16", "float16", "uint8", "int8", "int16", "int32", "int64"};
  return kNames[static_cast<int>(dtype)];
}

DType dtype_named(const std::string& name) {
  for (int i = 0; i < kDTypeCount; ++i) {
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  }
  NNOPS_CHECK_VALUE(false, "no dtype is called '", name, "'");
  return DType::kFloat32;
}

const Choice& last_choice() { return t_last_choice; }

void record_choice(const char* op, const char* algorithm, DType dtype, Isa isa) {
  t_last_choice = {op, algorithm, isa};
  if (!reasons_wanted()) return;
  std::vector<Candidacy> candidates = std::move(t_candidates);
  t_candidates.clear();
  if (candidates.empty()) candidates.push_back({algorithm, ""});
  if (verbose_dispatch()) {
    for (const Candidacy& each : candidates) {
      if (each.reason.empty()) break;
      std::fprintf(stderr, "nnops: %s: not %s: %s\n", op, each.algorithm.c_str(),
                   each.reason.c_str());
    }
    std::fprintf(stderr, "nnops: %s: runs %s (%s)\n", op, algorithm, isa_name(isa));
  }
  if (t_trace.has_value()) t_trace->push_back({op, dtype, isa, 0, std::move(candidates)});
}

void record_candidates(std::vector<Candidacy> candidates) { t_candidates = std::move(candidates); }

void record_threads(int threads) {
  if (!t_trace.has_value() || t_trace->empty() || t_trace->back().threads != 0) return;
  if (t_trace->back().isa == Isa::kCuda) return;  // whose kernels do not look at the number
  t_trace->back().threads = threads;
}

void start_trace() { t_trace.emplace(); }

std::vector<TracedCall> stop_trace() {
  std::vector<TracedCall> calls = std::move(t_trace).value_or(std::vector<TracedCall>());
  t_trace.reset();
  t_candidates.clear();
  return calls;
}

bool reasons_wanted() { return t_trace.has_value() || verbose_dispatch(); }

std::string force_algorithm(const std::string& op, const std::string& algorithm) {
  std::vector<std::string> names;
  for (const AlgorithmList& list : algorithm_lists()) {
    if (list.op != op) continue;
    names = list.algorithms;
    for (const std::string& name : list.cuda_algorithms) {
      const bool shared = std::find(names.begin(), names.end(), name) != names.end();
      if (kHaveCuda && !shared) names.push_back(name);
    }
  }
  NNOPS_CHECK_VALUE(!names.empty(), "force_algorithm: no operator '", op, "' has algorithms");
  std::string known;
  for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
  NNOPS_CHECK_VALUE(
      algorithm.empty() || std::find(names.begin(), names.end(), algorithm) != names.end(),
      "force_algorithm: the algorithm of ", op, " must be one of ", known, ", but got '", algorithm,
      "'");
  std::string before = forced_algorithm(op.c_str());
  if (algorithm.empty()) {
    t_forced.erase(op);
  } else {
    t_forced[op] = algorithm;
  }
  return before;
}

const std::string& forced_algorithm(const char* op) {
  static const std::string* const none = new std::string;
  if (t_forced.empty()) return *none;
  const auto entry = t_forced.find(op);
  return entry == t_forced.end() ? *none : entry->second;
}

bool is_any_forced() { return !t_forced.empty(); }

std::vector<AlgorithmList>& algorithm_lists() {
  static std::vector<AlgorithmList> lists;
  return lists;
}

}  // namespace nnops
