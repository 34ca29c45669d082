// The warp's matrix instructions of simt.h, and conv2d's multiply stage on tensor cores.
//
// The fragments of the instructions are written down here a second time, in the form in which
// CUTLASS publishes them (cute/atom/mma_traits_sm80.hpp, copy_traits_sm75.hpp): strides from (lane
// % 4, lane / 4, bits of the register's index) to a place in a matrix that is stored column by
// column. The multiply stage is one block that computes a tile. Small integers must come out
// exactly; numbers of all sizes within the error bound of float32 sums.
//
//   tensor_cores <test>     exit status 0, or 1 and what is wrong
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/conv2d/tile_multiply_mma.cuh"

namespace nnops::cuda {
namespace {

void expect(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string("not as expected: ") + what);
}

// --- numbers ------------------------------------------------------------------------------------

template <typename T>
double value_of(T number) {
  return static_cast<double>(to_acc(number));
}
// What the tensor cores get of a number.
double operand_of(float number) { return static_cast<double>(bits_as<float>(to_tf32(number))); }
template <typename T>
double operand_of(T number) {
  return value_of(number);
}

template <typename T>
std::vector<T> random_numbers(size_t count, bool integers, std::mt19937* generator) {
  std::vector<T> numbers(count);
  std::uniform_int_distribution<int> small(-8, 8);
  std::normal_distribution<float> normal;
  for (T& number : numbers) {
    number = from_acc<T>(integers ? static_cast<float>(small(*generator)) : normal(*generator));
  }
  return numbers;
}

// --- the instructions ---------------------------------------------------------------------------

// A place in a matrix stored by columns, from the lane and the element in the lane's registers.
struct Fragment {
  int member, group;  // strides of lane % 4 and lane / 4
  int bits[3];        // strides of the bits of the element's index, lowest first

  constexpr int at(int lane, int element) const {
    int place = lane % 4 * member + lane / 4 * group;
    for (int bit = 0; bit < 3; ++bit) place += (element >> bit) % 2 * bits[bit];
    return place;
  }
};
constexpr Fragment kHalfA{32, 1, {16, 8, 128}};  // 16 x 16
constexpr Fragment kHalfB{16, 1, {8, 64, 0}};    // 8 x 16
constexpr Fragment kTf32A{16, 1, {8, 64, 0}};    // 16 x 8
constexpr Fragment kTf32B{8, 1, {32, 0, 0}};     // 8 x 8
constexpr Fragment kSums{32, 1, {16, 8, 0}};     // 16 x 8

template <typename T>
__global__ void one_mma(float* c, const T* a, const T* b) {
  const int lane = lane_index();
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[kSums.at(lane, i)];
  uint32_t rows[4];
  uint32_t columns[2];
  if constexpr (std::is_same_v<T, float>) {
    for (int i = 0; i < 4; ++i) rows[i] = to_tf32(a[kTf32A.at(lane, i)]);
    for (int i = 0; i < 2; ++i) columns[i] = to_tf32(b[kTf32B.at(lane, i)]);
    mma_m16n8k8_tf32(sums, rows, columns);
  } else {
    for (int i = 0; i < 4; ++i) {
      rows[i] = a[kHalfA.at(lane, 2 * i)].bits |
                static_cast<uint32_t>(a[kHalfA.at(lane, 2 * i + 1)].bits) << 16;
    }
    for (int i = 0; i < 2; ++i) {
      columns[i] = b[kHalfB.at(lane, 2 * i)].bits |
                   static_cast<uint32_t>(b[kHalfB.at(lane, 2 * i + 1)].bits) << 16;
    }
    mma_m16n8k16(sums, rows, columns, T{});
  }
  for (int i = 0; i < 4; ++i) c[kSums.at(lane, i)] = sums[i];
}

template <typename T>
void test_mma(const char* name) {
  constexpr int kDepth = std::is_same_v<T, float> ? 8 : 16;
  std::mt19937 generator(1);
  const auto a = random_numbers<T>(16 * kDepth, true, &generator);
  const auto b = random_numbers<T>(8 * kDepth, true, &generator);
  auto c = random_numbers<float>(16 * 8, true, &generator);
  std::vector<float> expected = c;
  for (int column = 0; column < 8; ++column) {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < kDepth; ++k) {
        expected[row + 16 * column] +=
            static_cast<float>(value_of(a[row + 16 * k]) * value_of(b[column + 8 * k]));
      }
    }
  }
  NNOPS_LAUNCH((one_mma<T>), 1, 32, 0, c.data(), a.data(), b.data());
  expect(c == expected, name);
}

// Four squares of 8 x 8 numbers; lane l points to row l, in a shuffled order of the rows.
template <bool kTransposed>
__global__ void one_load_matrix(uint32_t* registers, const uint16_t* rows, const int* places) {
  NNOPS_SHARED(uint16_t, shared, 32 * 8);
  const int lane = lane_index();
  for (int i = 0; i < 8; ++i) shared[places[lane] * 8 + i] = rows[lane * 8 + i];
  __syncthreads();
  uint32_t loaded[4];
  if constexpr (kTransposed) {
    load_matrix_x4_transposed(loaded, &shared[places[lane] * 8]);
  } else {
    load_matrix_x4(loaded, &shared[places[lane] * 8]);
  }
  for (int i = 0; i < 4; ++i) registers[lane * 4 + i] = loaded[i];
}

template <bool kTransposed>
void test_load_matrix(const char* name) {
  std::mt19937 generator(2);
  std::vector<uint16_t> rows(32 * 8);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint16_t>(i);
  std::vector<int> places(32);
  for (int i = 0; i < 32; ++i) places[i] = i;
  std::shuffle(places.begin(), places.end(), generator);
  std::vector<uint32_t> registers(32 * 4);
  NNOPS_LAUNCH((one_load_matrix<kTransposed>), 1, 32, 0, registers.data(), rows.data(),
               places.data());
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    for (int square = 0; square < 4; ++square) {
      for (int half = 0; half < 2; ++half) {
        // In elements; the published strides count bits.
        const int place = kTransposed ? lane % 4 * 16 + lane / 4 + half * 8 + square * 64
                                      : lane * 2 + half + square * 64;
        const uint32_t got = registers[lane * 4 + square] >> (16 * half) & 0xffff;
        right = right && got == rows[place];
      }
    }
  }
  expect(right, name);
}

void test_to_tf32() {
  const auto rounded = [](uint32_t bits) { return to_tf32(bits_as<float>(bits)); };
  expect(rounded(0x3f800000) == 0x3f800000, "1 is a number of TF32");
  expect(rounded(0x3f800fff) == 0x3f800000, "less than half a step is rounded down");
  expect(rounded(0x3f801000) == 0x3f802000, "half a step is rounded away from zero");
  expect(rounded(0xbf801000) == 0xbf802000, "half a step is rounded away from zero, below it");
  expect(rounded(0x3fffffff) == 0x40000000, "rounding carries into the exponent");
  expect(rounded(0x7f800000) == 0x7f800000, "infinity stays");
  expect(rounded(0x80000000) == 0x80000000, "-0 stays");
  expect(std::isnan(bits_as<float>(rounded(0x7fc00000) & 0xffffe000)), "NaN stays NaN");
}

// --- the multiply stage -------------------------------------------------------------------------

// C = A B^T; depth is a multiple of kTileK.
template <typename Multiply>
__global__ void __launch_bounds__(Multiply::kThreads)
    one_tile(float* c, const typename Multiply::Element* a, const typename Multiply::Element* b,
             int depth) {
  using T = typename Multiply::Element;
  NNOPS_SHARED(T, shared_a, Multiply::kElementsA);
  NNOPS_SHARED(T, shared_b, Multiply::kElementsB);
  const auto copy = [&](T* to, const T* from, int rows, int step, auto offset) {
    constexpr int kChunk = kVectorWidth<T>;
    constexpr bool kAlongK = Multiply::kOrder == TileOrder::kAlongK;
    // Successive threads write successive chunks of the order.
    const int chunks = (kAlongK ? Multiply::kTileK : rows) / kChunk;
    for (int i = threadIdx.x; i < rows * Multiply::kTileK / kChunk; i += Multiply::kThreads) {
      const int row = kAlongK ? i / chunks : i % chunks * kChunk;
      const int k = kAlongK ? i % chunks * kChunk : i / chunks;
      Vector<T, kChunk> chunk;
      for (int e = 0; e < kChunk; ++e) {
        chunk[e] = from[(row + (kAlongK ? 0 : e)) * depth + step + k + (kAlongK ? e : 0)];
      }
      store_vector(to + offset(row, k), chunk);
    }
  };
  Multiply multiply;
  multiply.clear();
  for (int step = 0; step < depth; step += Multiply::kTileK) {
    copy(shared_a, a, Multiply::kTileM, step,
         [](int row, int k) { return Multiply::offset_a(row, k); });
    copy(shared_b, b, Multiply::kTileN, step,
         [](int row, int k) { return Multiply::offset_b(row, k); });
    __syncthreads();
    multiply.multiply(shared_a, shared_b);
    __syncthreads();
    if ((step / Multiply::kTileK + 1) % kTilesPerChain<Multiply> == 0) multiply.end_chain();
  }
  multiply.end_chain();
  multiply.for_each_run([&](int row, int column, const Vector<float, Multiply::kRun>& values) {
    store_vector<Multiply::kRun>(c + row * Multiply::kTileN + column, values);
  });
}

// Every element of a tile has its own place, and chunks stay together.
template <typename Multiply, typename Offset>
bool is_complete(int rows, int elements, Offset offset) {
  constexpr int kChunk = kVectorWidth<typename Multiply::Element>;
  std::vector<int> uses(elements);
  bool right = true;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < Multiply::kTileK; ++k) {
      const int place = offset(row, k);
      if (place < 0 || place >= elements || uses[place]++ != 0) return false;
      const bool along_k = Multiply::kOrder == TileOrder::kAlongK;
      const int in_chunk = (along_k ? k : row) % kChunk;
      const int first = along_k ? offset(row, k - in_chunk) : offset(row - in_chunk, k);
      right = right && first % kChunk == 0 && place == first + in_chunk;
    }
  }
  return right;
}

template <typename Multiply>
void test_tile(const char* name) {
  using T = typename Multiply::Element;
  constexpr int kM = Multiply::kTileM;
  constexpr int kN = Multiply::kTileN;
  expect(is_complete<Multiply>(kM, Multiply::kElementsA, Multiply::offset_a), name);
  expect(is_complete<Multiply>(kN, Multiply::kElementsB, Multiply::offset_b), name);
  for (const bool integers : {true, false}) {
    // One step, a whole chain, and a chain with a step behind it.
    for (const int steps : {1, kTilesPerChain<Multiply>, 2 * kTilesPerChain<Multiply> + 1}) {
      const int depth = steps * Multiply::kTileK;
      std::mt19937 generator(3);
      const auto a = random_numbers<T>(kM * depth, integers, &generator);
      const auto b = random_numbers<T>(kN * depth, integers, &generator);
      std::vector<float> c(kM * kN, NAN);
      NNOPS_LAUNCH((one_tile<Multiply>), 1, Multiply::kThreads, 0, c.data(), a.data(), b.data(),
                   depth);
      bool right = true;
      for (int row = 0; row < kM; ++row) {
        for (int column = 0; column < kN; ++column) {
          double sum = 0.0;
          double magnitudes = 0.0;
          for (int k = 0; k < depth; ++k) {
            const double product =
                operand_of(a[row * depth + k]) * operand_of(b[column * depth + k]);
            sum += product;
            magnitudes += std::abs(product);
          }
          const double error = std::abs(static_cast<double>(c[row * kN + column]) - sum);
          const double additions = smaller(depth, static_cast<int>(kConv2dLongestChain)) +
                                   (steps - 1) / kTilesPerChain<Multiply> + 1;
          const double bound = integers ? 0.0 : additions * 0x1p-24 * magnitudes;
          right = right && error <= bound;
        }
      }
      expect(right, name);
    }
  }
}

template <typename T>
void test_tiles(const char* name) {
  test_tile<MmaMultiply<T, MmaShape<64, 64, 32, 32>, TileOrder::kAlongK>>(name);
  test_tile<MmaMultiply<T, MmaShape<64, 64, 32, 32>, TileOrder::kAlongRows>>(name);
  test_tile<MmaMultiply<T, MmaShape<128, 64, 64, 32>, TileOrder::kAlongK>>(name);
  test_tile<MmaMultiply<T, MmaShape<64, 128, 32, 64>, TileOrder::kAlongRows>>(name);
}

const std::map<std::string, void (*)()> kTests{
    {"mma_float16", [] { test_mma<float16>("mma of float16"); }},
    {"mma_bfloat16", [] { test_mma<bfloat16>("mma of bfloat16"); }},
    {"mma_tf32", [] { test_mma<float>("mma of TF32"); }},
    {"load_matrix", [] { test_load_matrix<false>("ldmatrix"); }},
    {"load_matrix_transposed", [] { test_load_matrix<true>("ldmatrix, transposed"); }},
    {"to_tf32", test_to_tf32},
    {"tiles_float16", [] { test_tiles<float16>("tiles of float16"); }},
    {"tiles_bfloat16", [] { test_tiles<bfloat16>("tiles of bfloat16"); }},
    {"tiles_tf32", [] { test_tiles<float>("tiles of TF32"); }},
};

}  // namespace
}  // namespace nnops::cuda

int main(int, char** arguments) {
  try {
    nnops::cuda::kTests.at(arguments[1])();
    return 0;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
