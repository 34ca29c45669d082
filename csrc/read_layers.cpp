#include "read_layers.h"

#include <array>

namespace py = pybind11;

namespace nnops {
namespace {

bool contains(py::handle tuple, const void* object) {
  if (PyTuple_Check(tuple.ptr()) == 0) throw py::type_error("read_layers: classes come in tuples");
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple.ptr()); ++i) {
    if (PyTuple_GET_ITEM(tuple.ptr(), i) == object) return true;
  }
  return false;
}

// The value of a dict, borrowed; null if it has none.
PyObject* item(py::handle dict, py::handle key) {
  PyObject* value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// Interned, as the keys of instances are: then a lookup compares addresses alone. Never given back.
py::handle name(const char* text) { return PyUnicode_InternFromString(text); }

struct Names {
  // Dicts that must be empty.
  std::array<py::handle, 4> hooks{name("_forward_hooks"), name("_forward_pre_hooks"),
                                  name("_backward_hooks"), name("_backward_pre_hooks")};
  // What an instance must not have.
  std::array<py::handle, 2> own{name("_compiled_call_impl"), name("forward")};
  py::handle parameters = name("_parameters");
  py::handle weight = name("weight");
  py::handle bias = name("bias");
  py::handle shape = name("shape");
};

py::object stolen(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// Whether calling the module does what its class says, and nothing else:
// nnops/conversion/_chains.py asks the same.
bool is_plain(py::handle own, const Names& names) {
  for (const py::handle each : names.hooks) {
    PyObject* hooks = item(own, each);
    const int has_hooks = hooks != nullptr ? PyObject_IsTrue(hooks) : 1;
    if (has_hooks < 0) throw py::error_already_set();
    if (has_hooks != 0) return false;
  }
  for (const py::handle each : names.own) {
    if (item(own, each) != nullptr) return false;
  }
  return true;
}

}  // namespace

py::object read_layers(const py::tuple& modules, const py::tuple& kinds, const py::dict& attributes,
                       const py::tuple& with_weights, const py::tuple& tensors) {
  static const Names* const names = new Names;
  if (modules.size() != kinds.size()) throw py::value_error("read_layers: a tuple a module");
  py::list parameters;
  py::list values;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(modules.ptr()); ++i) {
    const py::handle module = PyTuple_GET_ITEM(modules.ptr(), i);
    if (module.is_none()) continue;
    auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(module.ptr()));
    if (!contains(PyTuple_GET_ITEM(kinds.ptr(), i), kind)) return py::none();
    const py::object own = stolen(PyObject_GenericGetDict(module.ptr(), nullptr));
    if (!is_plain(own, *names)) return py::none();
    PyObject* asked = item(attributes, kind);
    if (asked != nullptr) {
      for (const py::handle attribute : py::reinterpret_borrow<py::object>(asked)) {
        PyObject* value = item(own, attribute);
        if (value != nullptr && PyList_Check(value) != 0) {
          values.append(stolen(PyList_AsTuple(value)));
        } else {
          values.append(py::handle(value != nullptr ? value : Py_None));
        }
      }
    }
    if (!contains(with_weights, kind)) continue;
    PyObject* held = item(own, names->parameters);
    PyObject* weight = held != nullptr ? item(held, names->weight) : nullptr;
    if (weight == nullptr || !contains(tensors, Py_TYPE(weight))) return py::none();
    parameters.append(py::handle(weight));
    if (asked != nullptr) values.append(stolen(PyObject_GetAttr(weight, names->shape.ptr())));
    PyObject* bias = item(held, names->bias);
    const bool has_bias = bias != nullptr && bias != Py_None;
    if (has_bias && !contains(tensors, Py_TYPE(bias))) return py::none();
    if (has_bias) parameters.append(py::handle(bias));
    values.append(py::bool_(has_bias));
  }
  return py::make_tuple(std::move(parameters), std::move(values));
}

}  // namespace nnops
