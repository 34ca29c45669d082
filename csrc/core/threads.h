// How many threads a kernel may use. Kernels get the number as an argument and ask nobody.
#pragma once

#include <cstdint>

namespace nnops {

// Elements of cheap work (a few operations each) below which a second thread costs more than it
// brings.
inline constexpr int64_t kGrainElements = 32768;

// `threads`, lowered so that each has at least `grain` of `work` units; at least 1.
int useful_threads(int64_t work, int64_t grain, int threads);

// torch.get_num_threads(), lowered so that each thread has at least `grain` of `work` units; 1
// inside another parallel region and in a process that was forked (GNU OpenMP's thread pool does
// not survive fork).
int thread_count(int64_t work, int64_t grain);

}  // namespace nnops
