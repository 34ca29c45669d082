"""max_pool2d: cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

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

# Name, shape, then max_pool2d's arguments behind the input.
GEOMETRIES: tuple[tuple[str, tuple[int, ...], tuple[Any, ...]], ...] = (
    ("2x2", (2, 3, 8, 10), (2,)),
    ("3x3 stride 2 padded", (2, 5, 15, 17), (3, 2, 1)),
    ("unbatched", (3, 7, 9), (3, 2)),
    ("overlapping", (1, 2, 9, 33), (3, 1, 1)),
    ("pairs", (2, 3, 12, 11), ((3, 2), (2, 1), (1, 0))),
    ("dilated", (2, 3, 13, 14), ((3, 2), (1, 2), (1, 1), (2, 3))),
    ("ceil mode", (2, 3, 8, 9), (3, 2, 1, 1, True)),
    ("ceil mode, last window dropped", (1, 2, 4, 4), (1, 3, 0, 1, True)),
    ("ceil mode, unpadded", (1, 5, 5), (3, None, 0, 1, True)),
    ("1x1", (2, 3, 4, 5), (1,)),
    ("whole plane", (3, 4, 7, 6), ((7, 6),)),
    ("gaps between windows", (2, 2, 11, 12), (2, 5)),
    ("one row", (2, 3, 1, 40), ((1, 3), (1, 2))),
    ("one column", (2, 3, 40, 1), ((3, 1), (2, 1))),
    ("rows longer than a tile", (1, 2, 4, 301), (2,)),
    ("rows longer than a tile, padded", (1, 1, 3, 135), (3, 1, 1)),
    ("8 channels", (1, 8, 6, 6), (2,)),
    ("17 channels", (1, 17, 6, 7), (3, 2, 1)),
    ("more channels than a tile", (2, 130, 5, 5), (3, 2)),
    ("empty batch", (0, 3, 6, 7), (2,)),
    ("empty list as stride", (1, 2, 6, 6), (3, [])),
    ("largest window with offsets", (1, 2, 16, 18), ((15, 17), 1)),
    ("window too large for offsets", (2, 2, 19, 18), (16, 2, 3)),
)


# Name, kernel class, shape, window: each is timed in both layouts.
BENCHMARKS: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("vgg 8x64x224", "2x2s2", (8, 64, 224, 224), (2,)),
    ("vgg2 8x128x112", "2x2s2", (8, 128, 112, 112), (2,)),
    ("cifar 64x32x32", "2x2s2", (64, 32, 32, 32), (2,)),
    ("cifar3 64x64x8", "2x2s2", (64, 64, 8, 8), (2,)),
    ("lenet 64x6x28", "2x2s2", (64, 6, 28, 28), (2,)),
    ("caffe lenet 64x20x24", "2x2s2", (64, 20, 24, 24), (2,)),
    ("resnet 8x64x112", "3x3s2", (8, 64, 112, 112), (3, 2, 1)),
    ("alex 16x64x55", "3x3s2", (16, 64, 55, 55), (3, 2)),
    ("alex3 16x256x13", "3x3s2", (16, 256, 13, 13), (3, 2)),
    ("inception 8x192x28", "3x3s1", (8, 192, 28, 28), (3, 1, 1)),
    ("tiny 1x4x8", OVERHEAD, (1, 4, 8, 8), (2,)),
)


def samples(make: Maker) -> Iterator[Sample]:
    for name, shape, arguments in GEOMETRIES:
        yield Sample(name, (make.tensor(*shape), *arguments))
    for shape in ((2, 3, 9, 10), (3, 9, 10)):
        yield Sample(
            f"ties, indices {len(shape)}-D",
            (make.integer_valued(*shape), 3, 2, 1),
            {"return_indices": True},
        )
    yield Sample("dilated, indices", (make.tensor(2, 3, 11, 12), 3, 2, 1, 2, True, True))


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("2x2", (make.distinct(2, 2, 4, 4), 2))
    yield Sample("overlapping", (make.distinct(1, 2, 5, 4), 3, 1, 1))
    yield Sample("dilated, unbatched", (make.distinct(2, 6, 5), 2, 1, 1, 2, True))
    yield Sample("indices", (make.distinct(1, 2, 4, 5), 3, 1, 1), {"return_indices": True})
    yield Sample("large window", (make.distinct(1, 1, 16, 17), 16, 1))


def error_samples() -> Iterator[ErrorSample]:
    image = torch.zeros(2, 3, 6, 7)

    def error(
        name: str, match: str, *arguments: object, error: type[Exception] = RuntimeError
    ) -> ErrorSample:
        return ErrorSample(name, (image, *arguments), {}, error, f"max_pool2d.*{match}")

    yield error("kernel 0", "kernel_size must be positive.*0, 0", 0)
    yield error("kernel negative", "kernel_size must be positive.*-1", -1)
    yield error("kernel triple", "kernel_size must be one number or two", (2, 2, 2))
    yield error("kernel empty", "kernel_size must be one number or two", ())
    yield error("kernel float", "kernel_size must be an int", 2.0, error=TypeError)
    yield error("kernel bool", "kernel_size must be an int", True, error=TypeError)
    yield error("kernel too wide for int64", "kernel_size.*64 bits", 2**63, error=ValueError)
    yield error("kernel too large", r"kernel_size must be below 2\*\*31", 2**62)
    yield error("stride 0", "stride must be positive.*2, 0", 2, (2, 0))
    yield error("stride negative", "stride must be positive", 2, -1)
    yield error("stride triple", "stride must be one number or two", 2, (1, 1, 1))
    yield error("stride too large", r"stride must be below 2\*\*31", 2, 2**31)
    yield error("padding negative", "padding must be non-negative", 2, 2, (0, -1))
    yield error("padding large", "padding must be at most half.*2, 2.*3, 3", 3, 1, 2)
    yield error("padding large, dilated", "padding must be at most half", 3, 1, 2, 2)
    yield error("padding overflowing", r"padding must be below 2\*\*31", 2, 2, 2**62)
    yield error("dilation 0", "dilation must be positive.*1, 0", 2, 2, 0, (1, 0))
    yield error("dilation overflowing", r"dilation must be below 2\*\*31", 2, 2, 0, 2**62)
    yield error("ceil_mode int", "ceil_mode must be a bool", 2, 2, 0, 1, 1, error=TypeError)
    yield error("window too large", "window must fit.*6, 7.*9, 9", 9)
    wrong_ranks: tuple[tuple[int, ...], ...] = ((6, 7), (1, 2, 3, 4, 5), ())
    for shape in wrong_ranks:
        yield ErrorSample(
            f"{len(shape)}-D",
            (torch.zeros(shape), 2),
            {},
            RuntimeError,
            "max_pool2d: input must be",
        )
    wrong_empties = ((2, 0, 6, 7), (2, 3, 0, 7), (0, 3, 6, 0), (0, 6, 7), (0, 0, 6, 7))
    for shape in wrong_empties:
        yield ErrorSample(
            f"empty {shape}", (torch.zeros(shape), 2), {}, RuntimeError, "batch dimension only"
        )
    for dtype in (torch.bool, torch.complex64):
        yield ErrorSample(
            str(dtype), (image.to(dtype), 2), {}, NotImplementedError, "max_pool2d.*dtype"
        )
    yield ErrorSample("not a tensor", ([1.0], 2), {}, TypeError, "max_pool2d.*input.*list")


def _benchmark(
    name: str, kernel_class: str, shape: tuple[int, ...], window: tuple[int, ...], layout: str
) -> BenchmarkSample:
    def build(make: Maker) -> Sample:
        return Sample(name, (make.image(*shape, layout=layout), *window))

    return BenchmarkSample(name, kernel_class, build, layout)


def _output(sample: Sample) -> torch.Tensor:
    input, *window = sample.args
    output: torch.Tensor = torch.nn.functional.max_pool2d(input.detach().to("meta"), *window)
    return output


def forward_work(sample: Sample) -> Work:
    """Reads the input once, writes the output; no offsets, which only training needs."""
    return Work(0, bytes_of(sample.args[0]), bytes_of(_output(sample)))


def backward_work(sample: Sample) -> Work:
    """Reads the gradient of the output, and for each output an offset of one byte."""
    output = _output(sample)
    return Work(0, bytes_of(output) + output.numel(), bytes_of(sample.args[0]))


CASES = (
    OpCase(
        name="max_pool2d",
        operators=(
            "max_pool2d",
            "max_pool2d_with_offsets",
            "max_pool2d_with_indices",
            "max_pool2d_backward",
            "max_pool2d_gather",
            "max_pool2d_with_indices_backward",
            "max_unpool2d_backward",
        ),
        dtypes=FLOATING + INTEGERS,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        exact=True,
        benchmark_samples=tuple(
            _benchmark(*benchmark, layout)
            for layout in ("NCHW", "channels_last")
            for benchmark in BENCHMARKS
        ),
        forward_work=forward_work,
        backward_work=backward_work,
    ),
)
