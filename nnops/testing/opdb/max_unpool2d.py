"""max_unpool2d: cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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


def places(make: Maker, *shape: int, high: int) -> Tensor:
    """int64 in [0, high), different from each other within a plane."""
    planes = 1
    for size in shape[:-2]:
        planes *= size
    count = shape[-2] * shape[-1]
    first = make.indices(planes, 1, high=high)
    # Consecutive places modulo the plane, backwards, from a place of the plane's own.
    return ((first - torch.arange(count)) % high).reshape(shape)


def samples(make: Maker) -> Iterator[Sample]:
    for name, shape, arguments, high in (
        ("2x2", (2, 3, 4, 5), (2,), 80),
        ("unbatched", (3, 4, 5), (2,), 80),
        ("stride and padding", (2, 3, 4, 5), (3, 2, 1), 63),
        ("pairs", (2, 3, 4, 5), ((3, 2), (2, 1), (1, 0)), 42),
        ("17 channels", (1, 17, 3, 3), (2,), 36),
        ("more channels than a block", (2, 65, 3, 2), (2,), 24),
        ("one place", (2, 3, 1, 1), (2,), 4),
        ("wide", (1, 2, 2, 70), (2,), 560),
        ("empty batch", (0, 3, 4, 5), (2,), 80),
        ("empty, unbatched", (0, 4, 5), (2,), 80),
    ):
        yield Sample(name, (make.tensor(*shape), places(make, *shape, high=high), *arguments))
    for size in ((8, 9), (9, 10), (2, 3, 7, 11), [8, 10], torch.Size((2, 3, 9, 9))):
        yield Sample(
            f"output_size={tuple(size)}",
            (make.tensor(2, 3, 4, 5), places(make, 2, 3, 4, 5, high=63), 2),
            {"output_size": size},
        )


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    for shape in ((2, 2, 2, 3), (2, 3, 2)):
        yield Sample(f"{shape}", (make.distinct(*shape), places(make, *shape, high=24), 2))


def error_samples() -> Iterator[ErrorSample]:
    values = torch.zeros(2, 3, 2, 2)
    indices = torch.zeros(2, 3, 2, 2, dtype=torch.int64)

    def error(
        name: str,
        match: str,
        *arguments: Any,
        error: type[Exception] = RuntimeError,
        differs: str = "",
        **keywords: Any,
    ) -> ErrorSample:
        return ErrorSample(name, arguments, keywords, error, f"max_unpool2d.*{match}", differs)

    wrong = indices.clone()
    wrong[1, 2, 0, 1] = 16
    yield error(
        "index too large", r"\[0, 16\).*\(4, 4\) plane.*16 in plane \(1, 2\)", values, wrong, 2
    )
    wrong = indices.clone()
    wrong[0, 1, 1, 1] = -1
    yield error("index negative", r"got -1 in plane \(0, 1\)", values, wrong, 2)
    wrong = indices.clone()
    wrong[0, 1, 1, 1] = -(2**63)
    yield error("index lowest", r"got -9223372036854775808", values, wrong, 2)
    yield error("index dtype", "indices must be of dtype int64.*int32", values, indices.int(), 2)
    yield error("index bool", "dtype bool", values, indices.bool(), 2)
    yield error("sizes", "same sizes.*2, 3, 2, 2.*1, 3, 2, 2", values, indices[:1], 2)
    yield error("2-D", "input must be", values[0, 0], indices[0, 0], 2)
    yield error("1-D", "input must be", values[0, 0, 0], indices[0, 0, 0], 2, error=IndexError)
    yield error("5-D", "input must be", values[None], indices[None], 2)
    for shape in ((2, 0, 2, 2), (2, 3, 0, 2), (3, 0, 2), (3, 2, 0)):
        yield error(
            f"empty {shape}",
            "first dimension only",
            torch.zeros(shape),
            torch.zeros(shape).long(),
            3,
            1,
            0,
        )
    yield error("integers", "dtype int32", values.int(), indices, 2, error=NotImplementedError)
    yield error(
        "size length", "2 or 4", values, indices, 2, output_size=(3, 4, 4), error=ValueError
    )
    yield error(
        "size far", "less than the stride", values, indices, 2, output_size=(6, 4), error=ValueError
    )
    yield error(
        "size near",
        "less than the stride",
        values,
        indices,
        2,
        output_size=(4, 2),
        error=ValueError,
    )
    yield error("size int", "output_size", values, indices, 2, output_size=4, error=TypeError)
    yield error(
        "size float", "output_size", values, indices, 2, output_size=(4.0, 4.0), error=TypeError
    )
    yield error("size negative", "non-negative", values, indices, -1, error=ValueError)
    yield error("kernel short", "kernel_size", values, indices, (2,))
    yield error("kernel long", "kernel_size", values, indices, (2, 2, 2), error=IndexError)
    yield error("stride short", "stride", values, indices, 2, (2,), error=IndexError)
    yield error("padding short", "padding", values, indices, 2, 2, (), error=IndexError)
    yield error(
        "stride long",
        "stride",
        values,
        indices,
        2,
        (2, 2, 2),
        error=IndexError,
        differs="torch ignores the rest",
    )
    yield error("kernel float", "kernel_size", values, indices, 2.5, error=TypeError)
    yield error("size product", "too large to address", values, indices, 2**31, 2**31)
    yield error("size overflowing", "below", values, indices, 2**62, error=TypeError)
    yield error("not a tensor", "indices.*list", values, [1], 2, error=TypeError)


def _benchmark(
    name: str, kernel_class: str, shape: tuple[int, ...], layout: str
) -> BenchmarkSample:
    """Undoes a pooling by windows of 2x2; `shape` is that of the pooled image."""

    def build(make: Maker) -> Sample:
        batch, channels, height, width = shape
        image = make.tensor(batch, channels, 2 * height, 2 * width, grad=False)
        _, indices = torch.nn.functional.max_pool2d(image, 2, return_indices=True)
        if layout == "channels_last":
            indices = indices.contiguous(memory_format=torch.channels_last)
        return Sample(name, (make.image(*shape, layout=layout), indices, 2))

    return BenchmarkSample(name, kernel_class, build, layout)


def forward_work(sample: Sample) -> Work:
    """Reads the values and their places; writes a plane of four times the values."""
    values, indices = sample.args[:2]
    return Work(0, bytes_of(values, indices), 4 * bytes_of(values))


def backward_work(sample: Sample) -> Work:
    """Reads the places, and what the gradient has there."""
    values, indices = sample.args[:2]
    return Work(0, bytes_of(values, indices), bytes_of(values))


CASES = (
    OpCase(
        name="max_unpool2d",
        operators=("max_unpool2d", "max_unpool2d_backward", "max_pool2d_with_indices_backward"),
        dtypes=FLOATING,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        exact=True,
        benchmark_samples=tuple(
            _benchmark(name, kernel_class, shape, layout)
            for layout in ("NCHW", "channels_last")
            for name, kernel_class, shape in (
                ("cifar 64x32x16", "2x2s2", (64, 32, 16, 16)),
                ("tiny 1x4x4", OVERHEAD, (1, 4, 4, 4)),
            )
        ),
        forward_work=forward_work,
        backward_work=backward_work,
    ),
)
