// conv2d backward_weight for one channel a group, channels_last images: vectors along the channels.
//
//   grad_weight[c, kh, kw] = sum over images and pixels of grad_output[c, p] * input[c, p's tap]
//
// For one kernel row and some vectors of channels the sums of its columns stay in registers while
// the pixels of a chain pass by; a pixel of the input is loaded once for all columns. Taps in the
// padding are left out.
//
// Accumulation, for each channel alone: a chain of about kChain pixels (whole rows, or parts of
// long ones) by fused multiply-adds; the chains of a chunk in order; the chunks in order. A chunk
// is some rows of an image or several small images, as the geometry of one image has it.
//
// Small row-major images are transposed first (depthwise_transposed.h): the same order, the same
// bits.
//
// Parallel over (chunks, blocks of channels).
#pragma once

#include "cpu/conv2d/depthwise_transposed.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kChunkPixels = 1024;

// Rows [band0, band1) of the images [image0, image1), for some channels.
struct ChannelDotsShare {
  int64_t chunk, image0, image1, band0, band1, channel, channels;
};

struct ChannelDotsPlan {
  int64_t chain_rows, chain_width;  // of the grid
  int64_t rows, bands, images;      // of a chunk; chunks in an image; of a chunk
  int64_t chunks;
  int64_t block, blocks;  // of channels
  ChannelDotsPlan(const Conv2dGeometry& g, int threads, bool transposed) {
    chain_width = divide_up(g.ow, divide_up(g.ow, 2 * kChain));
    chain_rows = larger(1, smaller(g.oh, kChain / g.ow));
    rows = smaller(g.oh, round_up(larger(1, kChunkPixels / g.ow), chain_rows));
    bands = divide_up(g.oh, rows);
    images = bands > 1 ? 1 : larger(1, kChunkPixels / (g.oh * g.ow));
    chunks = divide_up(g.n, images) * bands;
    int64_t most = g.c;
    if (transposed) {
      most = transposed_channels(g);
    } else if (chunks < int64_t{4} * threads) {
      const int64_t wanted = smaller(g.c / kChannelBlock, divide_up(int64_t{4} * threads, chunks));
      most = round_up(divide_up(g.c, larger(1, wanted)), 16);
    }
    block = shared_channels(g.c, most, chunks, threads);
    blocks = divide_up(g.c, block);
  }
  int64_t chunk_size(const Conv2dGeometry& g) const { return g.kh * g.kw * g.c; }
  int64_t shares() const { return chunks * blocks; }
  ChannelDotsShare share(int64_t index, const Conv2dGeometry& g) const {
    ChannelDotsShare share{};
    share.chunk = index / blocks;
    share.image0 = share.chunk / bands * images;
    share.image1 = smaller(share.image0 + images, g.n);
    share.band0 = share.chunk % bands * rows;
    share.band1 = smaller(share.band0 + rows, g.oh);
    share.channel = index % blocks * block;
    share.channels = smaller(block, g.c - share.channel);
    return share;
  }
};

// Some rows of one kernel row's products: pixel (y, x) of the gradient by the input under the taps.
template <typename T>
struct ChannelDots {
  acc_t<T>* sums;  // of the first tap
  int64_t sum_step;
  const T* gradients;  // of the first row, at element 0
  int64_t gradient_pixel, gradient_row;
  const T* input;  // of the row that the first row's taps see, at position 0
  int64_t input_pixel, input_row;
  int64_t rows, first, last;  // elements [first, last) of each row
  int64_t channels;
  bool set;  // write the sums instead of adding to them
};

// kTaps taps that follow each other, `x.first` is the position of the first for element 0.
template <typename T, int kTaps, int kStep, int kVectors, int kCount>
NNOPS_INLINE void add_channel_dots(const ChannelDots<T>& task, int64_t channel, const TapAxis& x,
                                   Range inside) {
  using A = acc_t<T>;
  constexpr int kPixels = 4;
  constexpr int kReadPixels = (kPixels - 1) * kStep + kTaps;
  const int64_t step = kStep > 0 ? kStep : x.step;
  Lanes<A, kCount> total[kTaps][kVectors] = {};
  const T* gradient_row = task.gradients + channel;
  const T* input_row = task.input + channel + x.first * task.input_pixel;
  for (int64_t y = 0; y < task.rows; ++y) {
    const auto single = [&](int64_t element) __attribute__((always_inline)) {
      const T* pixels = input_row + element * step * task.input_pixel;
      const int64_t position = element * step + x.first;
      Lanes<A, kCount> gradients[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        gradients[v] =
            load_lanes<kCount>(gradient_row + element * task.gradient_pixel + v * kCount);
      }
#pragma GCC unroll 7
      for (int s = 0; s < kTaps; ++s, pixels += task.input_pixel) {
        if (position + s < 0 || position + s >= x.limit) continue;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          total[s][v] += gradients[v] * load_lanes<kCount>(pixels + v * kCount);
        }
      }
    };
    int64_t element = task.first;
    for (; element < smaller(task.last, inside.begin); ++element) single(element);
    const T* gradient = gradient_row + element * task.gradient_pixel;
    const T* pixels = input_row + element * step * task.input_pixel;
    for (; element + kPixels <= smaller(task.last, inside.end); element += kPixels) {
      if constexpr (kStep == 0) {
        for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            total[0][v] +=
                load_lanes<kCount>(gradient + v * kCount) * load_lanes<kCount>(pixels + v * kCount);
          }
          gradient += task.gradient_pixel;
          pixels += step * task.input_pixel;
        }
        continue;
      }
      Lanes<A, kCount> gradients[kPixels][kVectors];
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p, gradient += task.gradient_pixel) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          gradients[p][v] = load_lanes<kCount>(gradient + v * kCount);
      }
      const T* at = pixels;
#pragma GCC unroll 16
      for (int i = 0; i < kReadPixels; ++i, at += task.input_pixel) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const Lanes<A, kCount> value = load_lanes<kCount>(at + v * kCount);
#pragma GCC unroll 4
          for (int p = 0; p < kPixels; ++p) {
            const int s = i - p * kStep;
            if (s >= 0 && s < kTaps) total[s][v] += gradients[p][v] * value;
          }
        }
      }
      pixels += kPixels * step * task.input_pixel;
    }
    for (; element < task.last; ++element) single(element);
    gradient_row += task.gradient_row;
    input_row += task.input_row;
  }
  A* sum = task.sums + channel;
#pragma GCC unroll 7
  for (int s = 0; s < kTaps; ++s, sum += task.sum_step) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Lanes<A, kCount> before =
          task.set ? Lanes<A, kCount>{} : load_lanes<kCount>(sum + v * kCount);
      store_lanes<kCount>(sum + v * kCount, before + total[s][v]);
    }
  }
}

// The channels from `channel` on, in the widest vectors that fit: none may be added twice.
template <typename T, int kTaps, int kStep, int kCount = kMostLanes<T>>
NNOPS_INLINE void add_channel_dots_from(int64_t channel, const ChannelDots<T>& task,
                                        const TapAxis& x, Range inside) {
  for (; channel + kCount <= task.channels; channel += kCount) {
    add_channel_dots<T, kTaps, kStep, 1, kCount>(task, channel, x, inside);
  }
  if constexpr (kCount > kLeastLanes<T>) {
    add_channel_dots_from<T, kTaps, kStep, kCount / 2>(channel, task, x, inside);
  } else if constexpr (kCount > 1) {
    add_channel_dots_from<T, kTaps, kStep, 1>(channel, task, x, inside);
  }
}
template <typename T, int kTaps, int kStep>
void add_all_channel_dots(const ChannelDots<T>& task, const TapAxis& x, Range inside) {
  constexpr int kCount = kMostLanes<T>;
  int64_t channel = 0;
  // Two vectors are as many chains again, which hides what an addition takes.
  for (; channel + 2 * kCount <= task.channels; channel += 2 * kCount) {
    add_channel_dots<T, kTaps, kStep, 2, kCount>(task, channel, x, inside);
  }
  add_channel_dots_from<T, kTaps, kStep>(channel, task, x, inside);
}

template <typename T>
struct ChannelDotsFunction {
  void (*add)(const ChannelDots<T>& task, const TapAxis& x, Range inside);
  int64_t taps;  // at a time
};
template <typename T>
ChannelDotsFunction<T> channel_dots_function(const TapAxis& x) {
  if (x.gap == 1 && x.step == 1) {
    if (x.taps == 3) return {add_all_channel_dots<T, 3, 1>, 3};
    if (x.taps == 5) return {add_all_channel_dots<T, 5, 1>, 5};
    if (x.taps == 7) return {add_all_channel_dots<T, 7, 1>, 7};
  }
  if (x.gap == 1 && x.step == 2) {
    if (x.taps == 3) return {add_all_channel_dots<T, 3, 2>, 3};
    if (x.taps == 5) return {add_all_channel_dots<T, 5, 2>, 5};
    if (x.taps == 7) return {add_all_channel_dots<T, 7, 2>, 7};
  }
  return {add_all_channel_dots<T, 1, 0>, 1};
}

// Rows [y0, y1) of the grid of one image.
template <typename T>
void add_channel_chain(ChannelDots<T> task, const T* gradients, const T* input, int64_t y0,
                       int64_t y1, const PixelPass& pass, const ChannelDotsFunction<T>& function) {
  acc_t<T>* const sums = task.sums;
  for (int64_t r = 0; r < pass.y.taps; ++r) {
    // Of these rows, those that this kernel row sees inside of the image.
    TapAxis tap = pass.y;
    tap.first += r * pass.y.gap;
    tap.taps = 1;
    const Range seen = elements_that_see_all(tap);
    const int64_t begin = larger(y0, seen.begin);
    task.rows = larger(0, smaller(y1, seen.end) - begin);
    if (task.rows == 0 && !task.set) continue;
    task.gradients = gradients + begin * pass.written.h;
    task.input = input + (begin * tap.step + tap.first) * pass.read.h;
    for (int64_t s = 0; s < pass.x.taps; s += function.taps) {
      TapAxis x = pass.x;
      x.first += s * x.gap;
      x.taps = function.taps;
      task.sums = sums + (r * pass.x.taps + s) * task.sum_step;
      function.add(task, x, elements_that_see_all(x));
    }
  }
}

// The chains of rows [band0, band1) of one image, with channels next to each other.
template <typename T>
void add_channel_band(ChannelDots<T>& task, const T* gradients, const T* input, int64_t band0,
                      int64_t band1, const PixelPass& pass, const ChannelDotsPlan& plan,
                      const ChannelDotsFunction<T>& function) {
  task.gradient_pixel = pass.written.w;
  task.gradient_row = pass.written.h;
  task.input_pixel = pass.read.w;
  task.input_row = pass.y.step * pass.read.h;
  for (int64_t y0 = band0; y0 < band1; y0 += plan.chain_rows) {
    const int64_t y1 = smaller(y0 + plan.chain_rows, band1);
    for (int64_t x0 = 0; x0 < pass.x.grid; x0 += plan.chain_width) {
      task.first = x0;
      task.last = smaller(x0 + plan.chain_width, pass.x.grid);
      add_channel_chain(task, gradients, input, y0, y1, pass, function);
      task.set = false;
    }
  }
}

template <typename T, bool kTransposed>
void run_channel_dots(T* grad_weight, const T* grad_output, const T* input, const Conv2dGeometry& g,
                      void* workspace, int threads) {
  using A = acc_t<T>;
  using Computed = std::conditional_t<kTransposed, A, T>;
  const ChannelDotsPlan plan(g, threads, kTransposed);
  PixelPass pass = forward_pass(g);
  if (kTransposed) {
    pass.written = transposed_strides(g.oh, g.ow, plan.block);
    pass.read = transposed_strides(g.h, g.w, plan.block);
  }
  const auto function = channel_dots_function<Computed>(pass.x);
  A* chunk_sums = static_cast<A*>(workspace);
  A* buffers = chunk_sums + plan.chunks * plan.chunk_size(g);
  in_parallel(threads, [&] {
    [[maybe_unused]] A* gradients = buffers + thread_index() * (pass.written.n + pass.read.n);
    [[maybe_unused]] A* pixels = gradients + pass.written.n;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.shares(); ++i) {
      const auto [chunk, image0, image1, band0, band1, channel, channels] = plan.share(i, g);
      ChannelDots<Computed> task{};
      task.sums = chunk_sums + chunk * plan.chunk_size(g) + channel;
      task.sum_step = g.c;
      task.channels = channels;
      task.set = true;
      for (int64_t image = image0; image < image1; ++image) {
        const T* gy = grad_output + image * g.output.n + channel * g.output.c;
        const T* x = input + image * g.input.n + channel * g.input.c;
        if constexpr (kTransposed) {
          transpose_in(gradients, plan.block, gy, g.output, task.channels, g.oh, g.ow);
          transpose_in(pixels, plan.block, x, g.input, task.channels, g.h, g.w);
          add_channel_band<A>(task, gradients, pixels, band0, band1, pass, plan, function);
        } else {
          add_channel_band(task, gy, x, band0, band1, pass, plan, function);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.c * g.kh * g.kw; ++i) {
      A total = chunk_sums[i];
      for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
        total += chunk_sums[chunk * plan.chunk_size(g) + i];
      }
      const int64_t tap = i / g.c;
      grad_weight[i % g.c * g.weight.n + tap / g.kw * g.weight.h + tap % g.kw * g.weight.w] =
          from_acc<T>(total);
    }
  });
}

template <typename T>
void depthwise_channel_dots_backward_weight(void* grad_weight, const void* grad_output,
                                            const void* input, const Conv2dGeometry& g,
                                            void* workspace, int threads) {
  run_channel_dots<T, false>(static_cast<T*>(grad_weight), static_cast<const T*>(grad_output),
                             static_cast<const T*>(input), g, workspace, threads);
}
template <typename T>
void depthwise_transposed_backward_weight(void* grad_weight, const void* grad_output,
                                          const void* input, const Conv2dGeometry& g,
                                          void* workspace, int threads) {
  run_channel_dots<T, true>(static_cast<T*>(grad_weight), static_cast<const T*>(grad_output),
                            static_cast<const T*>(input), g, workspace, threads);
}

template <typename T>
int64_t depthwise_channel_dots_workspace(const Conv2dGeometry& g, int threads) {
  const ChannelDotsPlan plan(g, threads, false);
  return plan.chunks * plan.chunk_size(g) * static_cast<int64_t>(sizeof(acc_t<T>));
}
template <typename T>
int64_t depthwise_transposed_dots_workspace(const Conv2dGeometry& g, int threads) {
  const ChannelDotsPlan plan(g, threads, true);
  const int64_t images = (g.h * g.w + g.oh * g.ow) * plan.block;
  return (plan.chunks * plan.chunk_size(g) + threads * images) *
         static_cast<int64_t>(sizeof(acc_t<T>));
}

NNOPS_INLINE void visit_channel_dots(const ChannelDotsPlan& plan, const Conv2dGeometry& g,
                                     const Conv2dPhaseVisitor& visitor) {
  visit_products(visitor, Schedule::kStatic, plan.shares(), [&](int64_t i) {
    const ChannelDotsShare share = plan.share(i, g);
    const int64_t pixels = (share.image1 - share.image0) * (share.band1 - share.band0) * g.ow;
    return pixels * share.channels * g.kh * g.kw;
  });
  visit_copies(visitor, "sum of chunks", plan.chunk_size(g), [&](int64_t) { return plan.chunks; });
}

template <typename T>
void depthwise_channel_dots_partition(const Conv2dGeometry& g, int threads,
                                      const Conv2dPhaseVisitor& visitor) {
  visit_channel_dots(ChannelDotsPlan(g, threads, false), g, visitor);
}
template <typename T>
void depthwise_transposed_dots_partition(const Conv2dGeometry& g, int threads,
                                         const Conv2dPhaseVisitor& visitor) {
  visit_channel_dots(ChannelDotsPlan(g, threads, true), g, visitor);
}

NNOPS_END_KERNELS
