// Launches of the direct kernels.
#include "cuda/conv2d/direct.cuh"

#include "cuda/conv2d/direct_weight.cuh"
#include "cuda/conv2d/launchers.h"

namespace nnops::cuda {
namespace {

// Lanes go along channels where these are neighbours in memory.
bool channels_are_inner(const PixelPass& pass) {
  return pass.written.c == 1 && pass.groups * pass.rows > 1 &&
         (pass.groups == 1 || pass.read.c == 1);
}
bool channels_are_inner(const Conv2dGeometry& g) {
  return g.input.c == 1 && g.output.c == 1 && g.groups > 1;
}

template <typename T>
int64_t workspace_bytes(const PixelPass& pass, const Conv2dGeometry& g) {
  if (!channels_are_inner(pass)) return 0;
  return int64_t{pass.groups} * pass.rows * pass.outer * g.kh * g.kw *
         static_cast<int64_t>(sizeof(T));
}

template <typename T>
void run(T* written, const T* read, const T* weight, const PixelPass& pass, const Conv2dGeometry& g,
         void* workspace, const AddBias<T>& epilogue) {
  constexpr int kWidth = kVectorWidth<T>;
  DirectPass<T> p{};
  p.pass = pass;
  p.written = written;
  p.read = read;
  p.weights = weight;
  p.channels_inner = channels_are_inner(pass);
  p.kh = static_cast<int>(g.kh);
  p.kw = static_cast<int>(g.kw);
  p.strips = ceil_divide(pass.y.grid, kDirectStrip);
  if (p.channels_inner) {
    T* gathered = static_cast<T*>(workspace);
    NNOPS_LAUNCH((direct_weights<T>),
                 grid_stride_blocks(workspace_bytes<T>(pass, g) / static_cast<int64_t>(sizeof(T)),
                                    kDirectThreads),
                 kDirectThreads, 0, gathered, weight, pass, p.kh, p.kw);
    p.weights = gathered;
  }
  const auto has_vectors = [&](const T* image, const Strides4& strides) {
    return are_aligned(image) && (pass.images == 1 || strides.n % kWidth == 0) &&
           strides.h % kWidth == 0 && strides.w % kWidth == 0;
  };
  const int channels = pass.groups * pass.rows;
  const bool vectors = p.channels_inner && pass.rows == 1 && pass.outer == 1 &&
                       channels % kWidth == 0 && has_vectors(written, pass.written) &&
                       has_vectors(read, pass.read);
  const auto launch = [&]<int kVector, int kTaps>() {
    const int64_t threads = int64_t{channels / kVector} * p.strips * pass.x.grid;
    p.blocks = static_cast<unsigned>(ceil_divide<int64_t>(threads, kDirectThreads));
    NNOPS_LAUNCH((direct_pass<T, kVector, kTaps>),
                 static_cast<unsigned>(p.blocks * pass.images * pass.phases()), kDirectThreads, 0,
                 p, epilogue);
  };
  // The rows of the phases of a strided backward_input differ in number.
  const bool three = pass.phases() == 1 && pass.y.taps == 3 && pass.y.step == 1 && pass.y.gap == 1;
  if (vectors) {
    three ? launch.template operator()<kWidth, 3>() : launch.template operator()<kWidth, 0>();
  } else {
    three ? launch.template operator()<1, 3>() : launch.template operator()<1, 0>();
  }
}

template <typename T, bool kAlongRows>
void run_weight(T* grad_weight, DirectWeight<T> p, const Conv2dGeometry& g, int64_t parts) {
  p.tiles = static_cast<unsigned>(kAlongRows ? ceil_divide(p.rows, kWarpSize) : p.rows);
  p.chunks = static_cast<unsigned>(ceil_divide(p.taps(), kTapChunk));
  const auto blocks = static_cast<unsigned>(parts * p.tiles * p.chunks);
  if (p.kh == 3 && p.kw == 3) {
    NNOPS_LAUNCH((direct_weight_partials<T, kAlongRows, true>), blocks, kDirectWeightThreads, 0, p);
  } else {
    NNOPS_LAUNCH((direct_weight_partials<T, kAlongRows, false>), blocks, kDirectWeightThreads, 0,
                 p);
  }
  NNOPS_LAUNCH(
      (add_direct_partials<T>),
      static_cast<unsigned>(ceil_divide<int64_t>(int64_t{p.rows} * p.taps(), kDirectWeightWarps)),
      kDirectWeightThreads, 0, grad_weight, g.weight, p, parts);
}

int64_t weight_parts(const Conv2dGeometry& g) {
  return ceil_divide<int64_t>(g.n * g.oh * g.ow, channels_are_inner(g)
                                                     ? kDirectWeightPixels<true>
                                                     : kDirectWeightPixels<false>);
}

}  // namespace

template <typename T>
int64_t direct_forward_workspace(const Conv2dGeometry& g, int) {
  return workspace_bytes<T>(forward_pass(g), g);
}
template <typename T>
int64_t direct_backward_input_workspace(const Conv2dGeometry& g, int) {
  return workspace_bytes<T>(backward_pass(g), g);
}
template <typename T>
int64_t direct_backward_weight_workspace(const Conv2dGeometry& g, int) {
  return weight_parts(g) * g.oc * (g.c / g.groups) * g.kh * g.kw *
         static_cast<int64_t>(sizeof(acc_t<T>));
}

template <typename T>
void direct_forward(void* output, const void* input, const void* weight, const void* bias,
                    const Conv2dGeometry& g, void* workspace, int) {
  run(static_cast<T*>(output), static_cast<const T*>(input), static_cast<const T*>(weight),
      forward_pass(g), g, workspace, AddBias<T>{static_cast<const T*>(bias)});
}

template <typename T>
void direct_backward_input(void* grad_input, const void* grad_output, const void* weight,
                           const Conv2dGeometry& g, void* workspace, int) {
  run(static_cast<T*>(grad_input), static_cast<const T*>(grad_output),
      static_cast<const T*>(weight), backward_pass(g), g, workspace, AddBias<T>{nullptr});
}

template <typename T>
void direct_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                            const Conv2dGeometry& g, void* workspace, int) {
  DirectWeight<T> p{};
  static_cast<NarrowGeometry&>(p) = narrow_geometry(g);
  p.grad_output = static_cast<const T*>(grad_output);
  p.input = static_cast<const T*>(input);
  p.partials = static_cast<acc_t<T>*>(workspace);
  p.rows = static_cast<int>(g.oc) * p.group_c;
  T* to = static_cast<T*>(grad_weight);
  if (channels_are_inner(g)) {
    run_weight<T, true>(to, p, g, weight_parts(g));
  } else {
    run_weight<T, false>(to, p, g, weight_parts(g));
  }
}

#define NNOPS_INSTANTIATE(T)                                                                      \
  template int64_t direct_forward_workspace<T>(const Conv2dGeometry&, int);                       \
  template int64_t direct_backward_input_workspace<T>(const Conv2dGeometry&, int);                \
  template int64_t direct_backward_weight_workspace<T>(const Conv2dGeometry&, int);               \
  template void direct_forward<T>(void*, const void*, const void*, const void*,                   \
                                  const Conv2dGeometry&, void*, int);                             \
  template void direct_backward_input<T>(void*, const void*, const void*, const Conv2dGeometry&,  \
                                         void*, int);                                             \
  template void direct_backward_weight<T>(void*, const void*, const void*, const Conv2dGeometry&, \
                                          void*, int);
NNOPS_INSTANTIATE(float)
NNOPS_INSTANTIATE(double)
NNOPS_INSTANTIATE(bfloat16)
NNOPS_INSTANTIATE(float16)
#undef NNOPS_INSTANTIATE

}  // namespace nnops::cuda
