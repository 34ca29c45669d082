"""Modules that run a written forward: their class is derived from the one they had.

Each plan has a class of its own, with code of its own: torch.compile keeps its graphs by code,
eight at most, and lets a size change that did so where code of this name ran before.

Nothing else about such a module changes: isinstance, methods, attributes, children and state_dict
are those of the original class, whose own forward still runs wherever the written one does not
apply. Copies and pickles name the original class and carry the written forward as source.
"""

from __future__ import annotations

import copyreg
import functools
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from torch.nn import Module

if TYPE_CHECKING:
    from nnops.conversion._plan import Plan

# Where a module keeps its plan: no parameter, buffer or child, so no part of its state_dict.
PLAN = "_nnops_plan"

# By the original class and the number of the plan, which copies of a module have in common.
_derived: WeakValueDictionary[tuple[type[Module], int], type[Module]] = WeakValueDictionary()
_deriving = threading.Lock()


def fuse(module: Module, plan: Plan) -> None:
    """Lets `module` run what `plan` has written."""
    module.__class__ = class_derived_from(type(module), plan.number)
    vars(module)[PLAN] = plan


def plan_of(module: Module) -> Plan | None:
    plan: Plan | None = vars(module).get(PLAN)
    return plan


def unfuse(module: Module) -> None:
    """Undoes `fuse`; nothing to a module that is as it was."""
    original = vars(type(module)).get("_nnops_original")
    if original is not None:
        module.__class__ = original
        vars(module).pop(PLAN, None)


def class_derived_from(original: type[Module], number: int) -> type[Module]:
    """The class for modules of this class with the plan of this number, always the same one.

    Raises whatever the class raises when it is derived from.
    """
    with _deriving:
        derived = _derived.get((original, number))
        if derived is None:
            derived = _derived[original, number] = _derive(original, number)
        return derived


def _derive(original: type[Module], number: int) -> type[Module]:
    own_forward: Any = original.forward

    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__.get(PLAN)
        if plan is not None and not kwargs:
            run = plan.choose(self, args)
            if run is not None:
                return run(self, *args)
        return own_forward(self, *args, **kwargs)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{number}")

    def reduce_ex(self: Module, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        # copyreg's way of making an object from its class, which cannot be imported.
        if isinstance(reduced, tuple) and reduced[:2] == (copyreg.__newobj__, (type(self),)):  # type: ignore[attr-defined]
            return (_new, (original, number), *reduced[2:])
        return reduced

    members = {
        "forward": functools.wraps(own_forward)(forward),
        "__reduce_ex__": reduce_ex,
        "_nnops_original": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    metaclass: Any = type(original)
    derived: type[Module] = metaclass(original.__name__, (original,), members)
    return derived


def _new(original: type[Module], number: int) -> Module:
    derived: Any = class_derived_from(original, number)
    module: Module = object.__new__(derived)
    return module
