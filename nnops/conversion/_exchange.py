"""Layers of torch.nn become layers of nnops.nn, and back, in a tree of modules of their own.

A layer is exchanged where its type is exactly a class of torch.nn that nnops.nn has a subclass of.
Subclasses of one's own, parametrized, lazy and quantised layers have another type and stay as they
are: their behaviour is not known here. Nothing is built anew: a layer of nnops.nn differs from
torch's in `forward` alone (and in options of its own, which are off in a layer that has no such
attribute), so it takes over the attributes of the layer it stands for, the very same parameters,
buffers and hooks among them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from torch.nn import Module

from nnops import nn
from nnops.conversion._chains import original_class
from nnops.conversion._fused import PLAN, unfuse

# What torch.nn.Module itself keeps in containers (parameters, buffers, submodules, hooks): each
# module needs containers of its own, so that registering on one does not register on the other.
_REGISTRIES = frozenset(
    name for name, value in vars(Module()).items() if isinstance(value, (dict, set))
)


def our_classes() -> dict[type[Module], type[Module]]:
    """nnops.nn's class to the class of torch.nn of the same name that it stands in for."""
    classes = {}
    for name, ours in vars(nn).items():
        theirs = getattr(torch.nn, name, None)
        if isinstance(ours, type) and isinstance(theirs, type) and ours is not theirs:
            classes[ours] = theirs
    return classes


def exchange(
    caller: str, model: Module, counterparts: Mapping[type[Module], type[Module]], inplace: bool
) -> Module:
    if not isinstance(model, Module):
        raise TypeError(
            f"nnops.{caller}: model must be a torch.nn.Module, but got {type(model).__name__}"
        )
    if inplace:
        for module in list(convertible(model)):
            unfuse(module)
            if type(module) in counterparts:
                module.__class__ = counterparts[type(module)]
        return model
    copies: dict[int, Any] = {}
    originals = list(convertible(model))
    for module in originals:
        # Not copy.copy, which would call __getstate__ and __setstate__ of the user's classes.
        kind = original_class(module)
        copies[id(module)] = object.__new__(counterparts.get(kind, kind))
    # Only now, with every copy made, references between modules can be followed.
    for module in originals:
        copy = copies[id(module)]
        for name, value in vars(module).items():
            if name == PLAN:
                continue
            renewed = _renewed(value, copies)
            if name in _REGISTRIES and renewed is value:
                renewed = value.copy()
            vars(copy)[name] = renewed
    result: Module = copies.get(id(model), model)
    return result


def convertible(module: Module, seen: set[int] | None = None) -> Iterator[Module]:
    """Yields `module` and all below it, except what holds compiled code of its submodules."""
    seen = set() if seen is None else seen
    if id(module) in seen or isinstance(module, torch.jit.ScriptModule):
        return
    # torch.compile(module) wraps, module.compile() leaves the compiled call on the module.
    if "_orig_mod" in vars(module)["_modules"] or vars(module).get("_compiled_call_impl"):
        return
    seen.add(id(module))
    yield module
    for child in module.children():
        yield from convertible(child, seen)


def _renewed(value: Any, copies: dict[int, Any], depth: int = 4) -> Any:
    """`value` with each original module in it replaced; `value` itself where it holds none.

    Looks into lists, tuples, dictionaries, bound methods and torch's wrapped hooks: modules keep
    references to each other in all of them. `depth` ends it on containers that hold themselves.
    """
    if id(value) in copies:
        return copies[id(value)]
    if depth == 0:
        return value
    kind = type(value)
    if kind is MethodType:
        owner = _renewed(value.__self__, copies, depth - 1)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if kind in (list, tuple):
        elements = [_renewed(element, copies, depth - 1) for element in value]
        same = all(new is old for new, old in zip(elements, value, strict=True))
        return value if same else kind(elements)
    if kind in (dict, OrderedDict):
        entries = kind((key, _renewed(old, copies, depth - 1)) for key, old in value.items())
        same = all(entries[key] is old for key, old in value.items())
        return value if same else entries
    if "with_module" in getattr(value, "__dict__", ()):
        hook = _renewed(value.hook, copies, depth - 1)
        module = value.module() if value.with_module else None
        owner = copies.get(id(module), module)
        return value if hook is value.hook and owner is module else kind(hook, owner)
    return value
