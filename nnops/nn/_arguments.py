"""Argument normalisation of nnops.nn.functional: what torch's argument parser does for torch."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import _reduction

IntOrPair = int | Sequence[int]

_INT64_LIMIT = 2**63
_MOST_USUAL = 2**31
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"nnops::{op}: {name} must be a Tensor, but got {type(value).__name__}")


def check_bool(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"nnops::{op}: {name} must be a bool, but got {type(value).__name__}")


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


def _in_64_bits(op: str, name: str, number: int) -> int:
    if not -_INT64_LIMIT <= number < _INT64_LIMIT:
        raise ValueError(f"nnops::{op}: {name} must fit into 64 bits, but got {number}")
    return number


def whole_number(op: str, name: str, value: object) -> int:
    if type(value) is int and -_INT64_LIMIT <= value < _INT64_LIMIT:
        return value  # what all but a few callers hand over
    number = integer(value)
    if number is None:
        raise TypeError(f"nnops::{op}: {name} must be an int, but got {name}={value!r}")
    return _in_64_bits(op, name, number)


def pair(op: str, name: str, value: IntOrPair) -> tuple[int, int]:
    """(height, width) from one whole number or a sequence of one or two."""
    # What all but a few callers hand over.
    given: Any = value
    kind = type(given)
    if kind is int and 0 <= given < _MOST_USUAL:
        return given, given
    if kind is tuple and len(given) == 2:
        height, width = given
        usual = type(height) is int and type(width) is int
        if usual and 0 <= height < _MOST_USUAL and 0 <= width < _MOST_USUAL:
            return height, width
    single = integer(value)
    if single is not None:
        height = width = single
    elif isinstance(value, (tuple, list)) and None not in (numbers := [*map(integer, value)]):
        if len(numbers) not in (1, 2):
            raise RuntimeError(
                f"nnops::{op}: {name} must be one number or two, but got {name}={tuple(value)}"
            )
        height, width = cast(int, numbers[0]), cast(int, numbers[-1])
    else:
        raise TypeError(
            f"nnops::{op}: {name} must be an int or a pair of ints, but got {name}={value!r}"
        )
    return _in_64_bits(op, name, height), _in_64_bits(op, name, width)


def unpool_output_size(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None,
    padding: IntOrPair,
    output_size: Sequence[int] | None,
) -> tuple[int, int]:
    """(height, width) of max_unpool2d's output: as asked for, or what inverts the pooling."""
    op = "max_unpool2d"
    kernel = _two(op, "kernel_size", kernel_size)
    step = kernel if stride is None else _two(op, "stride", stride)
    pad = _two(op, "padding", padding)
    if input.dim() < 2:
        raise IndexError(
            f"nnops::{op}: input must be (C, H, W) or (N, C, H, W), but got a tensor of sizes "
            f"{tuple(input.shape)}"
        )
    default = tuple(
        (size - 1) * step[axis] + kernel[axis] - 2 * pad[axis]
        for axis, size in enumerate(input.shape[-2:])
    )
    if output_size is None:
        height, width = default
    else:
        if not isinstance(output_size, (tuple, list)):
            raise TypeError(
                f"nnops::{op}: output_size must be a sequence of ints, but got {output_size!r}"
            )
        if len(output_size) not in (2, 4):
            raise ValueError(
                f"nnops::{op}: output_size must have 2 or 4 elements, but got "
                f"output_size={tuple(output_size)}"
            )
        height, width = _two(op, "output_size", output_size[-2:])
        for size, inverse, reach in zip((height, width), default, step, strict=True):
            if not inverse - reach < size < inverse + reach:
                raise ValueError(
                    f"nnops::{op}: output_size must differ from {default}, which inverts the "
                    f"pooling, by less than the stride, but got "
                    f"output_size={(height, width)}, stride={step}"
                )
    if height < 0 or width < 0:
        raise ValueError(
            f"nnops::{op}: output_size must be non-negative, but got ({height}, {width}) from "
            f"input size {tuple(input.shape[-2:])}, kernel_size={kernel}, stride={step}, "
            f"padding={pad}"
        )
    if max(height, width) >= _INT64_LIMIT:
        raise TypeError(
            f"nnops::{op}: output_size must be below 2**63, but got ({height}, {width})"
        )
    return height, width


def _two(op: str, name: str, value: IntOrPair) -> tuple[int, int]:
    """As `pair`, for functions to which a sequence of one is not a pair."""
    if isinstance(value, (tuple, list)) and len(value) != 2:
        # torch counts in two places, so two classes.
        error = RuntimeError if name == "kernel_size" and len(value) < 2 else IndexError
        raise error(f"nnops::{op}: {name} must be one number or two, but got {name}={tuple(value)}")
    return pair(op, name, value)


def warn(message: str, stacklevel: int) -> None:
    """warnings.warn for the caller's caller and so on, but not while torch.compile traces it."""
    if not torch.compiler.is_compiling():
        warnings.warn(message, stacklevel=stacklevel + 1)


def reduction_code(
    op: str, reduction: str, size_average: bool | None = None, reduce: bool | None = None
) -> int:
    """0 none, 1 mean, 2 sum; the deprecated flags, if given, override `reduction` and warn."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if reduction == "elementwise_mean":
        warnings.warn(
            "reduction='elementwise_mean' is deprecated, please use reduction='mean' instead.",
            stacklevel=3,
        )
        reduction = "mean"
    try:
        return _REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ValueError(
            f"nnops::{op}: reduction must be 'none', 'mean' or 'sum', but got {reduction!r}"
        ) from None
