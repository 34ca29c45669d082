// When Winograd's forms F(m x m, r x r) compute conv2d on the CPU: what they can, and when they
// cost less than a direct sum.
#pragma once

#include <string>

#include "core/dtype.h"
#include "ops/conv2d.h"

namespace nnops {

// Of m + r - 1 points an axis.
struct WinogradForm {
  int64_t outputs, taps;
  int64_t points() const { return outputs + taps - 1; }
};
inline constexpr WinogradForm k2x2Of3x3{2, 3};
inline constexpr WinogradForm k2x2Of5x5{2, 5};
inline constexpr WinogradForm k4x4Of3x3{4, 3};

// "", or the reason why the form cannot compute the pass, and why it is not likely to be faster.
std::string winograd_forward_supports(const WinogradForm& form, const Conv2dGeometry& g,
                                      DType dtype);
std::string winograd_forward_pays(const WinogradForm& form, const Conv2dGeometry& g, DType dtype);
std::string winograd_backward_input_supports(const WinogradForm& form, const Conv2dGeometry& g,
                                             DType dtype);
std::string winograd_backward_input_pays(const WinogradForm& form, const Conv2dGeometry& g,
                                         DType dtype);
std::string winograd_backward_weight_supports(const WinogradForm& form, const Conv2dGeometry& g,
                                              DType dtype);
std::string winograd_backward_weight_pays(const WinogradForm& form, const Conv2dGeometry& g,
                                          DType dtype);

// "", or the reason why the precision does not allow forms of six points.
std::string six_points_allowed(const Conv2dGeometry& g, DType dtype);

}  // namespace nnops
