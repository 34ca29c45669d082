// Tests of max_pool2d's and max_unpool2d's kernels against plain C++: the arithmetic behind them,
// past 2^31 too, which no tensor that fits a machine could reach; every instance for floating
// dtypes, on memory of its exact size; those with int64_t against those with int32_t.
//
//   pooling <test>     exit status 0, or 1 and what differs
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/max_pool2d.cu"
#include "cuda/max_unpool2d.cu"

namespace nnops {

std::unique_ptr<char[]> scratch[2];  // as many as a call asks for
int next_scratch = 0;

void* cuda_scratch(int64_t bytes) {
  next_scratch = 1 - next_scratch;
  scratch[next_scratch].reset(new char[static_cast<size_t>(bytes)]);
  return scratch[next_scratch].get();
}

}  // namespace nnops

namespace nnops::cuda {
namespace {

#define EXPECT(condition) \
  if (!(condition)) throw std::runtime_error("line " + std::to_string(__LINE__) + ": " #condition)

std::mt19937_64 random_bits(1);

// Uniform in [lowest, highest], or of a random number of bits.
int64_t between(int64_t lowest, int64_t highest) {
  return lowest + static_cast<int64_t>(random_bits() % static_cast<uint64_t>(highest - lowest + 1));
}
template <typename Index>
Index any_positive() {
  constexpr int kBits = 8 * sizeof(Index) - 1;
  const uint64_t bits = random_bits() >> (64 - between(1, kBits));
  return static_cast<Index>(bits == 0 ? 1 : bits);
}

template <typename Index>
void check_division(Index divisor, Index dividend) {
  const FastDivision<Index> division(divisor);
  EXPECT(division.divisor() == divisor);
  EXPECT(division.quotient(dividend) == dividend / divisor);
  Index rest = dividend;
  EXPECT(division.divide(rest) == dividend / divisor && rest == dividend % divisor);
}

// Where a wrong multiplier shows first: at multiples of the divisor, and before them.
template <typename Index>
void check_divisor(Index divisor) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  const Index multiple = kMost / divisor * divisor;
  for (const Index dividend : {Index{0}, Index{1}, divisor, multiple, kMost}) {
    check_division(divisor, dividend);
    if (dividend > 0) check_division(divisor, static_cast<Index>(dividend - 1));
  }
  for (int i = 0; i < 20; ++i) {
    const Index dividend = any_positive<Index>();
    check_division(divisor, dividend);
    const Index near = dividend / divisor * divisor;
    check_division(divisor, near);
    if (near > 0) check_division(divisor, static_cast<Index>(near - 1));
  }
}

template <typename Index>
void check_divisors() {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  for (Index divisor = 1; divisor < 3000; ++divisor) check_divisor(divisor);
  for (Index power = 1; power > 0 && power <= kMost / 2; power *= 2) {
    for (const Index divisor :
         {power, static_cast<Index>(power + 1), static_cast<Index>(power * 2 - 1)}) {
      check_divisor(divisor);
    }
  }
  for (int i = 0; i < 20000; ++i) check_divisor(any_positive<Index>());
  check_divisor(kMost);
}

void divisions() {
  check_divisors<int32_t>();
  check_divisors<int64_t>();
  for (int32_t divisor = 1; divisor <= 255; ++divisor) {
    for (int32_t offset = 0; offset <= 255; ++offset) check_division(divisor, offset);
  }
}

// place() is the inverse of the position in packed memory.
template <typename Index>
void check_place(int64_t n, int64_t c, int64_t h, int64_t w) {
  for (const bool channels_last : {false, true}) {
    const PackedImages<Index> images{FastDivision<Index>(static_cast<Index>(c)),
                                     FastDivision<Index>(static_cast<Index>(h)),
                                     FastDivision<Index>(static_cast<Index>(w)), channels_last};
    const int64_t image = between(0, n - 1), channel = between(0, c - 1);
    const int64_t row = between(0, h - 1), column = between(0, w - 1);
    const int64_t position = channels_last ? ((image * h + row) * w + column) * c + channel
                                           : ((image * c + channel) * h + row) * w + column;
    const ImagePlace<Index> place = images.place(static_cast<Index>(position));
    EXPECT(place.image == image && place.channel == channel);
    EXPECT(place.row == row && place.column == column);

    const PackedLines<Index> values{FastDivision<Index>(static_cast<Index>(c)),
                                    FastDivision<Index>(static_cast<Index>(h)), channels_last};
    const PackedLines<Index> planes{FastDivision<Index>(static_cast<Index>(c)),
                                    FastDivision<Index>(static_cast<Index>(w)), channels_last};
    const int64_t value =
        channels_last ? (image * h + row) * c + channel : (image * c + channel) * h + row;
    const int64_t element =
        channels_last ? (image * w + column) * c + channel : (image * c + channel) * w + column;
    const LinePlace<Index> line = values.place(static_cast<Index>(value));
    EXPECT(line.image == image && line.channel == channel && line.place == row);
    EXPECT(values.position(line, static_cast<Index>(row)) == value);
    EXPECT(planes.position(line, static_cast<Index>(column)) == element);
  }
}

void places() {
  for (int i = 0; i < 100000; ++i) {
    check_place<int32_t>(between(1, 200), between(1, 200), between(1, 200), between(1, 250));
    check_place<int64_t>(between(1, 200), between(1, 200), between(1, 200), between(1, 250));
    check_place<int64_t>(any_positive<int32_t>() >> 16 | 1, any_positive<int32_t>() >> 16 | 1,
                         any_positive<int32_t>() >> 16 | 1, any_positive<int32_t>() >> 16 | 1);
    check_place<int64_t>(1, 3, any_positive<int32_t>(), between(1, int64_t{1} << 29));
  }
}

// taps_inside and windows_of along one axis, by trying all taps. `kMost` bounds positions.
template <typename Index>
void check_axis(int64_t kMost) {
  const int64_t size = between(1, kMost);
  const int64_t kernel = between(1, between(1, 2) == 1 ? 5 : 255);
  const int64_t stride = between(1, between(0, 2) > 0 ? 4 : kMost);
  const int64_t dilation = between(1, between(0, 2) > 0 ? 4 : kMost / kernel + 1);
  const int64_t pad = between(0, kernel / 2);
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  if (room < 0) return;
  int64_t windows = room / stride + 1;
  if (between(0, 1) == 1 && room % stride != 0 && windows * stride < size + pad) ++windows;  // ceil
  const auto axis = pool_axis<Index>(size, windows, kernel, stride, pad, dilation);
  const auto inside = [=](int64_t position) { return position >= 0 && position < size; };

  const int64_t window = between(0, windows - 1);
  const int64_t start = window * stride - pad;
  EXPECT(axis.start(static_cast<Index>(window)) == start);
  const TapRange<Index> taps = axis.taps_inside(static_cast<Index>(start));
  for (int64_t tap = 0; tap < kernel; ++tap) {
    EXPECT(inside(start + tap * dilation) == (tap >= taps.begin && tap < taps.end));
  }

  // A position that a window holds, and any other.
  const int64_t held = start + between(0, kernel - 1) * dilation;
  for (const int64_t position : {held, between(0, size - 1)}) {
    if (!inside(position)) continue;
    AxisWindows<Index> found = axis.windows_of(static_cast<Index>(position));
    for (int64_t tap = kernel - 1; tap >= 0; --tap) {
      const int64_t begin = position + pad - tap * dilation;
      if (begin < 0 || begin % stride != 0 || begin / stride >= windows) continue;
      EXPECT(found.tap == tap && found.window == begin / stride);
      found.tap -= axis.tap_step;
      found.window += axis.window_step;
    }
    EXPECT(found.tap < 0 || found.window >= windows);
  }
}

void axes() {
  for (int i = 0; i < 200000; ++i) {
    check_axis<int32_t>(40);
    check_axis<int64_t>(40);
    check_axis<int32_t>(1 << 28);
    check_axis<int64_t>(int64_t{1} << 40);
  }
}

// `kind`: 2 or 3 for the windows that have kernels of their own, 0 for any.
Pool2dGeometry any_geometry(int kind) {
  for (;;) {
    Pool2dGeometry g{};
    g.n = between(1, 2);
    g.c = between(0, 1) == 1 ? between(1, 5) : 8;
    g.h = between(1, 12);
    g.w = between(0, 1) == 1 ? between(1, 12) : 16;
    const auto size = [=](int64_t most) { return kind > 0 ? kind : between(1, most); };
    g.kernel_h = size(4);
    g.kernel_w = size(4);
    g.stride_h = kind > 0 ? 2 : between(1, 3);
    g.stride_w = kind > 0 ? 2 : between(1, 3);
    g.pad_h = between(0, 1) == 1 ? 0 : between(0, g.kernel_h / 2);
    g.pad_w = g.pad_h == 0 ? 0 : between(0, g.kernel_w / 2);
    g.dilation_h = kind > 0 ? 1 : between(1, 3);
    g.dilation_w = kind > 0 ? 1 : between(1, 3);
    const int64_t room_h = g.h + 2 * g.pad_h - g.dilation_h * (g.kernel_h - 1) - 1;
    const int64_t room_w = g.w + 2 * g.pad_w - g.dilation_w * (g.kernel_w - 1) - 1;
    if (room_h < 0 || room_w < 0) continue;
    g.oh = room_h / g.stride_h + 1;
    g.ow = room_w / g.stride_w + 1;
    g.channels_last = between(0, 1) == 1;
    const int64_t rows[] = {g.c * g.h * g.w, g.h * g.w, g.w, 1};
    const int64_t last[] = {g.c * g.h * g.w, 1, g.w * g.c, g.c};
    for (int i = 0; i < 4; ++i) g.input_strides[i] = g.channels_last ? last[i] : rows[i];
    return g;
  }
}

int64_t position_of(bool channels_last, int64_t c, int64_t h, int64_t w, int64_t image,
                    int64_t channel, int64_t row, int64_t column) {
  return channels_last ? ((image * h + row) * w + column) * c + channel
                       : ((image * c + channel) * h + row) * w + column;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void check_pooling(const Pool2dGeometry& g) {
  const auto in = static_cast<size_t>(g.n * g.c * g.h * g.w);
  const auto out = static_cast<size_t>(g.n * g.c * g.oh * g.ow);
  std::vector<T> x(in), y(out), gy(out), gx(in), found_y(out), found_gx(in), gathered(out);
  std::vector<uint8_t> offsets(out), found_offsets(out);
  std::vector<int64_t> indices(out), found_indices(out);
  std::vector<acc_t<T>> sums(in);
  for (T& value : x) value = from_acc<T>(static_cast<acc_t<T>>(between(-3, 3)));
  for (T& value : gy) value = from_acc<T>(static_cast<acc_t<T>>(between(-1000, 1000)) / 7);

  for (int64_t image = 0; image < g.n; ++image) {
    for (int64_t channel = 0; channel < g.c; ++channel) {
      for (int64_t window = 0; window < g.oh * g.ow; ++window) {
        const int64_t oh = window / g.ow, ow = window % g.ow;
        const auto o = static_cast<size_t>(
            position_of(g.channels_last, g.c, g.oh, g.ow, image, channel, oh, ow));
        y[o] = from_acc<T>(kLowestValue<T>);
        offsets[o] = kNoOffset;
        indices[o] = kNoIndex;
        size_t best = 0;
        for (int64_t tap = 0; tap < g.kernel_h * g.kernel_w; ++tap) {
          const int64_t ih = oh * g.stride_h - g.pad_h + tap / g.kernel_w * g.dilation_h;
          const int64_t iw = ow * g.stride_w - g.pad_w + tap % g.kernel_w * g.dilation_w;
          if (ih < 0 || ih >= g.h || iw < 0 || iw >= g.w) continue;
          const auto i = static_cast<size_t>(
              position_of(g.channels_last, g.c, g.h, g.w, image, channel, ih, iw));
          if (indices[o] >= 0 && !(to_acc(x[i]) > to_acc(y[o]))) continue;
          y[o] = x[i];
          offsets[o] = static_cast<uint8_t>(tap);
          indices[o] = ih * g.w + iw;
          best = i;
        }
        if (indices[o] >= 0) sums[best] += to_acc(gy[o]);
      }
    }
  }
  for (size_t i = 0; i < in; ++i) gx[i] = from_acc<T>(sums[i]);

  const bool pairs = !g.channels_last && g.kernel_h == 2 && g.kernel_w == 2 && g.stride_h == 2 &&
                     g.stride_w == 2 && g.dilation_h == 1 && g.dilation_w == 1 && g.pad_h == 0 &&
                     g.pad_w == 0 && g.w == 16;
  for (int way = 0; way < (pairs ? 2 : 1); ++way) {
    const auto clear = [&] {
      std::fill(found_y.begin(), found_y.end(), T{});
      std::fill(found_gx.begin(), found_gx.end(), gy[0]);
    };
    constexpr auto kOffsets = Record::kOffsets;
    constexpr auto kIndices = Record::kIndices;
    clear();
    const auto values =
        way == 1 ? forward_pairs<T, Record::kNone> : forward_windows<T, Record::kNone>;
    values(found_y.data(), nullptr, x.data(), g, 1);
    EXPECT(same_bits(found_y, y));
    clear();
    const auto by_offset = way == 1 ? forward_pairs<T, kOffsets> : forward_windows<T, kOffsets>;
    by_offset(found_y.data(), found_offsets.data(), x.data(), g, 1);
    EXPECT(same_bits(found_y, y) && found_offsets == offsets);
    clear();
    const auto by_index = way == 1 ? forward_pairs<T, kIndices> : forward_windows<T, kIndices>;
    by_index(found_y.data(), found_indices.data(), x.data(), g, 1);
    EXPECT(same_bits(found_y, y) && found_indices == indices);
    const auto backward = way == 1 ? backward_pairs<T> : backward_gather<T>;
    backward(found_gx.data(), gy.data(), offsets.data(), nullptr, g, 1);
    EXPECT(same_bits(found_gx, gx));
  }
  gather<T>(gathered.data(), x.data(), offsets.data(), g, 1);
  for (size_t o = 0; o < out; ++o) {
    EXPECT(to_acc(gathered[o]) == (indices[o] < 0 ? acc_t<T>{} : to_acc(y[o])));
  }
}

void max_pool2d() {
  for (int i = 0; i < 40; ++i) {
    for (const int kind : {0, 2, 3}) {
      const Pool2dGeometry g = any_geometry(kind);
      check_pooling<float>(g);
      check_pooling<double>(g);
      check_pooling<bfloat16>(g);
      check_pooling<float16>(g);
    }
  }
}

template <typename T>
void check_unpooling(const IndexedPlanes& g) {
  const auto in = static_cast<size_t>(g.n * g.c * g.positions);
  const auto out = static_cast<size_t>(g.n * g.c * g.plane);
  std::vector<T> values(in), assigned(out), found(out, T{1}), back(in);
  std::vector<acc_t<T>> sums(out);
  std::vector<int64_t> indices(in), some(in);
  const int64_t places = between(1, g.plane);  // few of them make long chains
  for (int64_t line = 0; line < g.n * g.c; ++line) {
    for (int64_t position = 0; position < g.positions; ++position) {
      const int64_t index = between(0, places - 1);
      const auto i = static_cast<size_t>(
          position_of(g.channels_last, g.c, g.positions, 1, line / g.c, line % g.c, position, 0));
      const auto o = static_cast<size_t>(
          position_of(g.channels_last, g.c, g.plane, 1, line / g.c, line % g.c, index, 0));
      values[i] = from_acc<T>(static_cast<acc_t<T>>(between(-1000, 1000)) / 7);
      indices[i] = index;
      some[i] = between(0, 9) == 0 ? kNoIndex : index;
      assigned[o] = values[i];
      if (some[i] >= 0) sums[o] += to_acc(values[i]);
    }
  }
  assign_planes<T>(found.data(), values.data(), indices.data(), g, 1);
  EXPECT(same_bits(found, assigned));
  gather_planes<T>(back.data(), assigned.data(), some.data(), g, 1);
  for (size_t i = 0; i < in; ++i) EXPECT(some[i] >= 0 || to_acc(back[i]) == 0);
  add_planes<T>(found.data(), values.data(), some.data(), nullptr, g, 1);
  for (size_t o = 0; o < out; ++o) assigned[o] = from_acc<T>(sums[o]);
  EXPECT(same_bits(found, assigned));

  const auto count = static_cast<int64_t>(in);
  EXPECT(find_invalid(some.data(), count, kNoIndex, g.plane, 1) == -1);
  const int64_t wrong = between(0, count - 1);
  indices[static_cast<size_t>(wrong)] = between(0, 1) == 1 ? g.plane : -1;
  indices[static_cast<size_t>(between(wrong, count - 1))] = -1;
  EXPECT(find_invalid(indices.data(), count, 0, g.plane, 1) == wrong);
}

void max_unpool2d() {
  for (int i = 0; i < 60; ++i) {
    const IndexedPlanes g{between(1, 3), between(1, 5), between(1, 90), between(1, 120),
                          between(0, 1) == 1};
    check_unpooling<float>(g);
    check_unpooling<double>(g);
    check_unpooling<bfloat16>(g);
    check_unpooling<float16>(g);
  }
}

void wide_and_narrow_kernels() {
  for (int i = 0; i < 100; ++i) {
    const Pool2dGeometry g = any_geometry(0);
    const auto in = static_cast<size_t>(g.n * g.c * g.h * g.w);
    const auto out = static_cast<size_t>(g.n * g.c * g.oh * g.ow);
    std::vector<float> x(in), y(out), wide_y(out), gx(in), wide_gx(in);
    std::vector<uint8_t> offsets(out), wide_offsets(out);
    std::vector<int64_t> indices(out), wide_indices(out);
    for (float& value : x) value = static_cast<float>(between(-3, 3));
    constexpr auto kOffsets = Record::kOffsets;
    constexpr auto kIndices = Record::kIndices;
    forward_windows<float, kOffsets>(y.data(), offsets.data(), x.data(), g, 1);
    launch_windows<float, kOffsets, 1, 0, int64_t>(wide_y.data(), wide_offsets.data(), x.data(), g);
    EXPECT(y == wide_y && offsets == wide_offsets);
    forward_windows<float, kIndices>(y.data(), indices.data(), x.data(), g, 1);
    launch_windows<float, kIndices, 1, 0, int64_t>(wide_y.data(), wide_indices.data(), x.data(), g);
    EXPECT(y == wide_y && indices == wide_indices);
    for (float& value : y) value = static_cast<float>(between(-1000, 1000)) / 7;
    backward_gather<float>(gx.data(), y.data(), offsets.data(), nullptr, g, 1);
    launch_gather<float, 1, 0, int64_t>(wide_gx.data(), y.data(), offsets.data(), g);
    EXPECT(gx == wide_gx);
  }
}

// Several launches where one cannot hold all images.
void launches_in_parts() {
  Pool2dGeometry g{};
  for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{1000}}) {
    for (const int64_t image : {int64_t{1}, int64_t{1} << 22, (int64_t{1} << 30) - 1}) {
      g.n = n;
      int64_t next = 0;
      for_images<int32_t>(g, image, [&](int64_t first, int64_t count) {
        EXPECT(first == next && count % image == 0 && count > 0);
        EXPECT(count <= std::numeric_limits<int32_t>::max());
        next += count / image;
      });
      EXPECT(next == n);
    }
  }
  g = any_geometry(0);
  g.channels_last = false;
  g.n = 4;
  g.c = 3;
  g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = 2;
  g.pad_h = g.pad_w = 0;
  g.dilation_h = g.dilation_w = 1;
  g.h = g.w = 1 << 14;
  g.oh = g.ow = 1 << 13;
  EXPECT(is_narrow(g, {0, 0, g.w, 1}));
  g.c = 4;  // 2^30 elements
  EXPECT(!is_narrow(g, {0, 0, g.w, 1}));
}

const std::map<std::string, std::function<void()>> kTests = {
    {"divisions", divisions},
    {"places", places},
    {"axes", axes},
    {"max_pool2d", max_pool2d},
    {"max_unpool2d", max_unpool2d},
    {"wide_and_narrow_kernels", wide_and_narrow_kernels},
    {"launches_in_parts", launches_in_parts},
};

}  // namespace
}  // namespace nnops::cuda

int main(int argc, char** argv) {
  try {
    if (argc != 2) throw std::runtime_error("usage: pooling <test>");
    nnops::cuda::kTests.at(argv[1])();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
