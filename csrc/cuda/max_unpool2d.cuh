// max_unpool2d on CUDA and its relatives, on values (n, c, positions), int64 indices of the same
// sizes and planes (n, c, plane):
//   assign: planes[n, c, index] = value, else 0      (max_unpool2d)
//   add:    planes[n, c, index] += value             (max_pool2d_with_indices_backward)
//   gather: values = planes[n, c, index]             (max_unpool2d_backward)
//
// Several values may have one index, so that a plain scatter would depend on which thread comes
// last. Here the threads of the values only leave word of themselves at their plane element, by
// integer atomics, and the threads of the plane elements, which follow, do the rest:
//   assign: the highest position that named the element, whose value it takes;
//   add:    a list of all positions that named it, chained in the order in which threads happened
//   to
//           come, which is sorted first: every sum is in row-major order, as on the CPU.
// A list of m positions takes O(m log m) steps of one thread; windows that overlap make short ones.
//
// Threads go through packed memory, in either layout. Indices were checked before: in [0, plane),
// or -1 for none. Index is int32_t where positions stay below 2^31, else int64_t.
#pragma once

#include "cuda/fast_division.cuh"
#include "ops/max_unpool2d.h"

namespace nnops::cuda {

inline constexpr int kUnpoolThreads = 256;

// The words by which positions are left at plane elements: the position + 1, so that 0 is none.
template <typename Index>
using PositionWord = std::conditional_t<sizeof(Index) == 4, unsigned, unsigned long long>;

// An element of packed (n, c, length) memory: where its line (n, c) begins in tensors of `length`
// and of any other length, and its place there.
template <typename Index>
struct LinePlace {
  Index image, channel, place;
};

// Packed lines: row-major, or channels_last (n, length, c).
template <typename Index>
struct PackedLines {
  FastDivision<Index> channels, length;
  bool channels_last;

  NNOPS_HOST_DEVICE LinePlace<Index> place(Index position) const {
    LinePlace<Index> result;
    if (channels_last) {
      result.place = channels.divide(position);
      result.channel = position;
      result.image = length.divide(result.place);
    } else {
      result.channel = length.divide(position);
      result.place = position;
      result.image = channels.divide(result.channel);
    }
    return result;
  }

  // The position in memory of `place` of the same channel and image in this tensor.
  NNOPS_HOST_DEVICE Index position(const LinePlace<Index>& line, Index place) const {
    if (channels_last) {
      return (line.image * length.divisor() + place) * channels.divisor() + line.channel;
    }
    return (line.image * channels.divisor() + line.channel) * length.divisor() + place;
  }
};

// Leaves count - i in `found` for the lowest position i of an index outside of [lowest, limit);
// `found` is 0 before.
template <typename Word>
__global__ void __launch_bounds__(kUnpoolThreads)
    find_invalid_indices(Word* found, const int64_t* __restrict__ indices, int64_t count,
                         int64_t lowest, int64_t limit) {
  for_grid_stride(count, [=](int64_t i) {
    const int64_t index = indices[i];
    if (index < lowest || index >= limit) atomicMax(found, static_cast<Word>(count - i));
  });
}

// --- assign -------------------------------------------------------------------------------------

template <typename Index>
__global__ void __launch_bounds__(kUnpoolThreads)
    mark_last(PositionWord<Index>* last, const int64_t* __restrict__ indices, int64_t count,
              PackedLines<Index> values, PackedLines<Index> planes) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const LinePlace<Index> line = values.place(static_cast<Index>(position));
  const Index target = planes.position(line, static_cast<Index>(indices[position]));
  atomicMax(last + target, static_cast<PositionWord<Index>>(line.place) + 1);
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kUnpoolThreads)
    take_last(T* __restrict__ plane, const T* __restrict__ value,
              const PositionWord<Index>* __restrict__ last, int64_t count,
              PackedLines<Index> values, PackedLines<Index> planes) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const PositionWord<Index> word = last[position];
  T result{};
  if (word > 0) {
    const LinePlace<Index> line = planes.place(static_cast<Index>(position));
    result = value[values.position(line, static_cast<Index>(word - 1))];
  }
  plane[position] = result;
}

// --- add ----------------------------------------------------------------------------------------

// Chains the positions of equal indices: first[target], then next[its memory], and so on.
template <typename Index>
__global__ void __launch_bounds__(kUnpoolThreads)
    chain_positions(PositionWord<Index>* first, PositionWord<Index>* __restrict__ next,
                    const int64_t* __restrict__ indices, int64_t count, PackedLines<Index> values,
                    PackedLines<Index> planes) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const int64_t index = indices[position];
  if (index < 0) return;
  const LinePlace<Index> line = values.place(static_cast<Index>(position));
  const Index target = planes.position(line, static_cast<Index>(index));
  next[position] = atomicExch(first + target, static_cast<PositionWord<Index>>(line.place) + 1);
}

// The chain of one plane element.
template <typename Index>
class PositionChain {
  using Word = PositionWord<Index>;

 public:
  NNOPS_DEVICE PositionChain(Word* next, const PackedLines<Index>& values,
                             const LinePlace<Index>& line)
      : next_(next), values_(values), line_(line) {}

  // Where the value of a position lies in memory.
  NNOPS_DEVICE Index memory(Word word) const {
    return values_.position(line_, static_cast<Index>(word - 1));
  }
  NNOPS_DEVICE Word& next(Word word) const { return next_[memory(word)]; }

  // Returns the first word of the chain in ascending order: a merge sort from below, of runs of
  // 1, 2, 4, ... words.
  NNOPS_DEVICE Word sorted(Word first) const {
    for (Index run = 1;; run *= 2) {
      Word rest = first;
      Word last = 0;  // of what is merged
      Index merges = 0;
      first = 0;
      while (rest != 0) {
        ++merges;
        Word a = rest;
        Word b = rest;
        Index a_count = 0;
        while (a_count < run && b != 0) {
          ++a_count;
          b = next(b);
        }
        Index b_count = run;
        while (a_count > 0 || (b_count > 0 && b != 0)) {
          const bool take_a = a_count > 0 && (b_count == 0 || b == 0 || a < b);
          const Word word = take_a ? a : b;
          const Word after = next(word);
          if (take_a) {
            a = after;
            --a_count;
          } else {
            b = after;
            --b_count;
          }
          if (last == 0) {
            first = word;
          } else {
            next(last) = word;
          }
          last = word;
        }
        rest = b;
      }
      next(last) = 0;
      if (merges <= 1) return first;
    }
  }

 private:
  Word* next_;
  const PackedLines<Index>& values_;
  const LinePlace<Index>& line_;
};

template <typename T, typename Index>
__global__ void __launch_bounds__(kUnpoolThreads, 4)  // ptxas spills for a fifth
    add_chains(T* __restrict__ plane, const T* __restrict__ value,
               const PositionWord<Index>* __restrict__ first, PositionWord<Index>* next,
               int64_t count, PackedLines<Index> values, PackedLines<Index> planes) {
  const int64_t position = grid_index();
  if (position >= count) return;
  acc_t<T> sum = 0;
  PositionWord<Index> word = first[position];
  if (word != 0) {
    const LinePlace<Index> line = planes.place(static_cast<Index>(position));
    const PositionChain<Index> chain(next, values, line);
    if (chain.next(word) != 0) word = chain.sorted(word);
    for (; word != 0; word = chain.next(word)) sum += to_acc(value[chain.memory(word)]);
  }
  plane[position] = from_acc<T>(sum);
}

// --- gather -------------------------------------------------------------------------------------

template <typename T, typename Index>
__global__ void __launch_bounds__(kUnpoolThreads)
    gather_at_indices(T* __restrict__ value, const T* __restrict__ plane,
                      const int64_t* __restrict__ indices, int64_t count, PackedLines<Index> values,
                      PackedLines<Index> planes) {
  const int64_t position = grid_index();
  if (position >= count) return;
  const int64_t index = indices[position];
  T result{};
  if (index >= 0) {
    const LinePlace<Index> line = values.place(static_cast<Index>(position));
    result = plane[planes.position(line, static_cast<Index>(index))];
  }
  value[position] = result;
}

}  // namespace nnops::cuda
