// max_pool2d on the CPU: y[n, c, oh, ow] = max of the window of x, see ops/max_pool2d.h.
//
// The maximum is the first of equal ones in row-major order; a NaN counts as larger than anything
// before it, so the last NaN wins; a window of -inf alone has its first element. These are torch's
// rules. A window without any element inside the input gives the dtype's lowest value and the
// record "none". bfloat16 and float16 are compared, and their gradients summed, as float.
//
// Each algorithm is a file: rows.h, channels.h and tiles.h forward, backward_tiles.h,
// backward_shifts.h, backward_phases.h, backward_channels.h and backward_scatter.h. Forward is
// parallel over rows of the output; nothing depends on how they are split.
#include "ops/max_pool2d.h"

#include "cpu/max_pool2d/backward_channels.h"
#include "cpu/max_pool2d/backward_phases.h"
#include "cpu/max_pool2d/backward_scatter.h"
#include "cpu/max_pool2d/backward_shifts.h"
#include "cpu/max_pool2d/backward_tiles.h"
#include "cpu/max_pool2d/channels.h"
#include "cpu/max_pool2d/gather.h"
#include "cpu/max_pool2d/rows.h"
#include "cpu/max_pool2d/tiles.h"

NNOPS_BEGIN_KERNELS

#define NNOPS_FORWARD(function, run)                                     \
  template <typename T>                                                  \
  void function##_values(void* output, void* record, const void* input,  \
                         const Pool2dGeometry& geometry, int threads) {  \
    run<T, Record::kNone>(output, record, input, geometry, threads);     \
  }                                                                      \
  template <typename T>                                                  \
  void function##_offsets(void* output, void* record, const void* input, \
                          const Pool2dGeometry& geometry, int threads) { \
    run<T, Record::kOffsets>(output, record, input, geometry, threads);  \
  }                                                                      \
  template <typename T>                                                  \
  void function##_indices(void* output, void* record, const void* input, \
                          const Pool2dGeometry& geometry, int threads) { \
    run<T, Record::kIndices>(output, record, input, geometry, threads);  \
  }
NNOPS_FORWARD(rows, choose_pool_rows)
NNOPS_FORWARD(channels, choose_pool_channels)
NNOPS_FORWARD(tiles, pool_tiles)
#undef NNOPS_FORWARD

}  // namespace

extern const MaxPool2dKernels max_pool2d_kernels = {
    {NNOPS_FLOAT_DTYPES(rows_values), NNOPS_FLOAT_DTYPES(rows_offsets),
     NNOPS_FLOAT_DTYPES(rows_indices)},
    {NNOPS_FLOAT_DTYPES(channels_values), NNOPS_FLOAT_DTYPES(channels_offsets),
     NNOPS_FLOAT_DTYPES(channels_indices)},
    {NNOPS_ALL_DTYPES(tiles_values), NNOPS_ALL_DTYPES(tiles_offsets),
     NNOPS_ALL_DTYPES(tiles_indices)},
    NNOPS_FLOAT_DTYPES(pool_backward_tiles),
    NNOPS_FLOAT_DTYPES(pool_backward_shifts),
    NNOPS_FLOAT_DTYPES(pool_backward_phases),
    NNOPS_FLOAT_DTYPES(pool_backward_channels),
    NNOPS_FLOAT_DTYPES(pool_backward_scatter),
    NNOPS_FLOAT_DTYPES(pool_gather)};

}  // namespace NNOPS_ISA
}  // namespace nnops
