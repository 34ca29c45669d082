// conv2d by vectors whose lanes are images: the functions of image_lanes.h.
#include "cpu/conv2d/image_lanes.h"

#include "cpu/conv2d/expanded_planes.h"
#include "cpu/conv2d/lane_tile.h"
#include "cpu/transpose.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kImages = ImageLanes::kImages;
static_assert(kImages == kLanes<float>);

// Of what a band keeps and of its sums: within a core's L2.
constexpr int64_t kBandBytes = int64_t{512} << 10;
// Pixels of a tile at a row's ends, where neighbours share few taps. Tiles in between meet no
// padding.
constexpr int64_t kEndVectors = 2;
// What a vector of the read images costs to transpose, in products of vectors, about.
constexpr int64_t kCopyProducts = 8;
// Farther than any position.
constexpr int64_t kEverywhere = int64_t{1} << 40;

// The taps that read a position inside of the image for some of a range of the grid.
NNOPS_INLINE Range taps_inside(const TapAxis& axis, const Range& grid) {
  const int64_t first = axis.first + grid.begin * axis.step;
  const int64_t last = axis.first + (grid.end - 1) * axis.step;
  const int64_t begin = last < 0 ? smaller(axis.taps, divide_up(-last, axis.gap)) : 0;
  const int64_t end = first < axis.limit ? divide_up(axis.limit - first, axis.gap) : 0;
  return {begin, larger(begin, smaller(end, axis.taps))};
}

// The grid elements for which all taps read positions inside of the image.
NNOPS_INLINE Range elements_inside(const TapAxis& axis) {
  const int64_t begin = axis.first < 0 ? divide_up(-axis.first, axis.step) : 0;
  const int64_t to_limit = axis.limit - axis.first - (axis.taps - 1) * axis.gap;
  const int64_t end = to_limit > 0 ? divide_up(to_limit, axis.step) : 0;
  return {smaller(begin, axis.grid), larger(smaller(begin, axis.grid), smaller(end, axis.grid))};
}

// How the weights of a pass are packed.
struct PackedLanes {
  int64_t rows, depth;
  int64_t chain;  // outer channels
  int64_t tiles;  // of rows
  int64_t packed_group, packed_size;

  explicit PackedLanes(const PixelPass& pass) {
    rows = pass.rows;
    depth = pass.outer * pass.y.taps * pass.x.taps;
    chain = chain_channels(pass);
    tiles = divide_up(rows, kTileRows);
    packed_group = rows * depth;
    packed_size = pass.groups * packed_group;
  }
  // Tiles differ by one row at most.
  int64_t first_row(int64_t tile) const { return tile * rows / tiles; }
};

struct LaneTask {
  int64_t image0, images, group, y0, height;
  Range tiles;
};

// How a pass is cut up, and how large its buffers are, in elements. `skips`: padding is left out.
struct LanesPlan : PackedLanes {
  bool skips;
  int64_t strips, groups, bands;
  int64_t splits;    // of the tiles, for each of which all is copied
  int64_t height;    // of a band, in the grid
  int64_t y_margin;  // of the padding, what is kept
  Range columns;     // that are kept
  Range inner;       // grid columns that need no padding
  int64_t kept_row, kept_channel, kept_size;
  int64_t sum_row, sums_size;

  LanesPlan(const PixelPass& pass, bool skips_padding, int threads) : PackedLanes(pass) {
    skips = skips_padding;
    strips = divide_up(pass.images, kImages);
    groups = pass.groups;
    y_margin = skips ? 0 : kEverywhere;
    // A tap may be inside of the image for one pixel of a tile alone.
    columns = positions_read(pass.x, {0, pass.x.grid},
                             skips ? (kEndVectors - 1) * pass.x.step : kEverywhere);
    inner = elements_inside(pass.x);
    kept_row = columns.size() * kImages;

    int64_t least_bands = 1;
    const int64_t most = kBandBytes / static_cast<int64_t>(sizeof(float));
    while (least_bands < pass.y.grid &&
           set_height(divide_up(pass.y.grid, least_bands), pass) > most) {
      ++least_bands;
    }
    // The least time of the thread with most to do.
    int64_t least_cost = INT64_MAX;
    int64_t best_height = pass.y.grid;
    for (int64_t cut = 1; cut <= smaller(tiles, threads); cut *= 2) {
      for (bands = least_bands; bands <= smaller(pass.y.grid, least_bands * threads); ++bands) {
        const int64_t band = divide_up(pass.y.grid, bands);
        const int64_t products = band * pass.x.grid * divide_up(rows, cut) * depth;
        const int64_t copies = kept_rows(band, pass) * columns.size() * pass.outer;
        const int64_t rounds = divide_up(strips * groups * bands * cut, threads);
        const int64_t cost = rounds * (products + copies * kCopyProducts);
        if (cost >= least_cost) continue;
        least_cost = cost;
        best_height = band;
        splits = cut;
      }
    }
    set_height(best_height, pass);
    bands = divide_up(pass.y.grid, height);
  }

  int64_t tasks() const { return strips * groups * bands * splits; }
  LaneTask task(int64_t index, const PixelPass& pass) const {
    LaneTask task{};
    const int64_t split = index % splits;
    task.tiles = {split * tiles / splits, (split + 1) * tiles / splits};
    task.y0 = index / splits % bands * height;
    task.height = smaller(height, pass.y.grid - task.y0);
    task.group = index / splits / bands % groups;
    task.image0 = index / splits / bands / groups * kImages;
    task.images = smaller(kImages, pass.images - task.image0);
    return task;
  }
  Range y_taps(int64_t y, const PixelPass& pass) const {
    return skips ? taps_inside(pass.y, {y, y + 1}) : Range{0, pass.y.taps};
  }
  Range x_taps(const Range& grid, const PixelPass& pass) const {
    const bool all = !skips || (grid.begin >= inner.begin && grid.end <= inner.end);
    return all ? Range{0, pass.x.taps} : taps_inside(pass.x, grid);
  }
  // Of the tile that begins at grid column x: about equal ones where no pixel needs padding.
  int64_t tile_width(int64_t x, int64_t most, const PixelPass& pass) const {
    if (x < inner.begin) return smaller(inner.begin - x, smaller(most, kEndVectors));
    if (x >= inner.end) return smaller(pass.x.grid - x, smaller(most, kEndVectors));
    const int64_t rest = inner.end - x;
    return divide_up(rest, divide_up(rest, most));
  }
  int64_t thread_size() const { return kept_size + sums_size; }
  int64_t workspace_bytes(int threads) const {
    return threads * thread_size() * static_cast<int64_t>(sizeof(float));
  }

 private:
  int64_t kept_rows(int64_t of_band, const PixelPass& pass) const {
    const int64_t all = (of_band - 1) * pass.y.step + (pass.y.taps - 1) * pass.y.gap + 1;
    return skips ? smaller(all, pass.y.limit) : all;
  }
  int64_t set_height(int64_t of_band, const PixelPass& pass) {
    height = of_band;
    kept_channel = odd_lines<float>(kept_rows(height, pass) * kept_row);
    kept_size = pass.outer * kept_channel;
    sum_row = odd_lines<float>(height * pass.x.grid * kImages);
    sums_size = smaller(rows, kTileRows) * sum_row;
    return thread_size();
  }
};

NNOPS_INLINE void write_zero_pixels(float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) write(target + i * kImages, Wide<float>{});
}

// kept[column][image] of one row of some images, which is outside of them if `limit` is 0. Lanes
// without an image are zero.
NNOPS_INLINE void keep_row(float* kept, const float* row, int64_t images, const Range& columns,
                           int64_t limit, const Strides4& strides) {
  const int64_t begin = smaller(columns.end, larger(columns.begin, 0));
  const int64_t end = larger(begin, smaller(columns.end, limit));
  write_zero_pixels(kept, begin - columns.begin);
  float* inside = kept + (begin - columns.begin) * kImages;
  if (images < kImages) write_zero_pixels(inside, end - begin);
  transpose(inside, kImages, row + begin * strides.w, strides.n, strides.w, images, end - begin);
  write_zero_pixels(inside + (end - begin) * kImages, columns.end - end);
}

void keep_band(float* kept, const float* source, const LaneTask& task, const Range& positions,
               const PixelPass& pass, const LanesPlan& plan) {
  for (int64_t c = 0; c < pass.outer; ++c) {
    const float* channel = source + c * pass.read.c;
    for (int64_t h = positions.begin; h < positions.end; ++h) {
      const bool inside = h >= 0 && h < pass.y.limit;
      keep_row(kept + c * plan.kept_channel + (h - positions.begin) * plan.kept_row,
               channel + (inside ? h * pass.read.h : 0), task.images, plan.columns,
               inside ? pass.x.limit : 0, pass.read);
    }
  }
}

// The sums of the written channels [row0, row0 + tile_rows) of a band's group, of which `kept` has
// the rows `positions`.
void multiply_band(float* sums, const float* kept, const Range& positions, const LaneTask& task,
                   int64_t row0, int64_t tile_rows, const float* weights, const float* bias,
                   const PixelPass& pass, const LanesPlan& plan) {
  LaneTile tile{};
  tile.sum_row = plan.sum_row;
  tile.pixel = pass.x.step * kImages;
  tile.kw = pass.x.gap * kImages;
  tile.kh = pass.y.gap * plan.kept_row;
  tile.channel = plan.kept_channel;
  tile.weight_channel = pass.x.taps * tile_rows;
  weights += row0 * plan.depth;
  for (int64_t y = 0; y < task.height; ++y) {
    const Range y_taps = plan.y_taps(task.y0 + y, pass);
    const int64_t h = pass.y.first + (task.y0 + y) * pass.y.step + y_taps.begin * pass.y.gap;
    tile.y_taps = y_taps.size();
    for (int64_t c = 0; c < pass.outer; c += plan.chain) {
      tile.channels = smaller(plan.chain, pass.outer - c);
      tile.weight_kh = tile.channels * tile.weight_channel;
      const float* chain_weights =
          weights + c * pass.y.taps * tile.weight_channel + y_taps.begin * tile.weight_kh;
      const float* row = kept + c * plan.kept_channel + (h - positions.begin) * plan.kept_row;
      tile.first = c == 0;
      tile.bias = bias != nullptr && c + plan.chain >= pass.outer ? bias + row0 : nullptr;
      int64_t width = 0;
      for (int64_t x = 0; x < pass.x.grid; x += width) {
        width = plan.tile_width(x, most_pixel_vectors(tile_rows), pass);
        const Range x_taps = plan.x_taps({x, x + width}, pass);
        const int64_t w = pass.x.first + x * pass.x.step + x_taps.begin * pass.x.gap;
        tile.x_taps = x_taps.size();
        tile.weights = chain_weights + x_taps.begin * tile_rows;
        tile.read = row + (w - plan.columns.begin) * kImages;
        tile.sums = sums + (y * pass.x.grid + x) * kImages;
        tile_function<LaneTiles>(tile_rows, width)(tile);
      }
    }
  }
}

void run_lanes_pass(float* written, const float* read, const float* packed, const float* bias,
                    const PixelPass& pass, void* workspace, int threads) {
  const bool finite = packed[PackedLanes(pass).packed_size] != 0;
  const LanesPlan plan(pass, finite, threads);
  float* per_thread = static_cast<float*>(workspace);
  in_parallel(threads, [&] {
    float* kept = per_thread + thread_index() * plan.thread_size();
    float* sums = kept + plan.kept_size;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.tasks(); ++i) {
      const LaneTask task = plan.task(i, pass);
      const float* source =
          read + task.image0 * pass.read.n + task.group * pass.outer * pass.read.c;
      const Range positions =
          positions_read(pass.y, {task.y0, task.y0 + task.height}, plan.y_margin);
      keep_band(kept, source, task, positions, pass, plan);

      const int64_t first_channel = task.group * pass.rows;
      const float* weights = packed + task.group * plan.packed_group;
      const float* group_bias = bias != nullptr ? bias + first_channel : nullptr;
      float* target = written + task.image0 * pass.written.n + first_channel * pass.written.c +
                      task.y0 * pass.written.h;
      for (int64_t t = task.tiles.begin; t < task.tiles.end; ++t) {
        const int64_t row0 = plan.first_row(t);
        const int64_t tile_rows = plan.first_row(t + 1) - row0;
        multiply_band(sums, kept, positions, task, row0, tile_rows, weights, group_bias, pass,
                      plan);
        for (int64_t r = 0; r < tile_rows; ++r) {
          write_planes<float>(target + (row0 + r) * pass.written.c, pass.written.n,
                              sums + r * plan.sum_row, kImages, task.height * pass.x.grid, nullptr,
                              task.images);
        }
      }
    }
  });
}

bool all_finite(const float* values, int64_t count) {
  constexpr int32_t kInfinity = 0x7f800000;
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits = 0;
    std::memcpy(&bits, values + i, sizeof(bits));
    const int32_t magnitude = bits & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  return most < kInfinity;
}

void pack_lanes(float* packed, const float* weight, const PixelPass& pass, int threads) {
  const PackedLanes plan(pass);
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pass.groups * plan.tiles; ++i) {
      const int64_t group = i / plan.tiles;
      const int64_t row0 = plan.first_row(i % plan.tiles);
      const int64_t tile_rows = plan.first_row(i % plan.tiles + 1) - row0;
      pack_weight_tile(packed + group * plan.packed_group + row0 * plan.depth,
                       weight + group * pass.weight_group, row0, tile_rows, plan.chain, pass);
    }
  });
  packed[plan.packed_size] = all_finite(packed, plan.packed_size) ? 1 : 0;
}

struct LanesOfImages {
  template <typename T>
  static void run(T* written, const T* read, const void* weights, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
    run_lanes_pass(written, read, static_cast<const float*>(weights), bias, pass, workspace,
                   threads);
  }
  template <typename T>
  static int64_t workspace_bytes(const PixelPass& pass, int threads) {
    return larger(LanesPlan(pass, true, threads).workspace_bytes(threads),
                  LanesPlan(pass, false, threads).workspace_bytes(threads));
  }
  template <typename T>
  static int64_t packed_bytes(const PixelPass& pass) {
    return (PackedLanes(pass).packed_size + 1) * static_cast<int64_t>(sizeof(T));
  }
  template <typename T>
  static void pack(T* packed, const T* weight, const PixelPass& pass, int threads) {
    pack_lanes(packed, weight, pass, threads);
  }
  template <typename T>
  static void visit(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
    const LanesPlan plan(pass, true, threads);
    visit_products(visitor, Schedule::kStatic, plan.tasks(), [&](int64_t i) {
      const LaneTask task = plan.task(i, pass);
      const int64_t rows = plan.first_row(task.tiles.end) - plan.first_row(task.tiles.begin);
      return task.images * task.height * pass.x.grid * rows * plan.depth;
    });
  }
};
using ByLanes = ByPasses<LanesOfImages>;

}  // namespace

void ImageLanes::forward(void* output, const void* input, const void* packed, const void* bias,
                         const Conv2dGeometry& g, void* workspace, int threads) {
  ByLanes::forward<float>(output, input, packed, bias, g, workspace, threads);
}
int64_t ImageLanes::forward_workspace(const Conv2dGeometry& g, int threads) {
  return ByLanes::forward_workspace<float>(g, threads);
}
int64_t ImageLanes::forward_packed(const Conv2dGeometry& g) {
  return ByLanes::forward_packed<float>(g);
}
void ImageLanes::forward_pack(void* packed, const void* weight, const Conv2dGeometry& g,
                              int threads) {
  ByLanes::forward_pack<float>(packed, weight, g, threads);
}
void ImageLanes::forward_partition(const Conv2dGeometry& g, int threads,
                                   const Conv2dPhaseVisitor& visitor) {
  ByLanes::forward_partition<float>(g, threads, visitor);
}

void ImageLanes::backward_input(void* grad_input, const void* grad_output, const void* packed,
                                const Conv2dGeometry& g, void* workspace, int threads) {
  ByLanes::backward_input<float>(grad_input, grad_output, packed, g, workspace, threads);
}
int64_t ImageLanes::backward_input_workspace(const Conv2dGeometry& g, int threads) {
  return ByLanes::backward_input_workspace<float>(g, threads);
}
int64_t ImageLanes::backward_input_packed(const Conv2dGeometry& g) {
  return ByLanes::backward_input_packed<float>(g);
}
void ImageLanes::backward_input_pack(void* packed, const void* weight, const Conv2dGeometry& g,
                                     int threads) {
  ByLanes::backward_input_pack<float>(packed, weight, g, threads);
}
void ImageLanes::backward_input_partition(const Conv2dGeometry& g, int threads,
                                          const Conv2dPhaseVisitor& visitor) {
  ByLanes::backward_input_partition<float>(g, threads, visitor);
}

}  // namespace NNOPS_ISA
}  // namespace nnops
