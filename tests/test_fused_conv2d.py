"""conv2d with a ReLU and a max-pool behind it: bit for bit the operators one by one.

What any operator must do is asked in test_opdb.py. Here: every way to cut the work, every algorithm
of conv2d, numbers that are not finite, and what is kept for backward.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops import _C
from nnops.testing.samples import FLOATING

# input, weight, convolution, pool: small images (several a piece), large ones (bands of rows),
# windows that overlap, leave gaps, hang over the end, or see rows that no window sees.
CASES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], dict[str, Any]], ...] = (
    ((5, 1, 32, 32), (6, 1, 5, 5), {}, {"pool_kernel_size": 2}),
    ((7, 3, 32, 32), (32, 3, 5, 5), {"padding": 2}, {"pool_kernel_size": 2}),
    ((3, 32, 16, 17), (32, 32, 5, 5), {"padding": 2}, {"pool_kernel_size": 2}),
    ((2, 64, 30, 28), (64, 64, 3, 3), {"padding": 1}, {"pool_kernel_size": 2}),
    ((1, 64, 61, 60), (64, 64, 3, 3), {"padding": 1}, {"pool_kernel_size": 3, "pool_stride": 2}),
    (
        (1, 32, 150, 40),
        (64, 32, 3, 3),
        {"padding": (0, 1)},
        {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True},
    ),
    ((2, 3, 151, 70), (48, 3, 7, 7), {"stride": 2, "padding": 3}, {"pool_kernel_size": (5, 2)}),
    ((1, 8, 99, 80), (40, 8, 3, 3), {"dilation": 2}, {"pool_kernel_size": 2, "pool_stride": 7}),
    ((2, 48, 70, 33), (48, 1, 3, 3), {"groups": 48, "padding": 1}, {"pool_kernel_size": 2}),
    ((2, 24, 64, 50), (48, 4, 3, 3), {"groups": 6}, {"pool_kernel_size": 2, "pool_dilation": 2}),
    ((2, 64, 57, 56), (96, 64, 1, 1), {}, {"pool_kernel_size": 2}),
    ((1, 2, 4, 90), (90, 2, 3, 3), {"padding": (7, 1)}, {"pool_kernel_size": 2}),
    ((65, 6, 14, 14), (16, 6, 5, 5), {}, {"pool_kernel_size": 2}),
)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)


def tensors(case: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    input, weight = case[:2]
    generator = torch.Generator().manual_seed(0)
    fan_in = weight[1] * weight[2] * weight[3]
    return (
        torch.randn(input, generator=generator).to(dtype),
        (torch.randn(weight, generator=generator) / fan_in**0.5).to(dtype),
        torch.randn(weight[0], generator=generator).to(dtype),
    )


def one_by_one(x: Tensor, w: Tensor, b: Tensor | None, case: Any, relu: bool, pool: bool) -> Tensor:
    _, _, convolution, window = case
    y = F.conv2d(x, w, b, **convolution)
    if relu:
        y = F.relu(y)
    if pool:
        names = {name.removeprefix("pool_"): value for name, value in window.items()}
        pooled = F.max_pool2d(y, **names)
        assert isinstance(pooled, Tensor)
        return pooled
    return y


def fused(x: Tensor, w: Tensor, b: Tensor | None, case: Any, relu: bool, pool: bool) -> Tensor:
    _, _, convolution, window = case
    if not pool:
        return F.conv2d_relu(x, w, b, **convolution)
    function = F.conv2d_relu_max_pool2d if relu else F.conv2d_max_pool2d
    return function(x, w, b, **convolution, **window)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Any NaN equals any NaN; zeros have their signs."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    zeros = expected == 0
    assert torch.equal(actual[zeros].signbit(), expected[zeros].signbit())


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_bits_of_the_operators_one_by_one(case: Any, memory_format: Any, threads: int) -> None:
    x, w, b = tensors(case)
    x = x.to(memory_format=memory_format)
    for relu, pool in ((True, False), (False, True), (True, True)):
        arguments = [
            tuple(tensor.detach().clone().requires_grad_() for tensor in (x, w, b))
            for _ in range(2)
        ]
        expected = one_by_one(*arguments[0], case, relu, pool)
        with torch.no_grad():
            assert_same_bits(fused(x, w, b, case, relu, pool), expected.detach())
        actual = fused(*arguments[1], case, relu, pool)
        assert_same_bits(actual.detach(), expected.detach())
        assert actual.stride() == expected.stride()
        gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
        expected.backward(gradient)
        actual.backward(gradient)
        for ours, theirs in zip(arguments[1], arguments[0], strict=True):
            assert ours.grad is not None and theirs.grad is not None
            assert_same_bits(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [*FLOATING, torch.int32])
def test_every_dtype(dtype: torch.dtype) -> None:
    x, w, b = (tensor * (1 if dtype.is_floating_point else 4) for tensor in tensors(CASES[1]))
    x, w, b = x.to(dtype), w.to(dtype), b.to(dtype)
    for relu, pool in ((True, False), (False, True), (True, True)):
        actual = fused(x, w, b, CASES[1], relu, pool)
        assert torch.equal(actual, one_by_one(x, w, b, CASES[1], relu, pool))


ALGORITHMS = (
    ("winograd_4x4_3x3", CASES[3]),
    ("winograd_2x2_3x3", CASES[4]),
    ("winograd_4x4_3x3", CASES[5]),
    ("winograd_2x2_5x5", CASES[2]),
    ("pixel_rows", CASES[4]),
    ("expanded_planes", CASES[4]),
    ("image_lanes", CASES[1]),
    ("image_lanes", CASES[7]),
    ("image_lanes", CASES[12]),
    ("depthwise_rows", CASES[8]),
    ("depthwise_transposed", CASES[8]),
    ("reference", CASES[6]),
)


@pytest.mark.parametrize(
    ("algorithm", "case"), ALGORITHMS, ids=[f"{name}-{case[0]}" for name, case in ALGORITHMS]
)
def test_every_algorithm(algorithm: str, case: Any, threads: int) -> None:
    x, w, b = tensors(case)
    with nnops.conv_algorithm(algorithm):
        for relu, pool in ((True, False), (False, True), (True, True)):
            expected = one_by_one(x, w, b, case, relu, pool)
            assert_same_bits(fused(x, w, b, case, relu, pool), expected)


@pytest.mark.skipif(not _C.cpu_has_bfloat16_dots(), reason="this CPU has no AVX512_BF16")
@pytest.mark.parametrize("number", [1, 4, 5, 6])
def test_dot_products_of_bfloat16(number: int, threads: int) -> None:
    case = CASES[number]
    x, w, b = tensors(case, torch.bfloat16)
    with nnops.conv_algorithm("pair_rows"):
        for relu, pool in ((True, False), (False, True), (True, True)):
            expected = one_by_one(x, w, b, case, relu, pool)
            assert_same_bits(fused(x, w, b, case, relu, pool), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("place", [(0, 0, 0), (7, 59, 59), (60, 149, 20)])
def test_numbers_that_winograd_cannot_take(value: float, place: tuple[int, int, int]) -> None:
    """Such an image is computed directly, as a whole: in whichever band the number stands."""
    for case in (CASES[3], CASES[5]):
        x, w, b = tensors(case)
        channel, row, column = (
            min(index, size - 1) for index, size in zip(place, x.shape[1:], strict=True)
        )
        x[-1, channel, row, column] = value
        for relu, pool in ((True, False), (True, True)):
            expected = one_by_one(x, w, b, case, relu, pool)
            assert_same_bits(fused(x, w, b, case, relu, pool), expected)


def test_zeros_keep_their_signs() -> None:
    """relu(-0.0) is -0.0, and which zero a window gives is decided by what stands before it."""
    values = torch.tensor([-1.0, -0.0, 0.0, float("nan")])
    windows = torch.tensor(list(itertools.product(range(4), repeat=4)))
    x = values[windows].view(1, 1, -1, 2)
    case = (x.shape, (1, 1, 1, 1), {}, {"pool_kernel_size": 2})
    one = torch.ones(1, 1, 1, 1)
    for relu, pool in ((True, False), (False, True), (True, True)):
        actual = fused(x, one, None, case, relu, pool)
        assert_same_bits(actual, one_by_one(x, one, None, case, relu, pool))


def saved_bytes(output: Tensor) -> int:
    node: Any = output.grad_fn
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in node.saved_tensors
        if tensor is not None
    )


def test_backward_keeps_the_inputs_and_one_byte_an_element() -> None:
    x, w, b = (tensor.requires_grad_() for tensor in tensors(CASES[1]))
    inputs = 4 * (x.numel() + w.numel())
    pooled = fused(x, w, b, CASES[1], True, True)
    assert saved_bytes(pooled) == inputs + pooled.numel()
    rectified = fused(x, w, b, CASES[1], True, False)
    assert saved_bytes(rectified) == inputs + 4 * rectified.numel()  # its own output
    first_layer = fused(x.detach(), w, b, CASES[1], True, True)
    assert saved_bytes(first_layer) == 4 * x.numel() + first_layer.numel()


def test_modules() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2, 1),
    )
    layer = nn.ConvReLUMaxPool2d(
        3,
        8,
        3,
        padding=1,
        padding_mode="reflect",
        pool_kernel_size=3,
        pool_stride=2,
        pool_padding=1,
    )
    layer.load_state_dict(plain[0].state_dict())
    plain[0].load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 14, 15)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(
        torch.nn.Sequential(plain[0], plain[1])(x),
        _with_weights(nn.ConvReLU2d(3, 8, 3, padding=1, padding_mode="reflect"), layer)(x),
    )
    pooled = nn.ConvMaxPool2d(3, 8, 3, padding=1, padding_mode="reflect", pool_kernel_size=2)
    torch.testing.assert_close(torch.nn.MaxPool2d(2)(plain[0](x)), _with_weights(pooled, layer)(x))
    assert "pool_kernel_size=3, pool_stride=2, pool_padding=1" in repr(layer)


def _with_weights(module: torch.nn.Module, source: torch.nn.Module) -> torch.nn.Module:
    module.load_state_dict(source.state_dict())
    return module
