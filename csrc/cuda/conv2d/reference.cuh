// conv2d by its definition, in every dtype: the readable truth, the path of the integers and of
// problems too large for the other algorithms' indices.
//
// One thread an element of the result, all indices 64-bit, terms added in the order (channel, kh,
// kw), in backward_weight (n, oh, ow): floating types in double, integers in unsigned arithmetic
// that wraps around as in torch.
#pragma once

#include "cuda/numbers.cuh"
#include "ops/conv2d.h"

namespace nnops::cuda {

template <typename T>
using reference_sum_t = std::conditional_t<kIsFloating<T>, double,
                                           std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>>;

template <typename T>
NNOPS_DEVICE reference_sum_t<T> reference_value(T value) {
  return static_cast<reference_sum_t<T>>(to_acc(value));
}
template <typename T>
NNOPS_DEVICE T reference_result(reference_sum_t<T> sum) {
  return from_acc<T>(static_cast<acc_t<T>>(sum));
}

// Where an element of a tensor of C x H x W elements an image stands; index in the order n, c, h,
// w.
struct ReferencePlace {
  int64_t n, c, h, w;
  static NNOPS_DEVICE ReferencePlace of(int64_t index, int64_t channels, int64_t height,
                                        int64_t width) {
    return {index / width / height / channels, index / width / height % channels,
            index / width % height, index % width};
  }
};
NNOPS_DEVICE int64_t offset_of(const Strides4& strides, int64_t n, int64_t c, int64_t h,
                               int64_t w) {
  return n * strides.n + c * strides.c + h * strides.h + w * strides.w;
}

inline constexpr int kReferenceThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kReferenceThreads)
    reference_forward_kernel(T* output, const T* input, const T* weight, const T* bias,
                             const Conv2dGeometry g) {
  const int64_t group_c = g.c / g.groups;
  const int64_t group_oc = g.oc / g.groups;
  for_grid_stride(g.n * g.oc * g.oh * g.ow, [&](int64_t index) {
    const auto [n, oc, oh, ow] = ReferencePlace::of(index, g.oc, g.oh, g.ow);
    const int64_t first_c = oc / group_oc * group_c;
    auto sum = bias != nullptr ? reference_value(bias[oc]) : reference_sum_t<T>{0};
    for (int64_t c = 0; c < group_c; ++c) {
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const int64_t h = oh * g.stride_h - g.pad_top + kh * g.dilation_h;
        if (h < 0 || h >= g.h) continue;
        for (int64_t kw = 0; kw < g.kw; ++kw) {
          const int64_t w = ow * g.stride_w - g.pad_left + kw * g.dilation_w;
          if (w < 0 || w >= g.w) continue;
          sum += reference_value(input[offset_of(g.input, n, first_c + c, h, w)]) *
                 reference_value(weight[offset_of(g.weight, oc, c, kh, kw)]);
        }
      }
    }
    output[offset_of(g.output, n, oc, oh, ow)] = reference_result<T>(sum);
  });
}

template <typename T>
__global__ void __launch_bounds__(kReferenceThreads)
    reference_backward_input_kernel(T* grad_input, const T* grad_output, const T* weight,
                                    const Conv2dGeometry g) {
  const int64_t group_c = g.c / g.groups;
  const int64_t group_oc = g.oc / g.groups;
  for_grid_stride(g.n * g.c * g.h * g.w, [&](int64_t index) {
    const auto [n, c, h, w] = ReferencePlace::of(index, g.c, g.h, g.w);
    const int64_t first_oc = c / group_c * group_oc;
    reference_sum_t<T> sum{0};
    for (int64_t oc = first_oc; oc < first_oc + group_oc; ++oc) {
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const int64_t t = h + g.pad_top - kh * g.dilation_h;
        if (t < 0 || t % g.stride_h != 0 || t / g.stride_h >= g.oh) continue;
        for (int64_t kw = 0; kw < g.kw; ++kw) {
          const int64_t u = w + g.pad_left - kw * g.dilation_w;
          if (u < 0 || u % g.stride_w != 0 || u / g.stride_w >= g.ow) continue;
          sum += reference_value(
                     grad_output[offset_of(g.output, n, oc, t / g.stride_h, u / g.stride_w)]) *
                 reference_value(weight[offset_of(g.weight, oc, c % group_c, kh, kw)]);
        }
      }
    }
    grad_input[offset_of(g.input, n, c, h, w)] = reference_result<T>(sum);
  });
}

template <typename T>
__global__ void __launch_bounds__(kReferenceThreads)
    reference_backward_weight_kernel(T* grad_weight, const T* grad_output, const T* input,
                                     const Conv2dGeometry g) {
  const int64_t group_c = g.c / g.groups;
  const int64_t group_oc = g.oc / g.groups;
  for_grid_stride(g.oc * group_c * g.kh * g.kw, [&](int64_t index) {
    const auto [oc, c, kh, kw] = ReferencePlace::of(index, group_c, g.kh, g.kw);
    const int64_t image_c = oc / group_oc * group_c + c;
    reference_sum_t<T> sum{0};
    for (int64_t n = 0; n < g.n; ++n) {
      for (int64_t oh = 0; oh < g.oh; ++oh) {
        const int64_t h = oh * g.stride_h - g.pad_top + kh * g.dilation_h;
        if (h < 0 || h >= g.h) continue;
        for (int64_t ow = 0; ow < g.ow; ++ow) {
          const int64_t w = ow * g.stride_w - g.pad_left + kw * g.dilation_w;
          if (w < 0 || w >= g.w) continue;
          sum += reference_value(grad_output[offset_of(g.output, n, oc, oh, ow)]) *
                 reference_value(input[offset_of(g.input, n, image_c, h, w)]);
        }
      }
    }
    grad_weight[offset_of(g.weight, oc, c, kh, kw)] = reference_result<T>(sum);
  });
}

}  // namespace nnops::cuda
