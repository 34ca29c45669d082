// Argument checks of the operators: NNOPS_CHECK*(condition, message parts...).
//
// Every message names the operator, the rule and the values that broke it:
//   nnops::max_pool2d: stride must be positive, but got stride=(0, 1)
// The exception types are the ones that pybind11 (and with it torch) translates by itself:
// RuntimeError, ValueError (std::invalid_argument), IndexError (std::out_of_range) and
// NotImplementedError.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/not_implemented_error.h"

namespace nnops {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  return text.str();
}

// "(2, 3)": how every message spells sizes, strides and paddings.
template <typename Sequence>
std::string tuple_text(const Sequence& values) {
  std::ostringstream text;
  text << '(';
  bool first = true;
  for (const auto value : values) {
    if (!first) text << ", ";
    text << value;
    first = false;
  }
  text << ')';
  return text.str();
}

inline std::string pair_text(int64_t height, int64_t width) {
  return concat('(', height, ", ", width, ')');
}

}  // namespace nnops

#define NNOPS_CHECK_AS(Exception, condition, ...)                       \
  do {                                                                  \
    if (__builtin_expect(!(condition), 0)) {                            \
      throw Exception(::nnops::concat("nnops::", __VA_ARGS__).c_str()); \
    }                                                                   \
  } while (false)

#define NNOPS_CHECK(condition, ...) NNOPS_CHECK_AS(std::runtime_error, condition, __VA_ARGS__)
#define NNOPS_CHECK_VALUE(condition, ...) \
  NNOPS_CHECK_AS(std::invalid_argument, condition, __VA_ARGS__)
#define NNOPS_CHECK_INDEX(condition, ...) NNOPS_CHECK_AS(std::out_of_range, condition, __VA_ARGS__)
#define NNOPS_CHECK_NOT_IMPLEMENTED(condition, ...) \
  NNOPS_CHECK_AS(::nnops::NotImplementedError, condition, __VA_ARGS__)
