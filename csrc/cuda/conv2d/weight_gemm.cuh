// backward_weight of conv2d as an implicit GEMM:
//
//   grad_weight[oc m, n] = sum over pixels k of grad_output[pixel k][channel m]
//                                               * input[pixel k, shifted by n's tap][n's channel]
//
// m: output channels of a group; n: (kernel row, kernel column, input channel), the channel
// innermost; k: the output pixels of all images. Both tiles lie in shared memory with their rows
// (channels) side by side: in channels_last order chunks of 16 bytes of them are copied at once,
// in other orders element by element, neighbouring lanes taking neighbouring pixels.
//
// There are few tiles of C and many pixels, so the pixels are cut into `splits` parts of equal
// length, a block each. With one split its sums are the gradient; else they go to the workspace,
// [split][oc][n], and add_splits adds them in order. The cut depends on the geometry alone.
#pragma once

#include "cuda/conv2d/copy_tile.cuh"
#include "cuda/conv2d/digits.cuh"
#include "cuda/conv2d/pixel_pass.cuh"

namespace nnops::cuda {

// From one of a thread's pixels to the next: rows and columns of the output, and what that adds to
// the offsets in both images where no row or image ends in between.
struct PixelStep {
  Digits digits;
  int64_t output, input;
};

template <typename T>
struct WeightGemm : NarrowGeometry {
  T* grad_weight;
  const T* grad_output;
  const T* input;
  acc_t<T>* partials;  // null with one split
  int64_t split_pixels;
  int groups;
  Strides4 weight_strides;
  bool chunks_of_output, chunks_of_input;  // 16 bytes of neighbouring channels at once
  unsigned tiles_m, tiles_n;
  PixelStep output_step, input_step;  // of the loaders of the two images
  // What the end of a row adds to the offsets, and the end of an image.
  int64_t row_output, row_input, image_output, image_input;

  NNOPS_HOST_DEVICE int columns() const { return kh * kw * group_c; }

  NNOPS_HOST_DEVICE int64_t output_offset(const Digits& at) const {
    return at.d2 * output_strides.n + at.d1 * output_strides.h + at.d0 * output_strides.w;
  }
  // Of the pixel's window, but for the padding.
  NNOPS_HOST_DEVICE int64_t input_offset(const Digits& at) const {
    return at.d2 * input_strides.n + int64_t{at.d1} * stride_h * input_strides.h +
           int64_t{at.d0} * stride_w * input_strides.w;
  }

  PixelStep step_of(int pixels) const {
    const Digits digits = Digits::of(pixels, ow, oh);
    return {digits, output_offset(digits), input_offset(digits)};
  }
  void set_row_and_image_ends() {
    row_output = output_strides.h - ow * output_strides.w;
    image_output = output_strides.n - oh * output_strides.h;
    row_input = stride_h * input_strides.h - int64_t{ow} * stride_w * input_strides.w;
    image_input = input_strides.n - int64_t{oh} * stride_h * input_strides.h;
  }
};

// Where a column n of C reads, relative to a pixel, and where it is written. Outside of the columns
// h is kNowhere.
struct alignas(16) WeightColumn {
  int h, w;
  int read;   // offset in the image
  int write;  // offset in the weights of an output channel
};

template <typename T>
NNOPS_DEVICE WeightColumn weight_column(const WeightGemm<T>& p, int n) {
  if (n >= p.columns()) return {kNowhere, 0, 0, 0};
  const Digits digits = Digits::of(n, p.group_c, p.kw);
  const int h = digits.d2 * p.dilation_h;
  const int w = digits.d1 * p.dilation_w;
  return {h, w,
          static_cast<int>(h * p.input_strides.h + w * p.input_strides.w +
                           digits.d0 * p.input_strides.c),
          static_cast<int>(digits.d0 * p.weight_strides.c + digits.d2 * p.weight_strides.h +
                           digits.d1 * p.weight_strides.w)};
}

// The pixels that a thread copies, from `first` on in equal steps: where each stands in
// grad_output, and where its window begins in the input.
template <typename T>
class PixelWalk {
 public:
  struct Place {
    bool exists;
    int64_t output, input;  // offsets; the one of the input may lie outside of the image
    int h, w;               // of the window
  };

  NNOPS_DEVICE PixelWalk(const WeightGemm<T>& p, int64_t first, int64_t end)
      : at_(Digits::of(first, p.ow, p.oh)),
        output_(p.output_offset(at_)),
        input_(p.input_offset(at_) - p.pad_top * p.input_strides.h -
               p.pad_left * p.input_strides.w),
        left_(static_cast<int>(end - first)) {}

  // Where the thread is; then on to the next, `pixels` further.
  NNOPS_DEVICE Place next(const WeightGemm<T>& p, const PixelStep& step, int pixels) {
    const Place place = {left_ > 0, output_, input_, at_.d1 * p.stride_h - p.pad_top,
                         at_.d0 * p.stride_w - p.pad_left};
    left_ -= pixels;
    at_.d0 += step.digits.d0;
    at_.d1 += step.digits.d1;
    output_ += step.output;
    input_ += step.input;
    if (at_.d0 >= p.ow) {
      at_.d0 -= p.ow;
      ++at_.d1;
      output_ += p.row_output;
      input_ += p.row_input;
    }
    if (at_.d1 >= p.oh) {
      at_.d1 -= p.oh;
      output_ += p.image_output;
      input_ += p.image_input;
    }
    return place;
  }

 private:
  Digits at_;  // in the image
  int64_t output_, input_;
  int left_;
};

// Whether the input has an element for the column at the pixel.
template <typename T>
NNOPS_DEVICE bool is_inside(const WeightGemm<T>& p, const typename PixelWalk<T>::Place& place,
                            const WeightColumn& column) {
  return static_cast<unsigned>(place.h + column.h) < static_cast<unsigned>(p.h) &&
         static_cast<unsigned>(place.w + column.w) < static_cast<unsigned>(p.w);
}

// The threads' shares of a tile of kRows rows whose chunks go along the rows. By chunks: one chunk
// of rows, kPixels values of k with kPixelStep between them. By elements: one value of k, and
// kElementRows rows with kRowStep between them; the lanes of a warp have neighbouring k.
template <typename Multiply, int kRows>
struct ChannelShares {
  static constexpr int kWidth = kVectorWidth<typename Multiply::Element>;
  static constexpr int kChunks = kRows / kWidth;
  static constexpr int kPixelStep = Multiply::kThreads / kChunks;
  static constexpr int kPixels = Multiply::kTileK / kPixelStep;
  static constexpr int kRowStep = Multiply::kThreads / Multiply::kTileK;
  static constexpr int kElementRows = kRows / kRowStep;
  static_assert(kChunks * kPixelStep == Multiply::kThreads);
  static_assert(kPixels * kPixelStep == Multiply::kTileK && kPixels >= 1);
  static_assert(kRowStep * Multiply::kTileK == Multiply::kThreads);
  static_assert(kElementRows * kRowStep == kRows && kElementRows >= 1);

  static NNOPS_DEVICE int chunk_row() { return static_cast<int>(threadIdx.x) % kChunks * kWidth; }
  static NNOPS_DEVICE int element_row() { return static_cast<int>(threadIdx.x) / Multiply::kTileK; }
  static NNOPS_DEVICE int first_k(bool chunks) {
    return static_cast<int>(threadIdx.x) / kChunks * (chunks ? 1 : 0) +
           static_cast<int>(threadIdx.x) % Multiply::kTileK * (chunks ? 0 : 1);
  }
  static NNOPS_HOST_DEVICE int step(bool chunks) { return chunks ? kPixelStep : Multiply::kTileK; }
};

// Tiles of grad_output.
template <typename Multiply>
class OutputLoader {
  using T = typename Multiply::Element;
  using Shares = ChannelShares<Multiply, Multiply::kTileM>;

 public:
  NNOPS_DEVICE OutputLoader(const WeightGemm<T>& p, int group, int first_row, int64_t begin,
                            int64_t end)
      : k_(Shares::first_k(p.chunks_of_output)), walk_(p, begin + k_, end) {
    const int row = p.chunks_of_output ? Shares::chunk_row() : Shares::element_row();
    rows_ = p.group_oc - first_row - row;
    read_ = p.grad_output + (int64_t{group} * p.group_oc + first_row + row) * p.output_strides.c;
  }

  NNOPS_DEVICE void load(const WeightGemm<T>& p, T* a) {
    if (p.chunks_of_output) {
#pragma unroll
      for (int i = 0; i < Shares::kPixels; ++i) {
        const auto place = walk_.next(p, p.output_step, Shares::kPixelStep);
        copy_chunk(a + Multiply::offset_a(Shares::chunk_row(), k_ + i * Shares::kPixelStep),
                   read_ + place.output, place.exists && rows_ > 0);
      }
    } else {
      const auto place = walk_.next(p, p.output_step, Multiply::kTileK);
      const T* from = read_ + place.output;
#pragma unroll
      for (int i = 0; i < Shares::kElementRows; ++i) {
        copy_element(a + Multiply::offset_a(Shares::element_row() + i * Shares::kRowStep, k_), from,
                     place.exists && i * Shares::kRowStep < rows_);
        from += Shares::kRowStep * p.output_strides.c;
      }
    }
  }

 private:
  int k_;
  PixelWalk<T> walk_;
  int rows_;
  const T* read_;
};

// Tiles of the input, one row a column of C.
template <typename Multiply>
class InputLoader {
  using T = typename Multiply::Element;
  using Shares = ChannelShares<Multiply, Multiply::kTileN>;

 public:
  // columns: those of the tile, in shared memory.
  NNOPS_DEVICE InputLoader(const WeightGemm<T>& p, int group, const WeightColumn* columns,
                           int64_t begin, int64_t end)
      : columns_(columns),
        k_(Shares::first_k(p.chunks_of_input)),
        walk_(p, begin + k_, end),
        read_(p.input + int64_t{group} * p.group_c * p.input_strides.c) {}

  NNOPS_DEVICE void load(const WeightGemm<T>& p, T* b) {
    if (p.chunks_of_input) {
      const WeightColumn column = columns_[Shares::chunk_row()];
#pragma unroll
      for (int i = 0; i < Shares::kPixels; ++i) {
        const auto place = walk_.next(p, p.input_step, Shares::kPixelStep);
        copy_chunk(b + Multiply::offset_b(Shares::chunk_row(), k_ + i * Shares::kPixelStep),
                   read_ + (place.input + column.read),
                   place.exists && is_inside(p, place, column));
      }
    } else {
      const auto place = walk_.next(p, p.input_step, Multiply::kTileK);
#pragma unroll
      for (int i = 0; i < Shares::kElementRows; ++i) {
        const int row = Shares::element_row() + i * Shares::kRowStep;
        const WeightColumn column = columns_[row];
        copy_element(b + Multiply::offset_b(row, k_), read_ + (place.input + column.read),
                     place.exists && is_inside(p, place, column));
      }
    }
  }

 private:
  const WeightColumn* columns_;
  int k_;
  PixelWalk<T> walk_;
  const T* read_;
};

// Both tiles by elements, or each as its image allows.
template <typename Multiply>
class ImageLoaders {
  using T = typename Multiply::Element;

 public:
  NNOPS_DEVICE ImageLoaders(const WeightGemm<T>& p, int group, int first_row,
                            const WeightColumn* columns, int64_t begin, int64_t end)
      : output_(p, group, first_row, begin, end), input_(p, group, columns, begin, end) {}

  NNOPS_DEVICE void load(const WeightGemm<T>& p, T* a, T* b) {
    output_.load(p, a);
    input_.load(p, b);
  }

 private:
  OutputLoader<Multiply> output_;
  InputLoader<Multiply> input_;
};

// Both tiles by chunks: a thread copies the same pixels of both images, and walks along them once.
// That takes half of the registers.
template <typename Multiply>
class ChunkLoaders {
  using T = typename Multiply::Element;
  using Shares = ChannelShares<Multiply, Multiply::kTileM>;
  static_assert(Multiply::kTileM == Multiply::kTileN);

 public:
  NNOPS_DEVICE ChunkLoaders(const WeightGemm<T>& p, int group, int first_row,
                            const WeightColumn* columns, int64_t begin, int64_t end)
      : walk_(p, begin + Shares::first_k(true), end), column_(columns[Shares::chunk_row()]) {
    const int row = first_row + Shares::chunk_row();
    exists_ = row < p.group_oc;
    output_ = p.grad_output + (int64_t{group} * p.group_oc + row);
    input_ = p.input + (int64_t{group} * p.group_c + column_.read);
  }

  NNOPS_DEVICE void load(const WeightGemm<T>& p, T* a, T* b) {
    const int row = Shares::chunk_row();
    const int first_k = Shares::first_k(true);
#pragma unroll
    for (int i = 0; i < Shares::kPixels; ++i) {
      const auto place = walk_.next(p, p.output_step, Shares::kPixelStep);
      const int k = first_k + i * Shares::kPixelStep;
      copy_chunk(a + Multiply::offset_a(row, k), output_ + place.output, place.exists && exists_);
      copy_chunk(b + Multiply::offset_b(row, k), input_ + place.input,
                 place.exists && is_inside(p, place, column_));
    }
  }

 private:
  PixelWalk<T> walk_;
  WeightColumn column_;
  bool exists_;
  const T* output_;
  const T* input_;
};

// Loaders: of the two above.
template <typename Multiply, template <typename> class Loaders>
__global__ void __launch_bounds__(Multiply::kThreads, Multiply::kBlocksPerMultiprocessor)
    weight_gemm(const WeightGemm<typename Multiply::Element> p) {
  using T = typename Multiply::Element;
  static_assert(Multiply::kOrder == TileOrder::kAlongRows);
  NNOPS_SHARED_DYNAMIC(T, shared);
  NNOPS_SHARED(WeightColumn, columns, Multiply::kTileN);

  const int first_column = static_cast<int>(blockIdx.x % p.tiles_n) * Multiply::kTileN;
  const int first_row = static_cast<int>(blockIdx.x / p.tiles_n % p.tiles_m) * Multiply::kTileM;
  const int part = static_cast<int>(blockIdx.x / p.tiles_n / p.tiles_m);
  const int group = part % p.groups;
  const int split = part / p.groups;
  const int64_t begin = split * p.split_pixels;
  const int64_t end = smaller(begin + p.split_pixels, p.pixels);

  for (int i = static_cast<int>(threadIdx.x); i < Multiply::kTileN; i += Multiply::kThreads) {
    columns[i] = weight_column(p, first_column + i);
  }
  __syncthreads();

  Multiply tile;
  {
    Loaders<Multiply> loaders(p, group, first_row, columns, begin, end);
    const int steps = static_cast<int>(ceil_divide<int64_t>(end - begin, Multiply::kTileK));
    multiply_steps(tile, shared, steps, [&](T* a, T* b) { loaders.load(p, a, b); });
  }

  // Element by element: places of whole runs take registers that sm_75 does not have.
  constexpr int kRun = Multiply::kRun;
  tile.for_each_run([&](int row, int first, const Vector<acc_t<T>, kRun>& sums) {
#pragma unroll
    for (int v = 0; v < kRun; ++v) {
      const int column = first + v;
      if (first_row + row >= p.group_oc || columns[column].h == kNowhere) return;
      const int64_t oc = int64_t{group} * p.group_oc + first_row + row;
      if (p.partials == nullptr) {
        p.grad_weight[oc * p.weight_strides.n + columns[column].write] = from_acc<T>(sums[v]);
      } else {
        p.partials[((int64_t{split} * p.groups * p.group_oc) + oc) * p.columns() + first_column +
                   column] = sums[v];
      }
    }
  });
}

// The second stage: a block adds up 32 elements of the gradient, a warp every eighth of the splits,
// then the warps in order.
inline constexpr int kAddSplitsWarps = 8;

template <typename T>
__global__ void __launch_bounds__(kAddSplitsWarps* kWarpSize)
    add_splits(const WeightGemm<T> p, const int splits) {
  NNOPS_SHARED(acc_t<T>, sums, kAddSplitsWarps * kWarpSize);
  const int64_t size = int64_t{p.groups} * p.group_oc * p.columns();
  const int64_t i = int64_t{blockIdx.x} * kWarpSize + lane_index();
  acc_t<T> sum{0};
  if (i < size) {
#pragma unroll 4
    for (int split = warp_index(); split < splits; split += kAddSplitsWarps) {
      sum += p.partials[split * size + i];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_index() != 0 || i >= size) return;
#pragma unroll
  for (int warp = 1; warp < kAddSplitsWarps; ++warp) sum += sums[warp * kWarpSize + lane_index()];
  const int64_t oc = i / p.columns();
  const WeightColumn column = weight_column(p, static_cast<int>(i % p.columns()));
  p.grad_weight[oc * p.weight_strides.n + column.write] = from_acc<T>(sum);
}

}  // namespace nnops::cuda
