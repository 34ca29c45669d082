"""template_op: cases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nnops.ops.template_op import template_op
from nnops.testing.samples import (
    FLOATING,
    OVERHEAD,
    BenchmarkSample,
    ErrorSample,
    Maker,
    OpCase,
    Sample,
    Work,
    bytes_of,
)

NOT_IN_TORCH = "torch has no such operator"


def reference(input: Tensor, scale: float) -> Tensor:
    return scale * input * input


def samples(make: Maker) -> Iterator[Sample]:
    for shape in ((), (0,), (1,), (15,), (16,), (17,), (3, 5), (2, 3, 5, 7), (70001,)):
        yield Sample(f"shape={shape}", (make.tensor(*shape), 0.75))
    yield Sample("negative scale", (make.tensor(33), -1.5))
    yield Sample("zero scale", (make.tensor(33), 0.0))


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("small", (make.distinct(3, 5), 0.75))


def error_samples() -> Iterator[ErrorSample]:
    yield ErrorSample(
        "integer",
        (torch.zeros(3, dtype=torch.int64), 1.0),
        {},
        NotImplementedError,
        "nnops::template_op: not implemented for dtype int64",
        differs=NOT_IN_TORCH,
    )
    yield ErrorSample(
        "infinite scale",
        (torch.zeros(3), float("inf")),
        {},
        ValueError,
        "nnops::template_op: scale must be finite, but got scale=inf",
        differs=NOT_IN_TORCH,
    )


def _benchmark(name: str, kernel_class: str, count: int) -> BenchmarkSample:
    return BenchmarkSample(
        name, kernel_class, lambda make: Sample(name, (make.tensor(count), 0.75))
    )


def forward_work(sample: Sample) -> Work:
    input = sample.args[0]
    return Work(2 * input.numel(), bytes_of(input), bytes_of(input))


def backward_work(sample: Sample) -> Work:
    """Reads the input and the gradient of the output."""
    input = sample.args[0]
    return Work(3 * input.numel(), 2 * bytes_of(input), bytes_of(input))


CASES = (
    OpCase(
        name="template_op",
        operators=("template_op", "template_op_backward"),
        dtypes=FLOATING,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        function=template_op,
        reference=reference,
        benchmark_samples=(
            _benchmark("2^20", "vector", 2**20),
            _benchmark("16 elements", OVERHEAD, 16),
        ),
        forward_work=forward_work,
        backward_work=backward_work,
    ),
)
