"""nll_loss and cross_entropy: what the operator database does not say.

The whole product of their options, targets that are no class, what is saved for backward, extreme
logits, and shapes and strides at random; always against torch.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

import nnops.nn as nn
import nnops.nn.functional as F
from nnops.testing.tolerances import assert_accurate, assert_same_non_finite

SPATIAL = ((), (7,), (3, 6))
REDUCTIONS = ("none", "mean", "sum")
INF = float("inf")


def loss_and_gradients(
    function: Any, input: Tensor, target: Tensor, weight: Tensor | None, **options: Any
) -> list[Tensor]:
    """The loss, the gradient of the logits and, if they are probabilities, of the target."""
    leaves = [input.detach().requires_grad_()]
    if target.is_floating_point():
        leaves.append(target.detach().requires_grad_())
    arguments = leaves if len(leaves) == 2 else [leaves[0], target]
    loss = function(*arguments, weight, **options)
    seed = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).to(loss.dtype)
    gradients = torch.autograd.grad(loss, leaves, seed.view(loss.shape))
    return [loss.detach(), *gradients]


def compare(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, **options: Any
) -> None:
    ours = loss_and_gradients(getattr(F, name), input, target, weight, **options)
    torchs = loss_and_gradients(
        getattr(torch.nn.functional, name), input, target, weight, **options
    )
    wide = [
        tensor.double() if isinstance(tensor, Tensor) and tensor.is_floating_point() else tensor
        for tensor in (input, target, weight)
    ]
    exact = loss_and_gradients(getattr(torch.nn.functional, name), *wide, **options)
    what = f"{name} {tuple(input.shape)} {target.dtype} {weight is not None=} {options}"
    for part, actual, expected, reference in zip(
        ("loss", "grad_input", "grad_target"), ours, torchs, exact, strict=False
    ):
        assert_accurate(actual, expected, reference, f"{what} {part}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_every_combination_of_cross_entropy(
    kind: str, spatial: tuple[int, ...], dtype: torch.dtype, isa: str
) -> None:
    n, c = 19, 21
    x = 3 * torch.randn(n, c, *spatial, dtype=dtype)
    for weighted, smoothing, ignore_index, reduction in itertools.product(
        (False, True), (0.0, 0.15, 1.0), (-100, 3, 55), REDUCTIONS
    ):
        weight = torch.rand(c, dtype=dtype) + 0.1 if weighted else None
        if kind == "indices":
            target = torch.randint(c, (n, *spatial))
            target[::4] = ignore_index
        else:
            if ignore_index >= 0:
                continue
            target = torch.rand(n, c, *spatial, dtype=dtype)
        compare(
            "cross_entropy",
            x,
            target,
            weight,
            label_smoothing=smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_every_combination_of_nll_loss(
    spatial: tuple[int, ...], dtype: torch.dtype, isa: str
) -> None:
    n, c = 19, 21
    x = torch.randn(n, c, *spatial, dtype=dtype).log_softmax(1)
    for weighted, ignore_index, reduction in itertools.product(
        (False, True), (-100, 3, 55), REDUCTIONS
    ):
        weight = torch.rand(c, dtype=dtype) + 0.1 if weighted else None
        target = torch.randint(c, (n, *spatial))
        target[::4] = ignore_index
        compare("nll_loss", x, target, weight, ignore_index=ignore_index, reduction=reduction)


# Few and many classes, and around the widths at which CUDA shares a row among more threads.
WIDTHS = (1, 4, 5, 31, 64, 65, 130, 257, 1000, 2048, 2051, 5003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("c", WIDTHS)
def test_rows_of_any_width(c: int, dtype: torch.dtype, isa: str) -> None:
    n = 5
    x = torch.randn(n, c + 1).to(dtype)
    rows = {
        "packed": x[:, 1:].contiguous(),
        "unaligned": x[:, 1:],
        "classes apart": x[:, 1:].t().contiguous().t(),
    }
    target = torch.randint(c, (n,))
    target[2] = -100
    probabilities = torch.rand(n, c).to(dtype)
    losses = {}
    for name, row in rows.items():
        weight = torch.rand(c).to(dtype) + 0.1
        compare("cross_entropy", row, target, None)
        compare("cross_entropy", row, target, weight, label_smoothing=0.1)
        compare("cross_entropy", row, probabilities, weight, label_smoothing=0.1)
        losses[name] = F.cross_entropy(row, target, reduction="none")
        part = F.cross_entropy(row[1:3], target[1:3], reduction="none")
        assert torch.equal(part, losses[name][1:3]), f"{name}: a row's bits depend on the batch"
    assert torch.equal(losses["packed"], losses["unaligned"])


def test_more_rows_than_threads(isa: str) -> None:
    """On CUDA a block then takes several rows, one after the other, and sums them up."""
    for n, c in ((270_000, 2), (33_000, 7), (16_500, 65), (2_100, 2_050)):
        x, target = torch.randn(n, c), torch.randint(c, (n,))
        compare("cross_entropy", x, target, None)
    n, c = 33_000, 7
    compare("cross_entropy", torch.randn(n, c), torch.rand(n, c), None, reduction="sum")
    n, c = 530_000, 2
    compare("nll_loss", torch.randn(n, c), torch.randint(c, (n,)), torch.rand(c), reduction="sum")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_promotion_among_logits_probabilities_and_weight(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, dtype=dtype)
    for target_dtype, weight_dtype in itertools.product(
        (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        (torch.float32, torch.bfloat16, torch.float64, torch.int64),
    ):
        target = torch.rand(4, 6).to(target_dtype)
        weight = torch.arange(1, 7).to(weight_dtype)
        ours = loss_and_gradients(F.cross_entropy, x, target, weight)
        torchs = loss_and_gradients(torch.nn.functional.cross_entropy, x, target, weight)
        for actual, expected in zip(ours, torchs, strict=True):
            assert actual.dtype == expected.dtype
            tolerance = 16 * max(torch.finfo(t).eps for t in (dtype, target_dtype))
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- targets that are no class ------------------------------------------------------------------

LAYOUTS = {
    "rows": lambda n, c: (torch.zeros(n, c), torch.zeros(n, dtype=torch.long)),
    "transposed": lambda n, c: (torch.zeros(c, n).t(), torch.zeros(n, dtype=torch.long)),
    "spatial": lambda n, c: (torch.zeros(2, c, n), torch.zeros(2, n, dtype=torch.long)),
    "spatial 2-D": lambda n, c: (torch.zeros(2, c, n, 3), torch.zeros(2, n, 3, dtype=torch.long)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
def test_bad_targets(name: str, reduction: str, layout: str, threads: int) -> None:
    n, c = 20011, 3
    x, target = LAYOUTS[layout](n, c)
    flat = target.view(-1)
    for row, bad in itertools.product((0, flat.numel() // 2, flat.numel() - 1), (c, -1, 2**62)):
        flat.fill_(1)
        flat[row] = bad
        position = ", ".join(
            str(int(i)) for i in torch.unravel_index(torch.tensor(row), target.shape)
        )
        with pytest.raises(
            IndexError, match=rf"{name}: target .*\[0, 3\).*got {bad} at position \({position}\)$"
        ):
            getattr(F, name)(x, target, reduction=reduction)


@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
def test_the_first_of_several_bad_targets_is_named(name: str, threads: int) -> None:
    target = torch.zeros(40000, dtype=torch.long)
    target[[39999, 20000, 777]] = torch.tensor([7, 8, 9])
    with pytest.raises(IndexError, match=r"got 9 at position \(777\)"):
        getattr(F, name)(torch.zeros(40000, 4), target)


@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
def test_backward_checks_the_target_again(name: str) -> None:
    """The target may have been written to since the forward: nothing is written out of bounds."""
    x = torch.zeros(3, 5)
    target = torch.tensor([1, 9, 2])
    if name == "nll_loss":
        arguments = (torch.ones(()), target, None, torch.ones(()), [3, 5], 1, -100)
    else:
        arguments = (torch.ones(()), x, target, None, torch.zeros(2, 3), torch.ones(()), 1, -100, 0)
    with pytest.raises(IndexError, match=rf"{name}_backward: target .*got 9 at position \(1\)"):
        getattr(torch.ops.nnops, f"{name}_backward")(*arguments)


def test_backward_operators_check_their_arguments() -> None:
    x, target = torch.zeros(3, 5), torch.tensor([1, 0, 2])
    one = torch.ones(())
    backward = torch.ops.nnops.cross_entropy_backward
    to_target = torch.ops.nnops.cross_entropy_backward_target
    nll = torch.ops.nnops.nll_loss_backward
    lse = torch.zeros(2, 3)
    for call, match in (
        (lambda: backward(torch.ones(3), x, target, None, lse, one, 1, -100, 0.0), "grad_output"),
        (lambda: backward(one, x, target, None, lse, one, 0, -100, 0.0), r"grad_output.*\(3\)"),
        (lambda: backward(one, x, target, None, lse[:1], one, 1, -100, 0.0), "log_sum_exp"),
        (lambda: backward(one, x, target, None, lse.double(), one, 1, -100, 0.0), "log_sum_exp"),
        (lambda: backward(one, x, target, None, lse.t(), one, 1, -100, 0.0), "log_sum_exp"),
        (lambda: backward(one, x, target, None, lse, one.double(), 1, -100, 0.0), "total_weight"),
        (lambda: backward(one.double(), x, target, None, lse, one, 1, -100, 0.0), "grad_output"),
        (lambda: backward(one, x, target, None, lse, one, 1, -100, 2.0), "label_smoothing"),
        (lambda: to_target(torch.ones(2), x, None, lse, 0, 0.0), "grad_output"),
        (lambda: to_target(one, x, torch.ones(4), lse, 1, 0.0), "weight"),
        (lambda: to_target(one, x, None, lse[0], 1, 0.0), "log_sum_exp"),
        (lambda: nll(one, target, None, one.half(), [3, 5], 1, -100), "total_weight"),
        (lambda: nll(torch.ones(2), target, None, one, [3, 5], 0, -100), "grad_output"),
        (lambda: nll(one, target, None, one, [3, 2**61], 1, -100), "too large"),
    ):
        with pytest.raises(RuntimeError, match=match):
            call()
    for call, match in (
        (lambda: nll(one, target, None, one, [], 1, -100), "input_size"),
        (lambda: nll(one, target, None, one, [3, -5], 1, -100), "input_size"),
        (lambda: nll(one, target, None, one, [3, 5], 4, -100), "reduction"),
        (lambda: backward(one, x, target, None, lse, one, -1, -100, 0.0), "reduction"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_for_backward(dtype: torch.dtype) -> None:
    """Besides its arguments cross_entropy saves two numbers a row; no log-probabilities."""
    n, c = 50, 1000
    x = torch.randn(n, c, dtype=dtype, requires_grad=True)
    target = torch.randint(c, (n,))
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def new_bytes() -> int:
        known = {x.data_ptr(), target.data_ptr()}
        new = sum(t.numel() * t.element_size() for t in saved if t.data_ptr() not in known)
        saved.clear()
        return new

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(x, target, label_smoothing=0.1)
        assert new_bytes() == 2 * 4 * n + 4
        F.nll_loss(x, target)
        assert new_bytes() == 4
        torch.nn.functional.cross_entropy(x, target)
        assert new_bytes() >= n * c * dtype.itemsize


def test_arguments_are_left_alone() -> None:
    x, target, weight = torch.randn(33, 17), torch.randint(17, (33,)), torch.rand(17)
    copies = x.clone(), target.clone(), weight.clone()
    loss = F.cross_entropy(x.requires_grad_(), target, weight, label_smoothing=0.1)
    loss.backward()
    for tensor, copy in zip((x, target, weight), copies, strict=True):
        assert torch.equal(tensor, copy)


# --- extreme logits -----------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scale", [1e4, 1e30, 1e-30])
def test_huge_and_tiny_logits(scale: float, transposed: bool, isa: str) -> None:
    x = torch.randn(33, 20)
    x[:, 0] = x[:, 1]  # two classes that share the maximum's neighbourhood
    x = x * scale
    if transposed:
        x = x.t().contiguous().t()
    target = torch.randint(20, (33,))
    for reduction in REDUCTIONS:
        compare("cross_entropy", x, target, None, reduction=reduction)
        compare("cross_entropy", x, target, None, reduction=reduction, label_smoothing=0.1)
        compare("cross_entropy", x, torch.rand(33, 20), None, reduction=reduction)


@pytest.mark.parametrize("shift", [1e3, 1e4, 1e6])
def test_gradient_does_not_suffer_from_a_common_shift(shift: float, isa: str) -> None:
    """The maximum and the logarithm are saved apart: their sum would round the latter off."""
    x = torch.randint(-4, 5, (17, 40)) / 4 + shift
    compare("cross_entropy", x, torch.randint(40, (17,)), None, reduction="sum")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("gap", [1.0, 10.0, 16.0, 20.0])
def test_small_losses_keep_their_digits(gap: float, transposed: bool, isa: str) -> None:
    """Nearly certain and right: torch rounds the loss to whole units of 1e-7, and then to 0."""
    x, target = torch.randn(20, 50), torch.zeros(20, dtype=torch.long)
    x[:, 0] += gap
    exact = loss_and_gradients(
        torch.nn.functional.cross_entropy, x.double(), target, None, reduction="none"
    )
    if transposed:
        x = x.t().contiguous().t()
    ours = loss_and_gradients(F.cross_entropy, x, target, None, reduction="none")
    # The largest logit, and with it the difference to it, is only known to float32.
    for actual, reference in zip(ours, exact, strict=True):
        error = (actual - reference).abs() / reference.abs()
        assert float(error.max()) < 2e-6


ROWS = (
    [-INF, -INF, -INF],
    [INF, 1.0, 2.0],
    [float("nan"), 1.0, 2.0],
    [-INF, 1.0, 2.0],
    [INF, INF, 0.0],
    [-INF, 0.0, INF],
    [3e38, -3e38, 0.0],
    [1e-40, -0.0, 0.0],
)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_special_rows(row: list[float], transposed: bool, isa: str) -> None:
    x = torch.tensor([row, [0.0, 1.0, 2.0]])
    if transposed:
        x = x.t().contiguous().t()
    one_hot = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    targets = [torch.tensor([t, 0]) for t in (0, 1, -100)] + [one_hot]
    weights = (None, torch.tensor([0.0, 1.0, 1.0]))
    for target, weight, smoothing, reduction in itertools.product(
        targets, weights, (0.0, 0.1), REDUCTIONS
    ):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        ours = loss_and_gradients(F.cross_entropy, x, target, weight, **options)
        torchs = loss_and_gradients(torch.nn.functional.cross_entropy, x, target, weight, **options)
        for part, actual, expected in zip(("loss", "input", "target"), ours, torchs, strict=False):
            what = f"{part} {target.tolist()} {weight} {options}"
            assert_same_non_finite(actual, expected, what)
            torch.testing.assert_close(
                actual, expected, equal_nan=True, msg=lambda m, w=what: w + m
            )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5, 0), (0, 5, 2, 2), (2, 0), (0, 0)], ids=str)
def test_empty(shape: tuple[int, ...], smoothing: float) -> None:
    x = torch.zeros(shape, requires_grad=True)
    targets = [
        torch.full((*shape[:1], *shape[2:]), -100),
        torch.zeros(shape),
    ]
    for target, reduction in itertools.product(targets, REDUCTIONS):
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        expected = torch.nn.functional.cross_entropy(x, target, **options)
        actual = F.cross_entropy(x, target, **options)
        torch.testing.assert_close(actual, expected, equal_nan=True)
        assert torch.equal(actual.signbit(), expected.signbit()) or actual.isnan().any()
        (gradient,) = torch.autograd.grad(actual.sum(), x)
        assert gradient.shape == x.shape


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_everything_ignored(reduction: str) -> None:
    x = torch.randn(4, 6, 3)
    target = torch.full((4, 3), 2)
    for smoothing, weight in itertools.product((0.0, 0.2), (None, torch.rand(6))):
        options: dict[str, Any] = {"ignore_index": 2, "reduction": reduction}
        compare("nll_loss", x, target, weight, **options)
        compare("cross_entropy", x, target, weight, label_smoothing=smoothing, **options)


# --- modules ------------------------------------------------------------------------------------


def test_modules() -> None:
    x, target, weight = torch.randn(5, 7), torch.randint(7, (5,)), torch.rand(7)
    for name, options in (
        ("NLLLoss", {"weight": weight, "ignore_index": 2, "reduction": "sum"}),
        ("CrossEntropyLoss", {"weight": weight, "ignore_index": 2, "label_smoothing": 0.2}),
    ):
        ours, torchs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
        assert isinstance(ours, getattr(torch.nn, name))
        assert repr(ours) == repr(torchs)
        assert ours.state_dict().keys() == torchs.state_dict().keys()
        torch.testing.assert_close(ours(x, target), torchs(x, target))


def test_nllloss2d_is_deprecated_as_in_torch() -> None:
    with pytest.warns(FutureWarning, match="NLLLoss2d.* deprecated") as caught:
        ours = nn.NLLLoss2d(reduction="sum")
    assert len(caught) == 1
    with pytest.warns(FutureWarning, match="NLLLoss2d.* deprecated"):
        torchs = torch.nn.NLLLoss2d(reduction="sum")
    assert isinstance(ours, torch.nn.NLLLoss2d)
    assert repr(ours) == repr(torchs)
    x, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    torch.testing.assert_close(ours(x, target), torchs(x, target))


@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
@pytest.mark.parametrize(
    "flags", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}]
)
def test_deprecated_flags(name: str, flags: dict[str, bool]) -> None:
    x, target = torch.randn(5, 7), torch.randint(7, (5,))
    with pytest.warns(UserWarning, match="will be deprecated"):
        ours = getattr(F, name)(x, target, **flags)
    with pytest.warns(UserWarning, match="will be deprecated"):
        torchs = getattr(torch.nn.functional, name)(x, target, **flags)
    torch.testing.assert_close(ours, torchs)


# --- any shape, any strides ---------------------------------------------------------------------


def any_strides(draw: Any, shape: tuple[int, ...], tensor: Tensor) -> Tensor:
    """`tensor` with its dimensions in any memory order, with gaps, or broadcast."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    padded = [shape[dim] * step for dim, step in zip(order, steps, strict=True)]
    memory = torch.zeros(padded, dtype=tensor.dtype)
    view = memory[tuple(slice(None, None, step) for step in steps)]
    view = view.permute([order.index(dim) for dim in range(len(shape))])
    return view.copy_(tensor)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_any_shape_and_strides(data: Any) -> None:
    draw = data.draw
    spatial = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    n, c = draw(st.integers(0, 20)), draw(st.integers(1, 37))
    single = not spatial and draw(st.booleans())
    shape = (c,) if single else (n, c, *spatial)
    rows = () if single else (n, *spatial)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = any_strides(draw, shape, 4 * torch.randn(shape, generator=generator))
    weight = None
    if draw(st.booleans()):
        weight = any_strides(draw, (c,), torch.rand(c, generator=generator) + 0.1)
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(REDUCTIONS))}
    smoothing = draw(st.sampled_from((0.0, 0.3)))
    if draw(st.booleans()):
        target = any_strides(draw, shape, torch.rand(shape, generator=generator))
        compare("cross_entropy", x, target, weight, label_smoothing=smoothing, **options)
        return
    options["ignore_index"] = draw(st.sampled_from((-100, 0, 200)))
    target = torch.randint(c, rows, generator=generator)
    target = torch.where(
        torch.rand(rows, generator=generator) < 0.2, options["ignore_index"], target
    )
    target = any_strides(draw, rows, target)
    compare("cross_entropy", x, target, weight, label_smoothing=smoothing, **options)
    # torch's own gradient of nll_loss wants a packed input.
    ours = loss_and_gradients(F.nll_loss, x, target, weight, **options)
    torchs = loss_and_gradients(
        torch.nn.functional.nll_loss, x.contiguous(), target, weight, **options
    )
    for actual, expected in zip(ours, torchs, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


# --- transforms ---------------------------------------------------------------------------------


def test_transforms() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    target = torch.tensor([1, 0, 4, 2])
    weight = torch.rand(5, dtype=torch.float64)
    probabilities = torch.rand(4, 5, dtype=torch.float64)
    for ours, torchs in (
        (F.cross_entropy, torch.nn.functional.cross_entropy),
        (F.nll_loss, torch.nn.functional.nll_loss),
    ):
        for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
            torch.testing.assert_close(
                transform(ours)(x, target, weight), transform(torchs)(x, target, weight)
            )
        torch.testing.assert_close(
            torch.vmap(ours)(x[None].expand(3, 4, 5), target.expand(3, 4)),
            torch.vmap(torchs)(x[None].expand(3, 4, 5), target.expand(3, 4)),
        )
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev):
        torch.testing.assert_close(
            transform(F.cross_entropy, (0, 1))(x, probabilities, weight),
            transform(torch.nn.functional.cross_entropy, (0, 1))(x, probabilities, weight),
        )


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_compiled(kind: str) -> None:
    x = torch.randn(6, 5, requires_grad=True)
    target = torch.randint(5, (6,)) if kind == "indices" else torch.rand(6, 5)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        total = F.cross_entropy(2 * x, target, label_smoothing=0.1)
        if kind == "indices":
            total = total + F.nll_loss(x, target, reduction="sum")
        return total

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
        actual = compiled(x, target)
    (gradient,) = torch.autograd.grad(actual, x)
    expected = loss(x, target)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])
