// A hash table from problems to names of algorithms, read by calls and written by Python.
#include "ops/conv2d_winners.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <iterator>
#include <mutex>
#include <shared_mutex>
#include <string_view>
#include <unordered_map>

#include "core/check.h"
#include "ops/conv2d_precision.h"

namespace nnops {
namespace {

constexpr std::string_view kPasses[] = {"conv2d", "conv2d_backward_input",
                                        "conv2d_backward_weight"};
constexpr size_t kGeometryWords = sizeof(Conv2dGeometry) / sizeof(int64_t);
using GeometryWords = std::array<int64_t, kGeometryWords>;
using Key = std::array<int64_t, kGeometryWords + 5>;

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (const int64_t word : key) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9E3779B97F4A7C15;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

struct Table {
  std::shared_mutex mutex;
  std::unordered_map<Key, const char*, KeyHash> winners;
};
Table& table() {
  static Table* const table = new Table;  // calls may outlive the statics
  return *table;
}

std::atomic<bool> g_autotune{false};

// Strides along dimensions of one element are torch's to make up.
void drop_unused_strides(Strides4* strides, int64_t n, int64_t c, int64_t h, int64_t w) {
  if (n == 1) strides->n = 0;
  if (c == 1) strides->c = 0;
  if (h == 1) strides->h = 0;
  if (w == 1) strides->w = 0;
}

Key key_of(std::string_view op, Conv2dGeometry g, DType dtype, Isa isa, int threads) {
  drop_unused_strides(&g.input, g.n, g.c, g.h, g.w);
  drop_unused_strides(&g.output, g.n, g.oc, g.oh, g.ow);
  drop_unused_strides(&g.weight, g.oc, g.c / g.groups, g.kh, g.kw);
  const auto geometry = std::bit_cast<GeometryWords>(g);
  const auto* pass = std::find(std::begin(kPasses), std::end(kPasses), op);
  Key key{pass - std::begin(kPasses), static_cast<int64_t>(dtype), static_cast<int64_t>(isa),
          static_cast<int64_t>(conv_precision()), threads};
  std::copy(geometry.begin(), geometry.end(), key.begin() + 5);
  return key;
}

}  // namespace

bool autotune() { return g_autotune.load(std::memory_order_relaxed); }
void set_autotune(bool enabled) { g_autotune.store(enabled, std::memory_order_relaxed); }

const char* conv2d_winner(const char* op, const Conv2dGeometry& g, DType dtype, Isa isa,
                          int threads) {
  if (!autotune() || isa == Isa::kCuda) return nullptr;
  if (threads == 0) threads = static_cast<int>(torch::stable::get_num_threads());
  const Key key = key_of(op, g, dtype, isa, threads);
  const std::shared_lock lock(table().mutex);
  const auto entry = table().winners.find(key);
  return entry == table().winners.end() ? nullptr : entry->second;
}

std::vector<std::string> conv2d_candidates(const Conv2dProblem& problem, int64_t precision) {
  const ConvPrecisionScope scope(problem.op.c_str(), precision);
  const Conv2dGeometry g = geometry_of(problem);
  return with_candidates(problem.op, [&](const auto& candidates) {
    const auto& list = candidates.of(active_isa());
    const char* chosen = choose_algorithm(problem.op.c_str(), list, g, problem.dtype).name;
    std::vector<std::string> names{chosen};
    for (const auto& algorithm : list) {
      if (algorithm.name == chosen) continue;
      if (reason_against(algorithm, g, problem.dtype).empty()) names.emplace_back(algorithm.name);
    }
    return names;
  });
}

void set_conv2d_winner(const Conv2dProblem& problem, int64_t precision, const std::string& isa,
                       int threads, const std::string& algorithm) {
  const ConvPrecisionScope scope(problem.op.c_str(), precision);
  const Conv2dGeometry g = geometry_of(problem);
  for (const Isa level : available_isas()) {
    if (isa != isa_name(level)) continue;
    const char* name = with_candidates(problem.op, [&](const auto& candidates) {
      const char* found = nullptr;
      for (const auto& each : candidates.of(level)) {
        if (algorithm == each.name) found = each.name;
      }
      return found;
    });
    NNOPS_CHECK_VALUE(name != nullptr, problem.op, ": no algorithm is called '", algorithm, "'");
    const Key key = key_of(problem.op, g, problem.dtype, level, threads);
    const std::unique_lock lock(table().mutex);
    table().winners[key] = name;
    return;
  }
  NNOPS_CHECK_VALUE(false, problem.op, ": the ISA level '", isa, "' is not available here");
}

void clear_conv2d_winners() {
  const std::unique_lock lock(table().mutex);
  table().winners.clear();
}

}  // namespace nnops
