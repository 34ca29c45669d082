#include "core/threads.h"

#include <omp.h>
#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "core/dispatch.h"

namespace nnops {
namespace {

std::atomic<bool> g_forked{false};

const int g_fork_handler =
    pthread_atfork(nullptr, nullptr, [] { g_forked.store(true, std::memory_order_relaxed); });

}  // namespace

int thread_count(int64_t work, int64_t grain) {
  const int64_t useful = work / std::max<int64_t>(grain, 1);
  const bool serial = useful < 2 || omp_in_parallel() || g_forked.load(std::memory_order_relaxed);
  const int threads =
      serial ? 1 : static_cast<int>(std::min<int64_t>(torch::stable::get_num_threads(), useful));
  record_threads(threads);
  return threads;
}

}  // namespace nnops
