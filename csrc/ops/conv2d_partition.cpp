// From the tasks of a parallel loop to the work of each thread.
#include "ops/conv2d_partition.h"

#include <algorithm>
#include <numeric>

namespace nnops {

std::vector<int64_t> shared_work(const std::vector<int64_t>& tasks, bool dynamic, int threads) {
  std::vector<int64_t> work(threads, 0);
  if (dynamic) {
    for (const int64_t task : tasks) *std::min_element(work.begin(), work.end()) += task;
    return work;
  }
  // As OpenMP's static schedule: the first threads get one more where it does not come out even.
  const int64_t share = static_cast<int64_t>(tasks.size()) / threads;
  const int64_t rest = static_cast<int64_t>(tasks.size()) % threads;
  auto begin = tasks.begin();
  for (int64_t thread = 0; thread < threads; ++thread) {
    const auto end = begin + share + (thread < rest ? 1 : 0);
    work[thread] = std::accumulate(begin, end, int64_t{0});
    begin = end;
  }
  return work;
}

}  // namespace nnops
