// A call of one of conv2d's passes without its data, as Python describes it to the reports and to
// the table of measured winners. Nothing of it is in a call of the operators.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/conv2d.h"

namespace nnops {

struct Conv2dProblem {
  // Sizes and strides have four dimensions.
  struct Image {
    std::vector<int64_t> sizes, strides;
  };
  std::string op;               // conv2d, conv2d_backward_input or conv2d_backward_weight
  Image input, weight, output;  // the forward pass's
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  DType dtype;
};

// As the pass would derive it; ValueError or RuntimeError for what cannot be.
Conv2dGeometry geometry_of(const Conv2dProblem& problem);

}  // namespace nnops
