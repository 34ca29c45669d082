"""What the operator database does not cover of the pointwise losses: promotion, warnings, weights
that are cast, special values in gradients, second derivatives, torch.func and torch.compile."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops import _C

DIFFERENCES = ("l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss")
PROBABILITIES = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
LOSSES = (*DIFFERENCES, "kl_div", *PROBABILITIES)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")


def both(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Our result and torch's; exceptions are results too."""
    results: list[Any] = []
    for module in (F, TF):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                results.append(getattr(module, name)(*args, **kwargs))
            except Exception as error:
                results.append(error)
    return results[0], results[1]


LOW = (torch.bfloat16, torch.float16)


def assert_alike(ours: Any, torchs: Any, what: str, *operands: torch.dtype) -> None:
    """`operands`: dtypes in which torch may have rounded on its way."""
    if isinstance(torchs, Exception):
        assert isinstance(ours, type(torchs)), f"{what}: {ours!r}, torch {torchs!r}"
        return
    assert isinstance(ours, Tensor), f"{what}: {ours!r}, torch {torchs!r}"
    assert ours.dtype is torchs.dtype, f"{what}: {ours.dtype}, torch {torchs.dtype}"
    low = any(dtype in LOW for dtype in (torchs.dtype, *operands))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if low else {}
    torch.testing.assert_close(
        ours, torchs, equal_nan=True, msg=lambda m: f"{what}: {m}", **tolerance
    )


@pytest.mark.parametrize("dtype", FLOATING)
def test_numbers_outside_of_the_unit_interval_are_refused(dtype: torch.dtype, isa: str) -> None:
    finfo = torch.finfo(dtype)
    inside = torch.tensor([0.0, -0.0, 1.0, finfo.tiny, finfo.smallest_normal / 2], dtype=dtype)
    inside = inside.repeat(11)  # some vectors and a part of one, on every ISA
    one = torch.tensor(1.0, dtype=dtype)
    outside = [float("nan"), -float("nan"), float("inf"), -float("inf"), -finfo.tiny]
    outside += [float(torch.nextafter(one, one + 1)), -1.0, -finfo.smallest_normal / 2]
    for reduction in ("none", "mean"):
        assert F.binary_cross_entropy(inside, inside, reduction=reduction).isfinite().all()
    for value, place in itertools.product(outside, range(0, len(inside), 3)):
        wrong = inside.clone()
        wrong[place] = value
        for reduction in ("none", "mean"):
            with pytest.raises(RuntimeError, match="of input should be between 0 and 1"):
                F.binary_cross_entropy(wrong, inside, reduction=reduction)
            with pytest.raises(RuntimeError, match="of target should be between 0 and 1"):
                F.binary_cross_entropy(inside, wrong, reduction=reduction)


@pytest.mark.parametrize("name", LOSSES)
def test_promotion_and_errors_of_every_pair_of_dtypes(name: str) -> None:
    for first, second in itertools.product(DTYPES, repeat=2):
        input = torch.tensor([0, 1, 1, 0, 1]).to(first)
        target = torch.tensor([1, 1, 0, 0, 1]).to(second)
        for reduction in REDUCTIONS:
            ours, torchs = both(name, input, target, reduction=reduction)
            assert_alike(ours, torchs, f"{name}({first}, {second}, {reduction})", first, second)


@pytest.mark.parametrize("name", (*DIFFERENCES, "kl_div"))
def test_promotion_of_scalars(name: str) -> None:
    for first, second in itertools.product((torch.float32, torch.float64), repeat=2):
        for shapes in (((), (3,)), ((3,), ()), ((), ())):
            input = torch.rand(shapes[0], dtype=first)
            target = torch.rand(shapes[1], dtype=second)
            for reduction in REDUCTIONS:
                ours, torchs = both(name, input, target, reduction=reduction)
                assert_alike(ours, torchs, f"{name}({first} {second} {shapes} {reduction})")


# binary_cross_entropy refuses mixed dtypes, torch's huber_loss cannot differentiate them.
@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("binary_cross_entropy", "huber_loss")]
)
def test_gradients_of_mixed_dtypes_keep_their_own(name: str) -> None:
    input = torch.rand(5, requires_grad=True)
    target = torch.rand(5, dtype=torch.float64, requires_grad=True)
    for reduction in REDUCTIONS:
        gradients = []
        for module in (F, TF):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loss = getattr(module, name)(input, target, reduction=reduction)
            gradients.append(torch.autograd.grad(loss.sum(), (input, target)))
        for ours, torchs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name, argument",
    [
        ("binary_cross_entropy", "weight"),
        ("binary_cross_entropy_with_logits", "weight"),
        ("binary_cross_entropy_with_logits", "pos_weight"),
    ],
)
def test_weights_of_any_dtype(name: str, argument: str, dtype: torch.dtype) -> None:
    for floating in (torch.float32, torch.bfloat16):
        pair = torch.rand(2, 3).to(floating), torch.rand(2, 3).to(floating)
        # No 0: torch's pos_weight - 1 wraps in uint8.
        weight = torch.tensor([1, 2, 3]).to(dtype)
        ours, torchs = both(name, *pair, **{argument: weight})
        assert_alike(ours, torchs, f"{name} {floating} {argument} {dtype}")


@pytest.mark.parametrize("name", LOSSES)
def test_warnings_are_torchs(name: str) -> None:
    calls: tuple[dict[str, Any], ...] = (
        {},
        {"reduction": "sum"},
        {"size_average": False},
        {"reduce": False},
        {"size_average": True, "reduce": True},
        {"size_average": False, "reduction": "none"},
    )
    targets = [torch.rand(2, 3)]
    if name not in PROBABILITIES:
        targets.append(torch.rand(3))
    for kwargs, target in itertools.product(calls, targets):
        if name == "huber_loss" and "reduction" not in kwargs and kwargs:
            continue
        found = []
        for module in (F, TF):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                options = dict(kwargs)
                if name == "huber_loss":
                    options.pop("size_average", None)
                getattr(module, name)(torch.rand(2, 3), target, **options)
            # Same categories, same beginnings, and the line that called the function.
            found.append(
                [(item.category, str(item.message)[:20], item.filename) for item in caught]
            )
        ours, torchs = found
        assert [item[:2] for item in ours] == [item[:2] for item in torchs]
        for item in ours:
            assert item[2] == __file__ or "size_average" in item[1]


def test_legacy_flags_and_batchmean_together() -> None:
    input, target = torch.rand(4, 3), torch.rand(4, 3)
    ours, torchs = both("kl_div", input, target, size_average=False, reduction="batchmean")
    assert_alike(ours, torchs, "kl_div")


@pytest.mark.parametrize("name", ("l1_loss", "mse_loss", "huber_loss"))
def test_weight_gets_a_gradient(name: str) -> None:
    for reduction in REDUCTIONS:
        tensors = [torch.rand(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        gradients = []
        for module in (F, TF):
            loss = getattr(module, name)(*tensors[:2], reduction=reduction, weight=tensors[2])
            gradients.append(torch.autograd.grad(loss.sum(), tensors))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_weight_may_require_a_gradient_where_none_is_recorded(name: str) -> None:
    with torch.no_grad():
        weight = torch.rand(3, requires_grad=True)
        ours, torchs = both(name, torch.rand(2, 3), torch.rand(2, 3), weight=weight)
    assert_alike(ours, torchs, name)


NAN, INF = float("nan"), float("inf")
SPECIAL: dict[str, tuple[list[float], list[float], dict[str, Any]]] = {
    **{
        name: (
            [NAN, INF, -INF, INF, 0.0, -0.0, 3e38, 1e-40, 1, 0.5, -1],
            [0, 0, 0, INF, 0, 0.0, -3e38, 0, 0, 0, 0],
            {},
        )
        for name in DIFFERENCES
    },
    "kl_div": (
        [-1, -INF, INF, NAN, -1, -1, -1, -INF, -INF],
        [0, 0, 0, 0, -1, NAN, INF, 0.5, INF],
        {},
    ),
    "binary_cross_entropy": (
        [0, 1, 0, 1, 0.5, 0, 1, -0.0, 0.3],
        [0, 0, 1, 1, 0.3, 0.5, 0.5, 1, -0.0],
        {},
    ),
    "binary_cross_entropy_with_logits": (
        [INF, INF, INF, -INF, -INF, -INF, NAN, 100, -100, 0, -0.0],
        [0, 1, 0.5, 0, 1, 0.5, 0, 1, 0, 1, 0.3],
        {},
    ),
}
SPECIAL_CASES = [
    *(pytest.param(name, *case, id=name) for name, case in SPECIAL.items()),
    pytest.param(
        "kl_div",
        [NAN, 0, 0, -1, -INF, INF, -1],
        [-1, -INF, INF, 100, -INF, 0, NAN],
        {"log_target": True},
        id="kl_div-log_target",
    ),
    pytest.param(
        "binary_cross_entropy_with_logits",
        *SPECIAL["binary_cross_entropy_with_logits"][:2],
        {"pos_weight": torch.tensor(2.0)},
        id="binary_cross_entropy_with_logits-pos_weight",
    ),
]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name, input, target, kwargs", SPECIAL_CASES)
def test_special_values_and_their_gradients(
    name: str,
    input: list[float],
    target: list[float],
    kwargs: dict[str, Any],
    dtype: torch.dtype,
    isa: str,
) -> None:
    x = torch.tensor(input, dtype=dtype, requires_grad=True)
    t = torch.tensor(target, dtype=dtype, requires_grad=True)
    options = {
        key: value.to(dtype) if isinstance(value, Tensor) else value
        for key, value in kwargs.items()
    }
    results = []
    for module in (F, TF):
        loss = getattr(module, name)(x, t, reduction="none", **options)
        results.append((loss, *torch.autograd.grad(loss.sum(), (x, t))))
    for what, ours, torchs in zip(("loss", "input", "target"), *results, strict=True):
        torch.testing.assert_close(
            ours, torchs, equal_nan=True, rtol=1e-6, atol=1e-7, msg=lambda m, w=what: f"{w}: {m}"
        )


def pair_of(name: str, *shape: int) -> tuple[Tensor, Tensor]:
    low, high = 0.1, 0.9
    first = torch.rand(shape, dtype=torch.float64) * (high - low) + low
    return first.requires_grad_(), torch.rand(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_second_derivatives_are_torchs(name: str, reduction: str) -> None:
    input, target = pair_of(name, 3, 4)
    kwargs: dict[str, Any] = {"reduction": reduction}
    if name in PROBABILITIES:
        kwargs["weight"] = torch.rand(4, dtype=torch.float64)
    if name == "binary_cross_entropy_with_logits":
        kwargs["pos_weight"] = torch.rand(4, dtype=torch.float64)
    seconds = []
    for module in (F, TF):
        loss = getattr(module, name)(input, target, **kwargs)
        firsts = torch.autograd.grad(loss.square().sum(), (input, target), create_graph=True)
        total = sum(
            (gradient.square() * (index + 2)).sum() for index, gradient in enumerate(firsts)
        )
        seconds.append(torch.autograd.grad(total, (input, target)))
    torch.testing.assert_close(*seconds)


def operands_of(layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (3, 5, 37, 31)  # several blocks, a ragged end
    pair = torch.rand(shape, dtype=dtype) * 0.8 + 0.1, torch.rand(shape, dtype=dtype)
    if layout == "channels_last":
        pair = pair[0].to(memory_format=torch.channels_last), pair[1]
    elif layout == "sliced":
        pair = pair[0][:, :, ::2], pair[1][:, :, ::2]
    elif layout == "empty":
        pair = pair[0][:0], pair[1][:0]
    return pair[0].requires_grad_(), pair[1]


def by_formula(name: str, input: Tensor, target: Tensor, scale: float, **kwargs: Any) -> Any:
    """The loss, and the gradient that the operator of backward computes."""
    loss = getattr(F, name)(input, target.clone().requires_grad_(), **kwargs)
    return loss, *torch.autograd.grad(loss * scale, input)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "sliced", "empty"))
@pytest.mark.parametrize("reduction", ("mean", "sum"))
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_gradient_of_forward_has_the_bits_of_backwards(
    name: str, reduction: str, layout: str, dtype: torch.dtype, isa: str
) -> None:
    input, target = operands_of(layout, dtype)
    kwargs: dict[str, Any] = {"reduction": reduction}
    if name in PROBABILITIES:
        kwargs["weight"] = torch.rand(5, 1, 1, dtype=dtype)
    if name == "binary_cross_entropy_with_logits":
        kwargs["pos_weight"] = torch.rand(5, 1, 1, dtype=dtype) * 3
    for scale in (1.0, 0.3):
        expected, expected_gradient = by_formula(name, input, target, scale, **kwargs)
        loss = getattr(F, name)(input, target, **kwargs)
        (gradient,) = torch.autograd.grad(loss * scale, input)
        assert torch.equal(loss.nan_to_num(), expected.nan_to_num())
        assert torch.equal(gradient, expected_gradient)
        if layout != "sliced" and name != "kl_div":  # whose formula sees the target alone
            assert gradient.stride() == input.stride()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_gradient_of_forward_is_there_where_it_will_be_asked_for(name: str) -> None:
    def saved(dtype: torch.dtype, reduction: str, target_too: bool = False) -> int:
        input, target = operands_of("contiguous", dtype)
        target.requires_grad_(target_too)
        loss = getattr(F, name)(input, target, reduction=reduction)
        return sum(tensor is not None for tensor in loss.grad_fn.saved_tensors)

    operands = 1 if name == "kl_div" else 2
    assert saved(torch.float32, "mean") == operands + 1
    assert saved(torch.float64, "sum") == operands + 1
    assert saved(torch.float32, "none") == operands
    assert saved(torch.bfloat16, "mean") == operands
    assert saved(torch.float32, "mean", target_too=True) == 2
    # Hooks may round what they get, or count it.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        assert saved(torch.float32, "mean") == operands


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_gradient_of_forward_is_handed_out_once(name: str) -> None:
    """Whoever got it may write to it, and a second backward may follow."""
    for scale, reduction in ((1.0, "mean"), (1.0, "sum"), (0.3, "sum")):
        input, target = operands_of("contiguous", torch.float32)
        expected = by_formula(name, input, target, scale, reduction=reduction)[1]
        loss = getattr(F, name)(input, target, reduction=reduction) * scale
        (first,) = torch.autograd.grad(loss, input, retain_graph=True)
        assert torch.equal(first, expected)
        first.zero_()
        (second,) = torch.autograd.grad(loss, input, retain_graph=True)
        assert torch.equal(second, expected)
        second.zero_()
        loss.backward()
        assert torch.equal(input.grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_gradient_of_forward_leaves_all_other_derivatives(name: str) -> None:
    input, target = (tensor.detach() for tensor in pair_of(name, 3, 4))
    input.requires_grad_()
    seconds = []
    for module in (F, TF):
        loss = getattr(module, name)(input, target)
        (gradient,) = torch.autograd.grad(loss, input, create_graph=True)
        second = gradient
        if gradient.requires_grad:  # kl_div is linear in its input
            (second,) = torch.autograd.grad(gradient.square().sum(), input, retain_graph=True)
        (batched,) = torch.autograd.grad(
            loss, input, torch.ones(2, dtype=input.dtype), is_grads_batched=True, retain_graph=True
        )
        checkpointed = torch.utils.checkpoint.checkpoint(
            lambda x, module=module: getattr(module, name)(x * 0.5, target),
            input,
            use_reentrant=False,
        )
        seconds.append((second, batched, *torch.autograd.grad(checkpointed, input)))
    torch.testing.assert_close(*seconds)


def test_gradient_of_forward_does_not_hide_a_write() -> None:
    input, target = operands_of("contiguous", torch.float32)
    inner = input * 1.0
    loss = F.mse_loss(inner, target)
    inner += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", LOSSES)
def test_operators_with_gradient_refuse_what_they_cannot(name: str) -> None:
    operator = getattr(torch.ops.nnops, f"_{name}_with_gradient")
    extra: dict[str, tuple[Any, ...]] = {
        "smooth_l1_loss": (1.0,),
        "huber_loss": (1.0,),
        "kl_div": (False,),
        "binary_cross_entropy": (None,),
        "binary_cross_entropy_with_logits": (None, None, False),
    }
    between = extra.get(name, ())
    x = torch.rand(4)
    with pytest.raises(ValueError, match="reduction"):
        operator(x, x, *between, 0)
    with pytest.raises(NotImplementedError, match="bfloat16"):
        operator(x.bfloat16(), x.bfloat16(), *between, 1)
    with pytest.raises((RuntimeError, ValueError), match="same sizes"):
        operator(x, x[:3], *between, 1)


@pytest.mark.parametrize("name", LOSSES)
def test_third_derivative_exists(name: str) -> None:
    input, target = pair_of(name, 4)
    function: Callable[..., Any] = getattr(F, name)
    value = function(input, target, reduction="sum").square()
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), (input,), create_graph=True)
    assert value.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_torch_func(name: str) -> None:
    input, target = (tensor.detach() for tensor in pair_of(name, 3, 4))
    for reduction in ("mean", "sum"):
        values = []
        for module in (F, TF):

            def loss(x: Tensor, t: Tensor, module: Any = module, reduction: str = reduction) -> Any:
                return getattr(module, name)(x, t, reduction=reduction)

            values.append(
                (
                    torch.func.grad(loss, (0, 1))(input, target),
                    torch.func.vmap(loss)(input, target),
                    torch.func.vmap(torch.func.grad(loss))(input, target),
                    torch.func.hessian(loss)(input[0], target[0]),
                    torch.func.jvp(loss, (input, target), (target, input)),
                )
            )
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", LOSSES)
def test_result_does_not_depend_on_threads_or_isa_lanes(name: str) -> None:
    """Sums of 300001 elements: many blocks and a ragged end, in any number of threads."""
    input, target = torch.rand(300001), torch.rand(300001)
    before = torch.get_num_threads(), _C.active_isa()
    results: dict[str, set[float]] = {}
    try:
        for isa in _C.available_isas():
            _C.set_active_isa(isa)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                value = getattr(F, name)(input, target, reduction="sum")
                results.setdefault(isa, set()).add(value.item())
    finally:
        torch.set_num_threads(before[0])
        _C.set_active_isa(before[1])
    assert all(len(values) == 1 for values in results.values()), results
    assert results.get("avx2") == results.get("avx512", results.get("avx2"))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_sums_are_exact_but_for_one_rounding(dtype: torch.dtype, isa: str) -> None:
    """Terms of both signs, so that the sum is much smaller than they are."""
    input, target = -4 * torch.rand(100_003, dtype=dtype), torch.rand(100_003, dtype=dtype)
    terms = F.kl_div(input, target, reduction="none")
    exact = math.fsum(terms.tolist())
    total = F.kl_div(input, target, reduction="sum").item()
    assert abs(total - exact) <= torch.finfo(dtype).eps * abs(exact)


def test_mean_of_large_values_in_half_precision_is_finite() -> None:
    values = torch.full((1000,), 300.0, dtype=torch.float16)
    assert F.mse_loss(values, torch.zeros_like(values), reduction="none").isinf().all()
    half = torch.full((1000,), 200.0, dtype=torch.float16)
    assert F.mse_loss(half, torch.zeros_like(half)).item() == 40000.0


def test_small_losses_of_logits_keep_relative_accuracy() -> None:
    logits = torch.tensor([-20.0, -50.0, 30.0])
    loss = F.binary_cross_entropy_with_logits(
        logits, torch.tensor([0.0, 0.0, 1.0]), reduction="none"
    )
    exact = torch.nn.functional.softplus(-logits.double().abs()).float()
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)


def largest_logit(dtype: torch.dtype) -> float:
    return min(2.0**64, torch.finfo(dtype).max)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("pos_weight", (None, 0.5))
def test_finite_losses_of_infinite_logits(
    pos_weight: float | None, dtype: torch.dtype, isa: str
) -> None:
    factor = 1.0 if pos_weight is None else pos_weight
    largest = largest_logit(dtype)
    options = {"pos_weight": None if pos_weight is None else torch.tensor(pos_weight, dtype=dtype)}
    # logit, target, loss, its derivatives by both
    cases = [
        (-INF, 0.0, 0.0, 0.0, factor * largest),
        (-INF, 1.0, factor * largest, -factor, factor * largest),
        (-INF, 0.5, factor * largest / 2, -factor / 2, factor * largest),
        (INF, 1.0, 0.0, 0.0, -largest),
        (INF, 0.0, largest, 1.0, -largest),
        (INF, 0.5, largest / 2, 0.5, -largest),
    ]
    logits, targets, losses, by_logit, by_target = torch.tensor(cases, dtype=dtype).unbind(1)
    x, t = logits.clone().requires_grad_(), targets.clone().requires_grad_()
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none", finite=True, **options)
    gradients = torch.autograd.grad(loss, (x, t), torch.ones_like(loss))
    for actual, expected in zip((loss, *gradients), (losses, by_logit, by_target), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    tangent = torch.ones_like(logits)
    _, moved = torch.func.jvp(
        lambda each: F.binary_cross_entropy_with_logits(
            each, targets, reduction="none", finite=True, **options
        ),
        (logits,),
        (tangent,),
    )
    torch.testing.assert_close(moved, by_logit, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_finite_losses_stay_finite_in_every_derivative(reduction: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    logits = [INF, -INF, largest, -largest, 0.0, 3.0] * 3
    targets = [0.0] * 6 + [1.0] * 6 + [0.25] * 6
    x = torch.tensor(logits, dtype=dtype, requires_grad=True)
    t = torch.tensor(targets, dtype=dtype, requires_grad=True)
    weight = torch.linspace(0, 1, len(logits)).to(dtype)
    loss = F.binary_cross_entropy_with_logits(x, t, weight, reduction=reduction, finite=True)
    if not (dtype is torch.float16 and reduction == "sum"):
        assert loss.isfinite().all()
    assert not loss.isnan().any()
    firsts = torch.autograd.grad(loss, (x, t), torch.ones_like(loss), create_graph=True)
    assert all(gradient.isfinite().all() for gradient in firsts)
    seconds = torch.autograd.grad([first.sum() for first in firsts], (x, t))
    assert all(gradient.isfinite().all() for gradient in seconds)


@pytest.mark.parametrize("dtype", FLOATING)
def test_finite_changes_no_bit_of_losses_of_smaller_logits(dtype: torch.dtype, isa: str) -> None:
    sizes = torch.logspace(-6, math.log10(largest_logit(dtype)), 500, dtype=torch.float64)
    logits = torch.cat([sizes, -sizes, torch.tensor([0.0, -0.0, NAN])]).to(dtype)
    logits = logits.clamp(-largest_logit(dtype), largest_logit(dtype))
    targets = torch.rand(logits.shape).to(dtype)
    results = []
    for finite in (False, True):
        x, t = logits.clone().requires_grad_(), targets.clone().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(x, t, reduction="none", finite=finite)
        gradients = torch.autograd.grad(loss, (x, t), torch.ones_like(loss))
        results.append((loss.detach(), *gradients))
    for without, with_finite in zip(*results, strict=True):
        torch.testing.assert_close(without, with_finite, rtol=0, atol=0, equal_nan=True)


def test_finite_compiles() -> None:
    logits = torch.tensor([INF, -INF, 1.0], requires_grad=True)
    targets = torch.tensor([1.0, 0.0, 0.5])
    module = nn.BCEWithLogitsLoss(finite=True)
    loss = torch.compile(module, fullgraph=True, backend="aot_eager")(logits, targets)
    torch.testing.assert_close(loss, module(logits, targets))
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_finite_module() -> None:
    module = nn.BCEWithLogitsLoss(finite=True)
    assert repr(module) == "BCEWithLogitsLoss(finite=True)"
    assert repr(nn.BCEWithLogitsLoss()) == "BCEWithLogitsLoss()"
    assert list(module.state_dict()) == list(torch.nn.BCEWithLogitsLoss().state_dict())
    logits, targets = torch.tensor([INF]), torch.tensor([1.0])
    assert module(logits, targets).item() == 0
    converted = nnops.convert(torch.nn.BCEWithLogitsLoss())
    assert isinstance(converted, nn.BCEWithLogitsLoss)
    assert converted(logits, targets).isnan()
    assert nnops.convert(nnops.revert(module))(logits, targets).item() == 0


MODULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("L1Loss", {}),
    ("MSELoss", {"reduction": "sum"}),
    ("SmoothL1Loss", {"beta": 0.3}),
    ("HuberLoss", {"delta": 0.3, "reduction": "none"}),
    ("KLDivLoss", {"reduction": "batchmean", "log_target": True}),
    ("BCELoss", {"weight": torch.tensor([0.5, 1.0, 2.0])}),
    ("BCEWithLogitsLoss", {"pos_weight": torch.tensor([0.5, 1.0, 2.0]), "weight": torch.ones(3)}),
)


@pytest.mark.parametrize("name, kwargs", MODULES, ids=[name for name, _ in MODULES])
def test_modules(name: str, kwargs: dict[str, Any]) -> None:
    ours, torchs = getattr(nn, name)(**kwargs), getattr(torch.nn, name)(**kwargs)
    assert isinstance(ours, type(torchs)) and type(ours) is not type(torchs)
    assert repr(ours) == repr(torchs)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    input, target = torch.rand(2, 3), torch.rand(2, 3)
    torch.testing.assert_close(ours(input, target), torchs(input, target))


@pytest.mark.parametrize("name", LOSSES)
def test_compile_full_graph(name: str) -> None:
    input, target = (tensor.detach().float() for tensor in pair_of(name, 3, 4))

    def step(x: Tensor, t: Tensor) -> Tensor:
        return getattr(F, name)(x, t, reduction="sum")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = input.clone().requires_grad_()
    y = input.clone().requires_grad_()
    step(x, target).backward()
    compiled(y, target).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_unreduced_strides_of_broadcast_and_mixed_layouts(name: str) -> None:
    last = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    plain = torch.rand(2, 3, 4, 5)
    turned = torch.rand(5, 4, 3, 2).permute(3, 2, 1, 0)
    expanded = torch.rand(2, 3, 1, 5).expand(2, 3, 4, 5)
    strided = torch.rand(2, 3, 4, 10)[..., ::2]
    pairs = list(itertools.product((last, plain, turned, expanded, strided), repeat=2))
    if name not in PROBABILITIES:
        pairs += [(last, torch.rand(3, 1, 1)), (torch.rand(4, 1), turned), (expanded, expanded)]
    for input, target in pairs:
        if name == "kl_div" and target is expanded:
            continue  # torch tells targets that it broadcasts from those that come expanded
        ours, torchs = both(name, input, target, reduction="none")
        torch.testing.assert_close(ours, torchs)
        assert ours.stride() == torchs.stride(), (name, input.stride(), target.stride())
