// The bug zoo: kernels that are right, each with a bug that the first argument of the program
// names.
//
//   zoo <bug or "none">     exit status 0: all right; 1: the emulator found an error, which is
//                           printed; 2: the results are wrong, or right by luck, and nobody noticed
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "cuda/emulation/allocations.h"
#include "cuda/numbers.cuh"
#include "cuda/simt.h"

namespace {

using nnops::cuda::bfloat16;
using nnops::cuda::copy_async;
using nnops::cuda::copy_async_commit;
using nnops::cuda::copy_async_wait;

enum Bug {
#define BUG(name, message) name,
#include "bugs.inc"
#undef BUG
};
const char* const kNames[] = {
#define BUG(name, message) #name,
#include "bugs.inc"
#undef BUG
};

// Global memory of exactly so many elements, zero at first, aligned as a device's is.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, count * sizeof(T)) != 0) std::abort();
    values_ = static_cast<T*>(std::memset(memory, 0, count * sizeof(T)));
    nnops::emulation::register_allocation(values_, count * sizeof(T));
  }
  ~Buffer() {
    nnops::emulation::forget_allocation(values_);
    std::free(values_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() { return values_; }

 private:
  T* values_;
};

// --- tiles --------------------------------------------------------------------------------------
// out[i] = x[i] * (the sum of x over the tile of i), and the number of threads whose share of a
// tile has a positive sum. Each block has two tiles, one after the other.

constexpr int kThreads = 64;
constexpr int kTile = 4 * kThreads;
constexpr int kTilesPerBlock = 2;
constexpr int kBlocks = 3;
constexpr int kElements = kBlocks * kTilesPerBlock * kTile;
constexpr uint32_t kAll = 0xffffffff;

__global__ void scale_by_tile_sum(const float* x, float* out, int* positive, int bug) {
  NNOPS_SHARED(float, tile, kTile);
  NNOPS_SHARED(float, exchange, kThreads);
  NNOPS_SHARED(float, partial, 2);
  NNOPS_SHARED(int, block_positive, 1);
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t % 32, warp = t / 32;
  const int other = kThreads - 1 - t;
  if (t == 0 || bug == two_writers_of_shared) block_positive[0] = 0;
  for (int i = 0; i < kTilesPerBlock; ++i) {
    const int first = (static_cast<int>(blockIdx.x) * kTilesPerBlock + i) * kTile;
    const bool last_tile = first + kTile == kElements;

    // The tile, to shared memory.
    const float* source = x + first + 4 * t;
    float* target = tile + 4 * t;
    if (bug == copy_async_misaligned_source && t < 63) source += 1;
    if (bug == copy_async_misaligned_target && t < 63) target += 1;
    if (bug == copy_async_past_the_end && last_tile && t == 63) source += 4;
    if (bug == copy_async_outside_shared && t == 63) target += 4;
    if (bug == copy_async_same_target && t == 63) target -= 4;
    copy_async<16>(target, source, true);
    if (bug != copy_async_without_commit) copy_async_commit();
    if (bug == copy_async_wait_too_weak) {
      copy_async_wait<1>();
    } else if (bug != copy_async_without_wait) {
      copy_async_wait<0>();
    }
    if (bug == early_return_before_barrier && t == 63) return;
    if (bug == barrier_in_both_arms) {
      if (warp == 0) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if (bug == different_barriers) {
      if (warp == 0) __syncthreads();
      if (warp == 1) __syncthreads_or(1);
    } else if (bug == barrier_of_some_threads) {
      if (t != 5) __syncthreads();
    } else if (bug != wait_without_barrier) {
      __syncthreads();
    }

    // The share of another thread, and that of a lane of this warp.
    float sum = 0;
    if (bug == misaligned_float4_of_shared) {
      const float4 v = *reinterpret_cast<const float4*>(tile + 4 * other + (other < 63));
      sum += v.x + v.y + v.z + v.w;
    }
    if (bug == misaligned_float4) {
      const float4 v = *reinterpret_cast<const float4*>(x + first + 4 * other + (other < 63));
      sum += v.x + v.y + v.z + v.w;
    }
    for (int j = 0; j < 4; ++j) sum += tile[4 * other + j];
    exchange[t + (bug == shared_past_the_end && t == 63)] = sum;
    if (bug == syncwarp_of_half) {
      __syncwarp(lane < 16 ? 0x0000ffff : 0xffff0000);
    } else if (bug == syncwarp_after_exit) {
      if (t == 40) return;
      __syncwarp();
    } else if (bug == shuffle_for_syncwarp) {
      sum = __shfl_sync(kAll, sum, lane);
    } else if (bug != missing_syncwarp) {
      __syncwarp();
    }
    sum += exchange[t ^ 31];
    if (bug == uninitialised_shared && t == 0) sum += partial[1];

    // Votes, and the sum of the warp.
    uint32_t votes = 0;
    if (bug == ballot_of_half_the_warp) {
      if (lane < 16) votes = __ballot_sync(kAll, sum > 0);
    } else if (bug == ballot_in_both_arms) {
      if (lane < 16) {
        votes = __ballot_sync(kAll, sum > 0);
      } else {
        votes = __ballot_sync(kAll, sum > 0);
      }
    } else if (bug == ballot_with_other_masks) {
      votes = __ballot_sync(lane < 16 ? kAll : 0xffff0000, sum > 0);
    } else {
      votes = __ballot_sync(kAll, sum > 0);
    }
    if (bug == any_of_some_lanes && lane == 3) __any_sync(0xff, 1);
    if (bug == all_of_some_lanes && lane != 3) __all_sync(kAll, 1);
    for (unsigned distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_down_sync(kAll, sum, distance);
    }
    if (bug == shuffle_outside_mask && lane < 16) sum = __shfl_sync(0xffff, sum, lane + 16);
    if (bug == shuffle_not_in_mask) sum = __shfl_xor_sync(0x7fffffff, sum, 1);
    if (bug == shuffle_of_odd_width) sum = __shfl_up_sync(kAll, sum, 1, 24);
    if (lane == 0) {
      partial[bug == two_writers ? 0 : warp] = sum / 2;  // every share is in it twice
      if (bug == plain_and_atomic_update && warp == 1) {
        block_positive[0] += __popc(votes);
      } else {
        atomicAdd(&block_positive[0], __popc(votes));
      }
    }
    if (bug == atomic_and_plain_read && t == 33 && block_positive[0] < 0) return;
    if (bug != missing_barrier) __syncthreads();

    const float scale = partial[0] + partial[1];
    for (int j = 0; j < 4; ++j) out[first + 4 * other + j] = tile[4 * other + j] * scale;
    if (bug == global_past_the_end && last_tile && t == 0) out[kElements] = 0;
    if (bug == global_before_the_beginning && t == 0) out[-1] = 0;
    if (bug == global_race_of_threads && t == 20) out[first] = 1;
    if (bug == global_race_of_blocks && t == 20) out[(first + 2 * kTile) % kElements] = 1;
    if (bug == ldg_of_written && t == 0) out[first + 4 * other] += __ldg(&out[first + 4 * other]);
    if (bug == null_pointer && t == 20) *reinterpret_cast<int*>(blockIdx.x / kBlocks) = 0;
    if (bug != missing_second_barrier) __syncthreads();
  }
  if (t == 0) {
    if (bug == plain_add_across_blocks) {
      *positive += block_positive[0];
    } else {
      atomicAdd(positive, block_positive[0]);
    }
  }
}

bool tiles(Bug bug) {
  Buffer<float> x(kElements), out(kElements);
  Buffer<int> positive(1);
  for (int i = 0; i < kElements; ++i) x[i] = static_cast<float>((i * 37) % 11 - 5);
  NNOPS_LAUNCH((scale_by_tile_sum), kBlocks, kThreads, 0, x, out, positive, bug);
  int expected_positive = 0;
  for (int first = 0; first < kElements; first += kTile) {
    float sum = 0, shares[kThreads];
    for (int t = 0; t < kThreads; ++t) {
      const float* share = x + first + 4 * t;
      shares[t] = share[0] + share[1] + share[2] + share[3];
      sum += shares[t];
    }
    for (int t = 0; t < kThreads; ++t) expected_positive += shares[t] + shares[t ^ 31] > 0;
    for (int i = first; i < first + kTile; ++i) {
      if (out[i] != x[i] * sum) return false;
    }
  }
  return positive[0] == expected_positive;
}

// --- matrices -----------------------------------------------------------------------------------
// d = a b^T of 16 x 16 and 8 x 16 numbers, by one warp.

__global__ void multiply(const bfloat16* a, const bfloat16* b, float* d, int bug) {
  NNOPS_SHARED_DYNAMIC(bfloat16, tile);  // 16 rows of a, 8 of b
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 24 * 16; i += 32) {
    if (bug == ldmatrix_of_unwritten && i == 100) continue;
    tile[i] = i < 256 ? a[i] : b[i - 256];
  }
  if (bug != ldmatrix_without_barrier) __syncthreads();
  const bfloat16* row_of_a = tile + 16 * (lane % 16) + 8 * (lane / 16);
  const bfloat16* row_of_b = tile + 256 + 16 * (lane % 8) + 8 * (lane / 8 % 2);
  if (bug == ldmatrix_misaligned && lane == 7) row_of_a += 4;
  if (bug == ldmatrix_past_the_end && lane == 15) row_of_b += 8;
  uint32_t fragment_of_a[4] = {}, fragment_of_b[2] = {};
  float sums[4] = {};
  if (bug != ldmatrix_of_half_the_warp || lane < 16) {
    nnops::cuda::load_matrix_x4(fragment_of_a, row_of_a);
  }
  nnops::cuda::load_matrix_x2(fragment_of_b, row_of_b);
  if (bug == mma_after_exit && lane == 31) return;
  if (bug == mma_in_both_arms && lane < 16) {
    nnops::cuda::mma_m16n8k16(sums, fragment_of_a, fragment_of_b, bfloat16());
  } else {
    nnops::cuda::mma_m16n8k16(sums, fragment_of_a, fragment_of_b, bfloat16());
  }
  if (bug == mma_tf32_of_some_lanes && lane % 2 == 0) {
    nnops::cuda::mma_m16n8k8_tf32(sums, fragment_of_a, fragment_of_b);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    d[8 * row + column] = sums[i];
  }
}

bool matrices(Bug bug) {
  Buffer<bfloat16> a(256), b(128);
  Buffer<float> d(128);
  const auto number = [](int i) { return static_cast<float>(i * 29 % 17 - 8); };
  for (int i = 0; i < 256; ++i) a[i] = nnops::cuda::from_acc<bfloat16>(number(i));
  for (int i = 0; i < 128; ++i) b[i] = nnops::cuda::from_acc<bfloat16>(number(i + 5));
  size_t bytes = 24 * 16 * sizeof(bfloat16);
  if (bug == dynamic_shared_too_small) bytes -= 16;
  if (bug == dynamic_shared_forgotten) bytes = 0;
  if (bug == dynamic_shared_too_large) bytes = 100 << 10;
  dim3 grid = 1;
  if (bug == grid_too_tall) grid = dim3(1, 65536);
  if (bug == grid_of_nothing) grid = 0;
  NNOPS_LAUNCH((multiply), grid, bug == block_too_large ? 1056 : 32, bytes, a, b, d, bug);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += number(16 * row + k) * number(16 * column + k + 5);
      if (d[8 * row + column] != sum) return false;
    }
  }
  return true;
}

// --- more shared memory than there is -----------------------------------------------------------

__global__ void reverse(float* x, int bug) {
  NNOPS_SHARED(float, small, 64);
  const unsigned t = threadIdx.x;
  small[t] = x[t];
  if (bug == static_shared_too_large) {
    NNOPS_SHARED(float, large, 12 << 10);
    large[t] = x[t];
  }
  __syncthreads();
  x[t] = small[63 - t];
}

bool reversal(Bug bug) {
  Buffer<float> x(64);
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i);
  NNOPS_LAUNCH((reverse), 1, 64, 0, x, bug);
  for (int i = 0; i < 64; ++i) {
    if (x[i] != static_cast<float>(63 - i)) return false;
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  int number = 0;
  while (std::strcmp(kNames[number], arguments[1]) != 0) ++number;
  const Bug bug = static_cast<Bug>(number);
  try {
    const bool right = tiles(bug) && matrices(bug) && reversal(bug);
    if (right && bug == none) return 0;
    std::puts(right ? "right results" : "wrong results");
    return 2;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
