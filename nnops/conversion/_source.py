"""What a look at the code of a forward tells: statements that torch.fx runs and does not note."""

from __future__ import annotations

import builtins
import dis
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

# Python 3.10; 3.11 to 3.13; from 3.14 on the methods are looked up by an instruction of their own.
_WITH = ("SETUP_WITH", "BEFORE_WITH", "LOAD_SPECIAL")


def unnoted_statement(forward: Any, owner: type) -> str:
    """What the forward or a function that it calls by name does unseen; "" if nothing.

    A context manager may set anything, from gradients to `nnops.conv_precision`.
    """
    for function in _called(forward, owner):
        if reason := _unnoted(function.__code__):
            return f"{function.__name__} {reason}"
        if "print" in _names(function.__code__) and "print" not in function.__globals__:
            return f"{function.__name__} prints"
    return ""


def _called(forward: Any, owner: type) -> Iterator[FunctionType]:
    """The function, and those that it and they name: methods, globals, members of modules."""
    waiting, seen = [forward], set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        if function.__module__ is not None and function.__module__.startswith(("torch.", "nnops.")):
            continue
        seen.add(function)
        yield function
        names = _names(function.__code__)
        for name in names:
            value = function.__globals__.get(name, getattr(builtins, name, None))
            waiting += [getattr(owner, name, None), value]
            if isinstance(value, ModuleType) and value.__name__.split(".")[0] != "torch":
                waiting += [getattr(value, member, None) for member in names]


@cache
def _names(code: CodeType) -> frozenset[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(code.co_names).union(*inner)


@cache
def _unnoted(code: CodeType) -> str:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _WITH:
            return "has a with statement"
        if instruction.opname == "STORE_GLOBAL":
            return f"writes the global {instruction.argval}"
    for each in code.co_consts:
        if isinstance(each, CodeType) and (reason := _unnoted(each)):
            return reason
    return ""
