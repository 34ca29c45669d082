"""Fake kernels against the real ones: what they promise of an output, and what both refuse.

A fake kernel says in Python what csrc/ops decides in C++: sizes, strides and dtype of each output.
Every operator call that the operator database leads to, forward and backward and backward of that,
is asked for twice, and random geometries besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nnops.ops.layer_chain import convolution, linear
from nnops.testing.compare import outputs_of
from nnops.testing.opdb import CASES
from nnops.testing.samples import Maker, OpCase, detached, map_tensors, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore")


def fake_of(mode: FakeTensorMode, function: Any, args: Any, kwargs: Any) -> Any:
    with mode:
        args, kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
        return function(*args, **kwargs)


def strides_that_count(tensor: Tensor) -> list[int]:
    """Those that lead to another element."""
    if not tensor.numel():
        return []
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [stride for stride, size in pairs if size > 1]


def assert_promised(name: str, fake: Any, real: Any, what: str) -> None:
    fakes, reals = pytree.tree_leaves(fake), pytree.tree_leaves(real)
    assert len(fakes) == len(reals), f"{name}: {what}"
    for promised, actual in zip(fakes, reals, strict=True):
        for attribute in ("shape", "dtype", "device", "layout"):
            one, other = getattr(promised, attribute), getattr(actual, attribute)
            assert one == other, f"{name}: {attribute} {one}, really {other}: {what}"
        assert strides_that_count(promised) == strides_that_count(actual), (
            f"{name}: strides {promised.stride()} of {actual.shape}, really {actual.stride()}: "
            f"{what}"
        )


def described(args: Any) -> str:
    return str(
        pytree.tree_map_only(
            Tensor, lambda each: f"{tuple(each.shape)} {each.stride()} {each.dtype}", args
        )
    )


class Twice(TorchDispatchMode):
    """Calls each of our operators with fake tensors too, and holds the outputs together."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._fake_mode = FakeTensorMode()
        self._done: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "nnops":
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("nnops::").removeprefix("_")
        what = described((args, kwargs))
        if (key := f"{name} {what}") in self._done:
            return func(*args, **kwargs)
        self._done.add(key)
        self.names.add(name)
        # First: an operator may write over its input.
        fake = fake_of(self._fake_mode, func, args, kwargs)
        real = func(*args, **kwargs)
        assert_promised(name, fake, real, what)
        return real


def row_major(tensor: Tensor) -> Tensor:
    return tensor


def channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


def every_other(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, -1)[..., ::2] if tensor.dim() else tensor


LAYOUTS = (row_major, channels_last, transposed, every_other)


def leaf_of(layout: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: layout(tensor.detach()).requires_grad_(tensor.requires_grad)


def run_twice_differentiated(case: OpCase, sample: Any) -> None:
    inputs = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    outputs = [each for each in outputs_of(case.ours(sample)) if each.requires_grad]
    if not outputs:
        return
    seeds = [torch.rand_like(output).requires_grad_() for output in outputs]
    grads = torch.autograd.grad(outputs, inputs, seeds, create_graph=True, allow_unused=True)
    grads = [grad for grad in grads if grad is not None and grad.requires_grad]
    if grads:
        total = sum(grad.square().sum() for grad in grads)
        torch.autograd.grad(total, [*inputs, *seeds], allow_unused=True)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_every_call_of_the_database(case: OpCase) -> None:
    mode = Twice()
    with mode:
        for dtype in case.dtypes:
            for sample in case.samples(Maker(dtype)):
                case.ours(detached(sample))
        for layout in LAYOUTS:
            for sample in case.samples(Maker(torch.float32)):
                if not sample.name.startswith("inplace"):
                    case.ours(map_tensors(sample, layout))
            for sample in case.gradcheck_samples(Maker(torch.float64, requires_grad=True)):
                run_twice_differentiated(case, map_tensors(sample, leaf_of(layout)))
    assert {*case.operators} <= mode.names


# ---- random geometries, most of them possible

small = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def promise_of(operator: Any, args: Any) -> Any:
    """What the fake kernel says; None if it refuses."""
    try:
        return fake_of(FakeTensorMode(), operator, args, {})
    except RuntimeError:
        return None


def assert_same_answer(operator: Any, *args: Any) -> None:
    """The same promise, or RuntimeError from both."""
    what = described(args)
    fake = promise_of(operator, args)
    try:
        real = operator(*args)
    except RuntimeError as error:
        assert fake is None, f"{operator}: really {error}: {what}"
    else:
        assert fake is not None, f"{operator}: the fake kernel alone refuses {what}"
        assert_promised(str(operator), fake, real, what)


class Numbers:
    """Draws sizes and numbers; `spoil` makes one of them wrong now and then."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pair(self, low: int, high: int) -> list[int]:
        # One in ten is less than it may be, or far more than fits.
        wrong = self.draw(st.sampled_from([None] * 9 + [-1, 0, 40]))
        pair = [self.integer(low, high), self.integer(low, high)]
        if wrong is not None:
            pair[self.integer(0, 1)] = wrong
        return pair

    def image(self, *sizes: int) -> Tensor:
        layout = self.draw(st.sampled_from(LAYOUTS))
        return layout(torch.zeros(sizes))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, ...]:
    """(input, weight, bias, stride, padding, dilation, groups)"""
    numbers = Numbers(draw)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 0]))
    channels, filters = (max(groups, 1) * numbers.integer(1, 3) for _ in range(2))
    kernel = [numbers.integer(1, 4), numbers.integer(1, 4)]
    wrong = draw(st.sampled_from([0] * 9 + [1]))
    input = numbers.image(
        numbers.integer(0, 3), channels + wrong, numbers.integer(1, 12), numbers.integer(1, 12)
    )
    weight = numbers.image(filters, channels // max(groups, 1), *kernel)
    wrong = draw(st.sampled_from([0] * 9 + [1]))
    bias = draw(st.sampled_from([None, torch.zeros(filters + wrong)]))
    padding = [*numbers.pair(0, 3), *(numbers.pair(0, 3) if draw(st.booleans()) else ())]
    return input, weight, bias, numbers.pair(1, 3), padding, numbers.pair(1, 2), groups


@st.composite
def windows(draw: st.DrawFn) -> tuple[Any, ...]:
    """(kernel_size, stride, padding, dilation, ceil_mode)"""
    numbers = Numbers(draw)
    pairs = numbers.pair(1, 4), numbers.pair(1, 4), numbers.pair(0, 1), numbers.pair(1, 2)
    return (*pairs, draw(st.booleans()))


@small
@given(convolutions())
def test_convolutions(call: tuple[Any, ...]) -> None:
    input, weight, _, *numbers = call
    ops = torch.ops.nnops
    for operator in (ops.conv2d.default, ops.conv2d_relu.default):
        assert_same_answer(operator, *call)
    try:
        output = ops.conv2d(input, weight, None, *numbers)
    except RuntimeError:
        # A gradient of any size has nothing to fit to.
        output = torch.zeros(input.shape[0], weight.shape[0], 3, 3)
    grad = torch.zeros_like(output)
    sizes = input.shape[2:], weight.shape[2:]
    for off in (0, 1):
        # With one row more or less it belongs to another convolution, or to none.
        grad = torch.nn.functional.pad(grad, (0, 0, 0, off))
        assert_same_answer(ops.conv2d_backward_input.default, grad, weight, sizes[0], *numbers)
        assert_same_answer(ops.conv2d_backward_weight.default, grad, input, sizes[1], *numbers)


@small
@given(convolutions(), st.booleans(), windows())
def test_convolutions_with_a_pool(
    call: tuple[Any, ...], relu: bool, window: tuple[Any, ...]
) -> None:
    ops = torch.ops.nnops
    for operator in (ops.conv2d_max_pool2d.default, ops.conv2d_max_pool2d_with_offsets.default):
        assert_same_answer(operator, *call, relu, *window)


@small
@given(convolutions(), windows())
def test_pools(call: tuple[Any, ...], window: tuple[Any, ...]) -> None:
    ops = torch.ops.nnops
    for input in (call[0], call[0][:1].squeeze(0)):
        for name in ("max_pool2d", "max_pool2d_with_offsets", "max_pool2d_with_indices"):
            assert_same_answer(getattr(ops, name).default, input, *window)


@st.composite
def layer_chains(draw: st.DrawFn) -> tuple[Any, ...]:
    """(input, parameters, layers): up to three convolutions, up to two linear layers, or wrong."""
    numbers = Numbers(draw)
    channels = numbers.integer(1, 3)
    height, width = numbers.integer(6, 16), numbers.integer(6, 16)
    input = numbers.image(numbers.integer(0, 3), channels, height, width)
    parameters: list[Tensor] = []
    layers: list[int] = []

    def add(weight: Tensor) -> bool:
        parameters.append(weight)
        has_bias = draw(st.booleans())
        if has_bias:
            wrong = draw(st.sampled_from([0] * 15 + [1]))
            parameters.append(torch.zeros(weight.shape[0] + wrong))
        return has_bias

    for _ in range(draw(st.integers(0, 3))):
        wrong = draw(st.sampled_from([0] * 15 + [1]))
        filters = numbers.integer(1, 3)
        kernel = numbers.integer(1, 3), numbers.integer(1, 3)
        has_bias = add(numbers.image(filters, channels + wrong, *kernel))
        window = draw(windows()) if draw(st.booleans()) else None
        padding = numbers.pair(0, 2)
        dilation = numbers.pair(1, 2)
        relu = draw(st.booleans())
        layers += convolution(has_bias, numbers.pair(1, 2), padding, dilation, 1, relu, window)
        channels = filters
    promised = promise_of(torch.ops.nnops._layer_chain.default, (input, parameters, layers))
    size = 4 if promised is None else math.prod(promised.shape[1:])
    for _ in range(draw(st.integers(0 if layers else 1, 2))):
        wrong = draw(st.sampled_from([0] * 9 + [1]))
        outputs = numbers.integer(1, 4)
        has_bias = add(draw(st.sampled_from(LAYOUTS[:2]))(torch.zeros(outputs, size + wrong)))
        layers += linear(has_bias, draw(st.booleans()))
        size = outputs
    spoilt = draw(st.sampled_from([None] * 9 + ["layers", "parameters", "kind", "dtype"]))
    if spoilt == "layers":
        layers.pop()
    elif spoilt == "parameters":
        parameters.pop()
    elif spoilt == "kind":
        layers[0] = 2
    elif spoilt == "dtype":
        parameters[-1] = parameters[-1].double()
    return input, parameters, layers


@settings(small, max_examples=300)
@given(layer_chains())
def test_runs_of_layers(call: tuple[Any, ...]) -> None:
    assert_same_answer(torch.ops.nnops._layer_chain.default, *call)
