// conv2d backward_weight for one input channel a group (depthwise, with or without a multiplier):
// dot products of planes.
//
//   grad_weight[oc, kh, kw] = sum over images and pixels of grad_output[oc, p] * input[c, p's tap]
//
// There is nothing to share between channels, so vectors run along the pixels: an input plane is
// copied with its padding, one copy for each class of kernel columns (tap_axis.h), grad_output to
// rows of whole vectors, and each tap is a dot product of rows. Some rows at a time, so that both
// stay in L1.
//
// Accumulation: lanes over the vectors of some rows; these sums, lane by lane, in order over the
// images; the lanes pairwise at the end. Parallel over output channels.
#pragma once

#include "cpu/conv2d/pixel_pass.h"
#include "cpu/conv2d/pixel_tile.h"

NNOPS_BEGIN_KERNELS

// Accumulators at a time.
#if defined(__AVX512F__)
constexpr int kDotTaps = 16;
#elif defined(__AVX2__)
constexpr int kDotTaps = 6;
#else
constexpr int kDotTaps = 4;
#endif
constexpr int64_t kDotPixels = 1536;

template <typename A>
struct DotsPlan {
  int64_t height, vertical;  // rows of the grid at a time, and how often
  TapAxis y, x;
  int64_t pitch, sequence_rows, plane_size;
  int64_t gradients_pitch, gradients_size;

  explicit DotsPlan(const Conv2dGeometry& g) {
    constexpr int64_t kLine = kLanes<A>;
    height = larger(1, smaller(g.oh, kDotPixels / g.ow));
    vertical = divide_up(g.oh, height);
    y = with_sequences(forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h), height);
    x = with_sequences(forward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w), g.ow);
    pitch = x.class_length(0, g.ow);
    sequence_rows = y.sequence_length(height);
    plane_size = odd_lines<A>(sequence_rows * pitch + kLine);
    gradients_pitch = round_up(g.ow, kLine);
    gradients_size = height * gradients_pitch;
  }

  int64_t taps() const { return y.taps * x.taps; }
  // Of each tap's product: its place in the planes.
  int64_t table_size() const { return round_up(taps(), 8); }
  int64_t thread_size() const {
    return x.class_count() * plane_size + gradients_size + taps() * kLanes<A>;
  }
};

// Some rows of gradients, each padded to whole vectors with zeros.
template <typename A>
struct DotRows {
  const A* gradients;
  int64_t gradients_pitch;
  const A* planes;
  int64_t pitch;
  int64_t rows, width;
  // All ones for the lanes of a row's last vector that are pixels.
  std::conditional_t<sizeof(A) == 4, int32_t, int64_t> tail[kLanes<A>];
};

// sums[tap] += lane by lane, gradients . planes[offsets[tap]], for kTaps taps. In registers of the
// ISA's own width: GCC keeps longer vectors in memory.
template <typename A, int kTaps>
void add_dots(A* sums, const DotRows<A>& part, const int64_t* offsets) {
  constexpr int64_t kLine = kLanes<A>;
  Register<A> total[kTaps][kParts] = {};
  const int64_t whole = part.width / kLine * kLine;
  for (int64_t y = 0; y < part.rows; ++y) {
    const A* gradients = part.gradients + y * part.gradients_pitch;
    const A* row = part.planes + y * part.pitch;
    for (int64_t i = 0; i < whole; i += kLine) {
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        const int64_t place = i + p * kRegisterLanes<A>;
        const Register<A> gradient = load_register(gradients + place);
#pragma GCC unroll 16
        for (int t = 0; t < kTaps; ++t) {
          total[t][p] += gradient * load_register(row + offsets[t] + place);
        }
      }
    }
    if (whole < part.width) {
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        const int64_t place = whole + p * kRegisterLanes<A>;
        const Register<A> gradient = load_register(gradients + place);
        // What stands behind a row may be infinite: zero gradients alone would not hide it.
        using Bits = decltype(gradient < gradient);
        Bits inside;
        std::memcpy(&inside, part.tail + p * kRegisterLanes<A>, sizeof(inside));
#pragma GCC unroll 16
        for (int t = 0; t < kTaps; ++t) {
          const Bits bits = reinterpret_cast<Bits>(load_register(row + offsets[t] + place));
          total[t][p] += gradient * reinterpret_cast<Register<A>>(bits & inside);
        }
      }
    }
  }
  for (int t = 0; t < kTaps; ++t) {
    for (int p = 0; p < kParts; ++p) {
      A* sum = sums + t * kLine + p * kRegisterLanes<A>;
      store_register(sum, load_register(sum) + total[t][p]);
    }
  }
}

template <typename T>
void depthwise_dots_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                    const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  const DotsPlan<A> plan(g);
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  int64_t* offsets = static_cast<int64_t*>(workspace);
  A* per_thread = reinterpret_cast<A*>(offsets + plan.table_size());
  for (int64_t tap = 0; tap < plan.taps(); ++tap) {
    const int64_t s = tap % g.kw;
    offsets[tap] = s % plan.x.period * plan.plane_size +
                   plan.y.sequence_index(tap / g.kw, plan.height) * plan.pitch +
                   s / plan.x.period * plan.x.shift;
  }

  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t oc = 0; oc < g.oc; ++oc) {
      A* planes = per_thread + thread_index() * plan.thread_size();
      A* gradients = planes + plan.x.class_count() * plan.plane_size;
      A* sums = gradients + plan.gradients_size;
      for (int64_t i = 0; i < plan.taps() * kLine; ++i) sums[i] = 0;
      DotRows<A> part{};
      part.gradients = gradients;
      part.gradients_pitch = plan.gradients_pitch;
      part.planes = planes;
      part.pitch = plan.pitch;
      part.width = g.ow;
      for (int64_t i = 0; i < kLine; ++i) part.tail[i] = i < g.ow % kLine ? -1 : 0;
      for (int64_t i = 0; i < g.n * plan.vertical; ++i) {
        const int64_t n = i / plan.vertical;
        const int64_t y0 = i % plan.vertical * plan.height;
        const T* channel = x + n * g.input.n + oc / (g.oc / g.groups) * g.input.c;
        A* row = planes;
        for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
          const int64_t length = plan.y.class_length(cls, plan.height);
          for (int64_t k = 0; k < length; ++k, row += plan.pitch) {
            const int64_t h = plan.y.position(cls, y0 + k);
            const bool inside = h >= 0 && h < g.h;
            for (int64_t x_cls = 0; x_cls < plan.x.class_count(); ++x_cls) {
              copy_positions(row + x_cls * plan.plane_size, channel + (inside ? h * g.input.h : 0),
                             g.input.w, plan.x.position(x_cls, 0), plan.x.step, plan.pitch,
                             inside ? g.w : 0);
            }
          }
        }
        const T* source = gy + n * g.output.n + oc * g.output.c + y0 * g.output.h;
        part.rows = smaller(plan.height, g.oh - y0);
        for (int64_t k = 0; k < part.rows; ++k) {
          copy_positions(gradients + k * plan.gradients_pitch, source + k * g.output.h, g.output.w,
                         0, 1, plan.gradients_pitch, g.ow);
        }

        int64_t tap = 0;
        for (; tap + kDotTaps <= plan.taps(); tap += kDotTaps) {
          add_dots<A, kDotTaps>(sums + tap * kLine, part, offsets + tap);
        }
        for (; tap + 3 <= plan.taps(); tap += 3) {
          add_dots<A, 3>(sums + tap * kLine, part, offsets + tap);
        }
        for (; tap < plan.taps(); ++tap) {
          add_dots<A, 1>(sums + tap * kLine, part, offsets + tap);
        }
      }
      for (int64_t tap = 0; tap < plan.taps(); ++tap) {
        gf[oc * g.weight.n + tap / g.kw * g.weight.h + tap % g.kw * g.weight.w] =
            from_acc<T>(lane_sum(read<Wide<A>>(sums + tap * kLine)));
      }
    }
  });
}

template <typename T>
int64_t depthwise_dots_workspace(const Conv2dGeometry& g, int threads) {
  using A = acc_t<T>;
  const DotsPlan<A> plan(g);
  return plan.table_size() * 8 + threads * plan.thread_size() * static_cast<int64_t>(sizeof(A));
}

template <typename T>
void depthwise_dots_partition(const Conv2dGeometry& g, int, const Conv2dPhaseVisitor& visitor) {
  visit_products(visitor, Schedule::kStatic, g.oc,
                 [&](int64_t) { return g.n * g.oh * g.ow * g.kh * g.kw; });
}

NNOPS_END_KERNELS
