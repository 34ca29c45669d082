"""vmap: the values of a loop over the slices, in as many calls as one slice takes.

Every small sample of the operator database is vmapped over each choice of its tensors, forward and
as per-sample gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import nnops.nn.functional as F
from nnops.ops._operator import FORMULAS
from nnops.testing.compare import outputs_of
from nnops.testing.opdb import CASES
from nnops.testing.recorder import OperatorCalls
from nnops.testing.samples import Maker, OpCase, Sample, map_tensors, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")

SLICES = 3
# Reached by nobody who transforms: pass_positive records no mask there.
ONE_CALL_PER_SLICE = {"relu_with_mask", "relu_mask_backward"}
BY_CASE = [
    pytest.param(case, id=case.name) for case in CASES if case.name not in ONE_CALL_PER_SLICE
]

Function = Callable[..., tuple[Tensor, ...]]


def test_which_operators_make_one_call_per_slice() -> None:
    assert {name for name, each in FORMULAS.items() if each.vmap is None} == ONE_CALL_PER_SLICE


def problems(case: OpCase, dtype: torch.dtype) -> Iterator[tuple[str, Function, list[Tensor]]]:
    """(name, a function of the differentiable tensors alone, those) of each small sample."""
    for sample in case.gradcheck_samples(Maker(torch.float64, requires_grad=True)):
        variables = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]

        def function(
            *values: Tensor, sample: Sample = sample, variables: Sequence[Tensor] = variables
        ) -> tuple[Tensor, ...]:
            replaced = {id(old): new for old, new in zip(variables, values, strict=True)}

            def renew(old: Tensor) -> Tensor:
                constant = old.detach().to(dtype if old.is_floating_point() else old.dtype)
                return replaced.get(id(old), constant)

            return outputs_of(case.ours(map_tensors(sample, renew)))

        yield sample.name, function, [tensor.detach().to(dtype) for tensor in variables]


def slices_of(tensor: Tensor, size: int) -> Tensor:
    """`size` different tensors with the values of `tensor`, which keeps them in its domain."""
    order = (torch.randperm(tensor.numel()) for _ in range(size))
    return torch.stack([tensor.flatten()[each].view_as(tensor) for each in order])


def arguments(tensors: list[Tensor], dims: Sequence[int | None], size: int) -> list[Tensor]:
    return [
        tensor if dim is None else slices_of(tensor, size).movedim(0, dim)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]


def loop(function: Function, tensors: list[Tensor], dims: Sequence[int | None]) -> Any:
    results = []
    for index in range(SLICES):
        values = (
            tensor if dim is None else tensor.select(dim, index)
            for tensor, dim in zip(tensors, dims, strict=True)
        )
        results.append(function(*values))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def choices(count: int, few: bool) -> Iterator[tuple[int | None, ...]]:
    """Which tensors are vmapped, and over which dimension."""
    for dims in itertools.product((None, 0), repeat=count):
        if dims.count(0) in ((1, count) if few else range(1, count + 1)):
            yield dims
    if not few:
        yield (-1,) * count


def calls_of(function: Callable[..., Any], *inputs: Any) -> list[str]:
    with OperatorCalls() as calls:
        function(*inputs)
    return [name for name, _ in calls.recorded]


def gradients_of(function: Function, count: int) -> Function:
    def total(*values: Tensor) -> Tensor:
        outputs = [output for output in function(*values) if output.is_floating_point()]
        return sum(output.square().sum() for output in outputs)

    return grad(total, argnums=tuple(range(count)))


@pytest.mark.parametrize("transform", ["forward", "gradients"])
@pytest.mark.parametrize("case", BY_CASE)
def test_as_a_loop_without_a_loop(case: OpCase, transform: str) -> None:
    checked = 0
    for name, function, tensors in problems(case, torch.float64):
        if transform == "gradients":
            function = gradients_of(function, len(tensors))
        for dims in choices(len(tensors), few=transform == "gradients"):
            inputs = arguments(tensors, dims, SLICES)
            vmapped = vmap(function, in_dims=dims)
            for actual, expected in zip(
                vmapped(*inputs), loop(function, inputs, dims), strict=True
            ):
                assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-9), (name, dims)
            more = arguments(tensors, dims, 2 * SLICES)
            calls = calls_of(vmapped, *inputs)
            assert calls and calls_of(vmapped, *more) == calls, (name, dims)
            checked += 1
    assert checked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", BY_CASE)
def test_narrow_dtypes_round_as_in_a_loop(case: OpCase, dtype: torch.dtype) -> None:
    """Sums are wide, whoever reduces them: results differ by one rounding at most."""
    epsilon = torch.finfo(dtype).eps
    for name, function, tensors in problems(case, dtype):
        dims = (0,) * len(tensors)
        inputs = arguments(tensors, dims, SLICES)
        for actual, expected in zip(
            vmap(function)(*inputs), loop(function, inputs, dims), strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=2 * epsilon, atol=epsilon)
            assert actual.dtype == expected.dtype, name


def test_images_of_slices_have_the_bits_of_a_loop() -> None:
    """One filter bank for all slices: they are more images of one batch."""
    images = torch.randn(3, 2, 4, 9, 8)
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)

    def block(image: Tensor) -> Tensor:
        return F.conv2d_relu_max_pool2d(image, weight, bias, padding=1, pool_kernel_size=2)

    for function in (block, lambda image: F.conv2d(image, weight, bias)):
        assert torch.equal(vmap(function)(images), torch.stack([*map(function, images)]))


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("size", [(4,), (2, 4), (2, 4, 3)], ids=str)
def test_class_losses(size: tuple[int, ...], reduction: str, kind: str) -> None:
    """Vmapped targets, too, with classes ignored, weights and smoothing; and vmapped weights."""
    input = torch.randn(SLICES, *size, dtype=torch.float64)
    rows = (size[0], *size[2:]) if len(size) > 1 else ()
    if kind == "indices":
        target = torch.randint(-1, 4, (SLICES, *rows))
    else:
        target = torch.rand(SLICES, *size, dtype=torch.float64)
    weight = torch.rand(SLICES, 4, dtype=torch.float64)
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": -1}

    def smoothed(x: Tensor, t: Tensor, w: Tensor | None) -> tuple[Tensor, ...]:
        return (F.cross_entropy(x, t, w, label_smoothing=0.1, **options),)

    def likelihood(x: Tensor, t: Tensor, w: Tensor | None) -> tuple[Tensor, ...]:
        return (F.nll_loss(x, t, w, **options),)

    for function in (smoothed, likelihood) if kind == "indices" else (smoothed,):
        for w, dim in ((None, None), (weight[0], None), (weight, 0)):
            for dims in ((0, 0, dim), (0, None, dim), (None, 0, dim)):
                inputs = [input, target, w]
                for index in (0, 1):
                    if dims[index] is None:
                        inputs[index] = inputs[index][0]

                def slope(x: Tensor, t: Tensor, w: Tensor | None, f: Any = function) -> Any:
                    def total(x: Tensor) -> Tensor:
                        return f(x, t, w)[0].square().sum()

                    return (grad(total)(x),)

                for each in (function, slope):
                    (actual,) = vmap(each, in_dims=dims)(*inputs)
                    (expected,) = loop(each, inputs, dims)
                    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_the_shape_of_a_weight_that_broadcasts_is_that_of_a_slice() -> None:
    input, target = torch.rand(SLICES, 2, 4), torch.rand(SLICES, 2, 4)

    def function(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return F.binary_cross_entropy(x, t, w)

    for weight, dim in ((torch.rand(SLICES, 4), 0), (torch.rand(4, SLICES), 1)):
        for each in (function, grad(function)):
            actual = vmap(each, in_dims=(0, 0, dim))(input, target, weight)
            (expected,) = loop(
                lambda *inputs, each=each: (each(*inputs),), [input, target, weight], (0, 0, dim)
            )
            torch.testing.assert_close(actual, expected)


def test_nested_and_with_forward_mode() -> None:
    images, weight = torch.randn(2, 3, 2, 5, 5).double(), torch.randn(3, 4, 2, 3, 3).double()

    def loss(image: Tensor, filters: Tensor) -> Tensor:
        return F.mse_loss(
            F.conv2d_relu(image, filters), torch.ones_like(image[:1, 1:-1, 1:-1]).expand(4, 3, 3)
        )

    both = vmap(vmap(grad(loss, argnums=1), in_dims=(0, 0)), in_dims=(0, None))(images, weight)
    for outer, inner in itertools.product(range(2), range(3)):
        expected = grad(loss, argnums=1)(images[outer, inner], weight[inner])
        torch.testing.assert_close(both[outer, inner], expected)

    def derivative(image: Tensor, filters: Tensor) -> Tensor:
        return jvp(lambda each: loss(image, each), (filters,), (torch.ones_like(filters),))[1]

    tangents = vmap(derivative)(images[0], weight)
    slopes = vmap(grad(loss, argnums=1))(images[0], weight).sum((1, 2, 3, 4))
    torch.testing.assert_close(tangents, slopes)
