// The gradient of conv2d's bias on the CPU: grad_bias[oc] = sum of grad_output over n, oh, ow.
//
// The pixels of an image, or of a row where rows do not follow each other, are summed in blocks of
// kBlock: pixel i of a block by virtual lane i % kLanes in acc_t, the lanes pairwise, the block
// sums in double, in the order of rows and images. So both layouts give the same bits. Integers are
// summed in wrapping arithmetic. Parallel over channels.
#include "cpu/wide.h"
#include "ops/conv2d.h"

NNOPS_BEGIN_KERNELS

template <typename T>
constexpr int64_t kBlock = 16 * kLanes<acc_t<T>>;

// The pixels of one image as runs of equal steps.
struct PixelRuns {
  int64_t runs, length;
  int64_t run_step, pixel_step;

  explicit PixelRuns(const Conv2dGeometry& g) : pixel_step(g.output.w) {
    const bool one_run = g.output.h == g.ow * g.output.w;
    runs = one_run ? 1 : g.oh;
    length = one_run ? g.oh * g.ow : g.ow;
    run_step = g.output.h;
  }
};

// kCount whole blocks, so that their additions do not wait for each other.
template <int kCount, typename T>
NNOPS_INLINE void add_blocks(double* total, const T* pixels) {
  using A = acc_t<T>;
  using V = Wide<A>;
  V lanes[kCount] = {};
  for (int64_t i = 0; i < kBlock<T>; i += kLanes<A>) {
#pragma GCC unroll 4
    for (int block = 0; block < kCount; ++block)
      lanes[block] += read<V>(pixels + block * kBlock<T> + i);
  }
  for (int block = 0; block < kCount; ++block) *total += lane_sum(lanes[block]);
}

// One channel whose pixels lie side by side.
template <typename T>
NNOPS_INLINE double sum_pixels(const T* pixels, int64_t count) {
  using A = acc_t<T>;
  double total = 0;
  int64_t i = 0;
  for (; i + 4 * kBlock<T> <= count; i += 4 * kBlock<T>) add_blocks<4>(&total, pixels + i);
  for (; i + kBlock<T> <= count; i += kBlock<T>) add_blocks<1>(&total, pixels + i);
  if (i == count) return total;
  using V = Wide<A>;
  V lanes = {};
  for (; i + kLanes<A> <= count; i += kLanes<A>) lanes += read<V>(pixels + i);
  if (i < count) lanes += read_first<V>(pixels + i, count - i);
  return total + lane_sum(lanes);
}

// kLanes channels that lie side by side, `step` elements from pixel to pixel.
template <typename T>
NNOPS_INLINE void sum_pixels_of_channels(double* totals, const T* pixels, int64_t step,
                                         int64_t count, int64_t channels) {
  using A = acc_t<T>;
  using V = Wide<A>;
  for (int64_t begin = 0; begin < count; begin += kBlock<T>) {
    const int64_t end = smaller(begin + kBlock<T>, count);
    V lanes[kLanes<A>] = {};
    const T* pixel = pixels + begin * step;
    if (channels == kLanes<A>) {
      for (int64_t i = begin; i < end; ++i, pixel += step)
        lanes[(i - begin) % kLanes<A>] += read<V>(pixel);
    } else {
      for (int64_t i = begin; i < end; ++i, pixel += step) {
        lanes[(i - begin) % kLanes<A>] += read_first<V>(pixel, channels);
      }
    }
    for (int64_t width = kLanes<A> / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    A sums[kLanes<A>];
    write(sums, lanes[0]);
    for (int64_t c = 0; c < channels; ++c) totals[c] += sums[c];
  }
}

// Channels that the pixels' lines hold beside each other.
template <typename T>
void backward_bias_along_channels(T* gb, const T* gy, const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  const PixelRuns pixels(g);
  parallel_chunks(g.oc, kLanes<A>, threads, [&](int64_t begin, int64_t end) {
    double totals[kLanes<A>] = {};
    for (int64_t n = 0; n < g.n; ++n) {
      for (int64_t run = 0; run < pixels.runs; ++run) {
        sum_pixels_of_channels(totals, gy + n * g.output.n + run * pixels.run_step + begin,
                               pixels.pixel_step, pixels.length, end - begin);
      }
    }
    for (int64_t c = begin; c < end; ++c) gb[c] = from_acc<T>(static_cast<A>(totals[c - begin]));
  });
}

// Any strides; pixels side by side are read as vectors.
template <typename T>
void backward_bias_along_pixels(T* gb, const T* gy, const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  const PixelRuns pixels(g);
  parallel_chunks(g.oc, 1, threads, [&](int64_t oc, int64_t) {
    double total = 0;
    for (int64_t n = 0; n < g.n; ++n) {
      for (int64_t run = 0; run < pixels.runs; ++run) {
        const T* first = gy + n * g.output.n + oc * g.output.c + run * pixels.run_step;
        if (pixels.pixel_step == 1) {
          total += sum_pixels(first, pixels.length);
        } else {
          sum_pixels_of_channels(&total, first, pixels.pixel_step, pixels.length, 1);
        }
      }
    }
    gb[oc] = from_acc<T>(static_cast<A>(total));
  });
}

template <typename T>
void backward_bias(void* grad_bias, const void* grad_output, const Conv2dGeometry& g, int threads) {
  T* gb = static_cast<T*>(grad_bias);
  const T* gy = static_cast<const T*>(grad_output);
  if constexpr (kIsFloating<T>) {
    if (g.output.c == 1 && g.output.w != 1) {
      backward_bias_along_channels(gb, gy, g, threads);
    } else {
      backward_bias_along_pixels(gb, gy, g, threads);
    }
  } else {
    parallel_chunks(g.oc, 1, threads, [&](int64_t oc, int64_t) {
      uint64_t total = 0;
      for (int64_t n = 0; n < g.n; ++n) {
        for (int64_t oh = 0; oh < g.oh; ++oh) {
          for (int64_t ow = 0; ow < g.ow; ++ow) {
            total += static_cast<uint64_t>(
                gy[n * g.output.n + oc * g.output.c + oh * g.output.h + ow * g.output.w]);
          }
        }
      }
      gb[oc] = static_cast<T>(total);
    });
  }
}

}  // namespace

extern const Conv2dBiasKernels conv2d_bias_kernels = {NNOPS_ALL_DTYPES(backward_bias)};

}  // namespace NNOPS_ISA
}  // namespace nnops
