// Launchers of max_unpool2d.cuh.
#include "cuda/max_unpool2d.cuh"

#include <limits>

#include "core/cuda.h"

namespace nnops::cuda {
namespace {

// Waits for the device: the caller must know before it uses the indices.
int64_t find_invalid(const int64_t* indices, int64_t count, int64_t lowest, int64_t limit, int) {
  using Word = unsigned long long;
  Word* found = static_cast<Word*>(cuda_scratch(sizeof(Word)));
  set_zero(found, sizeof(Word));
  const int64_t most_blocks = 32 * int64_t{multiprocessor_count()};
  NNOPS_LAUNCH((find_invalid_indices<Word>), grid_stride_blocks(count, kUnpoolThreads, most_blocks),
               kUnpoolThreads, 0, found, indices, count, lowest, limit);
  Word answer = 0;
  copy_to_host(&answer, found, sizeof(answer));
  return answer == 0 ? -1 : count - static_cast<int64_t>(answer);
}

template <typename Index>
PackedLines<Index> lines_of(const IndexedPlanes& g, int64_t length) {
  return {FastDivision<Index>(static_cast<Index>(g.c)),
          FastDivision<Index>(static_cast<Index>(length)), g.channels_last};
}

// The images that one launch takes: with int32_t so many that it holds their positions and that the
// words of `add` stay below 128 MB.
template <typename Index>
int64_t images_at_a_time(const IndexedPlanes& g) {
  constexpr int64_t kMostElements = int64_t{1} << 24;
  const int64_t image = g.c * larger(g.positions, g.plane);
  return sizeof(Index) == 4 ? smaller(g.n, larger<int64_t>(1, kMostElements / image)) : 1;
}
bool is_narrow(const IndexedPlanes& g) {
  return g.c * larger(g.positions, g.plane) <= std::numeric_limits<int32_t>::max();
}

template <typename T, typename Index>
void launch_assign(T* planes, const T* values, const int64_t* indices, const IndexedPlanes& g) {
  using Word = PositionWord<Index>;
  const int64_t most = images_at_a_time<Index>(g);
  const int64_t value_image = g.c * g.positions;
  const int64_t plane_image = g.c * g.plane;
  Word* last = static_cast<Word*>(cuda_scratch(most * plane_image * int64_t{sizeof(Word)}));
  const PackedLines<Index> value_lines = lines_of<Index>(g, g.positions);
  const PackedLines<Index> plane_lines = lines_of<Index>(g, g.plane);
  for (int64_t image = 0; image < g.n; image += most) {
    const int64_t images = smaller(most, g.n - image);
    const int64_t value_count = images * value_image;
    const int64_t plane_count = images * plane_image;
    set_zero(last, static_cast<size_t>(plane_count) * sizeof(Word));
    NNOPS_LAUNCH((mark_last<Index>), grid_stride_blocks(value_count, kUnpoolThreads),
                 kUnpoolThreads, 0, last, indices + image * value_image, value_count, value_lines,
                 plane_lines);
    NNOPS_LAUNCH((take_last<T, Index>), grid_stride_blocks(plane_count, kUnpoolThreads),
                 kUnpoolThreads, 0, planes + image * plane_image, values + image * value_image,
                 last, plane_count, value_lines, plane_lines);
  }
}

template <typename T>
void assign_planes(void* planes, const void* values, const int64_t* indices, const IndexedPlanes& g,
                   int) {
  const auto launch = is_narrow(g) ? launch_assign<T, int32_t> : launch_assign<T, int64_t>;
  launch(static_cast<T*>(planes), static_cast<const T*>(values), indices, g);
}

template <typename T, typename Index>
void launch_add(T* planes, const T* values, const int64_t* indices, const IndexedPlanes& g) {
  using Word = PositionWord<Index>;
  const int64_t most = images_at_a_time<Index>(g);
  const int64_t value_image = g.c * g.positions;
  const int64_t plane_image = g.c * g.plane;
  Word* first = static_cast<Word*>(cuda_scratch(most * plane_image * int64_t{sizeof(Word)}));
  Word* next = static_cast<Word*>(cuda_scratch(most * value_image * int64_t{sizeof(Word)}));
  const PackedLines<Index> value_lines = lines_of<Index>(g, g.positions);
  const PackedLines<Index> plane_lines = lines_of<Index>(g, g.plane);
  for (int64_t image = 0; image < g.n; image += most) {
    const int64_t images = smaller(most, g.n - image);
    const int64_t value_count = images * value_image;
    const int64_t plane_count = images * plane_image;
    set_zero(first, static_cast<size_t>(plane_count) * sizeof(Word));
    if (value_count > 0) {
      NNOPS_LAUNCH((chain_positions<Index>), grid_stride_blocks(value_count, kUnpoolThreads),
                   kUnpoolThreads, 0, first, next, indices + image * value_image, value_count,
                   value_lines, plane_lines);
    }
    NNOPS_LAUNCH((add_chains<T, Index>), grid_stride_blocks(plane_count, kUnpoolThreads),
                 kUnpoolThreads, 0, planes + image * plane_image, values + image * value_image,
                 first, next, plane_count, value_lines, plane_lines);
  }
}

template <typename T>
void add_planes(void* planes, const void* values, const int64_t* indices, float*,
                const IndexedPlanes& g, int) {
  const auto launch = is_narrow(g) ? launch_add<T, int32_t> : launch_add<T, int64_t>;
  launch(static_cast<T*>(planes), static_cast<const T*>(values), indices, g);
}

template <typename T, typename Index>
void launch_gather(T* values, const T* planes, const int64_t* indices, const IndexedPlanes& g) {
  const int64_t most = images_at_a_time<Index>(g);
  const int64_t value_image = g.c * g.positions;
  for (int64_t image = 0; image < g.n; image += most) {
    const int64_t count = smaller(most, g.n - image) * value_image;
    NNOPS_LAUNCH((gather_at_indices<T, Index>), grid_stride_blocks(count, kUnpoolThreads),
                 kUnpoolThreads, 0, values + image * value_image, planes + image * g.c * g.plane,
                 indices + image * value_image, count, lines_of<Index>(g, g.positions),
                 lines_of<Index>(g, g.plane));
  }
}

template <typename T>
void gather_planes(void* values, const void* planes, const int64_t* indices, const IndexedPlanes& g,
                   int) {
  const auto launch = is_narrow(g) ? launch_gather<T, int32_t> : launch_gather<T, int64_t>;
  launch(static_cast<T*>(values), static_cast<const T*>(planes), indices, g);
}

}  // namespace

extern const MaxUnpool2dKernels max_unpool2d_kernels = {
    find_invalid, NNOPS_FLOAT_DTYPES(assign_planes), NNOPS_FLOAT_DTYPES(add_planes),
    NNOPS_FLOAT_DTYPES(gather_planes)};

}  // namespace nnops::cuda
