"""cross_entropy: cases."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nnops.testing.opdb.nll_loss import (
    BENCHMARKS,
    EMPTY_SHAPES,
    REDUCTIONS,
    SHAPES,
    benchmark,
    class_count,
    shared_error_samples,
    target_shape,
)
from nnops.testing.samples import FLOATING, ErrorSample, Maker, OpCase, Sample, Work, bytes_of


def samples(make: Maker) -> Iterator[Sample]:
    for index, shape in enumerate((*SHAPES, *EMPTY_SHAPES, (6,), (4, 1001), (2, 3, 17, 33))):
        classes = class_count(shape)
        target = make.indices(*target_shape(shape), high=classes)
        weight = make.tensor(classes, low=0.1, high=2.0, grad=False)
        reduction = REDUCTIONS[index % 3]
        other = REDUCTIONS[(index + 1) % 3]
        yield Sample(
            f"{shape=} {reduction}",
            (make.tensor(*shape, low=-5, high=5), target),
            {"reduction": reduction},
        )
        yield Sample(
            f"{shape=} weight smoothing {other}",
            (make.tensor(*shape), target, weight),
            {"reduction": other, "ignore_index": 0, "label_smoothing": 0.2},
        )
        yield Sample(
            f"{shape=} probabilities {reduction}",
            (make.tensor(*shape, low=-5, high=5), make.tensor(*shape, low=0, high=1)),
            {"reduction": reduction},
        )
        yield Sample(
            f"{shape=} probabilities weight smoothing {other}",
            (make.tensor(*shape), make.tensor(*shape, low=0, high=1), weight),
            {"reduction": other, "label_smoothing": 0.3},
        )
    target = make.indices(9, high=5)
    target[::2] = -100
    for smoothing in (0.0, 0.1, 1.0):
        kwargs = {"label_smoothing": smoothing}
        yield Sample(f"ignored rows {smoothing}", (make.tensor(9, 5), target), kwargs)
        yield Sample(f"all ignored {smoothing}", (make.tensor(2, 5), target[::4][:2]), kwargs)
    yield Sample(
        "ignored class outside", (make.tensor(2, 5), torch.tensor([77, 4]), None, None, 77)
    )
    yield Sample("uint8", (make.tensor(9, 5), make.indices(9, high=5).to(torch.uint8)))
    # Forward only: torch's backward refuses this target.
    yield Sample("one class as (1,)", (make.tensor(5, grad=False), make.indices(1, high=5)))
    yield Sample("no classes, ignored", (make.tensor(2, 0), torch.tensor([-100, -100])))
    yield Sample("no classes, probabilities", (make.tensor(2, 0), make.tensor(2, 0)))
    yield Sample(
        "probabilities without gradient", (make.tensor(3, 5), make.tensor(3, 5, low=0, grad=False))
    )
    yield Sample(
        "gradient of probabilities alone", (make.tensor(3, 5, grad=False), make.tensor(3, 5, low=0))
    )


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    weight = make.tensor(5, low=0.1, high=2.0, grad=False)
    for reduction in REDUCTIONS:
        yield Sample(
            reduction,
            (make.tensor(4, 5), torch.tensor([1, -100, 4, 0])),
            {"reduction": reduction},
        )
        yield Sample(
            f"{reduction} weight smoothing spatial",
            (make.tensor(2, 5, 3), torch.tensor([[0, 1, 2], [3, 2, 4]]), weight),
            {"reduction": reduction, "label_smoothing": 0.2, "ignore_index": 2},
        )
        yield Sample(
            f"{reduction} probabilities",
            (make.tensor(3, 5), make.tensor(3, 5, low=0.1, high=1)),
            {"reduction": reduction},
        )
        yield Sample(
            f"{reduction} probabilities weight smoothing spatial",
            (make.tensor(1, 5, 2, 1), make.tensor(1, 5, 2, 1, low=0.1, high=1), weight),
            {"reduction": reduction, "label_smoothing": 0.2},
        )
        yield Sample(
            f"{reduction} one row",
            (make.tensor(5), torch.tensor(3), weight),
            {"reduction": reduction, "label_smoothing": 0.1},
        )
    yield Sample("one row, probabilities", (make.tensor(5), make.tensor(5, low=0.1), weight))


def error_samples() -> Iterator[ErrorSample]:
    yield from shared_error_samples("cross_entropy")
    x, q = torch.zeros(3, 5), torch.full((3, 5), 0.2)
    yield ErrorSample(
        "no dimensions, class",
        (x[0, 0], torch.tensor([0])),
        {},
        IndexError,
        "cross_entropy: input must have at least one dimension",
    )
    yield ErrorSample(
        "no dimensions, probability",
        (x[0, 0], q[0, 0]),
        {},
        IndexError,
        "cross_entropy: input must have at least one dimension",
    )
    for dtype in (torch.int64, torch.bool, torch.complex64):
        yield ErrorSample(
            f"probabilities {dtype}",
            (x, q.to(dtype)),
            {},
            RuntimeError,
            r"cross_entropy: target of the input's sizes \(3, 5\).*floating",
        )
    yield ErrorSample(
        "probabilities batch", (x, q[1:]), {}, ValueError, r"same batch size.*\(3, 5\).*\(2, 5\)"
    )
    yield ErrorSample(
        "probabilities with ignore_index",
        (x, q),
        {"ignore_index": 1},
        RuntimeError,
        "cross_entropy: ignore_index must be negative.*got 1",
    )
    yield ErrorSample(
        "probabilities weight too short",
        (x, q, torch.ones(4)),
        {},
        RuntimeError,
        r"cross_entropy: weight.*\(4\).* 5 classes",
    )
    yield ErrorSample(
        "probabilities weight needs a gradient",
        (x, q, torch.ones(5, requires_grad=True)),
        {},
        NotImplementedError,
        "cross_entropy: weight must not require a gradient",
        differs="torch has this gradient",
    )
    yield ErrorSample(
        "probabilities, input int64", (x.long(), q), {}, RuntimeError, "cross_entropy:.*int64"
    )
    target = torch.tensor([1, 0, 4])
    for values in (target, q):
        yield ErrorSample(
            f"label_smoothing too large, {values.dtype}",
            (x, values),
            {"label_smoothing": 1.5},
            RuntimeError,
            r"cross_entropy: label_smoothing must be in \[0, 1\], but got 1.5",
        )
    for smoothing in (-0.1, float("nan")):
        yield ErrorSample(
            f"label_smoothing {smoothing}",
            (x, target),
            {"label_smoothing": smoothing},
            RuntimeError,
            "cross_entropy: label_smoothing must be in",
            differs="torch takes it for 0",
        )
    yield ErrorSample(
        "label_smoothing text",
        (x, target),
        {"label_smoothing": "0.1"},
        TypeError,
        "cross_entropy: label_smoothing must be a float.*'0.1'",
    )


def forward_work(sample: Sample) -> Work:
    """For each logit a maximum, a difference, an exponential and a sum."""
    input, target = sample.args[:2]
    return Work(4 * input.numel(), bytes_of(input, target), input.element_size())


def backward_work(sample: Sample) -> Work:
    """Reads the logits, the targets and one log-sum-exp per target; writes the gradient."""
    input, target = sample.args[:2]
    log_sums = target.numel() * input.element_size()
    return Work(3 * input.numel(), bytes_of(input, target) + log_sums, bytes_of(input))


CASES = (
    OpCase(
        name="cross_entropy",
        operators=(
            "cross_entropy",
            "cross_entropy_backward",
            "cross_entropy_backward_target",
        ),
        dtypes=FLOATING,
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        benchmark_samples=tuple(benchmark(*each) for each in BENCHMARKS),
        forward_work=forward_work,
        backward_work=backward_work,
    ),
)
