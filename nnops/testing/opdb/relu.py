"""relu: cases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nnops.ops.relu import relu_with_mask
from nnops.testing.samples import (
    FLOATING,
    INTEGERS,
    OVERHEAD,
    BenchmarkSample,
    ErrorSample,
    Maker,
    OpCase,
    Sample,
    Work,
    bytes_of,
)

# 4 KB to 128 MB of float32.
BENCHMARK_EXPONENTS = (12, 14, 16, 18, 20, 22, 24, 25)


def samples(make: Maker) -> Iterator[Sample]:
    for shape in ((), (0,), (1,), (15,), (16,), (17,), (3, 5), (2, 3, 5, 7), (2, 0, 3), (70001,)):
        yield Sample(f"shape={shape}", (make.tensor(*shape),))
    yield Sample("zeros", (make.integer_valued(64),))
    # A leaf that needs a gradient cannot be written over; the graph tests cover inplace.
    yield Sample("inplace", (make.tensor(4, 9, grad=False), True))


def masked(input: Tensor) -> Tensor:
    output: Tensor = relu_with_mask(input)[0]
    return output


def masked_samples(make: Maker) -> Iterator[Sample]:
    for sample in samples(make):
        if sample.name != "inplace":
            yield sample


def masked_error_samples() -> Iterator[ErrorSample]:
    yield ErrorSample(
        "bool", (torch.zeros(3, dtype=torch.bool),), {}, RuntimeError, "relu_with_mask.*dtype bool"
    )


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


def _benchmark(name: str, kernel_class: str, count: int) -> BenchmarkSample:
    return BenchmarkSample(name, kernel_class, lambda make: Sample(name, (make.tensor(count),)))


def forward_work(sample: Sample) -> Work:
    input = sample.args[0]
    return Work(input.numel(), bytes_of(input), bytes_of(input))


def backward_work(sample: Sample) -> Work:
    """Reads the gradient of the output and one bit per element."""
    input = sample.args[0]
    return Work(input.numel(), bytes_of(input) + input.numel() // 8, bytes_of(input))


CASES = (
    OpCase(
        name="relu",
        operators=("relu", "relu_backward"),
        dtypes=FLOATING + INTEGERS,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        exact=True,
        benchmark_samples=(
            *(_benchmark(f"2^{power}", "vector", 2**power) for power in BENCHMARK_EXPONENTS),
            _benchmark("16 elements", OVERHEAD, 16),
        ),
        forward_work=forward_work,
        backward_work=backward_work,
    ),
    # The form that large calls take, at sizes that gradcheck can afford.
    OpCase(
        name="relu_with_mask",
        operators=("relu_with_mask", "relu_mask_backward"),
        dtypes=FLOATING,
        samples=masked_samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=masked_error_samples,
        exact=True,
        function=masked,
        benchmark_samples=(_benchmark("16 elements", OVERHEAD, 16),),
        forward_work=forward_work,
        backward_work=backward_work,
        reference=torch.relu,
    ),
)
