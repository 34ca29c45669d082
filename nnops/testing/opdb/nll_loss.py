"""nll_loss: cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

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

SHAPES = (
    (1, 1),
    (3, 5),
    (17, 16),
    (65, 33),
    (2, 7, 15),
    (2, 4, 5, 9),
    (3, 2, 1, 1),
    (2, 3, 2, 3, 2),
)
EMPTY_SHAPES = ((0, 5), (3, 5, 0), (0, 4, 2, 3))
REDUCTIONS = ("none", "mean", "sum")


# Name, kernel class, shape of the logits; cross_entropy is timed on the same.
BENCHMARKS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("64x10", "rows", (64, 10)),
    ("512x1000", "rows", (512, 1000)),
    ("2048x32000", "long rows", (2048, 32000)),
    ("8x21x64x64", "planes", (8, 21, 64, 64)),
    ("tiny 4x10", OVERHEAD, (4, 10)),
)


def benchmark(name: str, kernel_class: str, shape: tuple[int, ...]) -> BenchmarkSample:
    def build(make: Maker) -> Sample:
        target = make.indices(*target_shape(shape), high=class_count(shape))
        return Sample(name, (make.tensor(*shape, low=-5, high=5), target))

    return BenchmarkSample(name, kernel_class, build)


def target_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *shape[2:]) if len(shape) > 1 else ()


def class_count(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else shape[0]


class NllLossCase(OpCase):
    """torch's own backward refuses channels-last logits, so torch gets them packed."""

    def torchs(self, sample: Sample) -> Any:
        input, *others = sample.args
        if isinstance(input, torch.Tensor):
            input = input.contiguous()
        return super().torchs(Sample(sample.name, (input, *others), sample.kwargs))


def samples(make: Maker) -> Iterator[Sample]:
    for index, shape in enumerate((*SHAPES, *EMPTY_SHAPES, (6,))):
        classes = class_count(shape)
        target = make.indices(*target_shape(shape), high=classes)
        reduction = REDUCTIONS[index % 3]
        yield Sample(
            f"{shape=} {reduction}", (make.tensor(*shape), target), {"reduction": reduction}
        )
        weight = make.tensor(classes, low=0.1, high=2.0, grad=False)
        for reduction in REDUCTIONS:
            yield Sample(
                f"{shape=} weight {reduction} ignore_index=0",
                (make.tensor(*shape), target, weight),
                {"reduction": reduction, "ignore_index": 0},
            )
    target = make.indices(9, high=5)
    target[::2] = -100
    yield Sample("ignored rows", (make.tensor(9, 5), target))
    yield Sample("all ignored", (make.tensor(9, 5), torch.full_like(target, -100)))
    yield Sample(
        "ignored class outside", (make.tensor(2, 5), torch.tensor([77, 4]), None, None, 77)
    )
    yield Sample("uint8", (make.tensor(9, 5), make.indices(9, high=5).to(torch.uint8)))
    # Forward only: torch's backward refuses this target.
    yield Sample("one class as (1,)", (make.tensor(5, grad=False), make.indices(1, high=5)))
    yield Sample("no classes, ignored", (make.tensor(2, 0), torch.tensor([-100, -100])))


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    weight = make.tensor(5, low=0.1, high=2.0, grad=False)
    for reduction in REDUCTIONS:
        yield Sample(
            reduction,
            (make.tensor(4, 5), torch.tensor([1, -100, 4, 0]), weight),
            {"reduction": reduction},
        )
        yield Sample(
            f"{reduction} spatial",
            (make.tensor(2, 5, 2, 2), make.indices(2, 2, 2, high=5)),
            {"reduction": reduction},
        )
    yield Sample("one row", (make.tensor(5), torch.tensor(3)))


def shared_error_samples(op: str) -> Iterator[ErrorSample]:
    """Wrong targets and weights, which nll_loss and cross_entropy meet alike."""
    x, t = torch.zeros(3, 5), torch.tensor([1, 0, 4])
    image, labels = torch.zeros(2, 5, 3, 4), torch.zeros(2, 3, 4, dtype=torch.long)

    def error(
        name: str, args: tuple[Any, ...], error: type[Exception], match: str, **kwargs: Any
    ) -> ErrorSample:
        return ErrorSample(name, args, kwargs, error, f"nnops::{op}: .*{match}")

    for reduction in REDUCTIONS:
        yield error(
            f"target too large, {reduction}",
            (x, torch.tensor([1, 5, 9])),
            IndexError,
            r"target must be a class in \[0, 5\).*got 5 at position \(1\)",
            reduction=reduction,
        )
        yield error(
            f"target negative, {reduction}",
            (image, labels.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(-1))),
            IndexError,
            r"target must be a class.*ignore_index=-100.*got -1 at position \(1, 2, 0\)",
            reduction=reduction,
        )
    yield error("no classes", (x[:, :0], t), IndexError, r"target must be a class in \[0, 0\)")
    yield error("one row, two targets", (x[0], t[:2]), ValueError, r"target .*\(5\).*\(2\)")
    yield error("one row, 2-D target", (x[0], t[None]), RuntimeError, r"target.*\(1, 3\)")
    yield error("batch sizes", (x, t[:2]), ValueError, r"same batch size.*\(3, 5\).*\(2\)")
    yield error("target without dimensions", (x, t[0]), ValueError, r"same batch size.*\(\)")
    yield error("target of too many dimensions", (x, t[:, None]), RuntimeError, r"\(3\).*\(3, 1\)")
    yield error("spatial sizes", (image, labels[:, 1:]), RuntimeError, r"\(2, 3, 4\).*\(2, 2, 4\)")
    yield error("spatial rank", (image, labels[:, 0]), RuntimeError, r"\(2, 3, 4\).*\(2, 4\)")
    for dtype in (torch.int32, torch.bool, torch.float32):
        yield error(f"target {dtype}", (x, t.to(dtype)), RuntimeError, "target.*int64 or uint8")
    weight = torch.ones(5)
    yield error("weight too short", (x, t, weight[1:]), RuntimeError, r"weight.*\(4\).* 5 classes")
    yield error("weight of two dimensions", (x, t, weight[None]), RuntimeError, r"weight.*\(1, 5\)")
    yield error("weight of none", (x, t, weight[0]), RuntimeError, r"weight.*\(\)")
    yield error("weight float64", (x, t, weight.double()), RuntimeError, "weight.*dtype.*float64")
    yield error("weight int64", (x, t, weight.long()), RuntimeError, "weight.*dtype.*int64")
    yield ErrorSample(
        "weight needs a gradient",
        (torch.zeros(3, 5, requires_grad=True), t, torch.ones(5, requires_grad=True)),
        {},
        RuntimeError,
        f"{op}.*weight must not require a gradient",
    )
    yield error("input int64", (x.long(), t), NotImplementedError, "not implemented for.*int64")
    yield error("input complex", (x * 1j, t), NotImplementedError, "not implemented.*complex64")
    yield error("input no tensor", ([1.0], t), TypeError, "input must be a Tensor.*list")
    yield error("target no tensor", (x, None), TypeError, "target must be a Tensor.*NoneType")
    yield error("weight no tensor", (x, t, [1.0]), TypeError, "weight must be a Tensor.*list")
    yield error("reduction", (x, t), ValueError, "reduction.*'avg'", reduction="avg")
    yield error("ignore_index float", (x, t), TypeError, "ignore_index.*1.0", ignore_index=1.0)
    yield error("ignore_index bool", (x, t), TypeError, "ignore_index.*True", ignore_index=True)
    yield error("ignore_index large", (x, t), ValueError, "64 bits", ignore_index=2**63)


def error_samples() -> Iterator[ErrorSample]:
    yield from shared_error_samples("nll_loss")
    yield ErrorSample(
        "no dimensions",
        (torch.tensor(1.0), torch.tensor(0)),
        {},
        ValueError,
        "nll_loss: input must have at least one dimension",
    )


def forward_work(sample: Sample) -> Work:
    """Reads the targets, and one logit for each."""
    input, target = sample.args[:2]
    return Work(0, bytes_of(target) + target.numel() * input.element_size(), input.element_size())


def backward_work(sample: Sample) -> Work:
    """Reads the targets; writes zeros, and one number for each target."""
    input, target = sample.args[:2]
    return Work(0, bytes_of(target), bytes_of(input))


CASES = (
    NllLossCase(
        name="nll_loss",
        operators=("nll_loss", "nll_loss_backward"),
        dtypes=FLOATING,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        benchmark_samples=tuple(benchmark(*each) for each in BENCHMARKS),
        forward_work=forward_work,
        backward_work=backward_work,
    ),
)
