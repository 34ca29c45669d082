// What the algorithms of forward and backward_input share: the pass as they see it, the order of
// its sum, and the way out.
//
// The forward pass is one grid of output pixels. backward_input is one grid for each residue of
// the input position modulo the stride, each over its own subset of the taps (tap_axis.h), so that
// no multiplication by an inserted zero is ever done. Each is
//
//   written[row, p] = bias[row] + sum over (outer, kh, kw) of weight[..] * read[outer, p's tap]
//
// Order of the sum, the same in every algorithm and so with the same bits (but of pairs, see
// pair_algorithms.h): outer channels are cut into blocks of about kChain terms; each chain of terms
// (kh, outer, kw) is added up by fused multiply-adds in this order, the chains' sums are added in
// order, the bias comes last. An algorithm may leave out terms of a kernel row that lies in the
// padding: they add zero (unless a weight is infinite or NaN). image_lanes.h leaves out those of
// kernel columns too, and looks for such weights, as it is chosen by the batch.
#pragma once

#include "cpu/conv2d/phases.h"
#include "cpu/conv2d/tap_axis.h"

NNOPS_BEGIN_KERNELS

// Of a row-major image a strip reads a piece of each plane. Of more planes than this, or of groups
// one after the other, the hardware does not guess the next piece, and the copying of one channel
// fetches that of another ahead.
constexpr int64_t kFollowedStreams = 32;
constexpr int64_t kPrefetchChannels = 4;

// How many terms one chain of additions has, about: the error grows with the number of chains.
constexpr int64_t kChain = 96;
static_assert(kConv2dLongestChain == 2 * kChain);

struct PixelPass {
  int64_t images, groups;
  int64_t rows;   // channels of the written image, per group
  int64_t outer;  // channels of the read image, per group
  Strides4 written, read;
  int64_t weight_group, weight_row, weight_outer, weight_h, weight_w;  // strides
  TapAxis y, x;
};

NNOPS_INLINE PixelPass forward_pass(const Conv2dGeometry& g) {
  PixelPass pass{};
  pass.images = g.n;
  pass.groups = g.groups;
  pass.rows = g.oc / g.groups;
  pass.outer = g.c / g.groups;
  pass.written = g.output;
  pass.read = g.input;
  pass.weight_group = pass.rows * g.weight.n;
  pass.weight_row = g.weight.n;
  pass.weight_outer = g.weight.c;
  pass.weight_h = g.weight.h;
  pass.weight_w = g.weight.w;
  pass.y = forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h);
  pass.x = forward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w);
  return pass;
}

NNOPS_INLINE PixelPass backward_pass(const Conv2dGeometry& g, int64_t phase_h, int64_t phase_w) {
  PixelPass pass{};
  pass.images = g.n;
  pass.groups = g.groups;
  pass.rows = g.c / g.groups;
  pass.outer = g.oc / g.groups;
  pass.written = g.input;
  pass.read = g.output;
  pass.weight_group = pass.outer * g.weight.n;
  pass.weight_row = g.weight.c;
  pass.weight_outer = g.weight.n;
  pass.weight_h = g.weight.h;
  pass.weight_w = g.weight.w;
  pass.y = backward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h, phase_h);
  pass.x = backward_axis(g.w, g.ow, g.kw, g.stride_w, g.pad_left, g.dilation_w, phase_w);
  return pass;
}

// The outer channels of a chain; a sum that needs little more than one is left whole. A chain whose
// single channel has very many taps is cut into pieces of equal length. All passes of one gradient
// have the same, so that they can share what is copied.
NNOPS_INLINE int64_t chain_channels(const PixelPass& pass) {
  const int64_t terms = pass.outer * pass.y.most_taps * pass.x.most_taps;
  if (terms <= kConv2dLongestChain) return pass.outer;
  return divide_up(pass.outer, smaller(pass.outer, (terms + kChain / 2) / kChain));
}
// What a chain of several channels has at most: those on which chain_channels divides a longer sum
// have at most 1.25 kChain terms on average, and rounding up to whole channels at most doubles it.
constexpr int64_t kMostTerms = 5 * kChain / 2;
// `products`: of each of the chain's terms.
NNOPS_INLINE int64_t piece_length(int64_t chain, int64_t products = 1) {
  return divide_up(chain, divide_up(chain * products, 2 * kChain));
}

// Calls body(pass) for every residue of the input position that some tap reaches; returns whether
// that is all of them.
template <typename Body>
NNOPS_INLINE bool for_each_backward_pass(const Conv2dGeometry& g, Body body) {
  bool all = true;
  for (int64_t phase_h = 0; phase_h < smaller(g.stride_h, g.h); ++phase_h) {
    for (int64_t phase_w = 0; phase_w < smaller(g.stride_w, g.w); ++phase_w) {
      const PixelPass pass = backward_pass(g, phase_h, phase_w);
      if (pass.y.taps > 0 && pass.x.taps > 0) {
        body(pass);
      } else {
        all = false;
      }
    }
  }
  return all;
}

// offsets[..] = place(kh, kw) + outer channel_step for a chain of `channels`, in the order of the
// sum.
template <typename Place>
NNOPS_INLINE void fill_offsets(int64_t* offsets, int64_t channels, int64_t channel_step,
                               const PixelPass& pass, Place place) {
  const int64_t columns = pass.x.taps;
  for (int64_t r = 0; r < pass.y.taps; ++r) {
    for (int64_t s = 0; s < columns; ++s) *offsets++ = place(r, s);
    for (int64_t i = columns; i < channels * columns; ++i, ++offsets) {
      *offsets = offsets[-columns] + channel_step;
    }
  }
}

// One task of a pass whose grid a plan cuts into strips: some rows of one image, or several small
// images, of one group, for one of `splits` parts of the written channels. Threads have the same
// neighbouring strips at every call: a core then writes what it wrote in the call before, and need
// not fetch it from another one. (But not Winograd's, which compute for longer.)
struct StripTask {
  int64_t image0, images, group;
  int64_t y0, height, x0, width;
  int64_t split;
  int64_t pixels() const { return images * height * width; }
};
template <typename Plan>
NNOPS_INLINE int64_t strip_tasks(const Plan& plan, const PixelPass& pass, int64_t splits) {
  return plan.image_strips * pass.groups * plan.vertical * plan.horizontal * splits;
}
template <typename Plan>
NNOPS_INLINE StripTask strip_task(const Plan& plan, const PixelPass& pass, int64_t splits,
                                  int64_t index) {
  const int64_t strips = plan.vertical * plan.horizontal;
  const int64_t part = index / splits % strips;
  StripTask task{};
  task.split = index % splits;
  task.group = index / splits / strips % pass.groups;
  task.image0 = index / splits / strips / pass.groups * plan.images;
  task.images = smaller(plan.images, pass.images - task.image0);
  task.y0 = part / plan.horizontal * plan.height;
  task.x0 = part % plan.horizontal * plan.width;
  task.height = smaller(plan.height, pass.y.grid - task.y0);
  task.width = smaller(plan.width, pass.x.grid - task.x0);
  return task;
}

// One strip, and what it is computed of and to.
template <typename T, typename F = acc_t<T>>
struct PassStrip : StripTask {
  T* written;  // of the first image and channel of the group
  const T* read;
  const T* bias;     // of the first channel of the group, or null
  const F* weights;  // of the group, packed or not
};
template <typename T, typename F>
NNOPS_INLINE PassStrip<T, F> pass_strip(const StripTask& task, T* written, const T* read,
                                        const F* weights, int64_t weight_group, const T* bias,
                                        const PixelPass& pass) {
  const int64_t first_row = task.group * pass.rows;
  return {task, written + task.image0 * pass.written.n + first_row * pass.written.c,
          read + task.image0 * pass.read.n + task.group * pass.outer * pass.read.c,
          bias != nullptr ? bias + first_row : nullptr, weights + task.group * weight_group};
}

// How a pass is cut: images and rows of a strip, and parts of the written channels.
struct SharedStrips {
  int64_t images, height, splits;
};
// What a pixel of one outer channel costs, in quarters of a cycle, about: by one tap of one of the
// parts (tiles or panels) of the written channels, and to be copied.
struct StripCosts {
  int64_t part, copy;
};

// The strips that suit the cache, `most`, cut so that all threads have about the same to do. Strips
// of several images are whole images. Where strips are too few for the threads, they get fewer
// rows, of which neighbours copy some twice, or the written channels are cut into splits, for each
// of which all is copied again.
NNOPS_INLINE SharedStrips share_strips(const PixelPass& pass, SharedStrips most, int64_t width,
                                       int64_t parts, StripCosts costs, int threads) {
  constexpr int64_t kLeastPixels = 8;
  constexpr int64_t kWeightPixels = 8;  // what a task's weights cost to load
  // Of any task, 2 us.
  constexpr int64_t kTaskCost = 24000;
  const int64_t beside = pass.groups * divide_up(pass.x.grid, width);
  // Images at first: as many strips as they ask for, and what is missing to a multiple of the
  // threads.
  const int64_t least_strips = divide_up(pass.images, larger(1, most.images));
  const int64_t rounds = divide_up(least_strips * beside, threads);
  const int64_t strips = larger(least_strips, rounds * threads / beside);
  SharedStrips best = {divide_up(pass.images, smaller(strips, pass.images)), most.height, 1};
  const auto tasks = [&](const SharedStrips& cut) {
    return beside * cut.splits * divide_up(pass.images, cut.images) *
           divide_up(pass.y.grid, cut.height);
  };
  if (threads == 1 || tasks(best) >= int64_t{4} * threads) return best;

  // The least time of the thread with most to do, and a little for one that comes late.
  const int64_t overlap = (pass.y.taps - 1) * pass.y.gap;
  const int64_t tap_cost = costs.part * pass.y.taps * pass.x.taps;
  const int64_t columns = smaller((width - 1) * pass.x.step + 1, width * pass.x.taps);
  const int64_t task_cost = kTaskCost / pass.outer;
  int64_t least_cost = INT64_MAX;
  const auto consider = [&](const SharedStrips& cut) {
    const int64_t pixels = cut.images * cut.height * width;
    const int64_t read_rows =
        smaller((cut.height - 1) * pass.y.step + overlap + 1, cut.height * pass.y.taps);
    const int64_t task = (pixels + kWeightPixels) * tap_cost * divide_up(parts, cut.splits) +
                         cut.images * read_rows * columns * costs.copy + task_cost;
    const int64_t cost = task * (8 * divide_up(tasks(cut), threads) + 1);
    if (cost < least_cost) {
      best = cut;
      least_cost = cost;
    }
  };
  const int64_t least_height = smaller(most.height, divide_up(kLeastPixels, width));
  const int64_t whole_images = best.images;
  for (int64_t splits = 1; splits <= parts; splits *= 2) {
    if (whole_images > 1) consider({whole_images, most.height, splits});
    for (int64_t height = most.height; height >= least_height; height -= divide_up(height, 5)) {
      consider({1, height, splits});
    }
  }
  return best;
}

// Images are cleared by rows of pixels where their channels are neighbours, else by planes.
NNOPS_INLINE bool clears_rows_of_pixels(const Conv2dGeometry& g) {
  return g.input.c == 1 && g.input.w == g.c;
}

NNOPS_INLINE void visit_zeros_where_no_tap_reaches(const Conv2dGeometry& g,
                                                   const Conv2dPhaseVisitor& visitor) {
  if (for_each_backward_pass(g, [](const PixelPass&) {})) return;
  const bool rows = clears_rows_of_pixels(g);
  visit_copies(visitor, "zeros", g.n * (rows ? g.h : g.c),
               [&](int64_t) { return g.w * (rows ? g.c : g.h); });
}

template <typename T>
void write_zeros_where_no_tap_reaches(T* grad_input, const Conv2dGeometry& g, int threads) {
  if (for_each_backward_pass(g, [](const PixelPass&) {})) return;
  const bool rows = clears_rows_of_pixels(g);
  const int64_t parts = rows ? g.h : g.c;
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.n * parts; ++i) {
      T* part = grad_input + i / parts * g.input.n + i % parts * (rows ? g.input.h : g.input.c);
      if (rows) {
        std::memset(static_cast<void*>(part), 0, static_cast<size_t>(g.w * g.c) * sizeof(T));
        continue;
      }
      for (int64_t h = 0; h < g.h; ++h, part += g.input.h) {
        if (g.input.w == 1) {
          std::memset(static_cast<void*>(part), 0, static_cast<size_t>(g.w) * sizeof(T));
        } else {
          for (int64_t w = 0; w < g.w; ++w) part[w * g.input.w] = T{};
        }
      }
    }
  });
}

// The entry points of an algorithm that computes a pass at a time. Of `Algorithm` they want
//   run<T>(written, read, weights, bias, pass, workspace, threads)
//   workspace_bytes<T>(pass, threads)
//   visit<T>(pass, threads, visitor)                 how run shares its work
//   packed_bytes<T>(pass)                            0 if it reads the weight itself
//   pack<T>(packed, weight, pass, threads)           if it does not
// The packed weights of backward_input's passes stand one behind the other.
template <typename Algorithm>
struct ByPasses {
  template <typename T>
  static void forward(void* output, const void* input, const void* weights, const void* bias,
                      const Conv2dGeometry& g, void* workspace, int threads) {
    Algorithm::template run<T>(static_cast<T*>(output), static_cast<const T*>(input), weights,
                               static_cast<const T*>(bias), forward_pass(g), workspace, threads);
  }
  template <typename T>
  static int64_t forward_workspace(const Conv2dGeometry& g, int threads) {
    return Algorithm::template workspace_bytes<T>(forward_pass(g), threads);
  }
  template <typename T>
  static int64_t forward_packed(const Conv2dGeometry& g) {
    return Algorithm::template packed_bytes<T>(forward_pass(g));
  }
  template <typename T>
  static void forward_pack(void* packed, const void* weight, const Conv2dGeometry& g, int threads) {
    Algorithm::template pack<T>(static_cast<acc_t<T>*>(packed), static_cast<const T*>(weight),
                                forward_pass(g), threads);
  }
  template <typename T>
  static void forward_partition(const Conv2dGeometry& g, int threads,
                                const Conv2dPhaseVisitor& visitor) {
    Algorithm::template visit<T>(forward_pass(g), threads, visitor);
  }

  template <typename T>
  static void backward_input(void* grad_input, const void* grad_output, const void* weights,
                             const Conv2dGeometry& g, void* workspace, int threads) {
    T* gx = static_cast<T*>(grad_input);
    const char* place = static_cast<const char*>(weights);
    write_zeros_where_no_tap_reaches(gx, g, threads);
    for_each_backward_pass(g, [&](const PixelPass& pass) {
      Algorithm::template run<T>(gx, static_cast<const T*>(grad_output), place, nullptr, pass,
                                 workspace, threads);
      place += Algorithm::template packed_bytes<T>(pass);
    });
  }
  template <typename T>
  static int64_t backward_input_workspace(const Conv2dGeometry& g, int threads) {
    int64_t most = 0;
    for_each_backward_pass(g, [&](const PixelPass& pass) {
      most = larger(most, Algorithm::template workspace_bytes<T>(pass, threads));
    });
    return most;
  }
  template <typename T>
  static int64_t backward_input_packed(const Conv2dGeometry& g) {
    int64_t bytes = 0;
    for_each_backward_pass(
        g, [&](const PixelPass& pass) { bytes += Algorithm::template packed_bytes<T>(pass); });
    return bytes;
  }
  template <typename T>
  static void backward_input_pack(void* packed, const void* weight, const Conv2dGeometry& g,
                                  int threads) {
    char* place = static_cast<char*>(packed);
    for_each_backward_pass(g, [&](const PixelPass& pass) {
      Algorithm::template pack<T>(reinterpret_cast<acc_t<T>*>(place), static_cast<const T*>(weight),
                                  pass, threads);
      place += Algorithm::template packed_bytes<T>(pass);
    });
  }
  template <typename T>
  static void backward_input_partition(const Conv2dGeometry& g, int threads,
                                       const Conv2dPhaseVisitor& visitor) {
    visit_zeros_where_no_tap_reaches(g, visitor);
    for_each_backward_pass(
        g, [&](const PixelPass& pass) { Algorithm::template visit<T>(pass, threads, visitor); });
  }
};

NNOPS_END_KERNELS
