// How exact conv2d's sums must be, for the choice of its algorithms.
#pragma once

#include <cstdint>
#include <string>

namespace nnops {

// kHighest: algorithms whose error is that of a direct sum. kHigh: also Winograd's forms of six
// points, within the bound that nnops/precision.py states. kDefault: as the process has it set.
enum class ConvPrecision : int64_t { kDefault = 0, kHighest = 1, kHigh = 2 };

// What holds on the calling thread, never kDefault: that of the innermost scope that says one, or
// else the process's, which is kHigh at the start, or as NNOPS_CONV_PRECISION says.
ConvPrecision conv_precision();
// "highest" or "high"; ValueError for another name.
void set_conv_precision(const std::string& name);
const char* precision_name(ConvPrecision precision);

// For one call of an operator, whose argument `precision` is one of the enum's numbers;
// RuntimeError for another one.
class ConvPrecisionScope {
 public:
  ConvPrecisionScope(const char* op, int64_t precision);
  ~ConvPrecisionScope();
  ConvPrecisionScope(const ConvPrecisionScope&) = delete;
  ConvPrecisionScope& operator=(const ConvPrecisionScope&) = delete;

 private:
  ConvPrecision before_;
};

}  // namespace nnops
