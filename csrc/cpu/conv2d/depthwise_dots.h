// conv2d backward_weight for one input channel a group (depthwise, with or without a multiplier):
// dot products of planes.
//
//   grad_weight[oc, kh, kw] = sum over images and pixels of grad_output[oc, p] * input[c, p's tap]
//
// There is nothing to share between channels, so vectors run along the pixels: an input plane is
// copied with its padding (padded_rows.h), in the order of memory, and each tap is a dot product of
// its rows and grad_output's. Some rows at a time, so that both stay in L1. grad_output is read
// where it lies, if it can be; the last, partial vectors of its rows are copied, with zeros.
//
// Accumulation: lanes over the vectors of some rows; these sums, lane by lane, in order over the
// images; the lanes pairwise at the end. Parallel over output channels.
#pragma once

#include <utility>

#include "cpu/conv2d/padded_rows.h"
#include "cpu/conv2d/pixel_pass.h"
#include "cpu/conv2d/pixel_tile.h"

NNOPS_BEGIN_KERNELS

// The most taps whose sums are held in registers.
#if defined(__AVX512F__)
constexpr int kDotTaps = 9;
#elif defined(__AVX2__)
constexpr int kDotTaps = 6;
#else
constexpr int kDotTaps = 3;
#endif
constexpr int64_t kDotPixels = 1536;

template <typename A>
struct DotsPlan {
  int64_t height, vertical;  // rows of the grid at a time, and how often
  TapAxis y;
  PaddedRows x;
  // Of the copied rows the classes take turns: as they do, more or less, in memory.
  int64_t classes, step;  // of kernel rows; from grid row to grid row
  int64_t plane_size;
  int64_t gradients_pitch;  // of the rows of grad_output, if they are copied
  bool copies_gradients;

  // `pixels` of the grid at a time, about.
  DotsPlan(const Conv2dGeometry& g, bool converts, int64_t pixels = kDotPixels)
      : height(larger(1, smaller(g.oh, pixels / g.ow))),
        vertical(divide_up(g.oh, height)),
        y(with_sequences(forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h),
                         height)),
        x(forward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w), g.ow),
        classes(y.class_count()),
        step(classes * x.pitch),
        plane_size(x.size(classes * y.class_length(0, height), kLanes<A>)),
        gradients_pitch(round_up(g.ow, kLanes<A>)),
        copies_gradients(converts || g.output.w != 1) {}

  int64_t taps() const { return y.taps * x.x.taps; }
  // Of each tap's product: its place in the planes.
  int64_t table_size() const { return round_up(taps(), 8); }
  int64_t place_of_tap(int64_t tap) const {
    const int64_t r = tap / x.x.taps;
    return (r / y.period * y.shift * classes + r % y.period) * x.pitch +
           x.column_of_tap(tap % x.x.taps);
  }
  // What `rows` rows of the grid from y0 on read of one channel.
  template <typename T>
  void copy_plane(A* plane, const T* channel, int64_t y0, int64_t rows,
                  const Conv2dGeometry& g) const {
    for (int64_t k = 0; k < y.class_length(0, rows); ++k) {
      for (int64_t cls = 0; cls < classes; ++cls, plane += x.pitch) {
        const int64_t h = y.position(cls, y0 + k);
        const bool inside = h >= 0 && h < g.h;
        x.copy(plane, inside ? channel + h * g.input.h : static_cast<const T*>(nullptr), g.input.w);
      }
    }
  }
  int64_t tails_size() const { return height * kLanes<A>; }
  int64_t gradients_size() const { return copies_gradients ? height * gradients_pitch : 0; }
  int64_t thread_size() const {
    return plane_size + tails_size() + gradients_size() + taps() * kLanes<A>;
  }
};

// Some rows of gradients, and the copied rows that they meet.
template <typename A>
struct DotRows {
  const A* gradients;
  int64_t gradients_pitch;
  const A* tails;  // a vector for each row: what its whole vectors leave, and zeros
  const A* planes;
  int64_t step;
  int64_t rows, width;
  // All ones for the lanes of a row's last vector that are pixels.
  std::conditional_t<sizeof(A) == 4, int32_t, int64_t> tail[kLanes<A>];
};

// What the rows after these will read: for each grid row as many bytes of either image. Fetched
// while the products keep memory idle.
struct DotsAhead {
  const char* input;
  int64_t input_bytes;
  const char* gradients;
  int64_t gradients_bytes;
};

// sums[tap] += lane by lane, gradients . planes[offsets[tap]], for kTaps taps. In registers of the
// ISA's own width: GCC keeps longer vectors in memory.
template <typename A, int kTaps>
void add_dots(A* sums, const DotRows<A>& part, const int64_t* offsets, const DotsAhead& ahead) {
  constexpr int64_t kLine = kLanes<A>;
  Register<A> total[kTaps][kParts] = {};
  const int64_t whole = part.width / kLine * kLine;
  for (int64_t y = 0; y < part.rows; ++y) {
    const A* gradients = part.gradients + y * part.gradients_pitch;
    const A* row = part.planes + y * part.step;
    prefetch_span(ahead.input + y * ahead.input_bytes, ahead.input_bytes);
    prefetch_span(ahead.gradients + y * ahead.gradients_bytes, ahead.gradients_bytes);
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
        const Register<A> gradient = load_register(part.tails + y * kLine + p * kRegisterLanes<A>);
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

// add_dots for as many taps as `taps` says.
template <typename A, int... kIndices>
NNOPS_INLINE void add_dots_of_taps(std::integer_sequence<int, kIndices...>, int64_t taps, A* sums,
                                   const DotRows<A>& part, const int64_t* offsets,
                                   const DotsAhead& ahead) {
  ((taps == kIndices + 1 ? add_dots<A, kIndices + 1>(sums, part, offsets, ahead) : void()), ...);
}

// sums[tap] += gradients . planes[offsets[tap]], for all taps, in parts of about equal size.
template <typename A>
void add_all_dots(A* sums, const DotRows<A>& part, const int64_t* offsets, int64_t taps,
                  DotsAhead ahead) {
  for (int64_t parts = divide_up(taps, kDotTaps); parts > 0; --parts) {
    const int64_t count = divide_up(taps, parts);
    add_dots_of_taps(std::make_integer_sequence<int, kDotTaps>{}, count, sums, part, offsets,
                     ahead);
    ahead = {};
    taps -= count;
    offsets += count;
    sums += count * kLanes<A>;
  }
}

// Of part i of an output channel.
template <typename T, typename A>
DotsAhead dots_ahead(const T* x, const T* gy, const Conv2dGeometry& g, const DotsPlan<A>& plan,
                     int64_t oc, int64_t i) {
  const int64_t n = i / plan.vertical;
  const int64_t y0 = i % plan.vertical * plan.height;
  const int64_t h = larger(0, plan.y.position(0, y0));
  const T* channel = x + n * g.input.n + oc / (g.oc / g.groups) * g.input.c;
  const T* source = gy + n * g.output.n + oc * g.output.c;
  const auto bytes = [](bool are_dense, int64_t row) {
    return are_dense ? row * static_cast<int64_t>(sizeof(T)) : 0;
  };
  return {reinterpret_cast<const char*>(channel + h * g.input.h),
          bytes(g.input.w == 1 && g.input.h == g.w, g.stride_h * g.input.h),
          reinterpret_cast<const char*>(source + y0 * g.output.h),
          bytes(g.output.w == 1 && g.output.h == g.ow, g.output.h)};
}

template <typename T>
void depthwise_dots_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                    const Conv2dGeometry& g, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  const DotsPlan<A> plan(g, !std::is_same_v<T, A>);
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  int64_t* offsets = static_cast<int64_t*>(workspace);
  A* per_thread = reinterpret_cast<A*>(offsets + plan.table_size());
  for (int64_t tap = 0; tap < plan.taps(); ++tap) offsets[tap] = plan.place_of_tap(tap);
  const int64_t whole = g.ow / kLine * kLine;

  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t oc = 0; oc < g.oc; ++oc) {
      A* planes = per_thread + thread_index() * plan.thread_size();
      A* tails = planes + plan.plane_size;
      A* gradients = tails + plan.tails_size();
      A* sums = gradients + plan.gradients_size();
      for (int64_t i = 0; i < plan.taps() * kLine; ++i) sums[i] = 0;
      DotRows<A> part{};
      part.gradients = gradients;
      part.gradients_pitch = plan.gradients_pitch;
      part.tails = tails;
      part.planes = planes;
      part.step = plan.step;
      part.width = g.ow;
      for (int64_t i = 0; i < kLine; ++i) part.tail[i] = i < g.ow - whole ? -1 : 0;
      for (int64_t i = 0; i < g.n * plan.vertical; ++i) {
        const int64_t n = i / plan.vertical;
        const int64_t y0 = i % plan.vertical * plan.height;
        part.rows = smaller(plan.height, g.oh - y0);
        const T* channel = x + n * g.input.n + oc / (g.oc / g.groups) * g.input.c;
        plan.copy_plane(planes, channel, y0, part.rows, g);
        const T* source = gy + n * g.output.n + oc * g.output.c + y0 * g.output.h;
        for (int64_t k = 0; k < part.rows && whole < g.ow; ++k) {
          copy_positions(tails + k * kLine, source + k * g.output.h, g.output.w, whole, 1, kLine,
                         g.ow);
        }
        if (plan.copies_gradients) {
          for (int64_t k = 0; k < part.rows; ++k) {
            copy_strided(gradients + k * plan.gradients_pitch, source + k * g.output.h, g.output.w,
                         whole);
          }
        } else if constexpr (std::is_same_v<T, A>) {
          part.gradients = source;
          part.gradients_pitch = g.output.h;
        }
        const bool is_last = i + 1 == g.n * plan.vertical;
        add_all_dots(sums, part, offsets, plan.taps(),
                     dots_ahead(x, gy, g, plan, is_last ? oc + 1 : oc, is_last ? 0 : i + 1));
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
  const DotsPlan<A> plan(g, !std::is_same_v<T, A>);
  return plan.table_size() * 8 + threads * plan.thread_size() * static_cast<int64_t>(sizeof(A));
}

template <typename T>
void depthwise_dots_partition(const Conv2dGeometry& g, int, const Conv2dPhaseVisitor& visitor) {
  visit_products(visitor, Schedule::kStatic, g.oc,
                 [&](int64_t) { return g.n * g.oh * g.ow * g.kh * g.kw; });
}

NNOPS_END_KERNELS
