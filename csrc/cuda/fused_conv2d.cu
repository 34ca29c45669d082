// conv2d with a ReLU and a max-pool behind it, on CUDA: see ops/fused_conv2d.h.
//
// The operators' own kernels run one behind the other, on some images at a time: so many that the
// convolution's output stays in the device's L2 cache (40 MB on sm_80, 50 MB on sm_90).
#include "cuda/elementwise.cuh"
#include "ops/fused_conv2d.h"

namespace nnops::cuda {
namespace {

constexpr int64_t kPieceBytes = 24 << 20;

// Where the ReLU let nothing pass, no gradient comes back.
template <typename T>
struct MarkDead : MapOperation<uint8_t> {
  using typename MapOperation<uint8_t>::Nothing;
  const uint8_t* offsets;  // may be the output
  const T* pooled;

  template <int N>
  struct Operands {
    Vector<uint8_t, N> offsets;
    bool dead[N];
  };
  template <int N>
  NNOPS_DEVICE Operands<N> load(int64_t i) const {
    Operands<N> operands;
    operands.offsets = load_vector<N>(offsets + i);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) operands.dead[lane] = to_acc(pooled[i + lane]) <= 0;
    return operands;
  }
  template <int N>
  NNOPS_DEVICE uint8_t value(const Operands<N>& operands, int lane, Nothing) const {
    return operands.dead[lane] ? kNoOffset : operands.offsets[lane];
  }
};

template <typename T>
int64_t map_bytes(const FusedConv2dGeometry& g, int64_t images) {
  const int64_t bytes =
      images * g.conv.oc * g.conv.oh * g.conv.ow * static_cast<int64_t>(sizeof(T));
  return (bytes + 255) / 256 * 256;
}

template <typename T>
int64_t piece_images(const FusedConv2dGeometry& g) {
  if (!g.pools) return g.conv.n;
  const int64_t fitting = kPieceBytes / map_bytes<T>(g, 1);
  return fitting < 1 ? 1 : fitting < g.conv.n ? fitting : g.conv.n;
}

template <typename T>
int64_t fused_workspace(const FusedConv2dCall& call, int threads) {
  Conv2dGeometry piece = call.g.conv;
  piece.n = piece_images<T>(call.g);
  const int64_t conv = call.conv_workspace != nullptr ? call.conv_workspace(piece, threads) : 0;
  return conv + (call.g.pools ? map_bytes<T>(call.g, piece.n) : 0);
}

template <typename T>
void fused_run(const FusedConv2dCall& call, void* workspace, int threads) {
  const FusedConv2dGeometry& g = call.g;
  const int64_t images = piece_images<T>(g);
  T* map = static_cast<T*>(workspace);
  void* conv_workspace = static_cast<char*>(workspace) + (g.pools ? map_bytes<T>(g, images) : 0);
  for (int64_t first = 0; first < g.conv.n; first += images) {
    Conv2dGeometry conv = g.conv;
    conv.n = images < g.conv.n - first ? images : g.conv.n - first;
    T* output = static_cast<T*>(call.output);
    T* convolved = g.pools ? map : output + first * conv.output.n;
    call.conv(convolved, static_cast<const T*>(call.input) + first * conv.input.n, call.weight,
              call.bias, conv, conv_workspace, threads);
    const int64_t size = conv.n * conv.oc * conv.oh * conv.ow;
    if (g.relu) call.relu(convolved, convolved, size, threads);
    if (!g.pools) continue;
    Pool2dGeometry pool = g.pool;
    pool.n = conv.n;
    const int64_t place = first * pool.output_strides[0];
    uint8_t* offsets = call.offsets != nullptr ? call.offsets + place : nullptr;
    call.pool(output + place, offsets, map, pool, threads);
    if (offsets == nullptr || !g.relu) continue;
    MarkDead<T> operation;
    operation.output = offsets;
    operation.offsets = offsets;
    operation.pooled = output + place;
    launch_map(operation, pool.n * pool.c * pool.oh * pool.ow, are_aligned(offsets));
  }
}

}  // namespace

extern const FusedConv2dKernels fused_conv2d_kernels = {NNOPS_ALL_DTYPES(fused_workspace),
                                                        NNOPS_ALL_DTYPES(fused_run)};

}  // namespace nnops::cuda
