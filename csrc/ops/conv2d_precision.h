// How exact conv2d's sums must be, for the choice of its algorithms.
#pragma once

#include <cstdint>
#include <string>

namespace nnops {

// kHighest: algorithms whose error is that of a direct sum. kHigh: also Winograd's forms of six
// points, within the bound that nnops/precision.py states. kDefault: as the process has it set.
enum class ConvPrecision : int64_t { kDefault = 0, kHighest = 1, kHigh = 2 };

// Of the process, never kDefault; kHigh at the start, or as NNOPS_CONV_PRECISION says.
ConvPrecision conv_precision();
// "highest" or "high"; ValueError for another name.
void set_conv_precision(const std::string& name);
const char* precision_name(ConvPrecision precision);

}  // namespace nnops
