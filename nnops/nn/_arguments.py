"""Argument normalisation of nnops.nn.functional: what torch's argument parser does for torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import _reduction

IntOrPair = int | Sequence[int]

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"nnops::{op}: {name} must be a Tensor, but got {type(value).__name__}")


def pair(op: str, name: str, value: IntOrPair) -> tuple[int, int]:
    """(height, width) from one number or a sequence of one or two."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (tuple, list)):
        for element in value:
            if not isinstance(element, (int, torch.SymInt)) or isinstance(element, bool):
                break
        else:
            if len(value) == 2:
                return value[0], value[1]
            if len(value) == 1:
                return value[0], value[0]
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
