// conv2d forward and backward_input for one channel a group, channels_last images: vectors along
// the channels.
//
// The sum and its order are those of pixel_pass.h, and so are the bits.
//
// Layout. Nothing is copied but the weights, to [kh][kw][channel]. Some pixels of a row, a tile,
// are summed up at a time for one vector of channels: the pixels that they read in common are
// loaded once for each kernel row, or, by kernels that are not unrolled, for each tap. The tile's
// channels pass by in memory's order. Taps in the padding are left out: whole kernel rows by the
// loop over them, columns because pixels at the edges are computed one by one. A row's last tile
// may overlap the one before, and so may the last vector of the channels.
//
// backward_input at stride 2: each row is written at once, first its even and then its odd pixels,
// each by the taps that reach them.
//
// Parallel over (images, rows) and, where those are few, blocks of channels. bfloat16 and float16
// are converted as they are loaded and accumulate in float.
#pragma once

#include "cpu/conv2d/pixel_pass.h"
#include "cpu/lanes.h"

NNOPS_BEGIN_KERNELS

constexpr int kTilePixels = 8;
constexpr int64_t kChannelBlock = 32;  // the least number of channels that are worth a task

// As for_lanes, with vectors of one lane for what is shorter than all others.
template <typename T, typename Body>
NNOPS_INLINE void for_channels(int64_t channels, Body body) {
  for_lanes<T>(0, channels, body, [&](int64_t c) { body(LaneCount<1>{}, c); });
}

// The part of an axis that one grid element sees, and the elements that see all of it.
struct SeenTaps {
  int64_t first, last;
};
NNOPS_INLINE SeenTaps seen_taps(const TapAxis& axis, int64_t element) {
  const int64_t position = element * axis.step + axis.first;
  const int64_t first = position < 0 ? divide_up(-position, axis.gap) : 0;
  const int64_t last = position < axis.limit ? divide_up(axis.limit - position, axis.gap) : 0;
  const int64_t begin = smaller(axis.taps, first);
  return {begin, larger(begin, smaller(axis.taps, last))};
}
NNOPS_INLINE Range elements_that_see_all(const TapAxis& axis) {
  const int64_t reach = axis.first + (axis.taps - 1) * axis.gap;  // of element 0
  const int64_t begin = axis.first < 0 ? divide_up(-axis.first, axis.step) : 0;
  const int64_t end = reach < axis.limit ? divide_up(axis.limit - reach, axis.step) : 0;
  const int64_t first = smaller(axis.grid, begin);
  if (axis.taps == 0) return {axis.grid, axis.grid};
  return {first, larger(first, smaller(axis.grid, end))};
}

// Pixels of one row, as the taps that they see find them.
template <typename T, typename Read = T>
struct ChannelsTask {
  T* written;
  int64_t written_step;  // from pixel to pixel
  const Read* read;      // of the first pixel and tap
  int64_t pixel, row;    // from pixel to pixel of the read image, and from tap row to tap row
  int64_t read_step;     // from what one pixel reads to what the next one does
  int64_t x_taps, x_gap;
  int64_t y_taps;
  const acc_t<T>* weights;  // of the first tap
  int64_t weight_column, weight_row;
  const acc_t<T>* bias;
  int64_t channels;
  // From the first tap row to what the next row of the grid reads and this one does not: so many
  // rows are asked for meanwhile, as too many streams for the hardware to follow pass by at a time.
  int64_t ahead, ahead_rows, ahead_step;
};

// kPixels pixels that see all the kTaps taps of a kernel row, which lie next to each other.
template <typename T, typename Read, int kTaps, int kStep, int kPixels>
void add_channels_tile(const ChannelsTask<T, Read>& task) {
  using A = acc_t<T>;
  constexpr int kReadPixels = (kPixels - 1) * kStep + kTaps;
  const int64_t pixel = task.pixel;
  for_channels<T>(task.channels, [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
    constexpr int kCount = decltype(lanes)::kCount;
    Lanes<A, kCount> total[kPixels] = {};
    const Read* row = task.read + channel;
    const A* weight_row = task.weights + channel;
    for (int64_t r = 0; r < task.y_taps; ++r, row += task.row, weight_row += task.weight_row) {
      Lanes<A, kCount> weights[kTaps];
#pragma GCC unroll 7
      for (int s = 0; s < kTaps; ++s) {
        weights[s] = load_lanes<kCount>(weight_row + s * task.weight_column);
      }
      const Read* pixels = row;
#pragma GCC unroll 32
      for (int i = 0; i < kReadPixels; ++i, pixels += pixel) {
        Lanes<A, kCount> value = load_lanes<kCount>(pixels);
        load_once(value);
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) {
          const int s = i - p * kStep;
          if (s >= 0 && s < kTaps) total[p] += weights[s] * value;
        }
      }
    }
    const Read* next = task.read + channel + task.ahead;
    for (int64_t r = 0; r < task.ahead_rows; ++r, next += task.ahead_step) {
#pragma GCC unroll 16
      for (int i = 0; i < kPixels * kStep; ++i) __builtin_prefetch(next + i * pixel, 0, 2);
    }
    const Lanes<A, kCount> bias = load_lanes<kCount>(task.bias + channel);
    T* written = task.written + channel;
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p, written += task.written_step) {
      store_lanes<kCount>(written, total[p] + bias);
    }
  });
}

// kPixels pixels that see all the taps, whatever these are: a load for each product. Of kVectors
// vectors of kCount channels from `channel` on.
template <typename T, typename Read, int kPixels, int kVectors, int kCount>
NNOPS_INLINE void add_channels_vectors(const ChannelsTask<T, Read>& task, int64_t channel) {
  using A = acc_t<T>;
  Lanes<A, kCount> total[kPixels][kVectors] = {};
  const Read* row = task.read + channel;
  const A* weight_row = task.weights + channel;
  for (int64_t r = 0; r < task.y_taps; ++r, row += task.row, weight_row += task.weight_row) {
    const Read* tap = row;
    const A* weight = weight_row;
    for (int64_t s = 0; s < task.x_taps; ++s, tap += task.x_gap, weight += task.weight_column) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Lanes<A, kCount> factor = load_lanes<kCount>(weight + v * kCount);
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) {
          total[p][v] += factor * load_lanes<kCount>(tap + p * task.read_step + v * kCount);
        }
      }
    }
  }
  T* written = task.written + channel;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Lanes<A, kCount> bias = load_lanes<kCount>(task.bias + channel + v * kCount);
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      store_lanes<kCount>(written + p * task.written_step + v * kCount, total[p][v] + bias);
    }
  }
}

template <typename T, typename Read, int kPixels>
void add_channels_any_tile(const ChannelsTask<T, Read>& task) {
  for_channels<T>(task.channels, [&](auto lanes, int64_t channel) __attribute__((always_inline)) {
    add_channels_vectors<T, Read, kPixels, 1, decltype(lanes)::kCount>(task, channel);
  });
}

// One pixel: several vectors of channels at a time, so that their additions do not wait for each
// other.
template <typename T, typename Read>
void add_channels_pixel(const ChannelsTask<T, Read>& task) {
  constexpr int kVectors = 4;
  constexpr int kCount = kMostLanes<T>;
  int64_t channel = 0;
  for (; channel + kVectors * kCount <= task.channels; channel += kVectors * kCount) {
    add_channels_vectors<T, Read, 1, kVectors, kCount>(task, channel);
  }
  const auto rest = [&](auto lanes, int64_t first) __attribute__((always_inline)) {
    add_channels_vectors<T, Read, 1, 1, decltype(lanes)::kCount>(task, first);
  };
  for_lanes<T>(channel, task.channels, rest, [&](int64_t first) { rest(LaneCount<1>{}, first); });
}

template <typename T, typename Read = T>
using ChannelsFunction = void (*)(const ChannelsTask<T, Read>& task);

// For a tile, and for half a tile.
template <typename T, typename Read = T>
struct ChannelsFunctions {
  ChannelsFunction<T, Read> tile, half;
};
template <typename T, typename Read, int kTaps, int kStep>
constexpr ChannelsFunctions<T, Read> channels_functions() {
  return {add_channels_tile<T, Read, kTaps, kStep, kTilePixels>,
          add_channels_tile<T, Read, kTaps, kStep, kTilePixels / 2>};
}
template <typename T, typename Read = T>
ChannelsFunctions<T, Read> channels_functions_of(const TapAxis& x) {
  if (x.gap == 1 && x.step == 1) {
    if (x.taps == 1) return channels_functions<T, Read, 1, 1>();
    if (x.taps == 2) return channels_functions<T, Read, 2, 1>();
    if (x.taps == 3) return channels_functions<T, Read, 3, 1>();
    if (x.taps == 4) return channels_functions<T, Read, 4, 1>();
    if (x.taps == 5) return channels_functions<T, Read, 5, 1>();
    if (x.taps == 7) return channels_functions<T, Read, 7, 1>();
  }
  if (x.gap == 1 && x.step == 2) {
    if (x.taps == 3) return channels_functions<T, Read, 3, 2>();
    if (x.taps == 5) return channels_functions<T, Read, 5, 2>();
    if (x.taps == 7) return channels_functions<T, Read, 7, 2>();
  }
  return {add_channels_any_tile<T, Read, kTilePixels>,
          add_channels_any_tile<T, Read, kTilePixels / 2>};
}

// Every pixel of one row of one pass, for some channels. The task is changed on the way: a copy of
// what has just been written would wait for all stores before it.
template <typename T, typename Read>
void add_channels_row(ChannelsTask<T, Read>& task, const TapAxis& x, Range inside,
                      const ChannelsFunctions<T, Read>& functions) {
  const Read* read = task.read;
  const acc_t<T>* weights = task.weights;
  T* written = task.written;
  const int64_t position_step = task.pixel;
  const auto pixel = [&](int64_t element) {
    const SeenTaps seen = seen_taps(x, element);
    const int64_t position = element * x.step + x.first + seen.first * x.gap;
    task.written = written + element * task.written_step;
    task.x_taps = seen.last - seen.first;
    task.read = task.x_taps > 0 ? read + position * position_step : read;
    task.weights = weights + seen.first * task.weight_column;
    add_channels_pixel(task);
  };
  const auto tiles = [&](int64_t begin, int64_t count, ChannelsFunction<T, Read> function) {
    task.x_taps = x.taps;
    task.weights = weights;
    for (int64_t element = begin; element < inside.end; element += count) {
      const int64_t first = smaller(element, inside.end - count);
      task.written = written + first * task.written_step;
      task.read = read + (first * x.step + x.first) * position_step;
      function(task);
    }
  };
  task.x_gap = x.gap * position_step;
  task.read_step = x.step * position_step;
  int64_t element = 0;
  for (; element < inside.begin; ++element) pixel(element);
  const int64_t count = inside.end - inside.begin;
  if (count >= kTilePixels / 2) {
    // A rest of up to half a tile is left to half a tile.
    const int64_t whole = count / kTilePixels * kTilePixels;
    const int64_t rest = count - whole;
    const bool halves = count < kTilePixels || (rest > 0 && rest <= kTilePixels / 2);
    const Range all = inside;
    if (count >= kTilePixels) {
      if (halves) inside.end = inside.begin + whole;
      tiles(inside.begin, kTilePixels, functions.tile);
      inside.end = all.end;
    }
    if (halves) tiles(inside.begin + whole, kTilePixels / 2, functions.half);
    element = inside.end;
  }
  for (; element < x.grid; ++element) pixel(element);
}

// packed[kh][kw][channel], and behind it the bias or zeros. The threads of a region share the work.
template <typename T>
NNOPS_INLINE void pack_taps_by_channel(acc_t<T>* packed, const T* weight, const T* bias,
                                       const Conv2dGeometry& g) {
  const int64_t taps = g.kh * g.kw;
#pragma omp for schedule(static)
  for (int64_t tap = 0; tap <= taps; ++tap) {
    acc_t<T>* target = packed + tap * g.oc;
    if (tap < taps) {
      const T* source = weight + tap / g.kw * g.weight.h + tap % g.kw * g.weight.w;
      for (int64_t c = 0; c < g.oc; ++c) target[c] = to_acc(source[c * g.weight.n]);
    } else {
      for (int64_t c = 0; c < g.oc; ++c) target[c] = bias != nullptr ? to_acc(bias[c]) : 0;
    }
  }
}

// The passes over both axes: one of them, or one for each parity of the position written.
struct ChannelsPasses {
  TapAxis y[2], x[2];
  int64_t y_count, x_count;
  int64_t rows, columns;  // written
  Strides4 written, read;

  // Of one channel.
  int64_t row_products(int64_t row) const {
    int64_t products = 0;
    for (int64_t p = 0; p < x_count; ++p) products += x[p].grid * x[p].taps;
    return products * y[row % y_count].taps;
  }
};
NNOPS_INLINE ChannelsPasses channels_forward(const Conv2dGeometry& g) {
  const PixelPass pass = forward_pass(g);
  return {{pass.y}, {pass.x}, 1, 1, g.oh, g.ow, g.output, g.input};
}
NNOPS_INLINE ChannelsPasses channels_backward(const Conv2dGeometry& g) {
  ChannelsPasses passes{};
  passes.y_count = smaller(g.stride_h, g.h);
  passes.x_count = smaller(g.stride_w, g.w);
  for (int64_t p = 0; p < passes.y_count; ++p) passes.y[p] = backward_pass(g, p, 0).y;
  for (int64_t p = 0; p < passes.x_count; ++p) passes.x[p] = backward_pass(g, 0, p).x;
  passes.rows = g.h;
  passes.columns = g.w;
  passes.written = g.input;
  passes.read = g.output;
  return passes;
}

// How rows are computed from one image into another, whose channels stand next to each other.
template <typename T>
struct ChannelsRows {
  using A = acc_t<T>;
  const ChannelsPasses& passes;
  const A* packed;
  int64_t kernel_width, all_channels, taps;
  Range inside[2];
  ChannelsFunctions<T> functions[2];

  ChannelsRows(const ChannelsPasses& all, const A* weights, const Conv2dGeometry& g)
      : passes(all),
        packed(weights),
        kernel_width(g.kw),
        all_channels(g.oc),
        taps(g.kh * g.kw),
        inside{elements_that_see_all(all.x[0]), elements_that_see_all(all.x[1])},
        functions{channels_functions_of<T>(all.x[0]), channels_functions_of<T>(all.x[1])} {}

  // Of `channels` channels from `channel` on, at which `written` and `read` point.
  void add(T* written, const Strides4& written_at, const T* read, const Strides4& read_at,
           int64_t row, int64_t channel, int64_t channels) const {
    const TapAxis& y = passes.y[row % passes.y_count];
    const int64_t element = row / passes.y_count;
    const SeenTaps seen = seen_taps(y, element);
    const int64_t position = element * y.step + y.first + seen.first * y.gap;
    ChannelsTask<T> task{};
    task.pixel = read_at.w;
    task.row = y.gap * read_at.h;
    task.y_taps = seen.last - seen.first;
    task.ahead_step = read_at.h;
    task.ahead_rows = y.step;
    task.ahead = ((task.y_taps - 1) * y.gap + 1) * read_at.h;
    task.bias = packed + taps * all_channels + channel;
    task.channels = channels;
    task.weight_row = y.kernel_step * kernel_width * all_channels;
    const int64_t kernel_row = y.kernel_first + seen.first * y.kernel_step;
    for (int64_t p = 0; p < passes.x_count; ++p) {
      const TapAxis& x = passes.x[p];
      task.read = task.y_taps > 0 ? read + position * read_at.h : read;
      task.written = written + row * written_at.h + x.out_first * written_at.w;
      task.written_step = x.out_step * written_at.w;
      task.weight_column = x.kernel_step * all_channels;
      task.weights = packed + (kernel_row * kernel_width + x.kernel_first) * all_channels + channel;
      add_channels_row(task, x, inside[p], functions[p]);
    }
  }
};

NNOPS_INLINE void visit_taps_by_channel(const Conv2dGeometry& g,
                                        const Conv2dPhaseVisitor& visitor) {
  visit_copies(visitor, "taps", g.kh * g.kw + 1, [&](int64_t) { return g.oc; });
}

// How many channels a block gets, at most `most`, a multiple of 16, so that all threads get about
// as many of the blocks of `others` images or chunks.
NNOPS_INLINE int64_t shared_channels(int64_t channels, int64_t most, int64_t others, int threads) {
  const int64_t rounds = divide_up(others * divide_up(channels, most), threads);
  const int64_t blocks = larger(1, rounds * threads / others);
  return smaller(most, round_up(divide_up(channels, blocks), 16));
}

// Some channels of one row of one image.
struct ChannelsShare {
  int64_t image, row, channel, channels;
};
struct ChannelsPlan {
  int64_t rows, all_rows, all_channels;
  int64_t block, blocks;  // of channels
  ChannelsPlan(const ChannelsPasses& passes, const Conv2dGeometry& g, int threads)
      : rows(passes.rows), all_rows(g.n * passes.rows), all_channels(g.c), blocks(1) {
    if (all_rows < int64_t{8} * threads) {
      blocks = larger(1, smaller(g.c / kChannelBlock, divide_up(8 * threads, all_rows)));
    }
    block = round_up(divide_up(g.c, blocks), 16);
    blocks = divide_up(g.c, block);
  }
  int64_t shares() const { return all_rows * blocks; }
  ChannelsShare share(int64_t index) const {
    const int64_t channel = index % blocks * block;
    return {index / blocks / rows, index / blocks % rows, channel,
            smaller(block, all_channels - channel)};
  }
};

template <typename T>
void run_depthwise_channels(T* written, const T* read, const T* weight, const T* bias,
                            const ChannelsPasses& passes, const Conv2dGeometry& g, void* workspace,
                            int threads) {
  acc_t<T>* packed = static_cast<acc_t<T>*>(workspace);
  const ChannelsRows<T> rows(passes, packed, g);
  const ChannelsPlan plan(passes, g, threads);
  in_parallel(threads, [&] {
    pack_taps_by_channel(packed, weight, bias, g);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.shares(); ++i) {
      const auto [image, row, channel, channels] = plan.share(i);
      rows.add(written + image * passes.written.n + channel, passes.written,
               read + image * passes.read.n + channel, passes.read, row, channel, channels);
    }
  });
}

template <typename T>
void depthwise_channels_forward(void* output, const void* input, const void* weight,
                                const void* bias, const Conv2dGeometry& g, void* workspace,
                                int threads) {
  run_depthwise_channels(static_cast<T*>(output), static_cast<const T*>(input),
                         static_cast<const T*>(weight), static_cast<const T*>(bias),
                         channels_forward(g), g, workspace, threads);
}

template <typename T>
void depthwise_channels_backward_input(void* grad_input, const void* grad_output,
                                       const void* weight, const Conv2dGeometry& g, void* workspace,
                                       int threads) {
  run_depthwise_channels(static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
                         static_cast<const T*>(weight), static_cast<const T*>(nullptr),
                         channels_backward(g), g, workspace, threads);
}

template <typename T>
int64_t depthwise_channels_workspace(const Conv2dGeometry& g, int) {
  return g.oc * (g.kh * g.kw + 1) * static_cast<int64_t>(sizeof(acc_t<T>));
}

NNOPS_INLINE void visit_depthwise_channels(const ChannelsPasses& passes, const Conv2dGeometry& g,
                                           int threads, const Conv2dPhaseVisitor& visitor) {
  const ChannelsPlan plan(passes, g, threads);
  visit_taps_by_channel(g, visitor);
  visit_products(visitor, Schedule::kStatic, plan.shares(), [&](int64_t i) {
    const ChannelsShare share = plan.share(i);
    return share.channels * passes.row_products(share.row);
  });
}

template <typename T>
void depthwise_channels_forward_partition(const Conv2dGeometry& g, int threads,
                                          const Conv2dPhaseVisitor& visitor) {
  visit_depthwise_channels(channels_forward(g), g, threads, visitor);
}

template <typename T>
void depthwise_channels_backward_input_partition(const Conv2dGeometry& g, int threads,
                                                 const Conv2dPhaseVisitor& visitor) {
  visit_depthwise_channels(channels_backward(g), g, threads, visitor);
}

NNOPS_END_KERNELS
