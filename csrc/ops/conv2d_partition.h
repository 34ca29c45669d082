// How conv2d shares its work over threads: the report behind `python -m nnops partition`. Nothing
// of it runs in a call of the operators.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/conv2d.h"

namespace nnops {

// A call of one of the passes, without its data. Tensors have sizes and strides of four dimensions;
// `output` is the forward pass's.
struct Conv2dProblem {
  struct Image {
    std::vector<int64_t> sizes, strides;
  };
  Image input, weight, output;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  DType dtype;
};

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
// `op` is conv2d, conv2d_backward_input or conv2d_backward_weight.
Partition conv2d_partition(const std::string& op, const Conv2dProblem& problem, int threads);

// The work of each thread, given that of each task in order.
std::vector<int64_t> shared_work(const std::vector<int64_t>& tasks, bool dynamic, int threads);

}  // namespace nnops
