"""Refuses to time wrong numbers: every sample is held against torch before it is measured.

The policy is that of the tests (nnops/testing/tolerances.py). Forward is checked with and without
gradients, since operators may take different ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnops.testing.compare import call, gradients
from nnops.testing.samples import OpCase, Sample, detached, map_tensors, tensors_of
from nnops.testing.tolerances import assert_equal, assert_within_operands


@dataclass(frozen=True)
class Expected:
    """torch's outputs and gradients, and the same in float64."""

    outputs: tuple[Tensor, ...]
    reference_outputs: tuple[Tensor, ...]
    gradients: list[Tensor | None]
    reference_gradients: list[Tensor | None]


def expected_of(case: OpCase, sample: Sample) -> Expected:
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return case.torchs(Sample("", args, kwargs))

    exactly = detached(sample, torch.float64)
    outputs = _detached(call(theirs, sample))
    return Expected(
        outputs,
        outputs if case.exact else _detached(call(theirs, exactly)),
        gradients(theirs, sample),
        gradients(theirs, exactly),
    )


def check(case: OpCase, sample: Sample, expected: Expected) -> None:
    """AssertionError, with what is wrong, unless our numbers are torch's as far as they should."""

    def ours(*args: Any, **kwargs: Any) -> Any:
        return case.ours(Sample("", args, kwargs))

    inputs = tensors_of(sample)
    with torch.no_grad():
        without_graph = call(ours, map_tensors(sample, Tensor.detach))
    for actuals, what in ((without_graph, "output, no grad"), (call(ours, sample), "output")):
        triples = zip(actuals, expected.outputs, expected.reference_outputs, strict=True)
        for actual, torchs, reference in triples:
            if case.exact:
                assert_equal(actual, torchs, what)
            else:
                assert_within_operands(actual, torchs, reference, inputs, what, case.error_share)
    for actual_grad, torchs_grad, reference_grad in zip(
        gradients(ours, sample), expected.gradients, expected.reference_gradients, strict=True
    ):
        assert (actual_grad is None) == (torchs_grad is None), "one of the gradients is None"
        if actual_grad is not None and torchs_grad is not None and reference_grad is not None:
            assert_within_operands(
                actual_grad, torchs_grad, reference_grad, inputs, "gradient", case.error_share
            )


def _detached(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach() for tensor in tensors)
