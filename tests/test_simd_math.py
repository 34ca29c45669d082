"""The error bounds that csrc/cpu/simd.h states for exp, log and log1p, per ISA level.

The functions are reached through the losses that return them unchanged: the input's gradient of
kl_div with log_target is -exp(target), binary_cross_entropy is -log(input) where the target is 1
and -log(1 - input) where it is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

POINTS = 1 << 20
INFINITY = float("inf")
NAN = float("nan")


def nnops_exp(x: torch.Tensor) -> torch.Tensor:
    return -torch.ops.nnops.kl_div_backward(torch.ones_like(x), x, True, 0)


def nnops_log(x: torch.Tensor) -> torch.Tensor:
    """At least -100."""
    return -torch.ops.nnops.binary_cross_entropy(x, torch.ones_like(x), None, 0)


def nnops_log1p_of_minus(x: torch.Tensor) -> torch.Tensor:
    """At least -100."""
    return -torch.ops.nnops.binary_cross_entropy(x, torch.zeros_like(x), None, 0)


def nnops_log_beyond_one(x: torch.Tensor) -> torch.Tensor:
    """log(x) + 1, from the target's gradient of kl_div: any positive x."""
    zero = torch.zeros_like(x)
    return torch.ops.nnops.kl_div_backward_target(torch.ones_like(x), zero, x, False, 0)


def nnops_softplus(x: torch.Tensor) -> torch.Tensor:
    """log1p(exp(-x)) for x >= 0"""
    return torch.ops.nnops.binary_cross_entropy_with_logits(
        x, torch.ones_like(x), None, None, False, 0
    )


def all_magnitudes(low: float, high: float) -> np.ndarray:
    """Floats from low to high, evenly over their bit patterns: subnormals as often as others."""
    first, last = np.array([low, high], dtype=np.float32).view(np.int32)
    return np.linspace(first, last, POINTS).astype(np.int32).view(np.float32)


def evenly(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, POINTS, dtype=np.float32)


def largest_ulps(
    function: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray, exact: np.ndarray
) -> float:
    """Largest error in units in the last place of the rounded exact result."""
    actual = function(torch.from_numpy(x)).numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    assert np.array_equal(actual[~finite], rounded[~finite].astype(np.float64), equal_nan=True)
    unit = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    return float((np.abs(actual[finite] - exact[finite]) / unit).max())


def test_exp(isa: str) -> None:
    for x in (evenly(-105, 90), all_magnitudes(1e-40, 90), -all_magnitudes(1e-40, 105)):
        with np.errstate(over="ignore"):
            assert largest_ulps(nnops_exp, x, np.exp(x.astype(np.float64))) <= 1.2


def test_log(isa: str) -> None:
    for x in (evenly(0, 1), evenly(0.5, 1), all_magnitudes(1e-43, 1)):
        with np.errstate(divide="ignore"):
            exact = np.maximum(np.log(x.astype(np.float64)), -100)
        assert largest_ulps(nnops_log, x, exact) <= 1.0
    # Beyond 1 a sum with 1 is seen, which adds at most one rounding of its own and one of log.
    for x in (evenly(1, 4), all_magnitudes(1, 3.4e38)):
        assert largest_ulps(nnops_log_beyond_one, x, np.log(x.astype(np.float64)) + 1) <= 1.5


def test_log1p(isa: str) -> None:
    for x in (evenly(0, 1), all_magnitudes(1e-40, 1)):
        with np.errstate(divide="ignore"):
            exact = np.maximum(np.log1p(-x.astype(np.float64)), -100)
        assert largest_ulps(nnops_log1p_of_minus, x, exact) <= 1.5


def test_log1p_of_exp(isa: str) -> None:
    for x in (evenly(0, 105), all_magnitudes(1e-40, 105)):
        exact = np.log1p(np.exp(-x.astype(np.float64)))
        assert largest_ulps(nnops_softplus, x, exact) <= 2.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values(dtype: torch.dtype, isa: str) -> None:
    def check(
        function: Callable[[torch.Tensor], torch.Tensor], x: list[float], expected: list[float]
    ) -> None:
        actual = function(torch.tensor(x, dtype=dtype))
        exact = torch.tensor(expected, dtype=dtype)
        torch.testing.assert_close(actual, exact, rtol=0, atol=0, equal_nan=True)

    huge = torch.finfo(dtype).max
    check(
        nnops_exp,
        [INFINITY, -INFINITY, NAN, 0.0, -0.0, huge, -huge],
        [INFINITY, 0.0, NAN, 1.0, 1.0, INFINITY, 0.0],
    )
    check(nnops_log, [0.0, -0.0, 1.0], [-100.0, -100.0, 0.0])
    check(nnops_log1p_of_minus, [0.0, -0.0, 1.0], [0.0, 0.0, -100.0])
    check(nnops_log_beyond_one, [1.0, -1.0, NAN], [1.0, NAN, NAN])
    check(nnops_softplus, [huge, NAN, 1e30], [0.0, NAN, 0.0])


def test_double_is_the_c_library(isa: str) -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for function, exact in (
        (nnops_exp, x.exp()),
        (nnops_log, x.log().clamp(min=-100)),
        (nnops_log1p_of_minus, (-x).log1p().clamp(min=-100)),
    ):
        torch.testing.assert_close(function(x), exact, rtol=1e-15, atol=0)
