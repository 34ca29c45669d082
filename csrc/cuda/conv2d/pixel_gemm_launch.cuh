// Prepares and launches the implicit GEMM of forward and backward_input, for any multiply stage.
#pragma once

#include "cuda/conv2d/pack_weights.cuh"
#include "cuda/conv2d/pixel_gemm.cuh"

namespace nnops::cuda {

// Whether channels are the innermost digit of k.
inline bool channels_are_inner(const PixelPass& pass) { return pass.read.c == 1; }

// Whether the weights already lie in the order of k. Strides along which there is one element do
// not matter.
inline bool weights_are_in_order(const PixelPass& pass) {
  if (pass.backward()) return false;
  const auto is = [](int64_t stride, int64_t expected, int size) {
    return size == 1 || stride == expected;
  };
  const int64_t inner = channels_are_inner(pass) ? pass.outer : 1;
  return is(pass.weight_outer, inner == 1 ? int64_t{pass.y.taps} * pass.x.taps : 1, pass.outer) &&
         is(pass.weight_w, inner, pass.x.taps) &&
         is(pass.weight_h, inner * pass.x.taps, pass.y.taps);
}

template <typename T>
int packed_row_length(const PixelPass& pass) {
  return ceil_divide(pass.most_taps() * pass.outer, kVectorWidth<T>) * kVectorWidth<T>;
}

// kTf32: the weights are packed in any case, to be rounded.
template <typename T, bool kTf32 = false>
int64_t pixel_gemm_workspace(const PixelPass& pass) {
  if (!kTf32 && weights_are_in_order(pass)) return 0;
  return int64_t{pass.slots()} * pass.groups * pass.rows * packed_row_length<T>(pass) *
         static_cast<int64_t>(sizeof(T));
}

// Blocks of a launch with tiles of this size; pixel_gemm has one block for each.
inline int64_t pixel_gemm_blocks(const PixelPass& pass, int tile_m, int tile_n) {
  const int64_t pixels = pass.images * pass.y.grid * pass.x.grid;
  return ceil_divide<int64_t>(pixels, tile_m) * ceil_divide(pass.rows, tile_n) * pass.groups *
         pass.phases();
}

// Everything but the tiles; the weights are packed if they have to be.
template <bool kTf32 = false, typename T>
PixelGemm<T> prepare_pixel_gemm(T* written, const T* read, const T* weight, const PixelPass& pass,
                                void* workspace) {
  constexpr int kWidth = kVectorWidth<T>;
  PixelGemm<T> gemm{};
  gemm.pass = pass;
  gemm.written = written;
  gemm.read = read;
  gemm.channels_inner = channels_are_inner(pass);
  gemm.chunks_of_image = has_runs<kWidth>(read, pass.images, pass.read, pass.outer);
  if (!kTf32 && weights_are_in_order(pass)) {
    gemm.weights = weight;
    gemm.weight_row = pass.weight_row;
    gemm.chunks_of_weights = are_aligned(weight) && pass.weight_row % kWidth == 0 &&
                             int64_t{pass.most_taps()} * pass.outer % kWidth == 0;
  } else {
    PackWeights<T> pack{};
    pack.pass = pass;
    pack.weight = weight;
    pack.packed = static_cast<T*>(workspace);
    pack.row_length = packed_row_length<T>(pass);
    pack.channels_inner = gemm.channels_inner;
    pack.tiles_n = static_cast<unsigned>(ceil_divide(pass.rows, kPackTile));
    pack.tiles_k = static_cast<unsigned>(ceil_divide(pack.row_length, kPackTile));
    const unsigned parts = static_cast<unsigned>(pass.slots()) * static_cast<unsigned>(pass.groups);
    NNOPS_LAUNCH((pack_weights<T, kTf32>), parts * pack.tiles_n * pack.tiles_k,
                 kPackTile * kPackRows, 0, pack);
    gemm.weights = pack.packed;
    gemm.weight_row = pack.row_length;
    gemm.chunks_of_weights = true;
  }
  return gemm;
}

// kChunks: chunks_of_image and chunks_of_weights are true, in a kernel of its own.
template <typename Multiply, bool kChunks, typename Epilogue>
void launch_pixel_gemm(PixelGemm<typename Multiply::Element> gemm, const Epilogue& epilogue) {
  const PixelPass& pass = gemm.pass;
  gemm.runs_of_written =
      has_runs<Multiply::kRun>(gemm.written, pass.images, pass.written, pass.rows);
  const int64_t pixels = pass.images * pass.y.grid * pass.x.grid;
  gemm.tiles_m = static_cast<unsigned>(ceil_divide<int64_t>(pixels, Multiply::kTileM));
  gemm.tiles_n = static_cast<unsigned>(ceil_divide(pass.rows, Multiply::kTileN));
  NNOPS_LAUNCH((pixel_gemm<Multiply, Epilogue, kChunks>),
               static_cast<unsigned>(pixel_gemm_blocks(pass, Multiply::kTileM, Multiply::kTileN)),
               Multiply::kThreads, kTileBytes<Multiply>, gemm, epilogue);
}

}  // namespace nnops::cuda
