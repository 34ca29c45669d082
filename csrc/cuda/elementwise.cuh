// Elementwise kernels: one result an element, over dense memory of any length and alignment.
//
// A block of kMapThreads threads takes one chunk of the elements: kMapVectors vectors of 16 bytes a
// thread and operand, the vectors of a block side by side. All loads of a thread come before its
// first store, so that enough bytes are under way and the output may be one of the inputs. The last
// chunk, and operands that are not aligned to 16 bytes, go element by element in the same kernel.
// No accumulation.
//
// An operation is a struct, passed by value, with
//   Element                what is written
//   Operands<N>            what it reads for N elements
//   load<N>(i)             the Operands<N> of elements i .. i + N, by load_vector
//   output                 pointer to the results
//   common()               what all elements share, asked for while the loads are under way
//   value(operands, lane, common)   the result of one element
//   finish<N>(operands, i, inside)  what else there is to be done, with all lanes of a warp
//                                   together; not inside: i lies beyond the end
#pragma once

#include "cuda/numbers.cuh"

namespace nnops::cuda {

inline constexpr int kMapThreads = 256;
inline constexpr int kMapVectors = 2;
// Elements under way at once where they go one by one.
inline constexpr int kMapSingles = 4;

// What operations have in common that write T and nothing else.
template <typename T>
struct MapOperation {
  using Element = T;
  T* output;

  struct Nothing {};
  NNOPS_DEVICE Nothing common() const { return {}; }
  template <int N, typename Operands>
  NNOPS_DEVICE void finish(const Operands&, int64_t, bool) const {}
};

// kCount groups of N elements, at i, i + step, ...; kGuarded: only those below n.
template <int N, int kCount, bool kGuarded, typename Operation>
NNOPS_DEVICE void map_groups(const Operation& operation, int64_t i, int step, int64_t n) {
  typename Operation::template Operands<N> operands[kCount] = {};
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (!kGuarded || i + k * step < n) operands[k] = operation.template load<N>(i + k * step);
  }
  const auto common = operation.common();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const int64_t at = i + k * step;
    const bool inside = !kGuarded || at < n;
    Vector<typename Operation::Element, N> results;
#pragma unroll
    for (int lane = 0; lane < N; ++lane) results[lane] = operation.value(operands[k], lane, common);
    if (inside) store_vector<N>(operation.output + at, results);
    operation.template finish<N>(operands[k], at, inside);
  }
}

template <typename T>
inline constexpr int kMapChunk = kMapThreads * kMapVectors * kVectorWidth<T>;

template <typename Operation>
__global__ void __launch_bounds__(kMapThreads)
    map_kernel(const Operation operation, int64_t n, bool aligned) {
  constexpr int kWidth = kVectorWidth<typename Operation::Element>;
  constexpr int kChunk = kMapChunk<typename Operation::Element>;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int thread = static_cast<int>(threadIdx.x);
  if (aligned && begin + kChunk <= n) {
    map_groups<kWidth, kMapVectors, false>(operation, begin + thread * kWidth, kMapThreads * kWidth,
                                           n);
  } else {
#pragma unroll 1
    for (int done = 0; done < kChunk; done += kMapThreads * kMapSingles) {
      map_groups<1, kMapSingles, true>(operation, begin + done + thread, kMapThreads, n);
    }
  }
}

// The operation on n elements; `aligned` tells whether all its pointers are, to 16 bytes.
template <typename Operation>
void launch_map(const Operation& operation, int64_t n, bool aligned) {
  if (n == 0) return;
  constexpr int64_t kChunk = kMapChunk<typename Operation::Element>;
  NNOPS_LAUNCH((map_kernel<Operation>), static_cast<unsigned>(ceil_divide(n, kChunk)), kMapThreads,
               0, operation, n, aligned);
}

}  // namespace nnops::cuda
