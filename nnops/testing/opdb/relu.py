"""relu: cases."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nnops.testing.samples import (
    FLOATING,
    INTEGERS,
    ErrorSample,
    Maker,
    OpCase,
    Sample,
    bytes_of,
)


def samples(make: Maker) -> Iterator[Sample]:
    for shape in ((), (0,), (1,), (15,), (16,), (17,), (3, 5), (2, 3, 5, 7), (2, 0, 3), (70001,)):
        yield Sample(f"shape={shape}", (make.tensor(*shape),))
    yield Sample("zeros", (make.integer_valued(64),))
    # A leaf that needs a gradient cannot be written over; the graph tests cover inplace.
    yield Sample("inplace", (make.tensor(4, 9, grad=False), True))


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("small", (make.distinct(3, 5),))


def error_samples() -> Iterator[ErrorSample]:
    yield ErrorSample(
        "bool", (torch.zeros(3, dtype=torch.bool),), {}, RuntimeError, "relu.*dtype bool"
    )
    yield ErrorSample(
        "expanded inplace", (torch.zeros(3).expand(4, 3), True), {}, RuntimeError, "relu_.*expanded"
    )
    yield ErrorSample("not a tensor", ([1.0],), {}, TypeError, "relu.*input.*list")


CASES = (
    OpCase(
        name="relu",
        operators=("relu", "relu_backward"),
        dtypes=FLOATING + INTEGERS,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        exact=True,
        bytes=lambda sample: 2 * bytes_of(sample.args[0]),
    ),
)
