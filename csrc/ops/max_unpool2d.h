// max_unpool2d and its relatives: the contract between csrc/ops/max_unpool2d.cpp and the kernels.
// No torch headers.
#pragma once

#include "core/kernel_table.h"

namespace nnops {

// Values (n, c, positions) that correspond by an int64 index each to places of planes (n, c,
// plane). All tensors are packed: row-major, or channels_last (n, positions, c) and (n, plane, c).
struct IndexedPlanes {
  int64_t n, c, positions, plane;
  bool channels_last;
};

struct MaxUnpool2dKernels {
  // The lowest position in memory of an index outside of [lowest, limit), or -1.
  using FindInvalid = int64_t (*)(const int64_t* indices, int64_t count, int64_t lowest,
                                  int64_t limit, int threads);
  // planes[index] = value, 0 elsewhere; of equal indices the last in row-major order wins.
  using Assign = void (*)(void* planes, const void* values, const int64_t* indices,
                          const IndexedPlanes& geometry, int threads);
  // planes[index] += value in row-major order, index -1 is left out. scratch as in
  // MaxPool2dKernels::Backward.
  using Add = void (*)(void* planes, const void* values, const int64_t* indices, float* scratch,
                       const IndexedPlanes& geometry, int threads);
  // values = planes[index], 0 for index -1.
  using Gather = void (*)(void* values, const void* planes, const int64_t* indices,
                          const IndexedPlanes& geometry, int threads);
  FindInvalid find_invalid;
  PerDType<Assign> assign;
  PerDType<Add> add;
  PerDType<Gather> gather;
};
NNOPS_DECLARE_KERNELS(MaxUnpool2dKernels, max_unpool2d_kernels)

}  // namespace nnops
