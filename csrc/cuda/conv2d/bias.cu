// Launches of the gradient of the bias.
#include "cuda/conv2d/bias.cuh"

#include "core/cuda.h"
#include "ops/conv2d.h"

namespace nnops::cuda {
namespace {

template <typename T>
void backward_bias(void* grad_bias, const void* grad_output, const Conv2dGeometry& g, int) {
  T* gb = static_cast<T*>(grad_bias);
  const T* gy = static_cast<const T*>(grad_output);
  if constexpr (kIsFloating<T>) {
    BackwardBias<T> p{};
    p.grad_output = gy;
    p.pixels = g.n * g.oh * g.ow;
    p.channels = g.oc;
    p.oh = static_cast<int>(larger<int64_t>(g.oh, 1));  // empty images have no digits to divide by
    p.ow = static_cast<int>(larger<int64_t>(g.ow, 1));
    p.strides = g.output;
    const bool along_channels = g.output.c == 1 && g.oc > 1;
    const int64_t parts = ceil_divide<int64_t>(
        p.pixels, along_channels ? kBiasPixelsAlongChannels : kBiasPixelsAlongPixels);
    p.partials =
        static_cast<acc_t<T>*>(cuda_scratch(parts * g.oc * static_cast<int64_t>(sizeof(acc_t<T>))));
    if (parts > 0 && along_channels) {
      NNOPS_LAUNCH((bias_along_channels<T>),
                   static_cast<unsigned>(parts * ceil_divide<int64_t>(g.oc, kWarpSize)),
                   kBiasThreads, 0, p);
    } else if (parts > 0) {
      NNOPS_LAUNCH((bias_along_pixels<T>), static_cast<unsigned>(parts * g.oc), kBiasThreads, 0, p);
    }
    if (g.oc == 0) return;
    NNOPS_LAUNCH((add_bias_partials<T>),
                 static_cast<unsigned>(ceil_divide<int64_t>(g.oc, kBiasWarps)), kBiasThreads, 0, gb,
                 p.partials, g.oc, parts);
  } else if (g.oc > 0) {
    NNOPS_LAUNCH((integer_bias<T>), static_cast<unsigned>(g.oc), kBiasThreads, 0, gb, gy, g);
  }
}

}  // namespace

extern const Conv2dBiasKernels conv2d_bias_kernels = {NNOPS_ALL_DTYPES(backward_bias)};

}  // namespace nnops::cuda
