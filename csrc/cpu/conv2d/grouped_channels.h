// conv2d forward and backward_input for groups of few channels, channels_last images: vectors along
// the written channels, whatever groups they belong to.
//
// The sum and its order are those of pixel_pass.h, and so are the bits: every sum is one chain.
//
// Layout. Written channels are cut into blocks of kLanes. What the lanes of a block read is spread
// out for a strip of the grid, with the padding as zeros, once for each outer channel of a group:
//   spread[read row][outer][column][lane] = read[row][column][group of the lane][outer]
// Kernel row kh and outer channel c are then row kh * outer + c of a depthwise convolution, which
// depthwise_channels.h computes. Weights are packed as [block][kh][outer][kw][lane], each block
// with its bias behind.
//
// Parallel over (images, strips, blocks). bfloat16 and float16 are converted while they are spread
// and accumulate in float.
#pragma once

#include "cpu/conv2d/depthwise_channels.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kSpreadBytes = int64_t{192} << 10;  // of a strip, about
constexpr int64_t kSpreadColumns = 256;               // of the grid, at most

// result[lane] = source[index[lane]], all of which lie within the first N.
template <int N, typename A>
NNOPS_INLINE Lanes<A, N> permute_lanes(Lanes<A, N> source, const int32_t* index) {
  Lanes<A, N> result;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float> && N == 16) {
    const __m512 permuted =
        _mm512_permutexvar_ps(_mm512_loadu_si512(index), reinterpret_cast<__m512>(source));
    std::memcpy(&result, &permuted, sizeof(result));
    return result;
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<A, float> && N == 8) {
    const __m256 permuted =
        _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(source),
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)));
    std::memcpy(&result, &permuted, sizeof(result));
    return result;
  }
#endif
  for (int i = 0; i < N; ++i) result[i] = source[index[i]];
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
    const int64_t rows = kSpreadBytes / row_bytes - (pass.y.taps - 1);
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

// One row of the read image for the kCount lanes from `lane` on: spread[column][lane].
template <int kCount, typename T>
NNOPS_INLINE void spread_row(acc_t<T>* spread, const T* row, int64_t lane, int64_t outer,
                             const GroupedStrip& strip, const PixelPass& pass,
                             const GroupedPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = kLanes<A>;
  const int64_t position = strip.x0 * pass.x.step + pass.x.first;  // of column 0
  const int64_t columns = (strip.width - 1) * pass.x.step + (pass.x.taps - 1) * pass.x.gap + 1;
  const int64_t limit = row != nullptr ? pass.x.limit : 0;
  const int64_t begin = smaller(columns, larger(0, -position));
  const int64_t end = larger(begin, smaller(columns, limit - position));
  const int64_t channel0 = strip.block * kBlock + lane;
  const int64_t base = channel0 / pass.rows * pass.outer;
  int32_t index[kCount];
  int64_t last = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    // Lanes beyond the last channel repeat it.
    const int64_t channel = smaller(channel0 + i, plan.channels - 1);
    last = channel / pass.rows * pass.outer + outer - base;
    index[i] = static_cast<int32_t>(last);
  }
  A* target = spread + lane;
  for (int64_t i = 0; i < begin; ++i) store_lanes<kCount>(target + i * kBlock, Lanes<A, kCount>{});
  if (begin < end) {
    const T* source = row + (position + begin) * pass.read.w + base;
    if (last < kCount && base + kCount <= pass.groups * pass.outer) {
      for (int64_t i = begin; i < end; ++i, source += pass.read.w) {
        store_lanes<kCount>(target + i * kBlock,
                            permute_lanes<kCount, A>(load_lanes<kCount>(source), index));
      }
    } else {
      for (int64_t i = begin; i < end; ++i, source += pass.read.w) {
        for (int64_t k = 0; k < kCount; ++k) target[i * kBlock + k] = to_acc(source[index[k]]);
      }
    }
  }
  for (int64_t i = end; i < columns; ++i) {
    store_lanes<kCount>(target + i * kBlock, Lanes<A, kCount>{});
  }
}

template <typename T>
void run_grouped_pass(T* written, const T* read, const T* weight, const T* bias,
                      const PixelPass& pass, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = kLanes<A>;
  constexpr int kCount = kMostLanes<A>;
  const GroupedPlan<A> plan(pass, threads);
  A* packed = static_cast<A*>(workspace);
  A* per_thread = packed + plan.packed_size();
  const int64_t spread_row_size = plan.read_columns * kBlock;
  TapAxis x = pass.x;
  x.first = 0;  // the spread rows begin where the strip's first element reads
  const ChannelsFunctions<T, A> functions = channels_functions_of<T, A>(x);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    A* spread = per_thread + thread_index() * plan.spread_size;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < plan.blocks; ++block) {
      pack_grouped_block(packed + block * plan.packed_block, weight, bias, block, pass, plan);
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < plan.tasks(); ++i) {
      const GroupedStrip strip = plan.strip(i, pass);
      const T* image = read + strip.image * pass.read.n;
      const int64_t rows = (strip.height - 1) * pass.y.step + (pass.y.taps - 1) * pass.y.gap + 1;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t h = strip.y0 * pass.y.step + pass.y.first + r;
        const T* row = h >= 0 && h < pass.y.limit ? image + h * pass.read.h : nullptr;
        for (int64_t c = 0; c < pass.outer; ++c) {
          A* target = spread + (r * pass.outer + c) * spread_row_size;
          for (int64_t lane = 0; lane < kBlock; lane += kCount) {
            spread_row<kCount>(target, row, lane, c, strip, pass, plan);
          }
        }
      }

      ChannelsTask<T, A> task{};
      task.pixel = kBlock;
      task.row = spread_row_size;
      task.y_taps = pass.y.taps * pass.outer;
      const A* weights = packed + strip.block * plan.packed_block;
      task.bias = weights + plan.terms * kBlock;
      task.weight_column = kBlock;
      task.weight_row = pass.x.taps * kBlock;
      task.channels = plan.block_channels(strip.block);
      task.written_step = pass.x.out_step * pass.written.w;
      x.grid = strip.width;
      x.limit = (x.grid - 1) * x.step + (x.taps - 1) * x.gap + 1;
      for (int64_t y = 0; y < strip.height; ++y) {
        task.read = spread + y * pass.y.step * pass.outer * spread_row_size;
        task.weights = weights;
        task.written = written + strip.image * pass.written.n + strip.block * kBlock +
                       (pass.y.out_first + (strip.y0 + y) * pass.y.out_step) * pass.written.h +
                       pass.x.out_first * pass.written.w + strip.x0 * task.written_step;
        add_channels_row(task, x, {0, strip.width}, functions);
      }
    }
  }
}

template <typename T>
void grouped_channels_forward(void* output, const void* input, const void* weight, const void* bias,
                              const Conv2dGeometry& g, void* workspace, int threads) {
  run_grouped_pass(static_cast<T*>(output), static_cast<const T*>(input),
                   static_cast<const T*>(weight), static_cast<const T*>(bias), forward_pass(g),
                   workspace, threads);
}

template <typename T>
void grouped_channels_backward_input(void* grad_input, const void* grad_output, const void* weight,
                                     const Conv2dGeometry& g, void* workspace, int threads) {
  T* gx = static_cast<T*>(grad_input);
  write_zeros_where_no_tap_reaches(gx, g, threads);
  for_each_backward_pass(g, [&](const PixelPass& pass) {
    run_grouped_pass(gx, static_cast<const T*>(grad_output), static_cast<const T*>(weight),
                     static_cast<const T*>(nullptr), pass, workspace, threads);
  });
}

template <typename T>
int64_t grouped_channels_forward_workspace(const Conv2dGeometry& g, int threads) {
  return GroupedPlan<acc_t<T>>(forward_pass(g), threads).workspace_bytes(threads);
}

template <typename T>
int64_t grouped_channels_backward_input_workspace(const Conv2dGeometry& g, int threads) {
  int64_t most = 0;
  for_each_backward_pass(g, [&](const PixelPass& pass) {
    most = larger(most, GroupedPlan<acc_t<T>>(pass, threads).workspace_bytes(threads));
  });
  return most;
}

template <typename A>
void visit_grouped_pass(const PixelPass& pass, int threads, const Conv2dPhaseVisitor& visitor) {
  const GroupedPlan<A> plan(pass, threads);
  visit_copies(visitor, "weights", plan.blocks, [&](int64_t) { return plan.packed_block; });
  visit_products(visitor, Schedule::kDynamic, plan.tasks(), [&](int64_t i) {
    const GroupedStrip strip = plan.strip(i, pass);
    return strip.height * strip.width * plan.block_channels(strip.block) * plan.terms;
  });
}

template <typename T>
void grouped_channels_forward_partition(const Conv2dGeometry& g, int threads,
                                        const Conv2dPhaseVisitor& visitor) {
  visit_grouped_pass<acc_t<T>>(forward_pass(g), threads, visitor);
}

template <typename T>
void grouped_channels_backward_input_partition(const Conv2dGeometry& g, int threads,
                                               const Conv2dPhaseVisitor& visitor) {
  visit_zeros_where_no_tap_reaches(g, visitor);
  for_each_backward_pass(
      g, [&](const PixelPass& pass) { visit_grouped_pass<acc_t<T>>(pass, threads, visitor); });
}

NNOPS_END_KERNELS
