// Launchers of max_pool2d.cuh: which instance of a kernel a problem gets.
#include "cuda/max_pool2d.cuh"

#include <cstdlib>
#include <numeric>

namespace nnops::cuda {
namespace {

// Places and sums of two of them stay below 2^31.
constexpr int64_t kNarrow = int64_t{1} << 30;

// The side of a pooling that threads do not go through.
struct OtherSide {
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

OtherSide input_side(const Pool2dGeometry& g) {
  const int64_t* strides = g.input_strides;
  return {strides[0], strides[1], strides[2], strides[3]};
}

OtherSide output_side(const Pool2dGeometry& g) {
  const int64_t image = g.c * g.oh * g.ow;
  if (g.channels_last) return {image, 1, g.ow * g.c, g.c};
  return {image, g.oh * g.ow, g.ow, 1};
}

// A larger dilation changes nothing: every tap but the first lies behind the input.
int64_t useful_dilation(int64_t dilation, int64_t size, int64_t pad) {
  return smaller(dilation, size + pad);
}

// Whether int32_t holds every place of an image and of its windows.
bool is_narrow(const Pool2dGeometry& g, const OtherSide& other) {
  const int64_t pitch = larger(larger(g.w, g.kernel_w), std::abs(other.row_stride));
  const int64_t column_pitch = larger<int64_t>(1, std::abs(other.column_stride));
  const int64_t window_h = useful_dilation(g.dilation_h, g.h, g.pad_h) * g.kernel_h;
  const int64_t window_w = useful_dilation(g.dilation_w, g.w, g.pad_w) * g.kernel_w;
  const int64_t reach_h = g.h + 2 * g.pad_h + window_h + g.stride_h;
  const int64_t reach_w = g.w + 2 * g.pad_w + window_w + g.stride_w;
  return reach_h < kNarrow / pitch / 2 && reach_w < kNarrow / column_pitch / 2 &&
         g.c < kNarrow / larger(g.h * g.w, g.oh * g.ow);
}

template <typename Index>
PoolAxis<Index> pool_axis(int64_t size, int64_t windows, int64_t kernel, int64_t stride,
                          int64_t pad, int64_t dilation) {
  dilation = useful_dilation(dilation, size, pad);
  const int64_t common = std::gcd(stride, dilation);
  return {static_cast<Index>(size),
          static_cast<Index>(windows),
          static_cast<Index>(kernel),
          static_cast<Index>(pad),
          FastDivision<Index>(static_cast<Index>(stride)),
          FastDivision<Index>(static_cast<Index>(dilation)),
          static_cast<Index>(dilation / stride),
          static_cast<Index>(dilation % stride),
          static_cast<Index>(dilation / common),
          static_cast<Index>(stride / common)};
}

// `h` x `w` is the size of the written tensor; vectors of it have `lanes` elements.
template <typename Index>
PoolProblem<Index> pool_problem(const Pool2dGeometry& g, const OtherSide& other, int64_t h,
                                int64_t w, int lanes) {
  const int64_t channels = g.channels_last ? g.c / lanes : g.c;
  const int64_t columns = g.channels_last ? w : w / lanes;
  return {{FastDivision<Index>(static_cast<Index>(channels)),
           FastDivision<Index>(static_cast<Index>(h)),
           FastDivision<Index>(static_cast<Index>(columns)), g.channels_last},
          pool_axis<Index>(g.h, g.oh, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h),
          pool_axis<Index>(g.w, g.ow, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w),
          other.image_stride,
          other.channel_stride,
          static_cast<Index>(other.row_stride),
          static_cast<Index>(other.column_stride)};
}

// launch(first image, threads that are needed) for all images: at once, or where Index is int32_t,
// so many at a time that it holds the positions of their elements.
template <typename Index, typename Launch>
void for_images(const Pool2dGeometry& g, int64_t threads_per_image, Launch launch) {
  int64_t most = g.n;
  if constexpr (sizeof(Index) < sizeof(int64_t)) {
    most = std::numeric_limits<Index>::max() / threads_per_image;
  }
  for (int64_t image = 0; image < g.n; image += most) {
    launch(image, smaller(most, g.n - image) * threads_per_image);
  }
}

// Whether vectors of `lanes` channels are aligned in both tensors (and the bytes beside them).
template <typename... Pointers>
bool channels_are_vectors(const Pool2dGeometry& g, const OtherSide& other, int lanes,
                          const Pointers*... pointers) {
  return g.channels_last && g.c % lanes == 0 && other.channel_stride == 1 &&
         (g.n == 1 || other.image_stride % lanes == 0) && other.row_stride % lanes == 0 &&
         other.column_stride % lanes == 0 && are_aligned(pointers...);
}

// 2 or 3 for square windows of that size, stride 2 and dilation 1; 0 for all others.
int special_kernel(const Pool2dGeometry& g) {
  const bool special = g.kernel_h == g.kernel_w && (g.kernel_h == 2 || g.kernel_h == 3) &&
                       g.stride_h == 2 && g.stride_w == 2 && g.dilation_h == 1 && g.dilation_w == 1;
  return special ? static_cast<int>(g.kernel_h) : 0;
}

// --- forward ------------------------------------------------------------------------------------

template <Record kRecord>
Recorded<kRecord>* record_at(void* record, int64_t position) {
  if constexpr (kRecord == Record::kNone) return nullptr;
  return static_cast<Recorded<kRecord>*>(record) + position;
}

template <typename T, Record kRecord, int kLanes, int kKernel, typename Index>
void launch_windows(void* output, void* record, const void* input, const Pool2dGeometry& g) {
  const OtherSide other = input_side(g);
  const PoolProblem<Index> problem = pool_problem<Index>(g, other, g.oh, g.ow, kLanes);
  const int64_t image = g.c * g.oh * g.ow;
  for_images<Index>(g, image / kLanes, [&](int64_t first, int64_t count) {
    NNOPS_LAUNCH((pool_windows<T, kRecord, kLanes, kKernel, Index>),
                 grid_stride_blocks(count, kPoolThreads), kPoolThreads, 0,
                 static_cast<T*>(output) + first * image, record_at<kRecord>(record, first * image),
                 static_cast<const T*>(input) + first * other.image_stride, count, problem);
  });
}

template <typename T, Record kRecord, int kLanes>
void launch_narrow_windows(void* output, void* record, const void* input, const Pool2dGeometry& g) {
  switch (special_kernel(g)) {
    case 2:
      return launch_windows<T, kRecord, kLanes, 2, int32_t>(output, record, input, g);
    case 3:
      return launch_windows<T, kRecord, kLanes, 3, int32_t>(output, record, input, g);
    default:
      return launch_windows<T, kRecord, kLanes, 0, int32_t>(output, record, input, g);
  }
}

// Every problem. Integers are too rare for kernels of their own.
template <typename T, Record kRecord>
void forward_windows(void* output, void* record, const void* input, const Pool2dGeometry& g, int) {
  if constexpr (kIsFloating<T>) {
    const OtherSide other = input_side(g);
    if (is_narrow(g, other)) {
      constexpr int kLanes = kVectorWidth<T>;
      if (channels_are_vectors(g, other, kLanes, output, record, input)) {
        return launch_narrow_windows<T, kRecord, kLanes>(output, record, input, g);
      }
      return launch_narrow_windows<T, kRecord, 1>(output, record, input, g);
    }
  }
  launch_windows<T, kRecord, 1, 0, int64_t>(output, record, input, g);
}

// Row-major 2x2 windows of stride 2 that cover rows of whole vectors, as the caller made sure.
template <typename T, Record kRecord>
void forward_pairs(void* output, void* record, const void* input, const Pool2dGeometry& g,
                   int threads) {
  constexpr int kLanes = kVectorWidth<T>;
  const OtherSide other = input_side(g);
  const bool vectors = (g.n == 1 || other.image_stride % kLanes == 0) &&
                       (g.c == 1 || other.channel_stride % kLanes == 0) &&
                       (g.h == 1 || other.row_stride % kLanes == 0) && other.column_stride == 1 &&
                       are_aligned(output, record, input);
  if (!vectors || !is_narrow(g, other)) {
    return forward_windows<T, kRecord>(output, record, input, g, threads);
  }
  const PoolProblem<int32_t> problem = pool_problem<int32_t>(g, other, g.oh, g.ow, kLanes / 2);
  const int64_t image = g.c * g.oh * g.ow;
  for_images<int32_t>(g, image / (kLanes / 2), [&](int64_t first, int64_t count) {
    NNOPS_LAUNCH((pool_pairs<T, kRecord>), grid_stride_blocks(count, kPoolThreads), kPoolThreads, 0,
                 static_cast<T*>(output) + first * image, record_at<kRecord>(record, first * image),
                 static_cast<const T*>(input) + first * other.image_stride, count, problem);
  });
}

// --- backward -----------------------------------------------------------------------------------

template <typename T, int kLanes, int kKernel, typename Index>
void launch_gather(void* grad_input, const void* grad_output, const uint8_t* offsets,
                   const Pool2dGeometry& g) {
  const OtherSide other = output_side(g);
  const PoolProblem<Index> problem = pool_problem<Index>(g, other, g.h, g.w, kLanes);
  const int64_t image = g.c * g.h * g.w;
  for_images<Index>(g, image / kLanes, [&](int64_t first, int64_t count) {
    NNOPS_LAUNCH((pool_backward<T, kLanes, kKernel, Index>),
                 grid_stride_blocks(count, kPoolThreads), kPoolThreads, 0,
                 static_cast<T*>(grad_input) + first * image,
                 static_cast<const T*>(grad_output) + first * other.image_stride,
                 offsets + first * other.image_stride, count, problem);
  });
}

template <typename T, int kLanes>
void launch_narrow_gather(void* grad_input, const void* grad_output, const uint8_t* offsets,
                          const Pool2dGeometry& g) {
  switch (special_kernel(g)) {
    case 2:
      return launch_gather<T, kLanes, 2, int32_t>(grad_input, grad_output, offsets, g);
    case 3:
      return launch_gather<T, kLanes, 3, int32_t>(grad_input, grad_output, offsets, g);
    default:
      return launch_gather<T, kLanes, 0, int32_t>(grad_input, grad_output, offsets, g);
  }
}

// Every problem. Offsets are not checked: to look at an answer would make every backward wait for
// the device, and none can lead outside of the memory.
template <typename T>
int64_t backward_gather(void* grad_input, const void* grad_output, const uint8_t* offsets, float*,
                        const Pool2dGeometry& g, int) {
  const OtherSide other = output_side(g);
  constexpr int kLanes = kVectorWidth<T>;
  if (!is_narrow(g, other)) {
    launch_gather<T, 1, 0, int64_t>(grad_input, grad_output, offsets, g);
  } else if (channels_are_vectors(g, other, kLanes, grad_input, grad_output, offsets)) {
    launch_narrow_gather<T, kLanes>(grad_input, grad_output, offsets, g);
  } else {
    launch_narrow_gather<T, 1>(grad_input, grad_output, offsets, g);
  }
  return -1;
}

// As forward_pairs.
template <typename T>
int64_t backward_pairs(void* grad_input, const void* grad_output, const uint8_t* offsets,
                       float* scratch, const Pool2dGeometry& g, int threads) {
  constexpr int kLanes = kVectorWidth<T>;
  const OtherSide other = output_side(g);
  if (!are_aligned(grad_input, grad_output, offsets) || !is_narrow(g, other)) {
    return backward_gather<T>(grad_input, grad_output, offsets, scratch, g, threads);
  }
  const int64_t row_pairs = ceil_divide<int64_t>(g.h, 2);
  const PoolProblem<int32_t> problem = pool_problem<int32_t>(g, other, row_pairs, g.w, kLanes);
  const int64_t image = g.c * g.h * g.w;
  for_images<int32_t>(g, g.c * row_pairs * (g.w / kLanes), [&](int64_t first, int64_t count) {
    NNOPS_LAUNCH((pool_backward_pairs<T>), grid_stride_blocks(count, kPoolThreads), kPoolThreads, 0,
                 static_cast<T*>(grad_input) + first * image,
                 static_cast<const T*>(grad_output) + first * other.image_stride,
                 offsets + first * other.image_stride, count, problem);
  });
  return -1;
}

template <typename T>
int64_t gather(void* output, const void* input, const uint8_t* offsets, const Pool2dGeometry& g,
               int) {
  const int64_t count = g.n * g.c * g.oh * g.ow;
  NNOPS_LAUNCH((pool_gather<T>), grid_stride_blocks(count, kPoolThreads), kPoolThreads, 0,
               static_cast<T*>(output), static_cast<const T*>(input), offsets, count,
               pool_problem<int64_t>(g, input_side(g), g.oh, g.ow, 1),
               FastDivision<int32_t>(static_cast<int32_t>(g.kernel_w)));
  return -1;
}

#define NNOPS_FORWARD(function)                                              \
  template <typename T>                                                      \
  void function##_values(void* output, void* record, const void* input,      \
                         const Pool2dGeometry& geometry, int threads) {      \
    function<T, Record::kNone>(output, record, input, geometry, threads);    \
  }                                                                          \
  template <typename T>                                                      \
  void function##_offsets(void* output, void* record, const void* input,     \
                          const Pool2dGeometry& geometry, int threads) {     \
    function<T, Record::kOffsets>(output, record, input, geometry, threads); \
  }                                                                          \
  template <typename T>                                                      \
  void function##_indices(void* output, void* record, const void* input,     \
                          const Pool2dGeometry& geometry, int threads) {     \
    function<T, Record::kIndices>(output, record, input, geometry, threads); \
  }
NNOPS_FORWARD(forward_windows)
NNOPS_FORWARD(forward_pairs)
#undef NNOPS_FORWARD

}  // namespace

extern const MaxPool2dKernels max_pool2d_kernels = {
    .gather = NNOPS_FLOAT_DTYPES(gather),
    .pairs = {NNOPS_FLOAT_DTYPES(forward_pairs_values), NNOPS_FLOAT_DTYPES(forward_pairs_offsets),
              NNOPS_FLOAT_DTYPES(forward_pairs_indices)},
    .windows = {NNOPS_ALL_DTYPES(forward_windows_values), NNOPS_ALL_DTYPES(forward_windows_offsets),
                NNOPS_ALL_DTYPES(forward_windows_indices)},
    .backward_pairs = NNOPS_FLOAT_DTYPES(backward_pairs),
    .backward_gather = NNOPS_FLOAT_DTYPES(backward_gather)};

}  // namespace nnops::cuda
