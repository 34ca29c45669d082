// Python's NotImplementedError, thrown from C++.
//
// pybind11 translates every class derived from its builtin_exception by calling set_error(), and
// torch's operator bindings are pybind11 functions. Where no Python caller is on the stack it is an
// ordinary std::runtime_error, which is also what Python's NotImplementedError is to RuntimeError.
#pragma once

#include <pybind11/detail/common.h>

namespace nnops {

class __attribute__((visibility("default"))) NotImplementedError final
    : public pybind11::builtin_exception {
 public:
  using pybind11::builtin_exception::builtin_exception;
  void set_error() const override { PyErr_SetString(PyExc_NotImplementedError, what()); }
};

}  // namespace nnops
