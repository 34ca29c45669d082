"""The pooling kernels and the arithmetic behind them, past 2^31 too (pooling.cu)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emulator import ORDERS, Emulator, run

TESTS = re.findall(r'\{"(\w+)", \w+\}', Path(__file__).with_name("pooling.cu").read_text())
KERNELS = ["max_pool2d", "max_unpool2d", "wide_and_narrow_kernels"]


@pytest.mark.parametrize("test", TESTS)
def test_pooling(emulator: Emulator, test: str) -> None:
    program = emulator.program("pooling", "plain")
    for order in ORDERS if test in KERNELS else ORDERS[:1]:
        result = run(program, test, order)
        assert result.returncode == 0, (order, result)


@pytest.mark.parametrize("mode", ["checked", "sanitized"])
@pytest.mark.parametrize("test", KERNELS)
def test_in_other_modes(emulator: Emulator, test: str, mode: str) -> None:
    result = run(emulator.program("pooling", mode), test, "rand:1")
    assert result.returncode == 0, result
