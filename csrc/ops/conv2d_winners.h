// Which of conv2d's algorithms were measured to be the fastest, problem by problem: the table
// behind `nnops.autotune`, on the CPU.
//
// A winner is for one problem alone: the pass, the dtype, all sizes and strides, the precision, the
// ISA level and torch's number of threads. Only where autotuning is on is it asked for; off, that
// costs a call one relaxed load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/conv2d_algorithms.h"
#include "ops/conv2d_problem.h"

namespace nnops {

bool autotune();
void set_autotune(bool enabled);

// The name of the winner under the calling thread's precision; null where none was measured, and
// where autotuning is off. `threads` is torch's number if 0.
const char* conv2d_winner(const char* op, const Conv2dGeometry& g, DType dtype, Isa isa,
                          int threads);

template <typename Pass>
const Conv2dCandidate<Pass>& choose_conv2d(const char* op, const Conv2dCandidates<Pass>& candidates,
                                           const Conv2dGeometry& g, DType dtype, Isa isa,
                                           int threads = 0) {
  return choose_algorithm(op, candidates.of(isa), g, dtype,
                          conv2d_winner(op, g, dtype, isa, threads));
}

// The algorithms that could run a problem at the ISA level in use and that `precision`, one of the
// numbers that operators take, allows: first the one that is chosen without measurements.
std::vector<std::string> conv2d_candidates(const Conv2dProblem& problem, int64_t precision);

// ValueError for a pass, an ISA level or an algorithm that does not exist.
void set_conv2d_winner(const Conv2dProblem& problem, int64_t precision, const std::string& isa,
                       int threads, const std::string& algorithm);
void clear_conv2d_winners();

}  // namespace nnops
