// conv2d forward and backward_input for groups of few channels, channels_last images: vectors along
// the written channels, whatever groups they belong to.
//
// The sum and its order are those of pixel_pass.h, and so are the bits: every sum is one chain.
//
// Layout. Written channels are cut into blocks of kLanes. What the lanes of a block read is spread
// out for a strip of the grid, with the padding as zeros, once for each outer channel of a group:
//   spread[read row][outer][column][lane] = read[row][column][group of the lane][outer]
// Kernel row kh and outer channel c are then row kh * outer + c of a depthwise convolution, which
// depthwise_channels.h computes. Kernels dilated in height are for groups of one channel each.
// Weights are packed as [block][kh][outer][kw][lane], each block with its bias behind.
//
// Parallel over (images, strips, blocks). bfloat16 and float16 are converted while they are spread
// and accumulate in float.
#pragma once

#include "cpu/conv2d/depthwise_channels.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kSpreadBytes = int64_t{192} << 10;  // of a strip, about
constexpr int64_t kSpreadColumns = 256;               // of the grid, at most

// result[lane] = source[order[lane]]
template <int N, typename A>
NNOPS_INLINE Lanes<A, N> permute_lanes(Lanes<A, N> source, LaneMask<A, N> order) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    return reinterpret_cast<Lanes<A, N>>(
        _mm512_permutexvar_ps(reinterpret_cast<__m512i>(order), reinterpret_cast<__m512>(source)));
  } else if constexpr (N == 8) {
    return reinterpret_cast<Lanes<A, N>>(
        _mm512_permutexvar_pd(reinterpret_cast<__m512i>(order), reinterpret_cast<__m512d>(source)));
  }
#elif defined(__AVX2__)
  if constexpr (N == 8) {
    return reinterpret_cast<Lanes<A, N>>(_mm256_permutevar8x32_ps(
        reinterpret_cast<__m256>(source), reinterpret_cast<__m256i>(order)));
  }
#endif
  Lanes<A, N> result{};
  for (int i = 0; i < N; ++i) result[i] = source[order[i]];
  return result;
}

struct GroupedStrip {
  int64_t image, y0, x0, height, width, block;
};

template <typename A>
struct GroupedPlan {
  static constexpr int64_t kBlock = kLanes<A>;
  int64_t taps, terms;
  int64_t channels, blocks;         // written, of all groups
  int64_t height, width;            // of a strip, in grid elements
  int64_t vertical, horizontal;     // numbers of strips
  int64_t read_rows, read_columns;  // of a strip
  int64_t packed_block, spread_size, images;

  GroupedPlan(const PixelPass& pass, int threads) {
    images = pass.images;
    taps = pass.y.taps * pass.x.taps;
    terms = pass.outer * taps;
    channels = pass.groups * pass.rows;
    blocks = divide_up(channels, kBlock);
    horizontal = divide_up(larger(1, pass.x.grid), kSpreadColumns);
    width = divide_up(larger(1, pass.x.grid), horizontal);
    read_columns = (width - 1) * pass.x.step + (pass.x.taps - 1) * pass.x.gap + 1;
    const int64_t row_bytes = pass.outer * read_columns * kBlock * static_cast<int64_t>(sizeof(A));
    const int64_t rows = kSpreadBytes / row_bytes - (pass.y.taps - 1) * pass.y.gap;
    const int64_t grid_rows = larger(1, pass.y.grid);
    vertical = divide_up(grid_rows, larger(4, rows / pass.y.step));
    // Strips of few rows copy many of them twice.
    const int64_t others = larger(1, images * blocks * horizontal);
    while (others * vertical < 2 * threads && vertical * 8 <= grid_rows) vertical *= 2;
    height = divide_up(grid_rows, vertical);
    vertical = divide_up(grid_rows, height);
    read_rows = (height - 1) * pass.y.step + (pass.y.taps - 1) * pass.y.gap + 1;
    packed_block = (terms + 1) * kBlock;
    spread_size = read_rows * pass.outer * read_columns * kBlock;
  }

  int64_t tasks() const { return images * vertical * horizontal * blocks; }
  GroupedStrip strip(int64_t task, const PixelPass& pass) const {
    GroupedStrip strip{};
    strip.block = task % blocks;
    strip.x0 = task / blocks % horizontal * width;
    strip.y0 = task / blocks / horizontal % vertical * height;
    strip.image = task / blocks / horizontal / vertical;
    strip.height = smaller(height, pass.y.grid - strip.y0);
    strip.width = smaller(width, pass.x.grid - strip.x0);
    return strip;
  }
  int64_t block_channels(int64_t block) const { return smaller(kBlock, channels - block * kBlock); }
  int64_t packed_size() const { return blocks * packed_block; }
  int64_t workspace_bytes(int threads) const {
    return (packed_size() + threads * spread_size) * static_cast<int64_t>(sizeof(A));
  }
};

// One block's weights and bias; lanes beyond the last channel are zero.
template <typename T>
void pack_grouped_block(acc_t<T>* packed, const T* weight, const T* bias, int64_t block,
                        const PixelPass& pass, const GroupedPlan<acc_t<T>>& plan) {
  constexpr int64_t kBlock = kLanes<acc_t<T>>;
  for (int64_t i = 0; i < plan.packed_block; ++i) packed[i] = 0;
  for (int64_t lane = 0; lane < plan.block_channels(block); ++lane) {
    const int64_t channel = block * kBlock + lane;
    const T* source =
        weight + channel / pass.rows * pass.weight_group + channel % pass.rows * pass.weight_row;
    acc_t<T>* target = packed + lane;
    for (int64_t r = 0; r < pass.y.taps; ++r) {
      const int64_t kh = pass.y.kernel_first + r * pass.y.kernel_step;
      for (int64_t c = 0; c < pass.outer; ++c) {
        for (int64_t s = 0; s < pass.x.taps; ++s, target += kBlock) {
          const int64_t kw = pass.x.kernel_first + s * pass.x.kernel_step;
          *target = to_acc(source[c * pass.weight_outer + kh * pass.weight_h + kw * pass.weight_w]);
        }
      }
    }
    if (bias != nullptr) *target = to_acc(bias[channel]);
  }
}

// Where the lanes of a block find an outer channel: kCount lanes read what lies together.
template <typename A>
struct LaneSources {
  static constexpr int64_t kBlock = kLanes<A>;
  static constexpr int kCount = kMostLanes<A>;
  using LaneInt = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  int64_t base[kBlock / kCount];  // the first channel that the lanes read
  bool whole[kBlock / kCount];    // a vector from there on has all that they read
  LaneInt index[kConv2dLongestChain][kBlock];

  void find(int64_t block, const PixelPass& pass, const GroupedPlan<A>& plan) {
    for (int64_t part = 0; part < kBlock / kCount; ++part) {
      const int64_t lane = part * kCount;
      int64_t first[kCount];  // of each lane's group
      for (int64_t i = 0; i < kCount; ++i) {
        // Lanes beyond the last channel repeat it.
        const int64_t channel = smaller(block * kBlock + lane + i, plan.channels - 1);
        first[i] = channel / pass.rows * pass.outer;
      }
      base[part] = first[0];
      const int64_t span = first[kCount - 1] + pass.outer - base[part];
      whole[part] = span <= kCount && base[part] + kCount <= pass.groups * pass.outer;
      for (int64_t c = 0; c < pass.outer; ++c) {
        for (int64_t i = 0; i < kCount; ++i) {
          index[c][lane + i] = static_cast<LaneInt>(first[i] + c - base[part]);
        }
      }
    }
  }
};

// One row of the read image, or null for a row of padding: spread[outer][column][lane].
template <typename T>
NNOPS_INLINE void spread_row(acc_t<T>* spread, const T* row, const LaneSources<acc_t<T>>& lanes,
                             const GroupedStrip& strip, const PixelPass& pass,
                             const GroupedPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = kLanes<A>;
  constexpr int kCount = kMostLanes<A>;
  const int64_t position = strip.x0 * pass.x.step + pass.x.first;  // of column 0
  const int64_t columns = (strip.width - 1) * pass.x.step + (pass.x.taps - 1) * pass.x.gap + 1;
  const int64_t limit = row != nullptr ? pass.x.limit : 0;
  const int64_t begin = smaller(columns, larger(0, -position));
  const int64_t end = larger(begin, smaller(columns, limit - position));
  const int64_t pixel = pass.read.w;
  const T* first = begin < end ? row + (position + begin) * pixel : row;
  for (int64_t c = 0; c < pass.outer; ++c, spread += plan.read_columns * kBlock) {
    for (int64_t i = 0; i < begin * kBlock; ++i) spread[i] = 0;
    for (int64_t part = 0; part < kBlock / kCount; ++part) {
      const T* source = first + lanes.base[part];
      const auto* index = lanes.index[c] + part * kCount;
      A* target = spread + part * kCount + begin * kBlock;
      if (lanes.whole[part]) {
        LaneMask<A, kCount> order;
        std::memcpy(&order, index, sizeof(order));
        for (int64_t i = begin; i < end; ++i, source += pixel, target += kBlock) {
          store_lanes<kCount>(target, permute_lanes<kCount, A>(load_lanes<kCount>(source), order));
        }
      } else {
        for (int64_t i = begin; i < end; ++i, source += pixel, target += kBlock) {
          for (int64_t k = 0; k < kCount; ++k) target[k] = to_acc(source[index[k]]);
        }
      }
    }
    for (int64_t i = end * kBlock; i < columns * kBlock; ++i) spread[i] = 0;
  }
}

template <typename T>
void run_grouped_pass(T* written, const T* read, const T* weight, const T* bias,
                      const PixelPass& pass, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = kLanes<A>;
  const GroupedPlan<A> plan(pass, threads);
  A* packed = static_cast<A*>(workspace);
  A* per_thread = packed + plan.packed_size();
  const int64_t spread_row_size = plan.read_columns * kBlock;
  const ChannelsFunctions<T, A> functions = channels_functions_of<T, A>(pass.x);
  in_parallel(threads, [&] {
    A* spread = per_thread + thread_index() * plan.spread_size;
    LaneSources<A> lanes;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < plan.blocks; ++block) {
      pack_grouped_block(packed + block * plan.packed_block, weight, bias, block, pass, plan);
    }
    // A thread gets blocks of the same strip and strips below each other.
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.tasks(); ++i) {
      const GroupedStrip strip = plan.strip(i, pass);
      lanes.find(strip.block, pass, plan);
      const T* image = read + strip.image * pass.read.n;
      // A block reads and writes a line here and there. What the strip below reads and writes anew
      // is fetched in one piece, a part with each block.
      const int64_t below = strip.y0 + strip.height;
      const int64_t read_part = divide_up(strip.height * pass.y.step * pass.read.h, plan.blocks);
      const int64_t read_row = below * pass.y.step + pass.y.first + (pass.y.taps - 1) * pass.y.gap;
      prefetch_span(image + read_row * pass.read.h + strip.block * read_part, read_part);
      const int64_t written_row = pass.y.out_step * pass.written.h;
      const int64_t written_part = divide_up(strip.height * written_row, plan.blocks);
      prefetch_written_span(
          written + strip.image * pass.written.n + below * written_row + strip.block * written_part,
          written_part);
      const int64_t rows = (strip.height - 1) * pass.y.step + (pass.y.taps - 1) * pass.y.gap + 1;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t h = strip.y0 * pass.y.step + pass.y.first + r;
        const T* row = h >= 0 && h < pass.y.limit ? image + h * pass.read.h : nullptr;
        spread_row(spread + r * pass.outer * spread_row_size, row, lanes, strip, pass, plan);
      }

      ChannelsTask<T, A> task{};
      task.pixel = kBlock;
      // More than one row on only where groups have a single channel.
      task.row = pass.y.gap * spread_row_size;
      task.y_taps = pass.y.taps * pass.outer;
      const A* weights = packed + strip.block * plan.packed_block;
      task.bias = weights + plan.terms * kBlock;
      task.weight_column = kBlock;
      task.weight_row = pass.x.taps * kBlock;
      // What is not whole vectors is computed as such, beside the image.
      const int64_t channels = plan.block_channels(strip.block);
      task.channels = round_up(channels, kMostLanes<T>);
      const bool beside = task.channels > channels;
      const int64_t written_step = pass.x.out_step * pass.written.w;
      T row[kSpreadColumns * kBlock];
      task.written_step = beside ? kBlock : written_step;
      TapAxis x = pass.x;
      x.first = 0;  // the spread rows begin where the strip's first element reads
      x.grid = strip.width;
      x.limit = (x.grid - 1) * x.step + (x.taps - 1) * x.gap + 1;
      for (int64_t y = 0; y < strip.height; ++y) {
        task.read = spread + y * pass.y.step * pass.outer * spread_row_size;
        task.weights = weights;
        T* target = written + strip.image * pass.written.n + strip.block * kBlock +
                    (pass.y.out_first + (strip.y0 + y) * pass.y.out_step) * pass.written.h +
                    pass.x.out_first * pass.written.w + strip.x0 * written_step;
        task.written = beside ? row : target;
        add_channels_row(task, x, {0, strip.width}, functions);
        if (!beside) continue;
        for (int64_t i = 0; i < strip.width; ++i, target += written_step) {
          for (int64_t c = 0; c < channels; ++c) target[c] = row[i * kBlock + c];
        }
      }
    }
  });
}

template <typename A>
void visit_grouped_pass(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
  const GroupedPlan<A> plan(pass, threads);
  visit_copies(visitor, "weights", plan.blocks, [&](int64_t) { return plan.packed_block; });
  visit_products(visitor, Schedule::kStatic, plan.tasks(), [&](int64_t i) {
    const GroupedStrip strip = plan.strip(i, pass);
    return strip.height * strip.width * plan.block_channels(strip.block) * plan.terms;
  });
}

struct GroupedChannels {
  template <typename T>
  static void run(T* written, const T* read, const void* weights, const T* bias,
                  const PixelPass& pass, void* workspace, int threads) {
    run_grouped_pass(written, read, static_cast<const T*>(weights), bias, pass, workspace, threads);
  }
  template <typename T>
  static int64_t workspace_bytes(const PixelPass& pass, int threads) {
    return GroupedPlan<acc_t<T>>(pass, threads).workspace_bytes(threads);
  }
  template <typename T>
  static int64_t packed_bytes(const PixelPass&) {
    return 0;
  }
  template <typename T>
  static void visit(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
    visit_grouped_pass<acc_t<T>>(pass, threads, visitor);
  }
};

NNOPS_END_KERNELS
