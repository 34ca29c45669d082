// What a run of layers (nnops/conversion/_runs.py) asks of its modules at every call, without the
// price of asking in Python.
#pragma once

#include <pybind11/pybind11.h>

namespace nnops {

// Reads the weights and biases of the modules, and attributes that a layer's numbers depend on.
//
// `modules` holds modules and None, `kinds` as many tuples of classes, `attributes` class to names,
// `tensors` the classes of parameters. Returns (parameters, values of the attributes), or None if a
// module is of none of its classes, has hooks or a forward of its own, or a weight of another
// class. An attribute that is missing is None.
pybind11::object read_layers(const pybind11::tuple& modules, const pybind11::tuple& kinds,
                             const pybind11::dict& attributes, const pybind11::tuple& tensors);

}  // namespace nnops
