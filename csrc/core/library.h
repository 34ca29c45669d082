// Registration of operators under torch.ops.nnops.
//
// Every differentiable operator has two names for one function: the public one (`nnops::relu`),
// on which Python mounts autograd, and a private one with an underscore (`nnops::_relu`), which
// the autograd Functions call and which costs no autograd work.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

#define NNOPS_CONCAT_(a, b) a##b
#define NNOPS_CONCAT(a, b) NNOPS_CONCAT_(a, b)

// NNOPS_OPERATOR(relu, "(Tensor input) -> Tensor", relu): name, schema behind the name, function.
#define NNOPS_OPERATOR(name, signature, function)                        \
  STABLE_TORCH_LIBRARY_FRAGMENT(nnops, library) {                        \
    library.def(#name signature);                                        \
    library.def("_" #name signature);                                    \
  }                                                                      \
  STABLE_TORCH_LIBRARY_IMPL(nnops, CompositeExplicitAutograd, library) { \
    library.impl(#name, TORCH_BOX(&function));                           \
    library.impl("_" #name, TORCH_BOX(&function));                       \
  }

// As NNOPS_OPERATOR, of what Python alone calls: the private name.
#define NNOPS_PRIVATE_OPERATOR(name, signature, function)                             \
  STABLE_TORCH_LIBRARY_FRAGMENT(nnops, library) { library.def("_" #name signature); } \
  STABLE_TORCH_LIBRARY_IMPL(nnops, CompositeExplicitAutograd, library) {              \
    library.impl("_" #name, TORCH_BOX(&function));                                    \
  }
