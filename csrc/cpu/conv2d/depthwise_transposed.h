// conv2d forward and backward_input for one channel a group, row-major images: channels_last in
// scratch memory.
//
// Rows shorter than a vector, or a few, are mostly ends of rows, and strided pixels of a row would
// be gathered. So a block of channels of one image is transposed to [pixel][channel], computed as
// in depthwise_channels.h, and the result is transposed back: the same order of the sums, and the
// same bits. Of small images all of it stays in the cache.
//
// Parallel over (images, blocks of channels). bfloat16 and float16 are converted on the way.
#pragma once

#include "cpu/conv2d/depthwise_channels.h"
#include "cpu/transpose.h"

NNOPS_BEGIN_KERNELS

// Channels of a block: the smaller the images, the more, as a row has its price for any number.
NNOPS_INLINE int64_t transposed_channels(const Conv2dGeometry& g) {
  constexpr int64_t kBlockNumbers = 16384;
  const int64_t fitting = kBlockNumbers / (g.h * g.w + g.oh * g.ow) / 16 * 16;
  return larger(16, smaller(64, fitting));
}
NNOPS_INLINE Strides4 transposed_strides(int64_t height, int64_t width, int64_t channels) {
  return {height * width * channels, 1, width * channels, channels};
}

// Some channels of one image to [pixel][channel]; pixels are `pixel` apart.
template <typename T>
NNOPS_INLINE void transpose_in(acc_t<T>* target, int64_t pixel, const T* image, const Strides4& at,
                               int64_t channels, int64_t height, int64_t width) {
  if (at.h == width * at.w) {
    transpose(target, pixel, image, at.c, at.w, channels, height * width);
    return;
  }
  for (int64_t h = 0; h < height; ++h) {
    transpose(target + h * width * pixel, pixel, image + h * at.h, at.c, at.w, channels, width);
  }
}

// The way back, to planes of `pixels` contiguous pixels; `planes` has room for them all.
template <typename T>
NNOPS_INLINE void transpose_out(T* image, int64_t channel_stride, const acc_t<T>* source,
                                int64_t pixel, acc_t<T>* planes, int64_t channels, int64_t pixels) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    transpose(image, channel_stride, source, pixel, 1, pixels, channels);
  } else {
    transpose(planes, pixels, source, pixel, 1, pixels, channels);
    for (int64_t c = 0; c < channels; ++c) {
      add_to_span(image + c * channel_stride, planes + c * pixels, acc_t<T>{0}, pixels);
    }
  }
}

// One block of channels of one image.
struct TransposedShare {
  int64_t image, channel, channels;
};
struct TransposedPlan {
  int64_t images, all_channels;
  int64_t block, blocks;  // of channels
  TransposedPlan(const Conv2dGeometry& g, int threads)
      : images(g.n),
        all_channels(g.c),
        block(shared_channels(g.c, transposed_channels(g), g.n, threads)),
        blocks(0) {
    blocks = divide_up(g.c, block);
  }
  int64_t shares() const { return images * blocks; }
  TransposedShare share(int64_t index) const {
    const int64_t channel = index % blocks * block;
    return {index / blocks, channel, smaller(block, all_channels - channel)};
  }
};

struct TransposedSizes {
  int64_t read, written, planes;
  TransposedSizes(int64_t read_pixels, int64_t written_pixels, int64_t channels, bool converts)
      : read(read_pixels * channels),
        written(written_pixels * channels),
        planes(converts ? written : 0) {}
  int64_t all() const { return read + written + planes; }
};

template <typename T>
void run_depthwise_transposed(T* written, const T* read, const T* weight, const T* bias,
                              const ChannelsPasses& passes, int64_t read_height, int64_t read_width,
                              const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  A* packed = static_cast<A*>(workspace);
  A* buffers = packed + g.oc * (g.kh * g.kw + 1);
  const int64_t pixels = passes.rows * passes.columns;
  const TransposedPlan plan(g, threads);
  const int64_t block = plan.block;
  const TransposedSizes sizes(read_height * read_width, pixels, block, !std::is_same_v<T, A>);
  const ChannelsRows<A> rows(passes, packed, g);
  const Strides4 read_at = transposed_strides(read_height, read_width, block);
  const Strides4 written_at = transposed_strides(passes.rows, passes.columns, block);
  in_parallel(threads, [&] {
    A* read_block = buffers + thread_index() * sizes.all();
    A* written_block = read_block + sizes.read;
    pack_taps_by_channel(packed, weight, bias, g);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.shares(); ++i) {
      const auto [image, channel, channels] = plan.share(i);
      transpose_in(read_block, block, read + image * passes.read.n + channel * passes.read.c,
                   passes.read, channels, read_height, read_width);
      for (int64_t row = 0; row < passes.rows; ++row) {
        rows.add(written_block, written_at, read_block, read_at, row, channel, channels);
      }
      transpose_out(written + image * passes.written.n + channel * passes.written.c,
                    passes.written.c, written_block, block, written_block + sizes.written, channels,
                    pixels);
    }
  });
}

template <typename T>
void depthwise_transposed_forward(void* output, const void* input, const void* weight,
                                  const void* bias, const Conv2dGeometry& g, void* workspace,
                                  int threads) {
  run_depthwise_transposed(static_cast<T*>(output), static_cast<const T*>(input),
                           static_cast<const T*>(weight), static_cast<const T*>(bias),
                           channels_forward(g), g.h, g.w, g, workspace, threads);
}

template <typename T>
void depthwise_transposed_backward_input(void* grad_input, const void* grad_output,
                                         const void* weight, const Conv2dGeometry& g,
                                         void* workspace, int threads) {
  run_depthwise_transposed(static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
                           static_cast<const T*>(weight), static_cast<const T*>(nullptr),
                           channels_backward(g), g.oh, g.ow, g, workspace, threads);
}

template <typename T>
int64_t depthwise_transposed_workspace(const Conv2dGeometry& g, int threads) {
  const int64_t in = g.h * g.w;
  const int64_t out = g.oh * g.ow;
  const TransposedSizes sizes(larger(in, out), larger(in, out), transposed_channels(g),
                              !std::is_same_v<T, acc_t<T>>);
  return (g.oc * (g.kh * g.kw + 1) + threads * sizes.all()) *
         static_cast<int64_t>(sizeof(acc_t<T>));
}

NNOPS_INLINE void visit_depthwise_transposed(const ChannelsPasses& passes, const Conv2dGeometry& g,
                                             int threads, const Conv2dPhaseVisitor& visitor) {
  const TransposedPlan plan(g, threads);
  int64_t products = 0;
  for (int64_t row = 0; row < passes.rows; ++row) products += passes.row_products(row);
  visit_taps_by_channel(g, visitor);
  visit_products(visitor, Schedule::kStatic, plan.shares(),
                 [&](int64_t i) { return plan.share(i).channels * products; });
}

template <typename T>
void depthwise_transposed_forward_partition(const Conv2dGeometry& g, int threads,
                                            const Conv2dPhaseVisitor& visitor) {
  visit_depthwise_transposed(channels_forward(g), g, threads, visitor);
}

template <typename T>
void depthwise_transposed_backward_input_partition(const Conv2dGeometry& g, int threads,
                                                   const Conv2dPhaseVisitor& visitor) {
  visit_depthwise_transposed(channels_backward(g), g, threads, visitor);
}

NNOPS_END_KERNELS
