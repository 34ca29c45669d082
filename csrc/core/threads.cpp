#include "core/threads.h"

#include <omp.h>
#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace nnops {
namespace {

std::atomic<bool> g_forked{false};

const int g_fork_handler =
    pthread_atfork(nullptr, nullptr, [] { g_forked.store(true, std::memory_order_relaxed); });

}  // namespace

int thread_count(int64_t work, int64_t grain) {
  const int64_t useful = work / std::max<int64_t>(grain, 1);
  if (useful < 2 || omp_in_parallel() || g_forked.load(std::memory_order_relaxed)) return 1;
  return static_cast<int>(std::min<int64_t>(torch::stable::get_num_threads(), useful));
}

}  // namespace nnops
