// Unit tests of the emulated primitives: each kernel's results against plain C++.
//
//   primitives <test>     exit status 0, or 1 and what differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/numbers.cuh"
#include "cuda/simt.h"

namespace {

using namespace nnops::cuda;

constexpr uint32_t kAll = 0xffffffff;

#define EXPECT(condition) \
  if (!(condition)) throw std::runtime_error("line " + std::to_string(__LINE__) + ": " #condition)

// --- shuffles, votes, barriers ------------------------------------------------------------------

template <typename T>
__global__ void shuffle(const T* x, T* out, int width) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = __shfl_sync(kAll, x[t], t * 5 + 1, width);
  out[32 + t] = __shfl_up_sync(kAll, x[t], 3, width);
  out[64 + t] = __shfl_down_sync(kAll, x[t], 3, width);
  out[96 + t] = __shfl_xor_sync(kAll, x[t], 5, width);
}

template <typename T>
void check_shuffles() {
  for (int width = 1; width <= 32; width *= 2) {
    std::vector<T> x(32), out(128);
    for (int t = 0; t < 32; ++t) x[t] = static_cast<T>(1.0e9 * t + t);
    NNOPS_LAUNCH((shuffle<T>), 1, 32, 0, x.data(), out.data(), width);
    for (int t = 0; t < 32; ++t) {
      const int first = t / width * width, last = first + width - 1;
      EXPECT(out[t] == x[first + (t * 5 + 1) % width]);
      EXPECT(out[32 + t] == x[t - 3 < first ? t : t - 3]);
      EXPECT(out[64 + t] == x[t + 3 > last ? t : t + 3]);
      EXPECT(out[96 + t] == x[(t ^ 5) > last ? t : t ^ 5]);
    }
  }
}

void shuffles() {
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<unsigned>();
  check_shuffles<long long>();
}

__global__ void vote(const int* x, uint32_t* out) {
  const int t = static_cast<int>(threadIdx.x);
  // The quarters of a warp vote for themselves, in the second warp one after the other.
  const uint32_t quarter = 0xffu << (t % 32 / 8 * 8);
  const uint32_t all = __ballot_sync(kAll, x[t]);
  const uint32_t own = __ballot_sync(quarter, x[t]);
  const int any = __any_sync(quarter, x[t]), every = __all_sync(quarter, x[t]);
  out[4 * t] = all;
  out[4 * t + 1] = own;
  out[4 * t + 2] = static_cast<uint32_t>(any);
  out[4 * t + 3] = static_cast<uint32_t>(every);
}

void votes() {
  std::vector<int> x(64);
  for (int t = 0; t < 64; ++t) x[t] = t < 8 || (t >= 16 && t * 7 % 3 == 1) ? t + 1 : 0;
  std::vector<uint32_t> out(256);
  NNOPS_LAUNCH((vote), 1, 64, 0, x.data(), out.data());
  for (int t = 0; t < 64; ++t) {
    uint32_t all = 0;
    for (int lane = 0; lane < 32; ++lane) all |= uint32_t{x[t / 32 * 32 + lane] != 0} << lane;
    const uint32_t quarter = 0xffu << (t % 32 / 8 * 8);
    EXPECT(out[4 * t] == all);
    EXPECT(out[4 * t + 1] == (all & quarter));
    EXPECT(out[4 * t + 2] == uint32_t{(all & quarter) != 0});
    EXPECT(out[4 * t + 3] == uint32_t{(all & quarter) == quarter});
  }
}

// Quarters that leave the loop early are not waited for by others.
__global__ void loop_apart(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  const uint32_t quarter = 0xffu << (t / 8 * 8);
  int sum = t;
  for (int i = 0; i <= t / 8; ++i) {
    __syncwarp(quarter);
    sum += __shfl_xor_sync(quarter, sum, 1);
  }
  __syncwarp();
  out[t] = sum;
}

void divergence() {
  std::vector<int> out(32);
  NNOPS_LAUNCH((loop_apart), 1, 32, 0, out.data());
  for (int t = 0; t < 32; ++t) EXPECT(out[t] == ((t | 1) + (t & ~1)) << (t / 8));
}

__global__ void count(const int* x, int* out) {
  const int t = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  int* own = out + 3 * (t + 100 * static_cast<int>(blockIdx.x));
  own[0] = __syncthreads_count(x[t] > static_cast<int>(blockIdx.x));
  own[1] = __syncthreads_or(x[t] == 98);
  own[2] = __syncthreads_and(x[t] >= static_cast<int>(blockIdx.x));
}

void barriers() {
  std::vector<int> x(100), out(600);
  std::iota(x.begin(), x.end(), 0);
  NNOPS_LAUNCH((count), 2, dim3(20, 5), 0, x.data(), out.data());
  for (int i = 0; i < 200; ++i) {
    EXPECT(out[3 * i] == 99 - i / 100);
    EXPECT(out[3 * i + 1] == 1);
    EXPECT(out[3 * i + 2] == (i < 100));
  }
}

__global__ void indices(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(block + thread);
}

void grids() {
  std::vector<int> out(24 * 105);
  NNOPS_LAUNCH((indices), dim3(2, 3, 4), dim3(7, 5, 3), 0, out.data());
  for (int i = 0; i < 24 * 105; ++i) EXPECT(out[i] == i / 105 + i % 105);
}

// --- atomics ------------------------------------------------------------------------------------

template <typename T>
__global__ void update(T* out, T* tickets) {
  const T t = static_cast<T>(blockIdx.x * blockDim.x + threadIdx.x);
  tickets[atomicAdd(&out[0], 1)] = t;
  atomicMax(&out[1], t);
  atomicMin(&out[2], t);
  atomicOr(&out[3], t);
  T seen = atomicAdd(&out[4], 0), assumed;
  do {  // out[4] += 2
    assumed = seen;
    seen = atomicCAS(&out[4], assumed, assumed + 2);
  } while (seen != assumed);
}

template <typename T>
void check_atomics() {
  std::vector<T> out{0, 0, 1000, 0, 0}, tickets(300);
  NNOPS_LAUNCH((update<T>), 3, 100, 0, out.data(), tickets.data());
  EXPECT((out == std::vector<T>{300, 299, 0, 511, 600}));
  std::sort(tickets.begin(), tickets.end());
  for (T t = 0; t < 300; ++t) EXPECT(tickets[static_cast<size_t>(t)] == t);
}

void atomics() {
  check_atomics<int>();
  check_atomics<unsigned>();
  check_atomics<unsigned long long>();
}

// --- shared memory ------------------------------------------------------------------------------

template <int kNumber>
__device__ float* array_of() {
  NNOPS_SHARED(float, array, 3);
  return array;
}

__global__ void arrays(float* out, int* nan) {
  NNOPS_SHARED_DYNAMIC(double, dynamic);
  const unsigned t = threadIdx.x;
  *nan = std::isnan(array_of<0>()[t]) && std::isnan(array_of<1>()[t]) && std::isnan(dynamic[t]);
  __syncthreads();
  array_of<0>()[t] = static_cast<float>(t);
  array_of<1>()[t] = static_cast<float>(10 * t);
  dynamic[t] = 100 * t;
  __syncthreads();
  const unsigned other = (t + 1) % 3;
  out[3 * blockIdx.x + t] =
      array_of<0>()[other] + array_of<1>()[other] + static_cast<float>(dynamic[other]);
}

void shared() {
  std::vector<float> out(6);
  int nan = 0;
  NNOPS_LAUNCH((arrays), 2, 3, 3 * sizeof(double), out.data(), &nan);
  EXPECT((out == std::vector<float>{111, 222, 0, 111, 222, 0}));
  EXPECT(nan);
}

// --- asynchronous copies ------------------------------------------------------------------------

// What a thread finds in its element after each of the waits.
__global__ void pipeline(const int4* x, int4* out) {
  NNOPS_SHARED(int4, stages, 4 * 8);
  const unsigned t = threadIdx.x;
  for (unsigned i = 0; i < 4; ++i) stages[8 * i + t] = {0, 0, 0, 0};
  copy_async<16>(&stages[t], &x[t], true);
  copy_async_commit();
  copy_async<8>(&stages[8 + t], &x[8 + t], true);
  copy_async_commit();
  copy_async<4>(&stages[16 + t], &x[16 + t], true);
  copy_async<16>(&stages[24 + t], nullptr, false);
  copy_async_commit();
  const auto keep = [&](unsigned row) {
    for (unsigned i = 0; i < 4; ++i) out[8 * (4 * row + i) + t] = stages[8 * i + t];
  };
  keep(0);
  copy_async_wait<2>();
  keep(1);
  copy_async_wait<1>();
  keep(2);
  copy_async_wait<0>();
  keep(3);
}

void copies() {
  std::vector<int4> x(24), out(128);
  for (int i = 0; i < 24; ++i) x[static_cast<size_t>(i)] = {i, i + 100, i + 200, i + 300};
  NNOPS_LAUNCH((pipeline), 1, 8, 0, x.data(), out.data());
  for (int row = 0; row < 4; ++row) {
    for (int stage = 0; stage < 4; ++stage) {
      for (int t = 0; t < 8; ++t) {
        const int i = 8 * stage + t;
        const bool landed = row > std::min(stage, 2);
        const int missing = -1;  // every byte 0xff
        const int4 found = out[static_cast<size_t>(8 * (4 * row + stage) + t)];
        const int written = stage == 3 ? 0 : 1;
        EXPECT(found.x == (landed ? i * written : missing));
        const int second = stage < 2 ? i + 100 : 0;
        EXPECT(found.y == (landed || stage == 2 ? second : missing));
        const int fourth = stage == 0 ? i + 300 : 0;
        EXPECT(found.w == (landed || stage == 1 || stage == 2 ? fourth : missing));
      }
    }
  }
}

// --- matrices -----------------------------------------------------------------------------------

template <bool kTransposed>
__global__ void load(const uint16_t* x, uint32_t* out) {
  NNOPS_SHARED(uint16_t, rows, 32 * 8);
  const unsigned t = threadIdx.x;
  for (unsigned i = 0; i < 8; ++i) rows[8 * t + i] = x[8 * t + i];
  __syncthreads();
  uint32_t four[4], two[2];
  if constexpr (kTransposed) {
    load_matrix_x4_transposed(four, rows + 8 * t);
    load_matrix_x2_transposed(two, rows + 8 * (t % 16));
  } else {
    load_matrix_x4(four, rows + 8 * t);
    load_matrix_x2(two, rows + 8 * (t % 16));
  }
  for (unsigned i = 0; i < 4; ++i) out[6 * t + i] = four[i];
  for (unsigned i = 0; i < 2; ++i) out[6 * t + 4 + i] = two[i];
}

// PTX manual, "ldmatrix": lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, and with
// .trans of column l / 4.
template <bool kTransposed>
void check_loads() {
  std::vector<uint16_t> x(256);
  std::iota(x.begin(), x.end(), uint16_t{7});
  std::vector<uint32_t> out(6 * 32);
  NNOPS_LAUNCH((load<kTransposed>), 1, 32, 0, x.data(), out.data());
  for (size_t t = 0; t < 32; ++t) {
    for (size_t i = 0; i < 6; ++i) {
      const uint16_t* matrix = x.data() + 64 * (i % 4);
      const size_t a = t / 4, b = 2 * (t % 4);
      const uint32_t low = kTransposed ? matrix[8 * b + a] : matrix[8 * a + b];
      const uint32_t high = kTransposed ? matrix[8 * (b + 1) + a] : matrix[8 * a + b + 1];
      EXPECT(out[6 * t + i] == (low | high << 16));
    }
  }
}

void load_matrices() {
  check_loads<false>();
  check_loads<true>();
}

// d = a b of 16 x K and K x 8, all in row order; fragments as the tables of the PTX manual say.
template <typename Number>
__global__ void multiply(const Number* a, const Number* b, float* d) {
  const unsigned group = threadIdx.x / 4, member = threadIdx.x % 4;
  float sums[4];
  for (unsigned i = 0; i < 4; ++i) {
    sums[i] = d[8 * (group + (i < 2 ? 0 : 8)) + 2 * member + (i & 1)];
  }
  uint32_t fragment_a[4], fragment_b[2];
  if constexpr (std::is_same_v<Number, float>) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = i == 0 || i == 2 ? group : group + 8;
      fragment_a[i] = to_tf32(a[8 * row + (i < 2 ? member : member + 4)]);
    }
    fragment_b[0] = to_tf32(b[8 * member + group]);
    fragment_b[1] = to_tf32(b[8 * (member + 4) + group]);
    mma_m16n8k8_tf32(sums, fragment_a, fragment_b);
  } else {
    Number halves_a[8], halves_b[4];
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      halves_a[i] = a[16 * row + 2 * member + (i & 1) + (i < 4 ? 0 : 8)];
    }
    for (unsigned i = 0; i < 4; ++i) {
      halves_b[i] = b[8 * (2 * member + (i & 1) + (i < 2 ? 0 : 8)) + group];
    }
    std::memcpy(fragment_a, halves_a, 16);
    std::memcpy(fragment_b, halves_b, 8);
    mma_m16n8k16(sums, fragment_a, fragment_b, Number());
  }
  for (unsigned i = 0; i < 4; ++i) {
    d[8 * (group + (i < 2 ? 0 : 8)) + 2 * member + (i & 1)] = sums[i];
  }
}

// Exact inputs: `unit` is the distance of numbers near 1 that the type can tell apart.
template <typename Number, int kK>
void check_mma(double unit, const std::function<Number(double)>& convert) {
  std::vector<Number> a, b;
  std::vector<double> a64, b64;
  unsigned random = 1;
  const auto draw = [&] {
    random = random * 1664525 + 1013904223;
    return std::round(((random >> 8) % 4096 / 2048.0 - 1) / unit) * unit;
  };
  for (int i = 0; i < 16 * kK; ++i) a.push_back(convert(a64.emplace_back(draw())));
  for (int i = 0; i < kK * 8; ++i) b.push_back(convert(b64.emplace_back(draw())));
  std::vector<float> d(128);
  std::iota(d.begin(), d.end(), -60.0f);
  const std::vector<float> before = d;
  NNOPS_LAUNCH((multiply<Number>), 1, 32, 0, a.data(), b.data(), d.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      const size_t i = static_cast<size_t>(8 * row + column);
      double sum = before[i];
      for (int k = 0; k < kK; ++k) {
        sum += a64[static_cast<size_t>(kK * row + k)] * b64[static_cast<size_t>(8 * k + column)];
      }
      EXPECT(std::abs(d[i] - sum) <= kK * 128 * std::ldexp(1, -24));
    }
  }
}

void mma() {
  check_mma<bfloat16, 16>(1.0 / 128, [](double v) { return from_acc<bfloat16>(v); });
  check_mma<float16, 16>(1.0 / 1024, [](double v) { return from_acc<float16>(v); });
  check_mma<float, 8>(1.0 / 1024, [](double v) { return static_cast<float>(v); });
}

void tf32() {
  const auto bits = [](float v) { return nnops::cuda::bits_as<uint32_t>(v); };
  const float unit = std::ldexp(1.0f, -10);
  EXPECT(to_tf32(1.0f) == bits(1.0f));
  EXPECT(to_tf32(1 + unit / 2) == bits(1 + unit));  // ties go away from zero
  EXPECT(to_tf32(-1 - unit / 2) == bits(-1 - unit));
  EXPECT(to_tf32(1 + unit * 0.49f) == bits(1.0f));
  EXPECT(to_tf32(INFINITY) == bits(INFINITY));
  EXPECT(std::isnan(nnops::cuda::bits_as<float>(to_tf32(NAN))));
}

// --- errors -------------------------------------------------------------------------------------

__global__ void fail_in_block_2(int* ran) {
  if (threadIdx.x == 0) ++*ran;
  __syncthreads();
  if (blockIdx.x == 2 && threadIdx.x < 40) __shfl_sync(0xff, 1, 0);
  __syncthreads();
}

// After a failed launch the next one is as good as new.
void errors() {
  for (int i = 0; i < 3; ++i) {
    int ran = 0;
    std::string message;
    try {
      NNOPS_LAUNCH((fail_in_block_2), 3, 64, 0, &ran);
    } catch (const std::exception& error) {
      message = error.what();
    }
    EXPECT(message.find("kernel (fail_in_block_2)") == 0);
    EXPECT(message.find("block (2, 0, 0)") != std::string::npos);
    EXPECT(message.find("__shfl_sync with mask 0x000000ff") != std::string::npos);
    EXPECT(message.find("primitives.cu:") != std::string::npos);
    barriers();
  }
}

// Each OS thread has an emulated GPU of its own.
void threads() {
  std::vector<std::thread> threads;
  std::vector<std::string> failures(4);
  for (std::string& failure : failures) {
    threads.emplace_back([&failure] {
      try {
        for (int i = 0; i < 20; ++i) {
          barriers();
          votes();
          grids();
        }
      } catch (const std::exception& error) {
        failure = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) EXPECT(failure.empty());
}

const std::map<std::string, void (*)()> kTests{
    {"shuffles", shuffles}, {"votes", votes},   {"divergence", divergence},
    {"barriers", barriers}, {"grids", grids},   {"atomics", atomics},
    {"shared", shared},     {"copies", copies}, {"load_matrices", load_matrices},
    {"mma", mma},           {"tf32", tf32},     {"errors", errors},
    {"threads", threads},
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
