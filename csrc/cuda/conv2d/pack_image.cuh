// An image in channels_last order for the tensor cores, which take chunks of 16 bytes of
// neighbouring channels: [image][row][column][channel], packed.
//
// What is gained in the GEMM, where each element is read once for each tap and tile, is far more
// than one pass over the image costs. A block moves 32 channels x 64 pixels through shared memory,
// reading along the pixels and writing along the channels. For TF32 the elements are rounded on the
// way, and an image that lies in that order already is copied for that reason alone.
#pragma once

#include "cuda/conv2d/pixel_pass.cuh"
#include "cuda/conv2d/tf32.cuh"
#include "cuda/elementwise.cuh"

namespace nnops::cuda {

inline constexpr int kImageTileChannels = 32;
inline constexpr int kImageTilePixels = 64;
inline constexpr int kImageRows = 8;  // of threads
inline constexpr int64_t kImageAlignment = 256;

template <typename T>
struct PackedImage {
  int64_t images, channels, h, w;

  int64_t bytes() const {
    const int64_t size = images * channels * h * w * static_cast<int64_t>(sizeof(T));
    return ceil_divide(size, kImageAlignment) * kImageAlignment;
  }
  Strides4 strides() const { return {h * w * channels, 1, w * channels, channels}; }
  // `pass`, reading the packed image.
  PixelPass pass_of(PixelPass pass) const {
    pass.read = strides();
    return pass;
  }
};

// Whether to pack an image: its channels are not neighbours, there are enough of them for chunks,
// and `reads`, how often the GEMM reads each element, pays for the pass. Elements of 16 bits always
// do: no asynchronous copy is as small. Depends on the geometry of one image alone, as the order of
// the sums follows from it.
template <typename T>
bool wants_packing(const Strides4& strides, int64_t group_channels, int64_t reads) {
  return strides.c != 1 && group_channels % kVectorWidth<T> == 0 && (sizeof(T) == 2 || reads > 1);
}

template <typename T>
struct PackImage {
  const T* image;
  T* packed;
  Strides4 strides;  // of the image
  int channels, h, w;
  unsigned tiles_c, tiles_p;
};

template <typename T>
__global__ void __launch_bounds__(kWarpSize* kImageRows) pack_image(const PackImage<T> p) {
  NNOPS_SHARED(T, tile, kImageTilePixels * (kImageTileChannels + 1));
  const int lane = lane_index();
  const int first_c = static_cast<int>(blockIdx.x % p.tiles_c) * kImageTileChannels;
  const int first_p = static_cast<int>(blockIdx.x / p.tiles_c % p.tiles_p) * kImageTilePixels;
  const int64_t image = blockIdx.x / p.tiles_c / p.tiles_p;
  const int pixels = p.h * p.w;
#pragma unroll
  for (int half = 0; half < kImageTilePixels; half += kWarpSize) {
    const int pixel = first_p + half + lane;
    const T* from = p.image + image * p.strides.n + int64_t{pixel / p.w} * p.strides.h +
                    int64_t{pixel % p.w} * p.strides.w;
#pragma unroll
    for (int j = 0; j < kImageTileChannels; j += kImageRows) {
      const int c = j + warp_index();
      T value{};
      if (pixel < pixels && first_c + c < p.channels) value = from[(first_c + c) * p.strides.c];
      if constexpr (kIsTf32<T>) value = rounded_to_tf32(value);
      tile[(half + lane) * (kImageTileChannels + 1) + c] = value;
    }
  }
  __syncthreads();
  const int channel = first_c + lane;
  if (channel >= p.channels) return;
#pragma unroll
  for (int j = 0; j < kImageTilePixels; j += kImageRows) {
    const int pixel = j + warp_index();
    if (first_p + pixel < pixels) {
      p.packed[(image * pixels + first_p + pixel) * p.channels + channel] =
          tile[pixel * (kImageTileChannels + 1) + lane];
    }
  }
}

struct RoundToTf32 : MapOperation<float> {
  using typename MapOperation<float>::Nothing;
  const float* input;

  template <int N>
  using Operands = Vector<float, N>;
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    return load_vector<N>(input + i);
  }
  template <typename Loaded>
  NNOPS_DEVICE float value(const Loaded& loaded, int lane, Nothing) const {
    return rounded_to_tf32(loaded[lane]);
  }
};

template <typename T>
void launch_pack_image(const PackedImage<T>& packed, const T* image, const Strides4& strides,
                       void* workspace) {
  if constexpr (kIsTf32<T>) {
    const Strides4 own = packed.strides();
    const bool in_order = strides.c == own.c && strides.w == own.w && strides.h == own.h &&
                          (packed.images == 1 || strides.n == own.n);
    if (in_order) {
      RoundToTf32 operation;
      operation.input = image;
      operation.output = static_cast<float*>(workspace);
      launch_map(operation, packed.images * packed.channels * packed.h * packed.w,
                 are_aligned(image, operation.output));
      return;
    }
  }
  PackImage<T> p{};
  p.image = image;
  p.packed = static_cast<T*>(workspace);
  p.strides = strides;
  p.channels = static_cast<int>(packed.channels);
  p.h = static_cast<int>(packed.h);
  p.w = static_cast<int>(packed.w);
  p.tiles_c = static_cast<unsigned>(ceil_divide<int64_t>(packed.channels, kImageTileChannels));
  p.tiles_p = static_cast<unsigned>(ceil_divide<int64_t>(packed.h * packed.w, kImageTilePixels));
  const int64_t blocks = packed.images * p.tiles_c * p.tiles_p;
  if (blocks == 0) return;
  NNOPS_LAUNCH((pack_image<T>), static_cast<unsigned>(blocks), kWarpSize * kImageRows, 0, p);
}

}  // namespace nnops::cuda
