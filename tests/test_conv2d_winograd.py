"""Winograd's algorithms of conv2d: their error, what they leave to others, the setting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn.functional as F
from nnops import _C
from nnops.algorithms import forced_algorithm
from nnops.testing.tolerances import assert_accurate, assert_same_non_finite

FORMS = {"winograd_4x4_3x3": 3, "winograd_2x2_5x5": 5, "winograd_2x2_3x3": 3}
SIX_POINTS = ("winograd_4x4_3x3", "winograd_2x2_5x5")
LAYOUTS = (torch.contiguous_format, torch.channels_last)

# What nnops/precision.py promises, in units of rms(input) |filter|.
MOST = 1e-5
MOST_RMS = 1.5e-6


@pytest.fixture(params=LAYOUTS, ids=["contiguous", "channels_last"])
def layout(request: pytest.FixtureRequest) -> torch.memory_format:
    return request.param


def forward(x: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    return F.conv2d(x, w, padding=w.shape[-1] // 2, groups=groups)


def backward_input(gy: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    """The gradient of `forward` by an input of the size of gy."""
    pad = [w.shape[-1] // 2] * 2
    return torch.ops.nnops.conv2d_backward_input(gy, w, gy.shape[2:], [1, 1], pad, [1, 1], groups)


def exact_forward(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(x, w, padding=w.shape[-1] // 2)


def exact_backward_input(gy: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.conv_transpose2d(gy, w, padding=w.shape[-1] // 2)


PASSES: tuple[tuple[str, Callable, Callable, int], ...] = (
    ("conv2d", forward, exact_forward, 1),
    ("conv2d_backward_input", backward_input, exact_backward_input, 0),
)


@pytest.fixture(params=PASSES, ids=lambda each: each[0])
def conv_pass(request: pytest.FixtureRequest) -> tuple[str, Callable, Callable, int]:
    return request.param


def errors(x: Tensor, w: Tensor, conv_pass, algorithm: str | None) -> tuple[Tensor, Tensor]:
    """(our errors, torch's) against float64 in units of rms(x) times the norm of each filter."""
    op, ours, exact, sum_dim = conv_pass
    reference = exact(x.double(), w.double())
    if algorithm is None:
        actual = ours(x, w)
    else:
        with forced_algorithm(op, algorithm):
            actual = ours(x, w)
    norms = w.double().square().sum(dim=(sum_dim, 2, 3)).sqrt().view(1, -1, 1, 1)
    scale = x.double().square().mean().sqrt() * norms
    return (actual - reference) / scale, (exact(x, w) - reference) / scale


@pytest.mark.parametrize("channels", [1, 16, 100, 512, 2048])
@pytest.mark.parametrize("form", FORMS)
def test_the_error_keeps_to_its_bound(
    form: str, channels: int, conv_pass, layout: torch.memory_format, isa: str
) -> None:
    size = 19 if channels < 512 else 10
    # What a sum goes over are the input's channels; in backward_input the filters.
    x = torch.randn(1, channels, size, size).contiguous(memory_format=layout)
    kernel = FORMS[form]
    shape = (20, channels) if conv_pass[0] == "conv2d" else (channels, 20)
    w = torch.randn(*shape, kernel, kernel)
    error, torchs = errors(x, w, conv_pass, form)
    if form in SIX_POINTS:
        assert error.abs().max() <= MOST
        assert error.square().mean().sqrt() <= MOST_RMS
    else:
        assert error.square().mean().sqrt() <= 2 * torchs.square().mean().sqrt()
        assert error.abs().max() <= 2 * torchs.abs().max() + 5e-7


def constant(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def offset(x: Tensor) -> Tensor:
    return 1000 + x


def gradient_image(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[-1]).expand_as(x).contiguous()


def checkers(x: Tensor) -> Tensor:
    rows, columns = (torch.arange(size) for size in x.shape[2:])
    return (1.0 - 2.0 * ((rows[:, None] + columns) % 2)).expand_as(x).contiguous()


@pytest.mark.parametrize("make", [constant, offset, gradient_image, checkers])
@pytest.mark.parametrize("form", SIX_POINTS)
def test_the_error_keeps_to_its_bound_on_regular_images(form: str, make, conv_pass) -> None:
    x = make(torch.randn(1, 256, 18, 17))
    kernel = FORMS[form]
    shape = (24, 256) if conv_pass[0] == "conv2d" else (256, 24)
    error, _ = errors(x, torch.randn(*shape, kernel, kernel), conv_pass, form)
    assert error.abs().max() <= MOST


@pytest.mark.parametrize("form", SIX_POINTS)
def test_the_error_goes_with_the_largest_numbers(form: str, conv_pass) -> None:
    x = torch.randn(1, 64, 18, 17) * 10 ** torch.empty(1, 64, 18, 17).uniform_(-6, 6)
    kernel = FORMS[form]
    w = torch.randn(64, 64, kernel, kernel)
    error, _ = errors(x, w, conv_pass, form)
    rms = x.double().square().mean().sqrt()
    assert error.abs().max() * rms <= MOST * x.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_weights_transformed_in_the_cache_and_beforehand(
    form: str, groups: int, dtype: torch.dtype, conv_pass, layout: torch.memory_format, isa: str
) -> None:
    """Few pixels have their weights transformed in the cache, many beforehand: the same bits."""
    op, ours, *_ = conv_pass
    read, written, kernel = 140, 36, FORMS[form]
    x = torch.randn(12, read * groups, 14, 13).to(dtype).contiguous(memory_format=layout)
    assert len(x) * 14 * 13 > 2048
    shape = (written * groups, read) if op == "conv2d" else (read * groups, written)
    w = torch.randn(*shape, kernel, kernel).to(dtype)
    for weight in (w, w.contiguous(memory_format=torch.channels_last), w.transpose(2, 3)):
        with forced_algorithm(op, form):
            parts = [ours(part, weight, groups) for part in x.split(5)]
            assert torch.equal(ours(x, weight, groups), torch.cat(parts))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_halves_are_as_accurate_as_torchs(form: str, dtype: torch.dtype, conv_pass) -> None:
    op, ours, exact, _ = conv_pass
    x = torch.randn(2, 40, 13, 12).to(dtype)
    w = (torch.randn(40, 40, FORMS[form], FORMS[form]) / 20).to(dtype)
    with forced_algorithm(op, form):
        actual = ours(x, w)
    assert_accurate(actual, exact(x, w), exact(x.double(), w.double()), form)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e37])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stands_where_torch_has_it(
    form: str, value: float, conv_pass, layout: torch.memory_format, isa: str
) -> None:
    op, ours, exact, _ = conv_pass
    clean = torch.randn(3, 24, 17, 14).contiguous(memory_format=layout)
    w = torch.randn(24, 24, FORMS[form], FORMS[form])
    x = clean.clone(memory_format=torch.preserve_format)
    x[1, 3, 5, 6] = value
    x[1, 7, 16, 13] = value
    with forced_algorithm(op, form):
        actual, undisturbed = ours(x, w), ours(clean, w)
    assert_same_non_finite(actual, exact(x, w), form)
    for image in (0, 2):
        assert torch.equal(actual[image], undisturbed[image])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_weights_that_are_not_finite(value: float, conv_pass) -> None:
    op, ours, *_ = conv_pass
    x = torch.randn(2, 24, 17, 14)
    w = torch.randn(24, 24, 3, 3)
    w[4, 5, 1, 2] = value
    with forced_algorithm(op, "winograd_4x4_3x3"):
        actual = ours(x, w)
    with forced_algorithm(op, "pixel_rows"):
        assert torch.equal(actual.nan_to_num(), ours(x, w).nan_to_num())


def algorithm_of(x: Tensor, w: Tensor) -> str:
    (call,) = nnops.explain(forward, x, w)
    return call.algorithm


@pytest.fixture
def wide() -> tuple[Tensor, Tensor]:
    return torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)


def test_the_precision_says_which_forms_may_run(wide: tuple[Tensor, Tensor]) -> None:
    assert _C.conv_precision() == "high"
    assert algorithm_of(*wide) == "winograd_4x4_3x3"
    with nnops.conv_precision("highest"):
        assert algorithm_of(*wide) == "winograd_2x2_3x3"
        with nnops.conv_precision("high"):
            assert algorithm_of(*wide) == "winograd_4x4_3x3"
        assert _C.conv_precision() == "highest"
    assert _C.conv_precision() == "high"


def calls_of_a_step(function, x: Tensor, w: Tensor) -> dict[str, str]:
    """Operator to algorithm, of a forward and backward pass."""
    leaves = [each.requires_grad_() for each in (x, w)]

    def step() -> None:
        torch.autograd.grad(function(*leaves).sum(), leaves)

    return {call.op: call.algorithm for call in nnops.explain(step)}


def test_a_call_says_otherwise_than_the_process(wide: tuple[Tensor, Tensor]) -> None:
    def call(precision: str | None) -> Callable:
        return lambda x, w: F.conv2d(x, w, padding=1, precision=precision)

    for outer in ("highest", "high"):
        with nnops.conv_precision(outer):
            for inner in ("highest", "high", None):
                form = {"highest": "2x2", "high": "4x4"}[inner or outer]
                assert calls_of_a_step(call(inner), *wide) == {
                    "conv2d": f"winograd_{form}_3x3",
                    "conv2d_backward_input": f"winograd_{form}_3x3",
                    "conv2d_backward_weight": f"winograd_{form}_3x3",
                }
    with pytest.raises(ValueError, match="'highest' or 'high', but got 'low'"):
        call("low")(*wide)
    with pytest.raises(RuntimeError, match="precision must be 0"):
        torch.ops.nnops.conv2d(*wide, None, [1, 1], [1, 1], [1, 1], 1, 3)


def test_a_module_says_otherwise_than_the_process(wide: tuple[Tensor, Tensor]) -> None:
    layer = nnops.nn.Conv2d(64, 64, 3, padding=1)
    layer.precision = "highest"
    calls = nnops.explain(layer, wide[0])
    assert [call.algorithm for call in calls] == ["winograd_2x2_3x3"]


def test_highest_is_as_accurate_as_torch(wide: tuple[Tensor, Tensor]) -> None:
    with nnops.conv_precision("highest"):
        error, torchs = errors(*wide, PASSES[0], None)
    assert error.abs().max() <= 2 * torchs.abs().max()


def test_high_is_less_accurate_than_highest(wide: tuple[Tensor, Tensor]) -> None:
    """The setting has an effect on numbers, in the direction that its names say."""
    high, _ = errors(*wide, PASSES[0], None)
    with nnops.conv_precision("highest"):
        highest, _ = errors(*wide, PASSES[0], None)
    assert high.square().mean() > 2 * highest.square().mean()


def test_float64_is_computed_directly(wide: tuple[Tensor, Tensor]) -> None:
    (call,) = nnops.explain(forward, *(each.double() for each in wide))
    assert not call.algorithm.startswith("winograd")
    reasons = {each.algorithm: each.reason for each in call.candidates}
    assert reasons["winograd_4x4_3x3"] == "float64 is computed directly"


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'highest' or 'high', but got 'medium'"):
        nnops.set_conv_precision("medium")
    with pytest.raises(ValueError), nnops.conv_precision(""):
        pass
    assert _C.conv_precision() == "high"


def test_the_environment_sets_it() -> None:
    code = "from nnops import _C; print(_C.conv_precision())"
    environment = {**os.environ, "NNOPS_CONV_PRECISION": "highest"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "highest"


@pytest.fixture(autouse=True)
def precision_is_put_back() -> Iterator[None]:
    before = _C.conv_precision()
    yield
    _C.set_conv_precision(before)
