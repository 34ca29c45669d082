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

thread_local ConvPrecision t_precision = ConvPrecision::kDefault;  // of the call that runs

std::atomic<ConvPrecision>& current() {
  static std::atomic<ConvPrecision> precision{initial_precision()};
  return precision;
}

}  // namespace

ConvPrecision conv_precision() {
  return t_precision != ConvPrecision::kDefault ? t_precision
                                                : current().load(std::memory_order_relaxed);
}

ConvPrecisionScope::ConvPrecisionScope(const char* op, int64_t precision) : before_(t_precision) {
  NNOPS_CHECK(precision >= static_cast<int64_t>(ConvPrecision::kDefault) &&
                  precision <= static_cast<int64_t>(ConvPrecision::kHigh),
              op, ": precision must be 0 (the process's), 1 (highest) or 2 (high), but got ",
              precision);
  t_precision = static_cast<ConvPrecision>(precision);
}
ConvPrecisionScope::~ConvPrecisionScope() { t_precision = before_; }

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
