#include "core/dispatch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace nnops {
namespace {

thread_local Choice t_last_choice;

std::atomic<bool> g_any_forced{false};
std::mutex g_forced_mutex;
std::map<std::string, std::string>& forced_algorithms() {
  static std::map<std::string, std::string> forced;
  return forced;
}

}  // namespace

const char* dtype_name(DType dtype) {
  static constexpr const char* kNames[kDTypeCount] = {
      "float32", "float64", "bfloat16", "float16", "uint8", "int8", "int16", "int32", "int64"};
  return kNames[static_cast<int>(dtype)];
}

const Choice& last_choice() { return t_last_choice; }

void record_choice(const char* op, const char* algorithm, Isa isa) {
  t_last_choice = {op, algorithm, isa};
  if (verbose_dispatch()) {
    std::fprintf(stderr, "nnops: %s: runs %s (%s)\n", op, algorithm, isa_name(isa));
  }
}

bool verbose_dispatch() {
  static const bool verbose = [] {
    const char* value = std::getenv("NNOPS_VERBOSE");
    return value != nullptr && std::strstr(value, "dispatch") != nullptr;
  }();
  return verbose;
}

void print_rejected(const char* op, const char* algorithm, const std::string& reason) {
  std::fprintf(stderr, "nnops: %s: not %s: %s\n", op, algorithm, reason.c_str());
}

void force_algorithm(const std::string& op, const std::string& algorithm) {
  const std::lock_guard<std::mutex> lock(g_forced_mutex);
  forced_algorithms()[op] = algorithm;
  g_any_forced.store(true);
}

std::string forced_algorithm(const char* op) {
  if (!g_any_forced.load(std::memory_order_relaxed)) return "";
  const std::lock_guard<std::mutex> lock(g_forced_mutex);
  const auto entry = forced_algorithms().find(op);
  return entry == forced_algorithms().end() ? "" : entry->second;
}

std::vector<AlgorithmList>& algorithm_lists() {
  static std::vector<AlgorithmList> lists;
  return lists;
}

}  // namespace nnops
