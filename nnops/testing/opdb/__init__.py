"""The operator database: every function of nnops with its samples, errors and work.

Tests and benchmarks are generated from it. Adding an operator family is one line here.
"""

from __future__ import annotations

from nnops.testing.opdb import (
    conv2d,
    cross_entropy,
    fused_conv2d,
    max_pool2d,
    max_unpool2d,
    nll_loss,
    pointwise_losses,
    relu,
    template_op,
)
from nnops.testing.samples import OpCase

FAMILIES: dict[str, tuple[OpCase, ...]] = {
    "conv2d": conv2d.CASES,
    "cross_entropy": cross_entropy.CASES,
    "fused_conv2d": fused_conv2d.CASES,
    "max_pool2d": max_pool2d.CASES,
    "max_unpool2d": max_unpool2d.CASES,
    "nll_loss": nll_loss.CASES,
    "pointwise_losses": pointwise_losses.CASES,
    "relu": relu.CASES,
    "template_op": template_op.CASES,
}

CASES: tuple[OpCase, ...] = tuple(case for cases in FAMILIES.values() for case in cases)


def case(name: str) -> OpCase:
    """The case of the function `name`; KeyError if there is none."""
    for candidate in CASES:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no case named {name!r}, there are {[known.name for known in CASES]}")
