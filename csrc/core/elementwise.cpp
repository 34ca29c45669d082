#include "core/elementwise.h"

#include <algorithm>
#include <array>
#include <utility>

namespace nnops {
namespace {

// Positive where dimension `a` must lie further out in memory than `b`, negative where further in,
// 0 where the operands do not say.
int compare_dimensions(const std::array<Sizes, 2>& operands, Sizes sizes, size_t a, size_t b) {
  for (const Sizes& strides : operands) {
    if (strides[a] == 0 || strides[b] == 0) continue;
    if (strides[a] != strides[b]) return strides[a] < strides[b] ? -1 : 1;
    if (sizes[a] > sizes[b]) return 1;
  }
  return 0;
}

}  // namespace

std::vector<int64_t> elementwise_strides(const Tensor& first, const Tensor& second) {
  const Sizes sizes = first.sizes();
  const std::array<Sizes, 2> operands = {first.strides(), second.strides()};
  // Innermost dimension first. An insertion sort that looks past dimensions of which the operands
  // say nothing: such a comparison is no order, so no library sort would do.
  std::vector<size_t> order(sizes.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
  for (size_t i = 1; i < order.size(); ++i) {
    size_t moving = i;
    for (size_t j = i; j-- > 0;) {
      const int comparison = compare_dimensions(operands, sizes, order[j], order[moving]);
      if (comparison < 0) break;
      if (comparison > 0) {
        std::swap(order[j], order[moving]);
        moving = j;
      }
    }
  }
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (const size_t dimension : order) {
    strides[dimension] = stride;
    stride *= std::max<int64_t>(sizes[dimension], 1);
  }
  return strides;
}

bool is_single_value(const Tensor& tensor) {
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && strides[i] != 0) return false;
  }
  return true;
}

}  // namespace nnops
