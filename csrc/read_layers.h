// What a run of layers (nnops/conversion/_runs.py) asks of its modules at every call, without the
// price of asking in Python.
#pragma once

#include <pybind11/pybind11.h>

namespace nnops {

// Reads the weights and biases of the modules, and what else a layer's numbers depend on: values of
// attributes, the sizes of a weight where a class has attributes, whether there is a bias.
//
// `modules` holds modules and None, `kinds` as many tuples of classes, `attributes` class to names,
// `with_weights` the classes whose weight and bias are read, `tensors` the classes that these may
// be of. Returns (parameters, values), or None if a module is of none of its classes, has hooks or
// a forward of its own, lacks its weight, or has parameters of another class. An attribute that is
// missing is None; lists, which may change in place, become tuples.
pybind11::object read_layers(const pybind11::tuple& modules, const pybind11::tuple& kinds,
                             const pybind11::dict& attributes, const pybind11::tuple& with_weights,
                             const pybind11::tuple& tensors);

}  // namespace nnops
