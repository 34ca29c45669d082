"""Hypothesis draws whole calls, valid and not, and holds nnops's answer against torch's.

Where torch raises, nnops raises the same class; where torch computes, nnops computes the same, or
says NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from torch import Tensor

import nnops.nn.functional as F
from nnops.testing.claims import function_is_ours
from nnops.testing.compare import assert_same_outcome, outcome, outputs_of

pytestmark = pytest.mark.filterwarnings("ignore")

quick = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SIZE = st.integers(0, 9)
SMALL = st.integers(1, 4)
# Mostly right, now and then zero, negative or far too large.
COUNT = st.one_of(SMALL, SMALL, SMALL, SMALL, st.sampled_from([0, -1, 5, 9, 2**31, 2**62]))
PADDING = st.one_of(st.integers(0, 2), st.integers(0, 2), st.sampled_from([-1, 3, 5, 9]))
DTYPE = st.sampled_from([torch.float64] * 5 + [torch.float32, torch.int64, torch.int32, torch.bool])
REDUCTION = st.sampled_from(["none", "mean", "sum"])


def number_or_pair(element: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    pair = st.tuples(element, element)
    return st.one_of(element, pair, pair, st.lists(element, min_size=0, max_size=3))


def well_formed(element: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    """Without lists of a wrong length, which torch's max_unpool2d indexes without a look."""
    return st.one_of(element, st.tuples(element, element))


def tensor(sizes: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(-9, 10, sizes, generator=generator).to(dtype)


def check(name: str, *args: Any, **kwargs: Any) -> None:
    """Same outcome, and where there are gradients to be had, the same gradients."""
    what = f"{name}({describe(args)}, {kwargs})"
    named = function_is_ours(name)
    results = []
    for library in (F, torch.nn.functional):
        results.append(outcome(lambda: differentiated(getattr(library, name), args, kwargs)))  # noqa: B023
    assert_same_outcome(*results, what, named)


def describe(args: tuple[Any, ...]) -> str:
    return ", ".join(
        f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
        for value in args
    )


def differentiated(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, ...]:
    """The outputs, then the gradients of the sum of the first."""
    copies = [value.clone() if isinstance(value, Tensor) else value for value in args]
    # conv2d has three inputs to differentiate; a loss is differentiated for its first alone here.
    differentiable = copies if function.__name__ == "conv2d" else copies[:1]
    leaves = [
        copy.requires_grad_()
        for copy in differentiable
        if isinstance(copy, Tensor) and copy.dtype.is_floating_point
    ]
    outputs = outputs_of(function(*copies, **kwargs))
    grads: tuple[Any, ...] = ()
    # torch's backwards do not take the mixed dtypes that its forwards take.
    dtypes = {copy.dtype for copy in copies if isinstance(copy, Tensor)}
    indexed = function.__name__ in ("nll_loss", "cross_entropy", "max_unpool2d")
    mixed = len(dtypes) > 1 and not indexed
    if outputs[0].requires_grad and not mixed:
        grads = torch.autograd.grad(outputs[0].sum(), leaves, allow_unused=True)
    return (*(output.detach() for output in outputs), *(g for g in grads if g is not None))


@quick
@given(
    batch=st.one_of(st.none(), st.integers(0, 3)),
    channels=st.integers(1, 4),
    image=st.tuples(SIZE, SIZE),
    kernel=st.tuples(SMALL, SMALL),
    groups=st.sampled_from([1, 1, 1, 2, 3, 4, 0, -1]),
    wrong_channels=st.sampled_from([0] * 9 + [1]),
    stride=number_or_pair(COUNT),
    padding=st.one_of(number_or_pair(PADDING), st.sampled_from(["same", "valid", "full"])),
    dilation=number_or_pair(COUNT),
    bias=st.sampled_from([None, 0, 0, 1]),
    dtype=DTYPE,
)
def test_conv2d(
    batch: int | None,
    channels: int,
    image: tuple[int, int],
    kernel: tuple[int, int],
    groups: int,
    wrong_channels: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    bias: int | None,
    dtype: torch.dtype,
) -> None:
    in_channels = channels * max(groups, 1) + wrong_channels
    out_channels = 2 * max(groups, 1)
    sizes = (in_channels, *image) if batch is None else (batch, in_channels, *image)
    weight = tensor((out_channels, channels, *kernel), dtype, 1)
    added = None if bias is None else tensor((out_channels + bias,), dtype, 2)
    check("conv2d", tensor(sizes, dtype, 0), weight, added, stride, padding, dilation, groups)


@quick
@given(
    sizes=st.lists(SIZE, min_size=2, max_size=5),
    kernel=number_or_pair(COUNT),
    stride=st.one_of(st.none(), number_or_pair(COUNT)),
    padding=number_or_pair(PADDING),
    dilation=number_or_pair(COUNT),
    ceil_mode=st.booleans(),
    return_indices=st.booleans(),
    dtype=DTYPE,
)
@example([1, 5, 5], 3, None, 0, 1, True, True, torch.int64)
def test_max_pool2d(
    sizes: list[int],
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
    dtype: torch.dtype,
) -> None:
    x = tensor(tuple(sizes), dtype, 0)
    check("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode, return_indices)


@quick
@given(
    lead=st.lists(st.integers(0, 3), min_size=0, max_size=3),
    image=st.tuples(SIZE, SIZE),
    kernel=well_formed(SMALL),
    stride=st.one_of(st.none(), well_formed(SMALL)),
    padding=well_formed(st.sampled_from([0, 0, 0, 1])),
    output_size=st.one_of(
        st.none(), st.none(), st.lists(st.integers(-1, 20), min_size=1, max_size=4)
    ),
    high=st.integers(1, 120),
    low=st.sampled_from([0, 0, 0, 0, -1, -(2**40)]),
    index_dtype=st.sampled_from([torch.int64] * 6 + [torch.int32, torch.float64]),
    dtype=DTYPE,
)
def test_max_unpool2d(
    lead: list[int],
    image: tuple[int, int],
    kernel: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
    high: int,
    low: int,
    index_dtype: torch.dtype,
    dtype: torch.dtype,
) -> None:
    sizes = (*lead, *image)
    count = torch.Size(sizes).numel()
    # Distinct within the tensor: what wins among equal indices is not defined.
    places = torch.randperm(max(high, count), generator=torch.Generator().manual_seed(3))
    indices = (places[:count] + low).reshape(sizes).to(index_dtype)
    x = tensor(sizes, dtype, 0)
    check("max_unpool2d", x, indices, kernel, stride, padding, output_size)


SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=4)


@quick
@given(
    name=st.sampled_from(["l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss", "kl_div"]),
    shape=SHAPES,
    broadcast=st.sampled_from([None, None, None, 0, 1, 2]),
    parameter=st.sampled_from([1.0, 0.5, 0.0, -1.0, 3.0]),
    reduction=REDUCTION,
    dtype=st.sampled_from([torch.float64] * 5 + [torch.float32, torch.int64]),
    target_dtype=st.sampled_from([None] * 5 + [torch.float32, torch.int64]),
)
def test_pointwise_losses(
    name: str,
    shape: list[int],
    broadcast: int | None,
    parameter: float,
    reduction: str,
    dtype: torch.dtype,
    target_dtype: torch.dtype | None,
) -> None:
    target_shape = list(shape)
    if broadcast is not None and shape:
        target_shape[broadcast % len(shape)] = 1 if broadcast else 3
    x = tensor(tuple(shape), dtype, 0)
    y = tensor(tuple(target_shape), target_dtype or dtype, 1)
    options: dict[str, Any] = {"reduction": reduction}
    if name == "smooth_l1_loss":
        options["beta"] = parameter
    elif name == "huber_loss":
        options["delta"] = parameter
    elif name == "kl_div":
        options["log_target"] = parameter > 0.7
    check(name, x, y, **options)


@quick
@given(
    with_logits=st.booleans(),
    shape=SHAPES,
    target_shape=st.one_of(st.none(), st.none(), SHAPES),
    weight=st.sampled_from([None, "full", "last", "wrong"]),
    reduction=REDUCTION,
    inside=st.sampled_from([True, True, True, False]),
)
def test_binary_cross_entropies(
    with_logits: bool,
    shape: list[int],
    target_shape: list[int] | None,
    weight: str | None,
    reduction: str,
    inside: bool,
) -> None:
    x = tensor(tuple(shape), torch.float64, 0)
    y = tensor(tuple(shape if target_shape is None else target_shape), torch.float64, 1).sigmoid()
    sizes = {None: None, "full": shape, "last": shape[-1:], "wrong": [7]}[weight]
    scale = None if sizes is None else tensor(tuple(sizes), torch.float64, 2).abs()
    name = "binary_cross_entropy_with_logits" if with_logits else "binary_cross_entropy"
    check(name, x if with_logits or not inside else x.sigmoid(), y, scale, reduction=reduction)


@quick
@given(
    name=st.sampled_from(["nll_loss", "cross_entropy"]),
    batch=st.one_of(st.none(), st.integers(0, 4)),
    classes=st.integers(1, 5),
    spatial=st.lists(st.integers(0, 3), min_size=0, max_size=3),
    wrong_target=st.sampled_from([0, 0, 0, 0, 1]),
    high=st.sampled_from([0, 0, 0, 0, 1, -1]),
    weight=st.sampled_from([None, 0, 0, 1]),
    ignore_index=st.integers(-101, 5),
    reduction=REDUCTION,
    smoothing=st.sampled_from([0.0, 0.0, 0.1, 1.0, 1.5]),
    kind=st.sampled_from(["int64"] * 6 + ["uint8", "int32", "float64", "probabilities"]),
)
def test_class_losses(
    name: str,
    batch: int | None,
    classes: int,
    spatial: list[int],
    wrong_target: int,
    high: int,
    weight: int | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    kind: str,
) -> None:
    sizes = (classes, *spatial) if batch is None else (batch, classes, *spatial)
    scores = tensor(sizes, torch.float64, 0)
    if kind == "probabilities":
        target = tensor(sizes, torch.float64, 1).abs()
    else:
        target_sizes = (*spatial,) if batch is None else (batch + wrong_target, *spatial)
        generator = torch.Generator().manual_seed(1)
        low, top = (high, classes) if high < 0 else (0, classes + high)
        target = torch.randint(low, top, target_sizes, generator=generator)
        target = target.to(getattr(torch, kind))
    scale = None if weight is None else tensor((classes + weight,), torch.float64, 2).abs()
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index}
    if name == "cross_entropy":
        options["label_smoothing"] = smoothing
    check(name, scores, target, scale, **options)
