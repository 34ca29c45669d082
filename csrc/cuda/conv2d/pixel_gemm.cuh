// forward and backward_input of conv2d as an implicit GEMM:
//
//   written[pixel m, channel n] = epilogue(sum over k of A[m][k] B[n][k])
//
// m: pixels of all images, n: channels of the written image in a group, k: (tap, channel of the
// read image). A is gathered from the read image on the way to shared memory, never stored; B are
// the weights, as rows of neighbouring k.
//
// The order of k depends on the geometry of one image alone: in an image whose channels are
// neighbours (channels_last) they are the innermost digit of k, else the outermost, as in the
// weight. Where chunks of 16 bytes of neighbouring k are neighbours in memory and aligned, they are
// copied at once, else element by element; the sums, and so the bits, are the same.
//
// A block computes one tile of one group and phase (pixel_pass.cuh). Blocks that follow each other
// have the same pixels and other channels: the read image comes from the cache for all but one.
#pragma once

#include "cuda/conv2d/copy_tile.cuh"
#include "cuda/conv2d/digits.cuh"
#include "cuda/conv2d/epilogue.cuh"
#include "cuda/conv2d/pixel_pass.cuh"

namespace nnops::cuda {

template <typename T>
struct PixelGemm {
  PixelPass pass;
  T* written;
  const T* read;
  // Row n of a group begins at weights + ((slot groups + group) rows + n) weight_row, the slot
  // being the phase's (PassAxis).
  const T* weights;
  int64_t weight_row;
  bool channels_inner;   // of k
  bool chunks_of_image;  // 16 bytes of neighbouring k at once; needs channels_inner
  bool chunks_of_weights;
  bool runs_of_written;  // channels that a thread holds side by side (Multiply::kRun) at once
  unsigned tiles_m, tiles_n;
};

// The threads' shares of a tile whose chunks go along k: one column of chunks, and rows first_row +
// i kStep. A thread that copies element by element takes the same rows, at k = chunk + j kChunks.
template <typename Multiply>
struct RowShares {
  static constexpr int kWidth = kVectorWidth<typename Multiply::Element>;  // of a chunk
  static constexpr int kChunks = Multiply::kTileK / kWidth;                // of a row
  static constexpr int kStep = Multiply::kThreads / kChunks;
  static_assert(Multiply::kThreads % kChunks == 0);
  static NNOPS_DEVICE int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static NNOPS_DEVICE int first_row() { return static_cast<int>(threadIdx.x) / kChunks; }
};

// Gathers the tiles of A, step by step. Of each of its rows a thread keeps where the pixel's first
// tap is; of k, the digits. kChunks: the image is known to have chunks, which saves registers.
template <typename Multiply, bool kChunks>
class PixelLoader {
  using T = typename Multiply::Element;
  using Shares = RowShares<Multiply>;
  static constexpr int kRows = Multiply::kTileM / Shares::kStep;
  static_assert(kRows * Shares::kStep == Multiply::kTileM);

 public:
  NNOPS_DEVICE PixelLoader(const PixelGemm<T>& p, const PassAxis& y, const PassAxis& x, int group,
                           int64_t first_pixel)
      : limit_h_(y.limit),
        limit_w_(x.limit),
        gap_h_(y.gap),
        gap_w_(x.gap),
        offset_h_(static_cast<int>(y.gap * p.pass.read.h)),
        offset_w_(static_cast<int>(x.gap * p.pass.read.w)),
        offset_c_(static_cast<int>(p.pass.read.c)),
        channels_inner_(p.channels_inner),
        chunks_(p.chunks_of_image) {
    read_ = p.read + static_cast<int64_t>(group) * p.pass.outer * p.pass.read.c;
    const int plane = y.grid * x.grid;
    const int64_t first_image = first_pixel / plane;
    const auto begin = static_cast<unsigned>(first_pixel % plane);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const unsigned pixel = begin + static_cast<unsigned>(Shares::first_row() + i * Shares::kStep);
      const unsigned image = pixel / static_cast<unsigned>(plane);
      const unsigned place = pixel % static_cast<unsigned>(plane);
      const int row = static_cast<int>(place / static_cast<unsigned>(x.grid));
      const int column = static_cast<int>(place % static_cast<unsigned>(x.grid));
      const bool exists = first_image + image < p.pass.images;
      h_[i] = exists ? row * y.step + y.first : kNowhere;
      w_[i] = column * x.step + x.first;
      offset_[i] = (first_image + image) * p.pass.read.n + int64_t{h_[i]} * p.pass.read.h +
                   int64_t{w_[i]} * p.pass.read.w;
    }
    // A phase that no tap reaches loads nothing, but must not divide by zero here.
    radix0_ = channels_inner() ? p.pass.outer : larger(1, x.taps);
    radix1_ = larger(1, channels_inner() ? x.taps : y.taps);
    radix2_ = channels_inner() ? y.taps : p.pass.outer;
    digits_ = Digits::of(Shares::chunk() * (chunks() ? Shares::kWidth : 1), radix0_, radix1_);
    step_ = Digits::of(chunks() ? Multiply::kTileK : Shares::kChunks, radix0_, radix1_);
  }

  // Starts the copies of the next tile. In copies by element the lanes of a warp hold
  // neighbouring pixels and, for each of them, kChunks neighbouring k: in row-major images the
  // pixels are neighbours in memory, and the places in shared memory lie in different banks.
  NNOPS_DEVICE void load(T* a) {
    const int chunk = Shares::chunk();
    if (chunks()) {
      load_column(a, chunk * Shares::kWidth, [](T* shared, const T* global, bool valid) {
        copy_chunk(shared, global, valid);
      });
    } else {
#pragma unroll
      for (int j = 0; j < Shares::kWidth; ++j) {
        load_column(a, chunk + j * Shares::kChunks, [](T* shared, const T* global, bool valid) {
          copy_element(shared, global, valid);
        });
      }
    }
  }

 private:
  NNOPS_DEVICE bool chunks() const { return kChunks || chunks_; }
  NNOPS_DEVICE bool channels_inner() const { return kChunks || channels_inner_; }

  // What stands at the k of digits_ in each of the thread's rows, and on to the next k.
  template <typename Copy>
  NNOPS_DEVICE void load_column(T* a, int k, Copy copy) {
    const int channel = channels_inner() ? digits_.d0 : digits_.d2;
    const int tap_w = channels_inner() ? digits_.d1 : digits_.d0;
    const int tap_h = channels_inner() ? digits_.d2 : digits_.d1;
    const int shift_h = digits_.d2 < radix2_ ? tap_h * gap_h_ : kNowhere;
    const int shift_w = tap_w * gap_w_;
    const T* tap = read_ + (tap_h * offset_h_ + tap_w * offset_w_ + channel * offset_c_);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool inside =
          static_cast<unsigned>(h_[i] + shift_h) < static_cast<unsigned>(limit_h_) &&
          static_cast<unsigned>(w_[i] + shift_w) < static_cast<unsigned>(limit_w_);
      copy(a + Multiply::offset_a(Shares::first_row() + i * Shares::kStep, k), tap + offset_[i],
           inside);
    }
    digits_.advance(step_, radix0_, radix1_);
  }

  const T* read_;
  int64_t offset_[kRows];
  int h_[kRows], w_[kRows];
  int limit_h_, limit_w_;
  int gap_h_, gap_w_, offset_h_, offset_w_, offset_c_;
  bool channels_inner_, chunks_;
  int radix0_, radix1_, radix2_;
  Digits digits_, step_;
};

// The tiles of B: rows of neighbouring k. kChunks: known to have chunks.
template <typename Multiply, bool kChunks>
class WeightLoader {
  using T = typename Multiply::Element;
  using Shares = RowShares<Multiply>;
  static constexpr int kRows = ceil_divide(Multiply::kTileN, Shares::kStep);

 public:
  // first: row 0 of the tile; rows: how many there are from there on.
  NNOPS_DEVICE WeightLoader(const T* first, int64_t row_stride, int rows, int terms, bool chunks)
      : first_(first + Shares::first_row() * row_stride),
        step_(row_stride * Shares::kStep),
        rows_(rows - Shares::first_row()),
        left_(terms),
        chunks_(chunks) {}

  NNOPS_DEVICE void load(T* b) {
    const int chunk = Shares::chunk();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = Shares::first_row() + i * Shares::kStep;
      if (Multiply::kTileN % Shares::kStep != 0 && row >= Multiply::kTileN) break;
      const bool exists = i * Shares::kStep < rows_;
      const T* from = first_ + i * step_;
      if (kChunks || chunks_) {
        const int k = chunk * Shares::kWidth;
        copy_chunk(b + Multiply::offset_b(row, k), from + k, exists && k < left_);
      } else {
#pragma unroll
        for (int j = 0; j < Shares::kWidth; ++j) {
          const int k = chunk + j * Shares::kChunks;
          copy_element(b + Multiply::offset_b(row, k), from + k, exists && k < left_);
        }
      }
    }
    first_ += Multiply::kTileK;
    left_ -= Multiply::kTileK;
  }

 private:
  const T* first_;
  int64_t step_;
  int rows_, left_;
  bool chunks_;
};

template <typename Multiply, typename Epilogue, bool kChunks>
__global__ void __launch_bounds__(Multiply::kThreads, Multiply::kBlocksPerMultiprocessor)
    pixel_gemm(const PixelGemm<typename Multiply::Element> p, const Epilogue epilogue) {
  using T = typename Multiply::Element;
  static_assert(Multiply::kOrder == TileOrder::kAlongK);
  NNOPS_SHARED_DYNAMIC(T, shared);

  const unsigned tile_n = blockIdx.x % p.tiles_n;
  const unsigned tile_m = blockIdx.x / p.tiles_n % p.tiles_m;
  const int part = static_cast<int>(blockIdx.x / p.tiles_n / p.tiles_m);
  const int group = part % p.pass.groups;
  PassAxis y, x;
  phase_axes(p.pass, part / p.pass.groups, &y, &x);
  const int plane = y.grid * x.grid;
  const int64_t first_pixel = int64_t{tile_m} * Multiply::kTileM;
  if (first_pixel >= p.pass.images * plane) return;  // phases have grids of different sizes
  const int first_channel = static_cast<int>(tile_n) * Multiply::kTileN;
  const int terms = y.taps * x.taps * p.pass.outer;

  Multiply tile;
  {
    PixelLoader<Multiply, kChunks> pixels(p, y, x, group, first_pixel);
    const int slot = y.slot * p.pass.slots_w + x.slot;
    const int64_t first_row = (int64_t{slot} * p.pass.groups + group) * p.pass.rows + first_channel;
    WeightLoader<Multiply, kChunks> weights(p.weights + first_row * p.weight_row, p.weight_row,
                                            p.pass.rows - first_channel, terms,
                                            p.chunks_of_weights);
    multiply_steps(tile, shared, ceil_divide(terms, Multiply::kTileK), [&](T* a, T* b) {
      pixels.load(a);
      weights.load(b);
    });
  }

  // Where the pixels of the tile go, worked out once for all channels; -1: nowhere.
  auto* places = reinterpret_cast<int64_t*>(shared);
  static_assert(Multiply::kTileM * static_cast<int>(sizeof(int64_t)) <= kTileBytes<Multiply>);
  __syncthreads();
  for (int row = static_cast<int>(threadIdx.x); row < Multiply::kTileM; row += Multiply::kThreads) {
    const int64_t first_image = first_pixel / plane;
    const unsigned pixel = static_cast<unsigned>(first_pixel % plane) + static_cast<unsigned>(row);
    const unsigned image = pixel / static_cast<unsigned>(plane);
    const unsigned place = pixel % static_cast<unsigned>(plane);
    const int h = static_cast<int>(place / static_cast<unsigned>(x.grid));
    const int w = static_cast<int>(place % static_cast<unsigned>(x.grid));
    places[row] = first_image + image < p.pass.images
                      ? (first_image + image) * p.pass.written.n +
                            int64_t{y.out_first + h * y.out_step} * p.pass.written.h +
                            int64_t{x.out_first + w * x.out_step} * p.pass.written.w
                      : -1;
  }
  __syncthreads();
  const int first_of_group = group * p.pass.rows;
  constexpr int kRun = Multiply::kRun;
  tile.for_each_run([&](int row, int column, const Vector<acc_t<T>, kRun>& sums) {
    const int64_t place = places[row];
    const int left = p.pass.rows - first_channel - column;
    if (place < 0 || left <= 0) return;
    const int channel = first_of_group + first_channel + column;
    Vector<T, kRun> results{};
#pragma unroll
    for (int v = 0; v < kRun; ++v) {
      if (v < left) results[v] = epilogue(sums[v], channel + v);
    }
    if (p.runs_of_written) {
      store_vector<kRun>(p.written + place + channel, results);
    } else {
#pragma unroll
      for (int v = 0; v < kRun; ++v) {
        if (v < left) p.written[place + (channel + v) * p.pass.written.c] = results[v];
      }
    }
  });
}

}  // namespace nnops::cuda
