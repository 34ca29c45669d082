"""The pointwise losses: cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

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

# Around the vector widths, scalars, empty, and more than one block of a reduction.
SHAPES = {
    "none": ((), (0,), (1,), (7,), (8,), (15,), (17,), (3, 5), (2, 3, 5, 7), (2, 0, 3), (4099,)),
    "mean": ((), (0,), (15,), (2, 3, 5, 7), (70001,)),
    "sum": ((1,), (2, 0, 3), (17,), (4099,)),
}

Pair = Callable[..., tuple[Tensor, Tensor]]


def _reductions(make: Maker) -> tuple[str, ...]:
    # torch has no mean of integers.
    return ("none", "mean", "sum") if make.dtype.is_floating_point else ("none", "sum")


def _shape_samples(make: Maker, pair: Pair, **kwargs: Any) -> Iterator[Sample]:
    text = "".join(f" {name}={value}" for name, value in kwargs.items())
    for reduction in _reductions(make):
        for shape in SHAPES[reduction]:
            name = f"{shape} {reduction}{text}"
            yield Sample(name, pair(make, *shape), {"reduction": reduction, **kwargs})


# 16 KB to 64 MB of float32 in each of input and target.
BENCHMARK_EXPONENTS = (12, 18, 20, 24)


def _benchmarks(pair: Pair, **kwargs: Any) -> tuple[BenchmarkSample, ...]:
    """Means, with a gradient of the input alone."""

    def benchmark(name: str, kernel_class: str, count: int) -> BenchmarkSample:
        def build(make: Maker) -> Sample:
            input, target = pair(make, count)
            return Sample(name, (input, target.detach()), kwargs)

        return BenchmarkSample(name, kernel_class, build)

    return (
        *(benchmark(f"2^{power}", "mean", 2**power) for power in BENCHMARK_EXPONENTS),
        benchmark("16 elements", OVERHEAD, 16),
    )


def _forward_work(flops: int) -> Callable[[Sample], Work]:
    """Reads both operands; `flops` per element."""

    def work(sample: Sample) -> Work:
        input, target = sample.args[:2]
        output = bytes_of(input) if sample.kwargs.get("reduction") == "none" else 4
        return Work(flops * input.numel(), bytes_of(input, target), output)

    return work


def _backward_work(flops: int) -> Callable[[Sample], Work]:
    """Reads both operands; writes the gradients that are needed."""

    def work(sample: Sample) -> Work:
        input, target = sample.args[:2]
        written = bytes_of(*(each for each in (input, target) if each.requires_grad))
        return Work(flops * input.numel(), bytes_of(input, target), written)

    return work


def _reduction_errors(pair: tuple[Tensor, Tensor], op: str) -> Iterator[ErrorSample]:
    for reduction in ("average", None):
        yield ErrorSample(
            f"reduction={reduction}",
            pair,
            {"reduction": reduction},
            ValueError,
            f"{op}: reduction must be",
        )
    complex_pair = tuple(tensor.to(torch.complex64) for tensor in pair)
    yield ErrorSample(
        "complex",
        complex_pair,
        {},
        NotImplementedError if op not in ("kl_div", "l1_loss") else RuntimeError,
        f"{op}: not implemented for dtype",
        differs="torch has the l1 of complex tensors" if op == "l1_loss" else "",
    )
    yield ErrorSample(
        "not a tensor",
        (pair[0], 1.0),
        {},
        TypeError,
        f"{op}: target must be a Tensor",
        differs="torch: AttributeError for some losses",
    )


# --- functions of input - target ------------------------------------------------------------------


def _any_pair(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    return make.tensor(*shape), make.tensor(*shape)


def _difference_samples(make: Maker, **kwargs: Any) -> Iterator[Sample]:
    yield from _shape_samples(make, _any_pair, **kwargs)
    none, total = {"reduction": "none", **kwargs}, {"reduction": "sum", **kwargs}
    yield Sample("ties none", (make.integer_valued(5, 8), make.integer_valued(5, 8)), none)
    yield Sample("broadcast none", (make.tensor(4, 1), make.tensor(3)), none)
    yield Sample("broadcast sum", (make.tensor(4, 1), make.tensor(3)), total)
    yield Sample("scalar input sum", (make.tensor(), make.tensor(9)), total)


def _weighted_samples(make: Maker) -> Iterator[Sample]:
    for reduction in _reductions(make):
        weight = make.tensor(3, 7, low=0.1, high=1.0)
        options = {"reduction": reduction, "weight": weight}
        yield Sample(f"weight {reduction}", _any_pair(make, 3, 7), options)


def _smooth_pair(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    """Differences that stay 0.1 away from every whole number, where the kinks are."""
    return make.distinct(*shape), make.tensor(*shape, low=0.1, high=0.4)


def _difference_gradchecks(make: Maker, **kwargs: Any) -> Iterator[Sample]:
    for reduction in ("none", "mean", "sum"):
        options = {"reduction": reduction, **kwargs}
        yield Sample(reduction, _smooth_pair(make, 2, 4), options)


def _difference_errors(op: str) -> Iterator[ErrorSample]:
    pair = torch.rand(3, 4), torch.rand(3, 4)
    yield from _reduction_errors(pair, op)
    yield ErrorSample(
        "sizes", (torch.rand(3, 4), torch.rand(3, 5)), {}, RuntimeError, rf"{op}.*\(3, 5\)"
    )
    if op != "smooth_l1_loss":
        yield ErrorSample(
            "weight sizes", pair, {"weight": torch.rand(4)}, ValueError, f"{op}: weight and input"
        )
    if op != "l1_loss":
        integers = torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
        yield ErrorSample(
            "integers", integers, {}, NotImplementedError, f"{op}: not implemented for dtype int64"
        )


def l1_samples(make: Maker) -> Iterator[Sample]:
    yield from _difference_samples(make)
    yield from _weighted_samples(make)


def l1_errors() -> Iterator[ErrorSample]:
    yield from _difference_errors("l1_loss")
    pair = torch.ones(3, dtype=torch.int32), torch.ones(3, dtype=torch.int32)
    yield ErrorSample("integer mean", pair, {}, RuntimeError, "l1_loss: reduction 'mean' needs")
    yield ErrorSample("bool", (pair[0].bool(), pair[1]), {}, RuntimeError, "l1_loss: bool")


def mse_samples(make: Maker) -> Iterator[Sample]:
    yield from _difference_samples(make)
    yield from _weighted_samples(make)


def smooth_l1_samples(make: Maker) -> Iterator[Sample]:
    yield from _difference_samples(make)
    for beta in (0.0, 0.3, 2, float("inf")):
        for reduction in ("none", "mean"):
            options = {"reduction": reduction, "beta": beta}
            yield Sample(f"beta={beta} {reduction}", _any_pair(make, 3, 11), options)


def smooth_l1_gradchecks(make: Maker) -> Iterator[Sample]:
    yield from _difference_gradchecks(make)
    yield Sample("beta=2", _smooth_pair(make, 2, 4), {"beta": 2.0})


def smooth_l1_errors() -> Iterator[ErrorSample]:
    yield from _difference_errors("smooth_l1_loss")
    pair = torch.rand(3), torch.rand(3)
    for beta in (-1.0, float("nan")):
        yield ErrorSample(
            f"beta={beta}", pair, {"beta": beta}, RuntimeError, "beta must not be negative"
        )
    yield ErrorSample("beta=None", pair, {"beta": None}, TypeError, "beta must be a number")


def huber_samples(make: Maker) -> Iterator[Sample]:
    yield from _difference_samples(make)
    yield from _weighted_samples(make)
    for delta in (0.3, 2, float("inf")):
        for reduction in ("none", "mean"):
            options = {"reduction": reduction, "delta": delta}
            yield Sample(f"delta={delta} {reduction}", _any_pair(make, 3, 11), options)


def huber_gradchecks(make: Maker) -> Iterator[Sample]:
    yield from _difference_gradchecks(make)
    yield Sample("delta=2", _smooth_pair(make, 2, 4), {"delta": 2.0})


def huber_errors() -> Iterator[ErrorSample]:
    yield from _difference_errors("huber_loss")
    pair = torch.rand(3), torch.rand(3)
    for delta in (0, -1.0, float("nan")):
        yield ErrorSample(
            f"delta={delta}", pair, {"delta": delta}, RuntimeError, "delta must be positive"
        )
    yield ErrorSample("delta=''", pair, {"delta": ""}, TypeError, "delta must be a number")
    mixed = torch.ones(3, dtype=torch.int64), torch.rand(3)
    yield ErrorSample("integer input", mixed, {}, RuntimeError, "huber_loss: the result has")


# --- kl_div ---------------------------------------------------------------------------------------


# All losses are positive: a sum that cancels has no relative accuracy to test, in torch neither.
def _kl_pair(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    return make.tensor(*shape, low=-8.0, high=-5.0), make.tensor(*shape, low=0.01, high=1.0)


def _kl_log_pair(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    return make.tensor(*shape, low=-6.0, high=-3.0), make.tensor(*shape, low=-3.0, high=0.0)


def kl_samples(make: Maker) -> Iterator[Sample]:
    yield from _shape_samples(make, _kl_pair)
    yield from _shape_samples(make, _kl_log_pair, log_target=True)
    for log_target, pair in ((False, _kl_pair), (True, _kl_log_pair)):
        for reduction in ("none", "mean", "sum", "batchmean"):
            options = {"reduction": reduction, "log_target": log_target}
            yield Sample(f"3-d {reduction} {log_target=}", pair(make, 3, 4, 5), options)
            broadcast = pair(make, 4, 1)[0], pair(make, 3)[1]
            yield Sample(f"broadcast {reduction} {log_target=}", broadcast, options)
        options = {"reduction": "batchmean", "log_target": log_target}
        yield Sample(f"scalar batchmean {log_target=}", pair(make), options)
    zeros = torch.zeros(8, dtype=make.dtype).requires_grad_(make.requires_grad)
    yield Sample("target 0", (make.tensor(8), zeros), {"reduction": "sum"})
    negative = make.tensor(5, low=-1.0, high=-0.1)
    yield Sample("target negative", (make.tensor(5), negative), {"reduction": "none"})


def kl_gradchecks(make: Maker) -> Iterator[Sample]:
    for reduction in ("none", "mean", "sum", "batchmean"):
        yield Sample(reduction, _kl_pair(make, 2, 4), {"reduction": reduction})
        options = {"reduction": reduction, "log_target": True}
        yield Sample(f"{reduction} log_target", _kl_log_pair(make, 2, 4), options)


def kl_errors() -> Iterator[ErrorSample]:
    pair = torch.rand(3, 4), torch.rand(3, 4)
    yield from _reduction_errors(pair, "kl_div")
    yield ErrorSample("sizes", (pair[0], torch.rand(3, 5)), {}, RuntimeError, r"kl_div.*\(3, 5\)")
    yield ErrorSample(
        "integers", (pair[0], torch.ones(3, 4, dtype=torch.int64)), {}, RuntimeError, "kl_div.*int"
    )


# --- binary cross entropy -------------------------------------------------------------------------


def _bce_pair(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    return make.tensor(*shape, low=0.02, high=0.98), make.tensor(*shape, low=0.0, high=1.0)


def _logits_pair(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    return make.tensor(*shape, low=-9.0, high=9.0), make.tensor(*shape, low=0.0, high=1.0)


def _weight(make: Maker, *shape: int) -> Tensor:
    return make.tensor(*shape, low=0.2, high=3.0, grad=False)


# Reductions with sizes of weights for operands of (3, 7).
WEIGHTS = (("none", (3, 7)), ("none", ()), ("none", (3, 1)), ("mean", (7,)), ("sum", (1,)))


def bce_samples(make: Maker) -> Iterator[Sample]:
    yield from _shape_samples(make, _bce_pair)
    for reduction, shape in WEIGHTS:
        options = {"weight": _weight(make, *shape), "reduction": reduction}
        yield Sample(f"weight {shape} {reduction}", _bce_pair(make, 3, 7), options)
    for reduction in ("none", "mean"):
        edge = torch.tensor([0.0, 1.0, 0.0, 1.0, -0.0], dtype=make.dtype)
        truth = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0], dtype=make.dtype)
        yield Sample(f"edges {reduction}", (edge, truth), {"reduction": reduction})


def bce_gradchecks(make: Maker) -> Iterator[Sample]:
    for reduction in ("none", "mean", "sum"):
        pair = make.tensor(2, 4, low=0.2, high=0.8), make.tensor(2, 4, low=0.2, high=0.8)
        yield Sample(reduction, pair, {"reduction": reduction})
        options = {"weight": _weight(make, 4), "reduction": reduction}
        yield Sample(f"{reduction} weight", pair, options)


def _weight_errors(op: str, names: tuple[str, ...]) -> Iterator[ErrorSample]:
    pair = torch.rand(2, 3), torch.rand(2, 3)
    yield ErrorSample(
        "sizes", (pair[0], torch.rand(3)), {}, ValueError, rf"{op}: target and input.*\(3,? ?\)"
    )
    yield from _reduction_errors(pair, op)
    for name in names:
        for shape in ((4,), (0,), (5, 2, 3), (1, 2, 3)):
            yield ErrorSample(
                f"{name} {shape}",
                pair,
                {name: torch.rand(shape)},
                RuntimeError,
                f"{op}: {name} must broadcast",
            )
        yield ErrorSample(
            f"{name} requires a gradient",
            pair,
            {name: torch.rand(3, requires_grad=True)},
            RuntimeError,
            f"{op}: not differentiable with respect to {name}",
        )


def bce_errors() -> Iterator[ErrorSample]:
    op = "binary_cross_entropy"
    yield from _weight_errors(op, ("weight",))
    for value in (-1e-7, 1.0000002, float("nan"), float("inf")):
        for reduction in ("none", "mean"):
            inside, outside = torch.rand(20), torch.rand(20)
            outside[17] = value
            options = {"reduction": reduction}
            yield ErrorSample(
                f"input {value} {reduction}",
                (outside, inside),
                options,
                RuntimeError,
                "all elements of input should be between 0 and 1",
            )
            yield ErrorSample(
                f"target {value} {reduction}",
                (inside, outside),
                options,
                RuntimeError,
                "all elements of target should be between 0 and 1",
            )
    mixed = torch.rand(3), torch.rand(3, dtype=torch.float64)
    yield ErrorSample("mixed dtypes", mixed, {}, RuntimeError, f"{op}: target and input")
    integers = torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    yield ErrorSample("integers", integers, {}, NotImplementedError, f"{op}: not implemented")


def logits_samples(make: Maker) -> Iterator[Sample]:
    yield from _shape_samples(make, _logits_pair)
    for reduction, shape in WEIGHTS:
        weight, pos_weight = _weight(make, *shape), _weight(make, *shape)
        pair = _logits_pair(make, 3, 7)
        options: dict[str, Any] = {"reduction": reduction, "weight": weight}
        yield Sample(f"weight {shape} {reduction}", pair, options)
        options = {"reduction": reduction, "pos_weight": pos_weight}
        yield Sample(f"pos_weight {shape} {reduction}", pair, options)
        options = {**options, "weight": weight}
        yield Sample(f"both {shape} {reduction}", pair, options)


def logits_gradchecks(make: Maker) -> Iterator[Sample]:
    for reduction in ("none", "mean", "sum"):
        pair = make.tensor(2, 4), make.tensor(2, 4, low=0.0, high=1.0)
        options: dict[str, Any] = {"reduction": reduction}
        yield Sample(reduction, pair, options)
        options["pos_weight"] = _weight(make, 4)
        yield Sample(f"{reduction} pos_weight", pair, options)
        yield Sample(f"{reduction} both", pair, {"weight": _weight(make, 2, 1), **options})


def logits_errors() -> Iterator[ErrorSample]:
    op = "binary_cross_entropy_with_logits"
    yield from _weight_errors(op, ("weight", "pos_weight"))
    integers = torch.ones(3, dtype=torch.int64)
    floats = torch.rand(3)
    yield ErrorSample("integer target", (floats, integers), {}, RuntimeError, f"{op}: the result")
    yield ErrorSample("integer input", (integers, floats), {}, NotImplementedError, "dtype.*int64")
    yield ErrorSample(
        "bool pos_weight",
        (floats, floats),
        {"pos_weight": torch.ones(3, dtype=torch.bool)},
        RuntimeError,
        "pos_weight must not be bool",
    )


def finite_logits(*args: Any, **kwargs: Any) -> Tensor:
    """binary_cross_entropy_with_logits(finite=True)"""
    import nnops.nn.functional as functional

    loss: Tensor = functional.binary_cross_entropy_with_logits(*args, finite=True, **kwargs)
    return loss


def bounded_logits(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The same by torch, but for gradients beyond the bound."""
    if input.is_floating_point():
        bound = min(2.0**64, torch.finfo(input.dtype).max)
        input = input.clamp(-bound, bound)
    return torch.nn.functional.binary_cross_entropy_with_logits(input, *args, **kwargs)


CASES = (
    OpCase(
        name="l1_loss",
        operators=("l1_loss", "l1_loss_backward"),
        dtypes=FLOATING + INTEGERS,
        samples=l1_samples,
        gradcheck_samples=_difference_gradchecks,
        error_samples=l1_errors,
        benchmark_samples=_benchmarks(_any_pair),
        forward_work=_forward_work(3),
        backward_work=_backward_work(2),
    ),
    OpCase(
        name="mse_loss",
        operators=("mse_loss", "mse_loss_backward"),
        dtypes=FLOATING,
        samples=mse_samples,
        gradcheck_samples=_difference_gradchecks,
        error_samples=lambda: _difference_errors("mse_loss"),
        benchmark_samples=_benchmarks(_any_pair),
        forward_work=_forward_work(3),
        backward_work=_backward_work(2),
    ),
    OpCase(
        name="smooth_l1_loss",
        # beta=0 is the l1 loss.
        operators=("smooth_l1_loss", "smooth_l1_loss_backward", "l1_loss"),
        dtypes=FLOATING,
        samples=smooth_l1_samples,
        gradcheck_samples=smooth_l1_gradchecks,
        error_samples=smooth_l1_errors,
        benchmark_samples=_benchmarks(_any_pair),
        forward_work=_forward_work(6),
        backward_work=_backward_work(4),
    ),
    OpCase(
        name="huber_loss",
        operators=("huber_loss", "huber_loss_backward"),
        dtypes=FLOATING,
        samples=huber_samples,
        gradcheck_samples=huber_gradchecks,
        error_samples=huber_errors,
        benchmark_samples=_benchmarks(_any_pair),
        forward_work=_forward_work(6),
        backward_work=_backward_work(4),
    ),
    OpCase(
        name="kl_div",
        operators=("kl_div", "kl_div_backward", "kl_div_backward_target"),
        dtypes=FLOATING,
        samples=kl_samples,
        gradcheck_samples=kl_gradchecks,
        error_samples=kl_errors,
        # Of vectors "batchmean" is the mean, and torch does not warn of it on every call.
        benchmark_samples=_benchmarks(_kl_pair, reduction="batchmean"),
        forward_work=_forward_work(5),
        backward_work=_backward_work(2),
    ),
    OpCase(
        name="binary_cross_entropy",
        operators=(
            "binary_cross_entropy",
            "binary_cross_entropy_backward",
            "binary_cross_entropy_backward_target",
        ),
        dtypes=FLOATING,
        samples=bce_samples,
        gradcheck_samples=bce_gradchecks,
        error_samples=bce_errors,
        benchmark_samples=_benchmarks(_bce_pair),
        forward_work=_forward_work(7),
        backward_work=_backward_work(5),
    ),
    OpCase(
        name="binary_cross_entropy_with_logits",
        operators=(
            "binary_cross_entropy_with_logits",
            "binary_cross_entropy_with_logits_backward",
            "binary_cross_entropy_with_logits_backward_target",
        ),
        dtypes=FLOATING,
        samples=logits_samples,
        gradcheck_samples=logits_gradchecks,
        error_samples=logits_errors,
        benchmark_samples=_benchmarks(_logits_pair),
        forward_work=_forward_work(7),
        backward_work=_backward_work(5),
    ),
    OpCase(
        name="finite_binary_cross_entropy_with_logits",
        operators=(
            "binary_cross_entropy_with_logits",
            "binary_cross_entropy_with_logits_backward",
            "binary_cross_entropy_with_logits_backward_target",
        ),
        dtypes=FLOATING,
        samples=logits_samples,
        gradcheck_samples=logits_gradchecks,
        error_samples=logits_errors,
        function=finite_logits,
        reference=bounded_logits,
        benchmark_samples=_benchmarks(_logits_pair),
        forward_work=_forward_work(7),
        backward_work=_backward_work(5),
    ),
)
