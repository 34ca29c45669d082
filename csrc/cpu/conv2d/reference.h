// conv2d by its definition, in every dtype: the readable truth, and the path of the integers.
//
// One output element at a time, terms added in the order (channel, kh, kw): floating types in
// double, integers in unsigned arithmetic that wraps around as in torch. Parallel over planes.
#pragma once

#include <type_traits>

#include "cpu/conv2d/pixel_pass.h"

NNOPS_BEGIN_KERNELS

// Integers add and multiply without sign, so that overflow wraps instead of being undefined.
template <typename T>
struct ReferenceSum {
  using type = double;
};
template <>
struct ReferenceSum<uint8_t> {
  using type = uint32_t;
};
template <>
struct ReferenceSum<int8_t> {
  using type = uint32_t;
};
template <>
struct ReferenceSum<int16_t> {
  using type = uint32_t;
};
template <>
struct ReferenceSum<int32_t> {
  using type = uint32_t;
};
template <>
struct ReferenceSum<int64_t> {
  using type = uint64_t;
};

template <typename T>
NNOPS_INLINE typename ReferenceSum<T>::type reference_term(T a, T b) {
  using sum_t = typename ReferenceSum<T>::type;
  return static_cast<sum_t>(to_acc(a)) * static_cast<sum_t>(to_acc(b));
}

template <typename T>
NNOPS_INLINE T reference_result(typename ReferenceSum<T>::type sum) {
  return from_acc<T>(static_cast<acc_t<T>>(sum));
}

template <typename T>
int64_t reference_workspace(const Conv2dGeometry&, int) {
  return 0;
}

template <typename T>
void reference_forward(void* output, const void* input, const void* weight, const void* bias,
                       const Conv2dGeometry& g, void*, int threads) {
  using sum_t = typename ReferenceSum<T>::type;
  T* y = static_cast<T*>(output);
  const T* x = static_cast<const T*>(input);
  const T* f = static_cast<const T*>(weight);
  const T* b = static_cast<const T*>(bias);
  const int64_t group_c = g.c / g.groups;
  const int64_t group_oc = g.oc / g.groups;
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < g.n * g.oc; ++plane) {
      const int64_t n = plane / g.oc;
      const int64_t oc = plane % g.oc;
      const T* image = x + n * g.input.n + (oc / group_oc) * group_c * g.input.c;
      for (int64_t oh = 0; oh < g.oh; ++oh) {
        for (int64_t ow = 0; ow < g.ow; ++ow) {
          sum_t sum = b != nullptr ? static_cast<sum_t>(to_acc(b[oc])) : sum_t{0};
          for (int64_t c = 0; c < group_c; ++c) {
            for (int64_t kh = 0; kh < g.kh; ++kh) {
              const int64_t h = oh * g.stride_h - g.pad_top + kh * g.dilation_h;
              if (h < 0 || h >= g.h) continue;
              for (int64_t kw = 0; kw < g.kw; ++kw) {
                const int64_t w = ow * g.stride_w - g.pad_left + kw * g.dilation_w;
                if (w < 0 || w >= g.w) continue;
                sum += reference_term(
                    image[c * g.input.c + h * g.input.h + w * g.input.w],
                    f[oc * g.weight.n + c * g.weight.c + kh * g.weight.h + kw * g.weight.w]);
              }
            }
          }
          y[n * g.output.n + oc * g.output.c + oh * g.output.h + ow * g.output.w] =
              reference_result<T>(sum);
        }
      }
    }
  });
}

template <typename T>
void reference_backward_input(void* grad_input, const void* grad_output, const void* weight,
                              const Conv2dGeometry& g, void*, int threads) {
  using sum_t = typename ReferenceSum<T>::type;
  T* gx = static_cast<T*>(grad_input);
  const T* gy = static_cast<const T*>(grad_output);
  const T* f = static_cast<const T*>(weight);
  const int64_t group_c = g.c / g.groups;
  const int64_t group_oc = g.oc / g.groups;
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < g.n * g.c; ++plane) {
      const int64_t n = plane / g.c;
      const int64_t c = plane % g.c;
      const int64_t first_oc = (c / group_c) * group_oc;
      for (int64_t h = 0; h < g.h; ++h) {
        for (int64_t w = 0; w < g.w; ++w) {
          sum_t sum{0};
          for (int64_t oc = first_oc; oc < first_oc + group_oc; ++oc) {
            for (int64_t kh = 0; kh < g.kh; ++kh) {
              const int64_t t = h + g.pad_top - kh * g.dilation_h;
              if (t < 0 || t % g.stride_h != 0 || t / g.stride_h >= g.oh) continue;
              for (int64_t kw = 0; kw < g.kw; ++kw) {
                const int64_t u = w + g.pad_left - kw * g.dilation_w;
                if (u < 0 || u % g.stride_w != 0 || u / g.stride_w >= g.ow) continue;
                sum += reference_term(
                    gy[n * g.output.n + oc * g.output.c + (t / g.stride_h) * g.output.h +
                       (u / g.stride_w) * g.output.w],
                    f[oc * g.weight.n + (c % group_c) * g.weight.c + kh * g.weight.h +
                      kw * g.weight.w]);
              }
            }
          }
          gx[n * g.input.n + c * g.input.c + h * g.input.h + w * g.input.w] =
              reference_result<T>(sum);
        }
      }
    }
  });
}

template <typename T>
void reference_backward_weight(void* grad_weight, const void* grad_output, const void* input,
                               const Conv2dGeometry& g, void*, int threads) {
  using sum_t = typename ReferenceSum<T>::type;
  T* gf = static_cast<T*>(grad_weight);
  const T* gy = static_cast<const T*>(grad_output);
  const T* x = static_cast<const T*>(input);
  const int64_t group_c = g.c / g.groups;
  const int64_t group_oc = g.oc / g.groups;
  in_parallel(threads, [&] {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < g.oc * group_c; ++row) {
      const int64_t oc = row / group_c;
      const int64_t c = row % group_c;
      const T* plane = x + ((oc / group_oc) * group_c + c) * g.input.c;
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        for (int64_t kw = 0; kw < g.kw; ++kw) {
          sum_t sum{0};
          for (int64_t n = 0; n < g.n; ++n) {
            for (int64_t oh = 0; oh < g.oh; ++oh) {
              const int64_t h = oh * g.stride_h - g.pad_top + kh * g.dilation_h;
              if (h < 0 || h >= g.h) continue;
              for (int64_t ow = 0; ow < g.ow; ++ow) {
                const int64_t w = ow * g.stride_w - g.pad_left + kw * g.dilation_w;
                if (w < 0 || w >= g.w) continue;
                sum += reference_term(
                    gy[n * g.output.n + oc * g.output.c + oh * g.output.h + ow * g.output.w],
                    plane[n * g.input.n + h * g.input.h + w * g.input.w]);
              }
            }
          }
          gf[oc * g.weight.n + c * g.weight.c + kh * g.weight.h + kw * g.weight.w] =
              reference_result<T>(sum);
        }
      }
    }
  });
}

template <typename T>
void reference_forward_partition(const Conv2dGeometry& g, int, const Conv2dPhaseVisitor& visitor) {
  visit_products(visitor, Schedule::kStatic, g.n * g.oc,
                 [&](int64_t) { return g.oh * g.ow * (g.c / g.groups) * g.kh * g.kw; });
}

template <typename T>
void reference_backward_input_partition(const Conv2dGeometry& g, int,
                                        const Conv2dPhaseVisitor& visitor) {
  int64_t products = 0;
  for_each_backward_pass(g, [&](const PixelPass& pass) {
    products += pass.outer * pass.y.grid * pass.y.taps * pass.x.grid * pass.x.taps;
  });
  visit_products(visitor, Schedule::kStatic, g.n * g.c, [&](int64_t) { return products; });
}

template <typename T>
void reference_backward_weight_partition(const Conv2dGeometry& g, int,
                                         const Conv2dPhaseVisitor& visitor) {
  visit_products(visitor, Schedule::kStatic, g.oc * (g.c / g.groups),
                 [&](int64_t) { return g.n * g.oh * g.ow * g.kh * g.kw; });
}

NNOPS_END_KERNELS
