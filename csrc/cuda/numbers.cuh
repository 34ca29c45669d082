// Numbers of the CUDA kernels: storage types, vectors of 16 bytes, sums in a fixed order, indices.
//
// bfloat16 and float16 are storage: bits only, computed with in float32 (acc_t). Both conversions
// are exact where they widen, and round to nearest, ties to even, where they narrow; NaN stays NaN.
// Reductions join lanes in an order that depends on the block's size alone, so that they give the
// same bits in every run. Compiles with nvcc, and with g++ under the emulation of simt.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/simt.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// A function for device code, small enough to be part of its caller.
#define NNOPS_DEVICE __device__ __forceinline__
// The same for both sides.
#define NNOPS_HOST_DEVICE __host__ __device__ __forceinline__

namespace nnops::cuda {

// --- element types ------------------------------------------------------------------------------

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that arithmetic on T is done in.
template <typename T>
struct AccumulateType {
  using type = T;
};
template <>
struct AccumulateType<bfloat16> {
  using type = float;
};
template <>
struct AccumulateType<float16> {
  using type = float;
};
template <typename T>
using acc_t = typename AccumulateType<T>::type;

template <typename T>
inline constexpr bool kIsFloating =
    std::is_floating_point_v<T> || std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>;

// The bits of `from` as another type of the same size.
template <typename To, typename From>
NNOPS_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T>
NNOPS_DEVICE acc_t<T> to_acc(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__CUDACC__)
    return __half2float(bits_as<__half>(value.bits));
#else
    return static_cast<float>(bits_as<_Float16>(value.bits));
#endif
  } else {
    return value;
  }
}

template <typename T>
NNOPS_DEVICE T from_acc(acc_t<T> value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__CUDACC__)
    return {bits_as<uint16_t>(__float2bfloat16_rn(value))};
#else
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(value != value ? 0x7fc0 : rounded)};
#endif
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__CUDACC__)
    return {bits_as<uint16_t>(__float2half_rn(value))};
#else
    return {bits_as<uint16_t>(static_cast<_Float16>(value))};
#endif
  } else {
    return value;
  }
}

// --- vectors ------------------------------------------------------------------------------------

// N elements side by side, N a power of two; loaded and stored by one instruction up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T lanes[N];
  NNOPS_HOST_DEVICE T& operator[](int i) { return lanes[i]; }
  NNOPS_HOST_DEVICE const T& operator[](int i) const { return lanes[i]; }
};

// Elements in 16 bytes, the widest access there is.
template <typename T>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

// Whether the pointers allow accesses of 16 bytes; views may begin anywhere.
template <typename... Pointers>
inline bool are_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// `pointer` must be aligned to the vector.
template <int N, typename T>
NNOPS_DEVICE Vector<T, N> load_vector(const T* pointer) {
  return *reinterpret_cast<const Vector<T, N>*>(pointer);
}
template <int N, typename T>
NNOPS_DEVICE void store_vector(T* pointer, Vector<T, N> value) {
  *reinterpret_cast<Vector<T, N>*>(pointer) = value;
}

template <typename T, int N>
NNOPS_DEVICE Vector<acc_t<T>, N> to_acc(Vector<T, N> value) {
  Vector<acc_t<T>, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result[i] = to_acc(value[i]);
  return result;
}
template <typename T, int N>
NNOPS_DEVICE Vector<T, N> from_acc(Vector<acc_t<T>, N> value) {
  Vector<T, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result[i] = from_acc<T>(value[i]);
  return result;
}

// The same in arithmetic's type.
template <int N, typename T>
NNOPS_DEVICE Vector<acc_t<T>, N> load_acc(const T* pointer) {
  return to_acc(load_vector<N>(pointer));
}
template <int N, typename T>
NNOPS_DEVICE void store_acc(T* pointer, Vector<acc_t<T>, N> value) {
  store_vector<N>(pointer, from_acc<T, N>(value));
}

// --- indices ------------------------------------------------------------------------------------

template <typename I>
NNOPS_HOST_DEVICE constexpr I ceil_divide(I dividend, I divisor) {
  return (dividend + divisor - 1) / divisor;
}
template <typename T>
NNOPS_HOST_DEVICE constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
NNOPS_HOST_DEVICE constexpr T larger(T a, T b) {
  return a > b ? a : b;
}

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

NNOPS_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
NNOPS_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// Index of the thread in a one-dimensional grid, and the threads in it.
NNOPS_DEVICE int64_t grid_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
NNOPS_DEVICE int64_t grid_size() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// body(i) for i in [0, n), spread over all threads of a one-dimensional grid.
template <typename Body>
NNOPS_DEVICE void for_grid_stride(int64_t n, Body body) {
  for (int64_t i = grid_index(); i < n; i += grid_size()) body(i);
}

// Blocks for for_grid_stride: enough for one element a thread, but no more than the grid may have
// or `most`.
inline unsigned grid_stride_blocks(int64_t n, int threads, int64_t most = 0x7fffffff) {
  return static_cast<unsigned>(smaller(ceil_divide<int64_t>(n, threads), most));
}

// --- reductions ---------------------------------------------------------------------------------

struct Sum {
  template <typename T>
  NNOPS_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <typename T>
  NNOPS_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// `value` of the lane whose index differs by the bits of `distance`; a plain struct goes in words.
template <typename T>
NNOPS_DEVICE T shuffle_xor(T value, int distance) {
  if constexpr (std::is_arithmetic_v<T>) {
    return __shfl_xor_sync(kFullWarp, value, distance);
  } else {
    using Word = std::conditional_t<sizeof(T) % 8 == 0, unsigned long long, unsigned>;
    static_assert(sizeof(T) % sizeof(Word) == 0);
    constexpr int kWords = sizeof(T) / sizeof(Word);
    Word words[kWords];
    memcpy(words, &value, sizeof(value));
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kFullWarp, words[i], distance);
    memcpy(&value, words, sizeof(value));
    return value;
  }
}

// Joins the lanes of `kWidth` consecutive lanes (a power of two) pairwise; all of them get the
// result, the same bits where `join` is commutative. All lanes of the warp must take part.
template <int kWidth = kWarpSize, typename T, typename Join>
NNOPS_DEVICE T warp_reduce(T value, Join join) {
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value = join(value, shuffle_xor(value, distance));
  }
  return value;
}
template <int kWidth = kWarpSize, typename T>
NNOPS_DEVICE T warp_sum(T value) {
  return warp_reduce<kWidth>(value, Sum{});
}

// Joins the values of all threads of a one-dimensional block of kThreads, a multiple of 32: inside
// each warp, then over the warps. All threads get the result. `shared` holds one value a warp, and
// is free again when the function returns.
template <int kThreads, typename T, typename Join>
NNOPS_DEVICE T block_reduce(T value, Join join, T* shared) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && (kWarps & (kWarps - 1)) == 0);
  value = warp_reduce(value, join);
  if constexpr (kWarps > 1) {
    if (lane_index() == 0) shared[warp_index()] = value;
    __syncthreads();
    value = warp_reduce<kWarps>(shared[lane_index() % kWarps], join);
    __syncthreads();
  }
  return value;
}
template <int kThreads, typename T>
NNOPS_DEVICE T block_sum(T value, T* shared) {
  return block_reduce<kThreads>(value, Sum{}, shared);
}

}  // namespace nnops::cuda
