#include "ops/conv2d_precision.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "core/check.h"

namespace nnops {
namespace {

ConvPrecision initial_precision() {
  const char* value = std::getenv("NNOPS_CONV_PRECISION");
  return value != nullptr && std::string_view(value) == "highest" ? ConvPrecision::kHighest
                                                                  : ConvPrecision::kHigh;
}

std::atomic<ConvPrecision>& current() {
  static std::atomic<ConvPrecision> precision{initial_precision()};
  return precision;
}

}  // namespace

ConvPrecision conv_precision() { return current().load(std::memory_order_relaxed); }

void set_conv_precision(const std::string& name) {
  for (const ConvPrecision precision : {ConvPrecision::kHighest, ConvPrecision::kHigh}) {
    if (name == precision_name(precision)) {
      current().store(precision, std::memory_order_relaxed);
      return;
    }
  }
  NNOPS_CHECK_VALUE(
      false, "set_conv_precision: the precision must be 'highest' or 'high', but got '", name, "'");
}

const char* precision_name(ConvPrecision precision) {
  return precision == ConvPrecision::kHighest ? "highest" : "high";
}

}  // namespace nnops
