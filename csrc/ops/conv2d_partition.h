// How conv2d shares its work over threads: the report behind `python -m nnops partition`. Nothing
// of it runs in a call of the operators.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/conv2d_problem.h"

namespace nnops {

// A parallel loop, which ends when all threads have done their part.
struct PartitionPhase {
  std::string name;
  bool products;              // the unit: products of the convolution, or elements copied or added
  bool dynamic;               // the schedule
  std::vector<int64_t> work;  // of each thread
};

struct Partition {
  std::string algorithm;
  int threads;  // that take part
  std::vector<PartitionPhase> phases;
};

// What each of the threads would have to do in a call with torch.set_num_threads(threads). Threads
// of a dynamic schedule are taken to be equally fast: a task goes to the one that has done least.
Partition conv2d_partition(const Conv2dProblem& problem, int threads);

// The work of each thread, given that of each task in order.
std::vector<int64_t> shared_work(const std::vector<int64_t>& tasks, bool dynamic, int threads);

}  // namespace nnops
