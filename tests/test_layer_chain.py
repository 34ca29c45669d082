"""A run of layers as one call: the numbers of the layers one by one, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import nnops
import nnops.nn.functional as F
from nnops import _C
from nnops.ops.layer_chain import convolution, layer_chain, linear
from nnops.precision import CONV_PRECISIONS
from nnops.testing.recorder import OPCHECKS
from nnops.testing.samples import FLOATING
from nnops.testing.tolerances import assert_accurate

POOL = ((2, 2), (2, 2), (0, 0), (1, 1), False)
PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def lenet_layers(bias: bool = True) -> list[int]:
    return [
        *convolution(bias, **PLAIN, relu=True, window=POOL),
        *convolution(bias, **PLAIN, relu=True, window=POOL),
        *linear(bias, True),
        *linear(bias, False),
    ]


def lenet_parameters(dtype: torch.dtype, bias: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes: list[tuple[int, ...]] = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (10, 120)]
    parameters = []
    for size in sizes:
        fan_in = torch.Size(size[1:]).numel()
        parameters.append(torch.randn(size, generator=generator).div(fan_in**0.5).to(dtype))
        if bias:
            parameters.append(torch.randn(size[0], generator=generator).to(dtype))
    return parameters


def lenet(x: Tensor, parameters: list[Tensor], functional: Any, bias: bool = True) -> Tensor:
    take = iter(parameters)

    def next_two() -> tuple[Tensor, Tensor | None]:
        return next(take), next(take) if bias else None

    for _ in range(2):
        x = functional.max_pool2d(functional.relu(functional.conv2d(x, *next_two())), 2)
    x = functional.relu(functional.linear(x.flatten(1), *next_two()))
    result: Tensor = functional.linear(x, *next_two())
    return result


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_lenet(dtype: torch.dtype, bias: bool, batch: int) -> None:
    x = torch.randn(batch, 1, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    parameters = lenet_parameters(dtype, bias)
    expected = lenet(x, parameters, torch.nn.functional, bias)
    reference = lenet(x.double(), [each.double() for each in parameters], F, bias)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        actual = layer_chain(x.to(memory_format=memory_format), parameters, lenet_layers(bias), 0)
        assert_accurate(actual, expected, reference, "LeNet", share=1e-5)


def test_convolutions_are_the_fused_ones_bit_for_bit() -> None:
    x, w, b = torch.randn(2, 3, 32, 33), torch.randn(32, 3, 5, 5), torch.randn(32)
    for relu in (False, True):
        for window in (None, POOL):
            numbers = {**PLAIN, "padding": (2, 2), "stride": (2, 1)}
            layers = convolution(True, **numbers, relu=relu, window=window)
            expected = F.conv2d(x, w, b, (2, 1), 2)
            if relu:
                expected = F.relu(expected)
            if window is not None:
                pooled = F.max_pool2d(expected, 2)
                assert isinstance(pooled, Tensor)
                expected = pooled
            assert torch.equal(layer_chain(x, [w, b], layers, 0), expected)


def test_a_plan_serves_only_calls_like_the_one_it_was_made_for() -> None:
    layers = [
        *convolution(True, **{**PLAIN, "padding": (1, 1)}, relu=True, window=POOL),
        *linear(True, False),
    ]

    def check(x: Tensor, parameters: list[Tensor]) -> None:
        expected = F.max_pool2d(F.relu(F.conv2d(x, *parameters[:2], padding=1)), 2)
        assert isinstance(expected, Tensor)
        last = layer_chain(expected.contiguous(), parameters[2:], linear(True, False), 0)
        assert torch.equal(layer_chain(x, parameters, layers, 0), last)

    def parameters_of(filters: int, pixels: int) -> list[Tensor]:
        sizes = [(filters, 16, 3, 3), (filters,), (7, filters * pixels), (7,)]
        return [torch.randn(size) for size in sizes]

    def with_gaps(tensor: Tensor) -> Tensor:
        return torch.randn(*tensor.shape, 2)[..., 0].copy_(tensor)

    x, parameters = torch.randn(2, 16, 8, 8), parameters_of(32, 16)
    conv, _, matrix, _ = parameters
    calls = [
        (x, parameters),
        (x[:1], parameters),
        (x.to(memory_format=torch.channels_last), parameters),
        (x, [conv.to(memory_format=torch.channels_last), *parameters[1:]]),
        (x, [*parameters[:2], matrix.t().contiguous().t(), parameters[3]]),
        (x, [with_gaps(each) for each in parameters]),
        (with_gaps(x), parameters),
        (x, parameters_of(5, 16)),
        (torch.randn(2, 16, 6, 9), parameters_of(32, 12)),
        *((torch.randn(1, 16, 2, 2 * size), parameters_of(3, size)) for size in range(1, 20)),
    ]
    for _ in range(3):  # more than are kept
        for call in calls:
            check(*call)
            check(*call)


def test_a_plan_serves_only_the_settings_it_was_made_for(isa: str) -> None:
    x, w = torch.randn(1, 64, 12, 12), torch.randn(64, 64, 3, 3)
    numbers = convolution(False, **PLAIN, relu=False, window=None)
    calls = {
        "high": lambda: layer_chain(x, [w], numbers, CONV_PRECISIONS["high"]),
        "highest": lambda: layer_chain(x, [w], numbers, CONV_PRECISIONS["highest"]),
    }
    for _ in range(2):
        for precision, call in calls.items():
            with nnops.conv_precision(precision):
                expected = F.conv2d(x, w)
            chosen = _C.last_choice()
            assert chosen[2] == isa
            assert torch.equal(call(), expected)
            assert _C.last_choice() == chosen
        with nnops.conv_algorithm("reference"):
            calls["high"]()
            assert _C.last_choice()[1] == "reference"


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4099])
@pytest.mark.parametrize("outputs", [1, 3, 4, 9])
def test_linear(size: int, outputs: int) -> None:
    x, w, b = torch.randn(2, size), torch.randn(outputs, size), torch.randn(outputs)
    w[0, -1] = float("nan")
    actual = layer_chain(x, [w, b], linear(True, True), 0)
    expected = torch.relu(torch.nn.functional.linear(x, w, b))
    reference = torch.relu(torch.nn.functional.linear(x.double(), w.double(), b.double()))
    assert_accurate(actual, expected, reference, "linear")


@pytest.mark.parametrize("images", [1, 5])
def test_linear_without_inputs_is_the_bias(images: int) -> None:
    w, b = torch.zeros(7, 0), torch.randn(7)
    output = layer_chain(torch.zeros(images, 0), [w, b], linear(True, False), 0)
    assert torch.equal(output, b.expand(images, 7))


@pytest.mark.parametrize("dtype", FLOATING)
def test_linear_has_the_same_bits_in_any_batch(dtype: torch.dtype, isa: str) -> None:
    for size in (7, 511, 513, 1100, 2047, 4099):
        x = torch.randn(19, size).to(dtype)
        w, b = torch.randn(67, size).to(dtype), torch.randn(67).to(dtype)  # fetched ahead and not
        alone = torch.cat([layer_chain(row, [w, b], linear(True, False), 0) for row in x.split(1)])
        for images in (2, 3, 4, 5, 8, 19):
            batch = layer_chain(x[:images], [w, b], linear(True, False), 0)
            assert torch.equal(batch, alone[:images])


def test_same_bits_for_any_thread_count() -> None:
    x, w = torch.randn(1, 4096), torch.randn(512, 4096)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(layer_chain(x, [w], linear(False, False), 0))
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_opcheck() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 1, 32, 32).to(memory_format=memory_format)
        for count, arguments in ((8, (lenet_layers(),)), (2, (lenet_layers()[:22], 0))):
            parameters = lenet_parameters(torch.float32)[:count]
            opcheck(
                torch.ops.nnops._layer_chain.default,
                (x, parameters, *arguments),
                test_utils=OPCHECKS,
            )


@pytest.mark.parametrize(
    ("layers", "parameters", "match"),
    [
        (linear(False, False)[:-1], 1, "ends in the middle"),
        ([7, 0, 0], 1, "unknown kind of layer, 7"),
        (linear(True, False), 1, "too few parameters, 1"),
        (linear(False, False), 0, "too few parameters, 0"),
        (linear(False, False), 2, "too many parameters, 2"),
    ],
)
def test_wrong_layers(layers: list[int], parameters: int, match: str) -> None:
    with pytest.raises(RuntimeError, match=f"_layer_chain.*{match}"):
        layer_chain(torch.zeros(1, 4), [torch.zeros(2, 4)] * parameters, layers, 0)


def test_wrong_parameters() -> None:
    x, w = torch.zeros(2, 4), torch.zeros(3, 4)
    for input, weight, bias, match in (
        (
            x,
            torch.zeros(3, 5),
            torch.zeros(3),
            r"\(3, 5\) cannot follow an output of sizes \(2, 4\)",
        ),
        (x, w.double(), torch.zeros(3), "weight.*float64.*float32"),
        (x, w, torch.zeros(4), r"3, but got sizes \(4\)"),
        (x, w[0], torch.zeros(4), "must be a matrix"),
    ):
        with pytest.raises(RuntimeError, match=f"_layer_chain.*{match}"):
            layer_chain(input, [weight, bias], linear(True, False), 0)
