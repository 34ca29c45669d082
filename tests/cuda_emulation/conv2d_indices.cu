// The index arithmetic of csrc/cuda/conv2d against its definitions, on the host: far indices that
// no test could reach by running kernels, and every tap of many small problems.
//
//   conv2d_indices <test>     exit status 0, or 1 and what differs
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/conv2d/digits.cuh"
#include "cuda/conv2d/pixel_pass.cuh"
#include "cuda/conv2d/tile_multiply_simt.cuh"
#include "cuda/conv2d/weight_gemm_launch.cuh"

namespace {

using namespace nnops;
using namespace nnops::cuda;

#define EXPECT(condition) \
  if (!(condition)) throw std::runtime_error("line " + std::to_string(__LINE__) + ": " #condition)

bool equal(const Digits& a, const Digits& b) {
  return a.d0 == b.d0 && a.d1 == b.d1 && a.d2 == b.d2;
}

// An index beyond 32 bits, and steps from it, against division in 64 bits.
void digits() {
  const std::vector<std::pair<int, int>> radices = {
      {1, 1}, {1, 7}, {7, 1}, {3, 3}, {5, 4}, {56, 56}, {1 << 14, 1 << 14}, {1 << 29, 3}};
  const int64_t far = int64_t{1} << 31;
  for (const auto& [r0, r1] : radices) {
    const int64_t round = int64_t{r0} * r1;
    for (int64_t begin : {int64_t{0}, far - 100, far, far + 12345, int64_t{1} << 36}) {
      if (begin / round >= (1 << 30)) continue;
      for (int step : {1, 2, 4, 8, 15, 16, 32, 256, 12345}) {
        Digits at = Digits::of(begin, r0, r1);
        const Digits on = Digits::of(step, r0, r1);
        for (int64_t index = begin; index < begin + 60 * int64_t{step}; index += step) {
          EXPECT(at.d0 == index % r0 && at.d1 == index / r0 % r1 && at.d2 == index / round);
          EXPECT(equal(at, Digits::of(index, r0, r1)));
          at.advance(on, r0, r1);
        }
      }
    }
  }
}

// (position written, kernel index, position read) of an axis.
using Terms = std::multiset<std::tuple<int, int, int>>;

void add_terms(const PassAxis& axis, Terms* terms) {
  for (int i = 0; i < axis.grid; ++i) {
    for (int t = 0; t < axis.taps; ++t) {
      const int read = axis.first + i * axis.step + t * axis.gap;
      if (read < 0 || read >= axis.limit) continue;
      terms->insert(
          {axis.out_first + i * axis.out_step, axis.kernel_first + t * axis.kernel_step, read});
    }
  }
}

// Each term of the definition exactly once, in forward and over the phases of backward_input.
void axes() {
  for (int size = 1; size <= 9; ++size) {
    for (int kernel = 1; kernel <= 4; ++kernel) {
      for (int stride = 1; stride <= 5; ++stride) {
        for (int dilation = 1; dilation <= 4; ++dilation) {
          for (int pad = 0; pad <= 5; ++pad) {
            const int out_size = (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
            if (size + 2 * pad < dilation * (kernel - 1) + 1) continue;
            Terms forward, backward;
            for (int o = 0; o < out_size; ++o) {
              for (int k = 0; k < kernel; ++k) {
                const int i = o * stride - pad + k * dilation;
                if (i < 0 || i >= size) continue;
                forward.insert({o, k, i});
                backward.insert({i, k, o});
              }
            }
            Terms found;
            add_terms(forward_axis(size, out_size, kernel, stride, pad, dilation), &found);
            EXPECT(found == forward);

            found.clear();
            const BackwardAxis axis = backward_axis(size, out_size, kernel, stride, pad, dilation);
            std::set<int> written;
            std::set<int> slots;
            for (int phase = 0; phase < axis.phases(); ++phase) {
              const PassAxis of_phase = phase_axis(axis, phase);
              EXPECT(of_phase.grid <= phase_axis(axis, 0).grid);
              EXPECT(of_phase.taps <= axis.most_taps());
              for (int i = 0; i < of_phase.grid; ++i) {
                written.insert(of_phase.out_first + i * of_phase.out_step);
              }
              if (of_phase.taps > 0) {
                EXPECT(slots.insert(of_phase.slot).second && of_phase.slot < axis.slots());
                EXPECT(axis.phase_of_slot(of_phase.slot) == phase);
              }
              add_terms(of_phase, &found);
            }
            EXPECT(found == backward);
            EXPECT(static_cast<int>(written.size()) == size && *written.rbegin() == size - 1);
          }
        }
      }
    }
  }
}

// The largest positions that ops/conv2d.cpp lets through, against 64 bits.
void far_positions() {
  const int64_t most = (int64_t{1} << 29) - 1;
  const PassAxis axis = forward_axis(most, most / 3, 3, 3, most, most / 3);
  const int64_t last =
      int64_t{axis.first} + int64_t{axis.grid - 1} * axis.step + int64_t{axis.taps - 1} * axis.gap;
  EXPECT(axis.first + (axis.grid - 1) * axis.step + (axis.taps - 1) * axis.gap == last);
  // Nowhere and a position, or twice nowhere, are outside of every image.
  for (int64_t a : {-most, int64_t{0}, most, int64_t{kNowhere}}) {
    EXPECT(a + kNowhere < 0 && a + kNowhere >= INT32_MIN);
  }
  const PassAxis phase = phase_axis(backward_axis(most, most / 2, 3, 2, 1, 1), 1);
  EXPECT(phase.out_first + (phase.grid - 1) * phase.out_step == most - 2);  // the last odd one
}

// Splits cover every pixel, in whole steps, none of them empty, and stay within 32 bits.
void splits() {
  using Multiply = SimtMultiply<float, SimtShape<16, 8, 8, 8>, TileOrder::kAlongRows>;
  for (int64_t n : {int64_t{1}, int64_t{3}, int64_t{64}, int64_t{1} << 20}) {
    for (int64_t size : {1, 7, 55, 224, 8192}) {
      for (int64_t channels : {1, 40, 512}) {
        Conv2dGeometry g{};
        g.n = n;
        g.oh = g.ow = size;
        g.oc = g.c = channels;
        g.kh = g.kw = 3;
        g.groups = 1;
        const WeightSplits cut = WeightSplits::of(g, Multiply{});
        const int64_t pixels = n * size * size;
        EXPECT(cut.count >= 1 && cut.count * cut.pixels >= pixels);
        EXPECT((cut.count - 1) * cut.pixels < pixels);
        EXPECT(cut.pixels % Multiply::kTileK == 0 && cut.pixels <= kMostSplitPixels);
      }
    }
  }
}

// Every element of a tile has a place of its own, and chunks of 16 bytes stay together.
template <typename Multiply>
void check_layout(int rows, int elements, int (*offset)(int, int)) {
  constexpr int kWidth = kVectorWidth<typename Multiply::Element>;
  constexpr bool kAlongK = Multiply::kOrder == TileOrder::kAlongK;
  std::set<int> places;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < Multiply::kTileK; ++k) {
      const int place = offset(row, k);
      EXPECT(place >= 0 && place < elements && places.insert(place).second);
      const int inner = kAlongK ? k : row;
      const int first =
          kAlongK ? offset(row, k / kWidth * kWidth) : offset(row / kWidth * kWidth, k);
      EXPECT(first % kWidth == 0 && place == first + inner % kWidth);
    }
  }
}
template <typename T, typename Shape, TileOrder kOrder>
void check_layouts() {
  using Multiply = SimtMultiply<T, Shape, kOrder>;
  check_layout<Multiply>(Multiply::kTileM, Multiply::kElementsA, Multiply::offset_a);
  check_layout<Multiply>(Multiply::kTileN, Multiply::kElementsB, Multiply::offset_b);
}
void layouts() {
  check_layouts<float, SimtShape<16, 16, 8, 8>, TileOrder::kAlongK>();
  check_layouts<float, SimtShape<16, 8, 8, 8>, TileOrder::kAlongRows>();
  check_layouts<double, SimtShape<16, 8, 4, 8>, TileOrder::kAlongK>();
  check_layouts<double, SimtShape<16, 8, 4, 8>, TileOrder::kAlongRows>();
  check_layouts<float16, SimtShape<16, 8, 4, 4>, TileOrder::kAlongK>();
  check_layouts<float16, SimtShape<8, 16, 4, 4>, TileOrder::kAlongRows>();
}

const std::map<std::string, void (*)()> kTests{
    {"digits", digits}, {"axes", axes},       {"far_positions", far_positions},
    {"splits", splits}, {"layouts", layouts},
};

}  // namespace

int main(int, char** arguments) {
  try {
    kTests.at(arguments[1])();
    return 0;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
