// How conv2d backward_weight by outer products (outer_products.h) cuts its work, and which operand
// of the products stands in lanes.
//
// The pixels of the batch are cut into blocks of about kBlockPixels: some rows of one image, or
// several small images. A chunk is a fixed share of the blocks. Both follow from the geometry
// alone, and so do all sums; everything else here decides about speed only.
#pragma once

#include "cpu/conv2d/outer_tile.h"
#include "cpu/conv2d/phases.h"
#include "cpu/conv2d/tap_axis.h"

NNOPS_BEGIN_KERNELS

constexpr int64_t kBlockPixels = 128;
// Rows of images are cut when they are longer than this.
constexpr int64_t kMostBlockPixels = 2 * kBlockPixels;
// The chunks' sums may take this much memory (one chunk is always there).
constexpr int64_t kChunkBytes = int64_t{8} << 20;
constexpr int64_t kWantedChunks = 32;
// The sums of a chunk cost about as much as a quarter of a block's products.
constexpr int64_t kChunkBlocks = 4;
// Gradients that pixel-major tensors hold are copied when more rows than these multiply them.
constexpr int64_t kInPlaceRows = 128;
// Of larger row-major images the pieces that a block reads are fetched ahead: one from each plane,
// they are beyond the hardware's guess.
constexpr int64_t kCachedImageBytes = int64_t{128} << 10;
// Of an operand's packed block: both should stay in L2.
constexpr int64_t kOperandBytes = int64_t{384} << 10;

// The columns of the products are the pairs of a channel and a tap. Where they stand in lanes, a
// vector is 16 consecutive numbers of a pixel's row:
enum class ColumnLayout {
  kSeparate,  // 16 channels under one tap; for many channels
  kJoined,    // in a row the kw taps of a pixel stand one behind the other: kw * channels
              // consecutive numbers, so that 3 or 6 channels waste little (dilation 1 only)
  kUnfolded,  // the kernel rows are copied beside the channels too: kh * kw * channels in one run
};

// What one task adds up: blocks of pixels of one chunk, for one group, some of its output channels
// and some of its channels.
struct OuterShare {
  int64_t chunk, group;
  int64_t first_block, last_block;
  int64_t filter0, filters, channel0, channels;
};

// The chunks' sums are added up a piece at a time, which stays in L1.
constexpr int64_t kPieceVectors = 128;

template <typename A>
struct OuterPlan {
  int64_t together;  // blocks whose operands are packed at a time
  Conv2dGeometry g;  // with `merged` groups of the convolution as one, of which only the products
  int64_t merged;    // of a group with itself are written
  int64_t group_c, group_oc, taps;

  bool filters_in_lanes;  // the output channels; otherwise the columns
  ColumnLayout layout;    // of columns in lanes
  bool pixel_major;       // the operand that is not in lanes: as in the tensor, pixels or planes
  bool channels_fast;     // order of the columns that are not in lanes: as in the weight

  bool gradients_ahead, input_ahead;  // whether the next block's are fetched into the cache

  int64_t height, width, images;               // of a block of pixels
  int64_t vertical, horizontal, image_blocks;  // numbers of blocks
  int64_t chunks;

  // The packed input of an image: sequences of positions (tap_axis.h), or every position.
  TapAxis y, x;
  int64_t x_scale;                    // from a pixel of the grid to the next, in elements of x
  int64_t row_length, sequence_rows;  // positions of a row, rows
  int64_t pixel_size;                 // numbers of a position that stand together
  int64_t row_size, plane_size, image_size;

  // Of a group: lanes hold `vectors`, and `rows` stand beside them.
  int64_t vectors, rows;
  int64_t filter_block, filter_blocks;    // of a task, a multiple of 16 in lanes
  int64_t channel_block, channel_blocks;  // of a task
  int64_t chunk_size, input_size, gradients_size, places_size;

  OuterPlan(const Conv2dGeometry& geometry, int threads, int64_t together)
      : together(together), g(geometry), merged(1) {
    constexpr int64_t kLine = kLanes<A>;
    taps = g.kh * g.kw;
    cut_pixels();
    set_groups(1);
    set_column_layout();
    const int64_t columns_cost = cost_of_columns_in_lanes();
    const int64_t filters_cost = cost_of_filters_in_lanes();
    filters_in_lanes = filters_cost <= columns_cost;
    if (!filters_in_lanes && taps == 1 && 2 * group_c <= kLine) {
      // Lanes that would be empty take other groups.
      int64_t count = smaller(kLine / group_c, g.groups);
      while (g.groups % count != 0) --count;
      set_groups(count);
      set_column_layout();
    }
    if (filters_in_lanes) {
      set_planes();
      vectors = divide_up(group_oc, kLine);
      rows = group_c * taps;
    } else {
      set_rows();
      vectors = column_vectors(group_c);
      rows = group_oc;
    }
    channels_fast = g.weight.c == 1;
    const auto pieces_are_far = [](const Strides4& stride, int64_t pixels, int64_t channels) {
      return stride.w == 1 && pixels * channels * int64_t{sizeof(A)} > kCachedImageBytes;
    };
    gradients_ahead = pieces_are_far(g.output, g.oh * g.ow, g.oc);
    input_ahead = pieces_are_far(g.input, g.h * g.w, g.c);
    chunk_size = g.groups * vectors * rows * kLine;
    cut_tasks(threads);

    pixel_size = filters_in_lanes                    ? pixel_major ? channel_block : 1
                 : layout == ColumnLayout::kUnfolded ? group_c * g.kh
                 // An odd number of cache lines: pixels that follow each other do not share
                 // their sets.
                 : layout == ColumnLayout::kSeparate ? odd_lines<A>(channel_block)
                                                     : group_c;
    row_size = row_length * pixel_size;
    plane_size = sequence_rows * row_size;
    image_size = filters_in_lanes && !pixel_major ? channel_block * plane_size : plane_size;
    // The last vector of the last pixel may reach beyond its row.
    input_size = round_up(images * image_size + kLine, kLine);
    gradients_size = round_up(filter_block, kLine) * gradients_pitch();
    places_size =
        round_up(filters_in_lanes ? channel_block * taps : column_vectors(channel_block), kLine);
  }

  int64_t blocks() const { return image_blocks * vertical * horizontal; }
  int64_t shares() const { return chunks * g.groups * filter_blocks * channel_blocks; }
  OuterShare share(int64_t index) const {
    const int64_t parts = filter_blocks * channel_blocks;
    const int64_t part = index % parts;
    OuterShare share{};
    share.chunk = index / parts / g.groups;
    share.group = index / parts % g.groups;
    share.first_block = share.chunk * blocks() / chunks;
    share.last_block = (share.chunk + 1) * blocks() / chunks;
    share.filter0 = part / channel_blocks * filter_block;
    share.filters = smaller(filter_block, group_oc - share.filter0);
    share.channel0 = part % channel_blocks * channel_block;
    share.channels = smaller(channel_block, group_c - share.channel0);
    return share;
  }
  int64_t pieces() const { return divide_up(chunk_size, kPieceVectors * kLanes<A>); }
  // Begin of a piece, or end of the one before.
  int64_t piece_begin(int64_t piece) const {
    return smaller(piece * kPieceVectors * kLanes<A>, chunk_size);
  }
  // From a filter to the next, where gradients are planes: an odd number of cache lines.
  int64_t gradients_pitch() const { return odd_lines<A>(pixels()); }
  int64_t pixels() const { return images * height * width; }
  // Of columns, for a block of channels.
  int64_t column_vectors(int64_t channels) const {
    constexpr int64_t kLine = kLanes<A>;
    if (layout == ColumnLayout::kSeparate) return divide_up(channels, kLine) * taps;
    if (layout == ColumnLayout::kJoined) return g.kh * divide_up(channels * g.kw, kLine);
    return divide_up(channels * taps, kLine);
  }
  // Of a block's operands.
  int64_t packed_size() const { return input_size + gradients_size; }
  int64_t lane_columns() const { return filters_in_lanes ? rows : vectors * kLanes<A>; }
  // In bytes: the places in the weight, then the chunks' sums, then what each thread has.
  int64_t table_bytes() const { return round_up(lane_columns() * 8, 64); }
  int64_t thread_bytes() const {
    const int64_t packed_bytes = together * packed_size() * static_cast<int64_t>(sizeof(A));
    return round_up(places_size * 8 + packed_bytes, 64);
  }
  int64_t sums_bytes() const { return chunks * chunk_size * static_cast<int64_t>(sizeof(A)); }
  int64_t workspace_bytes(int threads) const {
    return table_bytes() + sums_bytes() + threads * thread_bytes();
  }

 private:
  // What the order of the sums depends on: the same on every ISA and for any layout.
  void cut_pixels() {
    width = g.ow;
    if (width > kMostBlockPixels) width = divide_up(width, divide_up(width, kBlockPixels));
    height = larger(1, smaller(g.oh, kBlockPixels / width));
    height = divide_up(g.oh, divide_up(g.oh, height));
    vertical = divide_up(g.oh, height);
    horizontal = divide_up(g.ow, width);
    images =
        vertical * horizontal > 1 ? 1 : larger(1, smaller(g.n, kBlockPixels / (width * height)));
    image_blocks = divide_up(g.n, images);
    const int64_t weight_bytes = g.oc * (g.c / g.groups) * taps * static_cast<int64_t>(sizeof(A));
    const int64_t most_chunks = larger(1, kChunkBytes / weight_bytes);
    chunks = smaller(divide_up(blocks(), kChunkBlocks), smaller(most_chunks, kWantedChunks));
  }

  void set_groups(int64_t count) {
    merged *= count;
    g.groups /= count;
    group_c = g.c / g.groups;
    group_oc = g.oc / g.groups;
  }

  void set_column_layout() {
    constexpr int64_t kLine = kLanes<A>;
    layout = ColumnLayout::kSeparate;
    if (g.dilation_w != 1 || g.kw < g.stride_w || group_c % kLine == 0 || group_c * g.kw > 1024) {
      return;
    }
    layout = ColumnLayout::kJoined;
    const int64_t joined = column_vectors(group_c);
    const int64_t unfolded = divide_up(group_c * taps, kLine);
    // A vector saved is a multiplication for each output channel; the price is a copy of each
    // kernel row.
    if ((joined - unfolded) * group_oc * 2 > 3 * group_c * g.kh * g.stride_w) {
      layout = ColumnLayout::kUnfolded;
    }
  }

  // Pixel-major rows of input.
  void set_rows() {
    pixel_major = g.output.c == 1 && group_oc > 1;
    y = with_sequences(forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h), height);
    const bool every = layout != ColumnLayout::kSeparate;
    set_positions(every);
    sequence_rows = layout == ColumnLayout::kUnfolded ? height : y.sequence_length(height);
  }
  // Input as it stands in the tensor.
  void set_planes() {
    pixel_major = g.input.c == 1 && group_c > 1;
    y = with_sequences(forward_axis(g.h, g.oh, g.kh, g.stride_h, g.pad_top, g.dilation_h), height);
    sequence_rows = y.sequence_length(height);
    // It is cheaper to copy every position than to pick some out of a row.
    set_positions(false);
    const int64_t picked = row_length;
    set_positions(true);
    if (row_length > (pixel_major && !whole_pixels() ? 1 : 2) * picked) set_positions(false);
  }
  void set_positions(bool every) {
    x_scale = every ? g.stride_w : 1;
    x = with_sequences(
        forward_axis(g.w, g.ow, g.kw, every ? 1 : g.stride_w, g.pad_left, g.dilation_w), x_grid());
    row_length = x.sequence_length(x_grid());
  }

  // In multiplications of a vector, for the pixels of a block in one image; estimated.
  int64_t cost_of_products(int64_t lanes, int64_t others) const {
    // One vector at a time keeps the load ports busier than the multipliers.
    return lanes * others * height * width * (lanes == 1 ? 11 : 8) / (8 * together);
  }
  int64_t cost_of_columns_in_lanes() {
    set_rows();
    const int64_t positions = sequence_rows * row_length;
    int64_t pack = group_c * positions / (g.input.c == 1 ? 8 : 2);
    if (layout != ColumnLayout::kSeparate) {
      pack = 2 * group_c * positions * (layout == ColumnLayout::kUnfolded ? g.kh : 1);
    }
    return cost_of_products(column_vectors(group_c), group_oc) + pack +
           group_oc * height * width / 8;
  }
  int64_t cost_of_filters_in_lanes() {
    set_planes();
    const int64_t pixels = height * width;
    return cost_of_products(divide_up(group_oc, kLanes<A>), group_c * taps) +
           group_oc * pixels / (g.output.c == 1 ? 8 : 2) + group_c * sequence_rows * row_length / 8;
  }

  void cut_tasks(int threads) {
    constexpr int64_t kLine = kLanes<A>;
    const int64_t size = together * static_cast<int64_t>(sizeof(A));
    const int64_t positions = images * sequence_rows * row_length;
    const int64_t filter_unit = filters_in_lanes ? kLine : kTileRows;
    filter_block = smaller(round_up(group_oc, filter_unit),
                           round_up(kOperandBytes / (pixels() * size), filter_unit));
    int64_t channel_unit = 1;
    int64_t least_channels = larger(1, 32 / taps);
    if (!filters_in_lanes) {
      channel_unit = layout == ColumnLayout::kSeparate ? kLine : group_c;
      least_channels = channel_unit;
    }
    channel_block = larger(least_channels, kOperandBytes / (positions * size));
    channel_block = smaller(group_c, round_up(channel_block, channel_unit));
    channel_block = even_share(group_c, channel_block, channel_unit);
    filter_block = even_share(group_oc, filter_block, filter_unit);
    // More tasks, at the price of packing an operand more often.
    const int64_t input_cost = group_c * positions / (filters_in_lanes ? 8 : 2);
    const int64_t gradients_cost =
        group_oc * pixels() / (filters_in_lanes && g.output.c != 1 ? 2 : 8);
    while (true) {
      filter_blocks = divide_up(group_oc, filter_block);
      channel_blocks = divide_up(group_c, channel_block);
      // Enough of them when each thread gets two, and none much more than the mean.
      const int64_t tasks = shares();
      const bool even = 4 * divide_up(tasks, threads) * threads <= 5 * tasks;
      if (even && tasks >= int64_t{2} * threads) break;
      const bool filters_divide = filter_block > (even ? 2 : 1) * filter_unit;
      const bool channels_divide = channel_block >= 2 * larger(least_channels, channel_unit);
      if (!filters_divide && !channels_divide) break;
      if (filters_divide &&
          (!channels_divide || input_cost * filter_blocks <= gradients_cost * channel_blocks)) {
        filter_block = round_up(divide_up(filter_block, 2), filter_unit);
      } else {
        channel_block = round_up(divide_up(channel_block, 2), channel_unit);
      }
    }
  }
  // As many parts as `most` asks for, but about equal ones.
  static int64_t even_share(int64_t size, int64_t most, int64_t unit) {
    return smaller(most, round_up(divide_up(size, divide_up(size, most)), unit));
  }

 public:
  // Elements of x that a row of pixels spans.
  int64_t x_grid() const { return (width - 1) * x_scale + 1; }
  // Whether neighbouring pixels of the tensor stand side by side with nothing in between.
  bool whole_pixels() const { return g.input.c == 1 && g.input.w == group_c; }
};

NNOPS_END_KERNELS
