// conv2d backward_weight: outer products, pixel by pixel.
//
//   grad_weight[oc, c, kh, kw] = sum over pixels p of grad_output[oc, p] * input[c, p's tap]
//
// Each pixel adds the outer product of its output channels (filters) and its columns (pairs of a
// channel and a tap). One of the two stands in lanes, and is transposed for that to pixel-major
// order, a block of pixels at a time; of the other single numbers are broadcast, so that it is
// copied in the tensor's own order. The plan (outer_plan.h) takes what wastes fewer lanes and costs
// less to transpose:
//   filters in lanes   gradients[vector][pixel][16 filters], and the input as planes
//                      [channel][row][x] or rows [row][x][channel]; columns may be any
//   columns in lanes   rows [row sequence][x][channel] of input, in which vectors start anywhere,
//                      and the gradients as planes [filter][pixel] or rows [pixel][filter]
// with the padding as zeros.
//
// Accumulation: a chain over the pixels of a block; block sums are added up in order within a
// chunk, a fixed share of the blocks; the chunks' sums are added in order at the end. Nothing of
// it depends on the threads, the operand in lanes, nor on the tile shape.
// Parallel over (chunks, groups, blocks of output channels, blocks of channels). bfloat16 and
// float16 accumulate in float. Where factors are pairs (bfloat16_pairs.h), two blocks are packed
// at a time, and a pair holds what stands at the same place in both.
#pragma once

#include "cpu/conv2d/outer_plan.h"
#include "cpu/transpose.h"

NNOPS_BEGIN_KERNELS

// The blocks [first, last) of pixels, for one group, block of output channels and of channels.
template <typename T>
struct OuterTask {
  acc_t<T>* sums;  // of the group: [vector][row][lane]
  const T* grad_output;
  const T* input;  // of the group
  int64_t first_block, last_block;
  int64_t filter0, filters, channel0, channels;
};

// The pixels of a corner of a block: those of its first images, rows and columns.
struct PixelBox {
  int64_t images, height, width;

  bool operator==(const PixelBox&) const = default;
  PixelBox common(const PixelBox& other) const {
    return {smaller(images, other.images), smaller(height, other.height),
            smaller(width, other.width)};
  }
};

// A block of pixels.
struct OuterBlock : PixelBox {
  int64_t image0, y0, x0;

  template <typename A>
  OuterBlock(const OuterPlan<A>& plan, int64_t block) {
    const int64_t part = block % (plan.vertical * plan.horizontal);
    image0 = block / (plan.vertical * plan.horizontal) * plan.images;
    images = smaller(plan.images, plan.g.n - image0);
    y0 = part / plan.horizontal * plan.height;
    height = smaller(plan.height, plan.g.oh - y0);
    x0 = part % plan.horizontal * plan.width;
    width = smaller(plan.width, plan.g.ow - x0);
  }
  int64_t pixels() const { return images * height * width; }
};

// --- where columns stand ------------------------------------------------------------------------

// places[i] of the columns (not in lanes) or vectors of columns of a block of channels: from the
// first pixel's place in the packed input.
template <typename A>
NNOPS_INLINE void set_places(int64_t* places, const OuterPlan<A>& plan, int64_t channels) {
  constexpr int64_t kLine = kLanes<A>;
  const Conv2dGeometry& g = plan.g;
  const auto tap_place = [&](int64_t kh, int64_t kw) {
    return plan.y.sequence_index(kh, plan.height) * plan.row_size +
           plan.x.sequence_index(kw, plan.x_grid()) * plan.pixel_size;
  };
  if (plan.filters_in_lanes) {
    const int64_t channel_stride = plan.pixel_major ? 1 : plan.plane_size;
    const int64_t tap_stride = plan.channels_fast ? channels : 1;
    for (int64_t kh = 0; kh < g.kh; ++kh) {
      for (int64_t kw = 0; kw < g.kw; ++kw) {
        int64_t* place = places + (kh * g.kw + kw) * tap_stride;
        const int64_t first = tap_place(kh, kw);
        for (int64_t c = 0; c < channels; ++c) {
          place[plan.channels_fast ? c : c * plan.taps] = first + c * channel_stride;
        }
      }
    }
    return;
  }
  const int64_t vectors = plan.column_vectors(channels);
  for (int64_t v = 0; v < vectors; ++v) {
    if (plan.layout == ColumnLayout::kUnfolded) {
      places[v] = v * kLine;
    } else if (plan.layout == ColumnLayout::kJoined) {
      const int64_t per_row = vectors / g.kh;
      places[v] = tap_place(v / per_row, 0) + v % per_row * kLine;
    } else {
      const int64_t tap = v % plan.taps;
      places[v] = tap_place(tap / g.kw, tap % g.kw) + v / plan.taps * kLine;
    }
  }
}

// The place of each column of a group in the weight of one output channel; -1 for one that pads a
// vector.
template <typename A>
NNOPS_INLINE void set_weight_places(int64_t* places, const OuterPlan<A>& plan) {
  constexpr int64_t kLine = kLanes<A>;
  const Conv2dGeometry& g = plan.g;
  const auto place_of = [&](int64_t c, int64_t tap) {
    return c % (plan.group_c / plan.merged) * g.weight.c + tap / g.kw * g.weight.h +
           tap % g.kw * g.weight.w;
  };
  if (plan.filters_in_lanes) {
    for (int64_t c0 = 0; c0 < plan.group_c; c0 += plan.channel_block) {
      const int64_t channels = smaller(plan.channel_block, plan.group_c - c0);
      for (int64_t tap = 0; tap < plan.taps; ++tap) {
        const int64_t first = place_of(0, tap) + c0 * g.weight.c;
        int64_t* place = places + c0 * plan.taps + tap * (plan.channels_fast ? channels : 1);
        const int64_t step = plan.channels_fast ? 1 : plan.taps;
        for (int64_t c = 0; c < channels; ++c) place[c * step] = first + c * g.weight.c;
      }
    }
    return;
  }
  for (int64_t i = 0; i < plan.vectors * kLine; ++i) {
    const int64_t v = i / kLine;
    const int64_t lane = i % kLine;
    int64_t c = 0;
    int64_t kh = 0;
    int64_t kw = 0;
    if (plan.layout == ColumnLayout::kSeparate) {
      // Blocks of channels follow each other, and all but the last are whole.
      c = v / plan.taps * kLine + lane;
      kh = v % plan.taps / g.kw;
      kw = v % g.kw;
    } else if (plan.layout == ColumnLayout::kJoined) {
      const int64_t per_row = plan.vectors / g.kh;
      const int64_t column = v % per_row * kLine + lane;
      c = column % plan.group_c;
      kh = v / per_row;
      kw = column / plan.group_c;
    } else {
      c = i / g.kh % plan.group_c;
      kh = i % g.kh;
      kw = i / (g.kh * plan.group_c);
    }
    places[i] = c < plan.group_c && kw < g.kw ? place_of(c, kh * g.kw + kw) : -1;
  }
}

// --- packing ------------------------------------------------------------------------------------

// One row of input, pixel-major: `source` is the first channel at that row, null for padding.
template <typename T>
NNOPS_INLINE void pack_row(acc_t<T>* row, const T* source, int64_t channel_stride, int64_t channels,
                           int64_t padded_channels, int64_t x0, const OuterPlan<acc_t<T>>& plan) {
  const Conv2dGeometry& g = plan.g;
  const int64_t size = plan.pixel_size;
  const bool whole = plan.whole_pixels() && channels == plan.group_c && channels == size;
  for (int64_t cls = 0; cls < plan.x.class_count(); ++cls) {
    const int64_t length = plan.x.class_length(cls, plan.x_grid());
    const int64_t first = plan.x.position(cls, x0 * plan.x_scale);
    const int64_t limit = source == nullptr ? 0 : g.w;
    if (whole && plan.x.step == 1) {
      copy_positions(row, source, 1, first * size, 1, length * size, limit * size);
    } else {
      transpose_positions(row, size, source, channel_stride, g.input.w, first, plan.x.step, length,
                          limit, channels, padded_channels);
    }
    row += length * size;
  }
}

// One image of input, pixel-major.
template <typename T>
void pack_rows(acc_t<T>* rows, const T* image, int64_t channels, int64_t padded_channels,
               int64_t y0, int64_t x0, const OuterPlan<acc_t<T>>& plan) {
  const Conv2dGeometry& g = plan.g;
  const auto row_of = [&](int64_t h) {
    return h < 0 || h >= g.h ? nullptr : image + h * g.input.h;
  };
  if (!plan.filters_in_lanes && plan.layout == ColumnLayout::kUnfolded) {
    for (int64_t y = 0; y < plan.height; ++y, rows += plan.row_size) {
      const int64_t h0 = (y0 + y) * g.stride_h - g.pad_top;
      const int64_t step = g.dilation_h;
      if (h0 >= 0 && h0 + (g.kh - 1) * step < g.h) {  // the kernel's rows, together
        for (int64_t c = 0; c < channels; ++c) {
          pack_row(rows + c * g.kh, row_of(h0) + c * g.input.c, step * g.input.h, g.kh, g.kh, x0,
                   plan);
        }
        continue;
      }
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const T* source = row_of(h0 + kh * step);
        for (int64_t c = 0; c < channels; ++c) {
          pack_row(rows + c * g.kh + kh, source == nullptr ? nullptr : source + c * g.input.c,
                   g.input.c, 1, 1, x0, plan);
        }
      }
    }
    return;
  }
  for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
    const int64_t length = plan.y.class_length(cls, plan.height);
    for (int64_t i = 0; i < length; ++i, rows += plan.row_size) {
      pack_row(rows, row_of(plan.y.position(cls, y0 + i)), g.input.c, channels, padded_channels, x0,
               plan);
    }
  }
}

// One image of input, as planes.
template <typename T>
void pack_planes(acc_t<T>* planes, const T* image, int64_t channels, int64_t y0, int64_t x0,
                 const OuterPlan<acc_t<T>>& plan) {
  const Conv2dGeometry& g = plan.g;
  const int64_t h0 = plan.y.position(0, y0);
  const bool whole_rows = g.input.w == 1 && g.input.h == g.w && plan.row_length == g.w &&
                          plan.x.step == 1 && plan.x.position(0, x0 * plan.x_scale) == 0 &&
                          plan.x.class_count() == 1 && plan.y.class_count() == 1 &&
                          plan.y.step == 1 && h0 >= 0 && h0 + plan.sequence_rows <= g.h;
  const int64_t begin = smaller(g.w, larger(0, x0 * g.stride_w - g.pad_left));
  const int64_t end =
      larger(begin, smaller(g.w, (x0 + plan.width) * g.stride_w + (g.kw - 1) * g.dilation_w));
  for (int64_t c = 0; c < channels; ++c, image += g.input.c) {
    // Short pieces of planes are beyond the hardware's guess.
    const bool ahead = c + 1 < channels && g.input.w == 1;
    if (whole_rows) {
      if (ahead) prefetch_span(image + g.input.c + h0 * g.w, plan.plane_size);
      copy_span(planes, image + h0 * g.w, plan.plane_size);
      planes += plan.plane_size;
      continue;
    }
    for (int64_t cls = 0; cls < plan.y.class_count(); ++cls) {
      const int64_t length = plan.y.class_length(cls, plan.height);
      for (int64_t i = 0; i < length; ++i) {
        const int64_t h = plan.y.position(cls, y0 + i);
        const bool inside = h >= 0 && h < g.h;
        if (ahead && inside) {
          prefetch_span(image + g.input.c + h * g.input.h + begin, end - begin);
        }
        for (int64_t x_cls = 0; x_cls < plan.x.class_count(); ++x_cls) {
          const int64_t count = plan.x.class_length(x_cls, plan.x_grid());
          copy_positions(planes, image + (inside ? h * g.input.h : 0), g.input.w,
                         plan.x.position(x_cls, x0 * plan.x_scale), plan.x.step, count,
                         inside ? g.w : 0);
          planes += count;
        }
      }
    }
  }
}

template <typename T>
void pack_input(acc_t<T>* packed, const OuterTask<T>& task, const OuterBlock& block,
                const OuterPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  const Strides4& stride = plan.g.input;
  const int64_t padded = !plan.filters_in_lanes && plan.layout == ColumnLayout::kSeparate
                             ? round_up(task.channels, kLanes<A>)
                             : task.channels;
  const T* source = task.input + block.image0 * stride.n + task.channel0 * stride.c;
  for (int64_t i = 0; i < block.images; ++i, source += stride.n) {
    A* target = packed + i * plan.image_size;
    if (plan.filters_in_lanes && !plan.pixel_major) {
      pack_planes(target, source, task.channels, block.y0, block.x0, plan);
    } else {
      pack_rows(target, source, task.channels, padded, block.y0, block.x0, plan);
    }
  }
  // What the last vector of the last pixel reads beyond its row: of no influence.
  write(packed + plan.input_size - kLanes<A>, Wide<A>{});
}

template <typename T>
void pack_gradients(acc_t<T>* packed, const OuterTask<T>& task, const OuterBlock& block,
                    const OuterPlan<acc_t<T>>& plan) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  const Strides4& stride = plan.g.output;
  const bool plane = stride.w == 1 && stride.h == block.width && block.width == plan.width;
  const int64_t spans = plane ? 1 : block.height;
  const int64_t length = plane ? block.height * block.width : block.width;
  const T* source = task.grad_output + block.image0 * stride.n + task.filter0 * stride.c +
                    block.y0 * stride.h + block.x0 * stride.w;
  // [filters in steps of `together`], and in each the pixels of a whole block.
  const int64_t together = plan.filters_in_lanes ? kLine : plan.pixel_major ? task.filters : 1;
  for (int64_t filter = 0; filter < task.filters; filter += together) {
    const int64_t filters = smaller(together, task.filters - filter);
    A* first = packed + filter * (together == 1 ? plan.gradients_pitch() : plan.pixels());
    for (int64_t image = 0; image < block.images; ++image) {
      A* target = first + image * plan.height * plan.width * together;
      for (int64_t i = 0; i < spans; ++i, target += plan.width * together) {
        const T* from = source + image * stride.n + filter * stride.c + i * stride.h;
        if (together == 1) {
          copy_strided(target, from, stride.w, length);
        } else {
          transpose(target, together, from, stride.c, stride.w, filters, length);
        }
      }
    }
  }
}

// Asks for a share, from `part` to the next of `parts`, of what a block reads of row-major tensors:
// pieces of as many planes as there are channels are beyond the hardware's guess.
template <typename T>
NNOPS_INLINE void prefetch_block(const OuterTask<T>& task, const OuterBlock& block,
                                 const OuterPlan<acc_t<T>>& plan, int64_t part, int64_t parts) {
  const Conv2dGeometry& g = plan.g;
  if (plan.gradients_ahead) {
    const T* gradients =
        task.grad_output + block.image0 * g.output.n + block.y0 * g.output.h + block.x0;
    const int64_t end = (part + 1) * task.filters / parts;
    for (int64_t filter = part * task.filters / parts; filter < end; ++filter) {
      prefetch_span(gradients + (task.filter0 + filter) * g.output.c,
                    (block.height - 1) * g.output.h + block.width);
    }
  }
  if (plan.input_ahead) {
    const int64_t top = block.y0 * g.stride_h - g.pad_top;
    const int64_t rows = (block.height - 1) * g.stride_h + (g.kh - 1) * g.dilation_h + 1;
    const T* input = task.input + block.image0 * g.input.n + top * g.input.h;
    const int64_t end = (part + 1) * task.channels / parts;
    for (int64_t channel = part * task.channels / parts; channel < end; ++channel) {
      prefetch_span(input + (task.channel0 + channel) * g.input.c, rows * g.input.h);
    }
  }
}

// --- the pass -----------------------------------------------------------------------------------

// `packed` has room for the operands of as many blocks as are packed at a time. A factor of several
// numbers holds one of each of these blocks, from the same place in it.
template <typename F, typename T>
void add_outer_products(const OuterTask<T>& task, const OuterPlan<acc_t<T>>& plan, int64_t* places,
                        acc_t<T>* packed) {
  using A = acc_t<T>;
  static_assert(sizeof(F) == sizeof(A), "factors stand where numbers were");
  constexpr int64_t kLine = kLanes<A>;
  const bool filters_in_lanes = plan.filters_in_lanes;
  set_places(places, plan, task.channels);
  // Of the task: vectors and rows of sums.
  int64_t first_vector = 0;
  int64_t vectors = 0;
  int64_t first_row = 0;
  int64_t rows = 0;
  if (filters_in_lanes) {
    first_vector = task.filter0 / kLine;
    vectors = divide_up(task.filters, kLine);
    first_row = task.channel0 * plan.taps;
    rows = task.channels * plan.taps;
    // Lanes without a filter: numbers that are nobody's, but quick to multiply.
    const int64_t size = vectors * kLine * plan.pixels();
    if (task.filters % kLine != 0) {
      for (int64_t block = 0; block < plan.together; ++block) {
        A* gradients = packed + block * plan.packed_size() + plan.input_size;
        for (int64_t i = 0; i < size; ++i) gradients[i] = 0;
      }
    }
  } else {
    first_vector = plan.column_vectors(task.channel0);
    vectors = plan.column_vectors(task.channels);
    first_row = task.filter0;
    rows = task.filters;
  }
  const int64_t panels = divide_up(vectors, kTileVectors);
  const int64_t row_tiles = divide_up(rows, kTileRows);
  A* sums = task.sums + (first_vector * plan.rows + first_row) * kLine;

  // Where pixels stand in the tensor as they would be packed, and few rows read them, they are read
  // there.
  const bool in_place = std::is_same_v<T, A> && filters_in_lanes && plan.g.output.c == 1 &&
                        task.filters % kLine == 0 && rows <= kInPlaceRows;
  const Strides4& stride = plan.g.output;
  const int64_t pitch = plan.gradients_pitch();
  OuterPixel pixels[kMostBlockPixels];
  OuterTile<A, F> tile{};
  tile.sum_stride = plan.rows * kLine;

  // The pixels of `box` without those of `without`.
  int64_t count = 0;
  PixelBox listed{};
  PixelBox left_out{};
  const auto list_pixels = [&](const PixelBox& box, const PixelBox& without) {
    if (box == listed && without == left_out) return;
    listed = box;
    left_out = without;
    count = 0;
    const int64_t step = filters_in_lanes ? kLine : plan.pixel_major ? task.filters : 1;
    for (int64_t image = 0; image < box.images; ++image) {
      for (int64_t i = 0; i < box.height; ++i) {
        const bool skips = image < without.images && i < without.height;
        for (int64_t x = skips ? without.width : 0; x < box.width; ++x) {
          const int64_t place =
              image * plan.image_size + i * plan.row_size + x * plan.x_scale * plan.pixel_size;
          const int64_t gradient = in_place ? image * stride.n + i * stride.h + x * stride.w
                                            : ((image * plan.height + i) * plan.width + x) * step;
          pixels[count++] =
              filters_in_lanes ? OuterPixel{place, gradient} : OuterPixel{gradient, place};
        }
      }
    }
  };

  // Adds the products of the pixels that are listed.
  const auto multiply = [&](const F* input, const F* gradients, bool first,
                            const OuterBlock& ahead) {
    constexpr int64_t kMostPixels = kMostBlockPixels / kFactorNumbers<F>;
    const int64_t chains = divide_up(count, kMostPixels);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t v0 = panel * vectors / panels;
      const int64_t panel_vectors = (panel + 1) * vectors / panels - v0;
      for (int64_t v = 0; v < panel_vectors; ++v) {
        tile.vectors[v] = filters_in_lanes
                              ? gradients + (v0 + v) * (in_place ? 1 : plan.pixels()) * kLine
                              : input + places[v0 + v];
      }
      for (int64_t t = 0; t < row_tiles; ++t) {
        const int64_t r0 = t * rows / row_tiles;
        const int64_t tile_rows = (t + 1) * rows / row_tiles - r0;
        for (int64_t r = 0; r < tile_rows; ++r) {
          tile.scalars[r] = filters_in_lanes
                                ? input + places[r0 + r]
                                : gradients + (r0 + r) * (plan.pixel_major ? 1 : pitch);
        }
        tile.sums = sums + (v0 * plan.rows + r0) * kLine;
        prefetch_block(task, ahead, plan, panel * row_tiles + t, panels * row_tiles);
        for (int64_t chain = 0; chain < chains; ++chain) {
          tile.pixels = pixels + chain * count / chains;
          tile.count = pixels + (chain + 1) * count / chains - tile.pixels;
          tile.first = first && chain == 0;
          outer_tile_function<A, F>(tile_rows, panel_vectors)(tile);
        }
      }
    }
  };

  A* packed_gradients = packed + plan.input_size;
  for (int64_t index = task.first_block; index < task.last_block; index += plan.together) {
    const bool first = index == task.first_block;
    const OuterBlock block(plan, index);
    const OuterBlock ahead(plan, smaller(index + plan.together, task.last_block - 1));
    pack_input(packed, task, block, plan);
    if (!in_place) pack_gradients(packed_gradients, task, block, plan);
    if constexpr (kFactorNumbers<F> == 1) {
      const A* gradients = packed_gradients;
      if constexpr (std::is_same_v<T, A>) {
        if (in_place) {
          gradients = task.grad_output + block.image0 * stride.n + block.y0 * stride.h +
                      block.x0 * stride.w + task.filter0;
        }
      }
      list_pixels(block, {});
      multiply(packed, gradients, first, ahead);
    } else {
      // Blocks at the ends of an image may be smaller: pixels that one of the two lacks are apart.
      const int64_t size = plan.input_size + round_up(task.filters, kLine) * pitch;
      const bool paired = index + 1 < task.last_block;
      const OuterBlock next(plan, paired ? index + 1 : index);
      const PixelBox common = block.common(next);
      A* other = packed + plan.packed_size();
      if (paired) {
        pack_input(other, task, next, plan);
        pack_gradients(other + plan.input_size, task, next, plan);
      }
      F::join(packed, paired ? other : nullptr, size);
      const F* factors = reinterpret_cast<const F*>(packed);
      list_pixels(common, {});
      multiply(factors, factors + plan.input_size, first, ahead);
      if (!(block == common)) {
        F::keep_first(packed, size);
        list_pixels(block, common);
        multiply(factors, factors + plan.input_size, false, ahead);
      }
      if (!(next == common)) {
        F::join(other, nullptr, size);
        factors = reinterpret_cast<const F*>(other);
        list_pixels(next, common);
        multiply(factors, factors + plan.input_size, false, ahead);
      }
    }
  }
}

// The weights of a vector of output channels: runs of columns that follow each other in the weight
// are transposed at once.
template <typename T>
void write_filter_vector(T* weight, const acc_t<T>* sums, int64_t filters, const int64_t* places,
                         const OuterPlan<acc_t<T>>& plan) {
  constexpr int64_t kLine = kLanes<acc_t<T>>;
  for (int64_t i = 0; i < plan.rows;) {
    int64_t end = i + 1;
    while (end < plan.rows && places[end] == places[end - 1] + 1) ++end;
    write_planes<T>(weight + places[i], plan.g.weight.n, sums + i * kLine, kLine, end - i, nullptr,
                    filters);
    i = end;
  }
}

// The weights of one output channel, `row` of its group.
template <typename T>
void write_filter(T* weight, const acc_t<T>* sums, int64_t row, const int64_t* places,
                  const OuterPlan<acc_t<T>>& plan) {
  constexpr int64_t kLine = kLanes<acc_t<T>>;
  int64_t column = 0;
  int64_t end = plan.vectors * kLine;
  if (plan.merged > 1) {
    // The columns of the output channel's own group.
    const int64_t channels = plan.group_c / plan.merged;
    column = row / (plan.group_oc / plan.merged) * channels;
    end = column + channels;
  }
  for (; column < end; ++column) {
    const acc_t<T> sum = sums[(column / kLine * plan.rows + row) * kLine + column % kLine];
    if (places[column] >= 0) weight[places[column]] = from_acc<T>(sum);
  }
}

template <typename T, typename F = acc_t<T>>
void outer_products_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                                    const Conv2dGeometry& geometry, void* workspace, int threads) {
  using A = acc_t<T>;
  constexpr int64_t kLine = kLanes<A>;
  const OuterPlan<A> plan(geometry, threads, kFactorNumbers<F>);
  const Conv2dGeometry& g = plan.g;
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  char* memory = static_cast<char*>(workspace);
  int64_t* weight_places = reinterpret_cast<int64_t*>(memory);
  A* chunk_sums = reinterpret_cast<A*>(memory + plan.table_bytes());
  char* per_thread = memory + plan.table_bytes() + plan.sums_bytes();
  const int64_t group_size = plan.chunk_size / g.groups;
  set_weight_places(weight_places, plan);

  in_parallel(threads, [&] {
    int64_t* places = reinterpret_cast<int64_t*>(per_thread + thread_index() * plan.thread_bytes());
    A* packed = reinterpret_cast<A*>(places + plan.places_size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.shares(); ++i) {
      const OuterShare share = plan.share(i);
      OuterTask<T> task{};
      task.sums = chunk_sums + share.chunk * plan.chunk_size + share.group * group_size;
      task.grad_output = gy + share.group * plan.group_oc * g.output.c;
      task.input = x + share.group * plan.group_c * g.input.c;
      task.first_block = share.first_block;
      task.last_block = share.last_block;
      task.filter0 = share.filter0;
      task.filters = share.filters;
      task.channel0 = share.channel0;
      task.channels = share.channels;
      add_outer_products<F>(task, plan, places, packed);
    }
    // Into the first chunk's sums.
    if (plan.chunks > 1) {
#pragma omp for schedule(static)
      for (int64_t piece = 0; piece < plan.pieces(); ++piece) {
        const int64_t begin = plan.piece_begin(piece);
        const int64_t end = plan.piece_begin(piece + 1);
        for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
          const A* sums = chunk_sums + chunk * plan.chunk_size;
          for (int64_t i = begin; i < end; i += kLine) {
            write(chunk_sums + i, read<Wide<A>>(chunk_sums + i) + read<Wide<A>>(sums + i));
          }
        }
      }
    }
    if (plan.filters_in_lanes) {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < g.groups * plan.vectors; ++i) {
        const int64_t oc = i % plan.vectors * kLine;
        write_filter_vector(gf + (i / plan.vectors * plan.group_oc + oc) * g.weight.n,
                            chunk_sums + i * plan.rows * kLine, smaller(kLine, plan.group_oc - oc),
                            weight_places, plan);
      }
    }
    if (!plan.filters_in_lanes) {
#pragma omp for schedule(static)
      for (int64_t oc = 0; oc < g.oc; ++oc) {
        write_filter(gf + oc * g.weight.n, chunk_sums + oc / plan.group_oc * group_size,
                     oc % plan.group_oc, weight_places, plan);
      }
    }
  });
}

template <typename T, typename F = acc_t<T>>
int64_t outer_products_workspace(const Conv2dGeometry& g, int threads) {
  return OuterPlan<acc_t<T>>(g, threads, kFactorNumbers<F>).workspace_bytes(threads);
}

template <typename T, typename F = acc_t<T>>
void outer_products_partition(const Conv2dGeometry& geometry, int threads,
                              const Conv2dPhaseVisitor& visitor) {
  constexpr int64_t kLine = kLanes<acc_t<T>>;
  const OuterPlan<acc_t<T>> plan(geometry, threads, kFactorNumbers<F>);
  visit_products(visitor, Schedule::kStatic, plan.shares(), [&](int64_t i) {
    const OuterShare share = plan.share(i);
    int64_t pixels = 0;
    for (int64_t block = share.first_block; block < share.last_block; ++block) {
      pixels += OuterBlock(plan, block).pixels();
    }
    // Merged groups stand side by side: all their channels in each task, of which the products with
    // other groups do not count.
    return pixels * share.filters * (share.channels / plan.merged) * plan.taps;
  });
  if (plan.chunks > 1) {
    visit_copies(visitor, "sum of chunks", plan.pieces(), [&](int64_t piece) {
      return (plan.piece_begin(piece + 1) - plan.piece_begin(piece)) * (plan.chunks - 1);
    });
  }
  if (plan.filters_in_lanes) {
    visit_copies(visitor, "weights", plan.g.groups * plan.vectors, [&](int64_t i) {
      return smaller(kLine, plan.group_oc - i % plan.vectors * kLine) * plan.rows;
    });
  } else {
    visit_copies(visitor, "weights", plan.g.oc,
                 [&](int64_t) { return plan.group_c / plan.merged * plan.taps; });
  }
}

NNOPS_END_KERNELS
