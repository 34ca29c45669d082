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

int useful_threads(int64_t work, int64_t grain, int threads) {
  const int64_t useful = std::max<int64_t>(work / std::max<int64_t>(grain, 1), 1);
  return static_cast<int>(std::min<int64_t>(threads, useful));
}

int thread_count(int64_t work, int64_t grain) {
  const bool serial = work / std::max<int64_t>(grain, 1) < 2 || omp_in_parallel() ||
                      g_forked.load(std::memory_order_relaxed);
  const int threads =
      serial ? 1 : useful_threads(work, grain, static_cast<int>(torch::stable::get_num_threads()));
  record_threads(threads);
  return threads;
}

}  // namespace nnops
