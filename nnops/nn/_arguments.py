"""Argument normalisation of nnops.nn.functional: what torch's argument parser does for torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import _reduction

IntOrPair = int | Sequence[int]

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"nnops::{op}: {name} must be a Tensor, but got {type(value).__name__}")


def integer(value: object) -> int | None:
    """`value` as an int if it is a whole number of any library (not a bool), else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]  # a SymInt stands for an int
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


def whole_number(op: str, name: str, value: object) -> int:
    number = integer(value)
    if number is None:
        raise TypeError(f"nnops::{op}: {name} must be an int, but got {name}={value!r}")
    return number


def pair(op: str, name: str, value: IntOrPair) -> tuple[int, int]:
    """(height, width) from one whole number or a sequence of one or two."""
    single = integer(value)
    if single is not None:
        return single, single
    if isinstance(value, (tuple, list)):
        numbers = [number for number in map(integer, value) if number is not None]
        if len(numbers) == len(value):
            if len(numbers) == 2:
                return numbers[0], numbers[1]
            if len(numbers) == 1:
                return numbers[0], numbers[0]
            raise RuntimeError(
                f"nnops::{op}: {name} must be one number or two, but got {name}={tuple(value)}"
            )
    raise TypeError(
        f"nnops::{op}: {name} must be an int or a pair of ints, but got {name}={value!r}"
    )


def reduction_code(
    op: str, reduction: str, size_average: bool | None = None, reduce: bool | None = None
) -> int:
    """0 none, 1 mean, 2 sum; the deprecated flags, if given, override `reduction` and warn."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    try:
        return _REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ValueError(
            f"nnops::{op}: reduction must be 'none', 'mean' or 'sum', but got {reduction!r}"
        ) from None
