"""Each emulated primitive against plain C++ (primitives.cu)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emulator import ORDERS, Emulator, run

TESTS = re.findall(r'\{"(\w+)", \w+\}', Path(__file__).with_name("primitives.cu").read_text())


@pytest.mark.parametrize("test", TESTS)
def test_primitive(emulator: Emulator, test: str) -> None:
    program = emulator.program("primitives", "plain")
    for order in ORDERS:
        result = run(program, test, order)
        assert result.returncode == 0, (order, result)


@pytest.mark.parametrize("mode", ["checked", "sanitized", "ucontext"])
def test_in_other_modes(emulator: Emulator, mode: str) -> None:
    program = emulator.program("primitives", mode)
    # Early readers are the point of "shared" and "copies".
    for test in TESTS if mode != "checked" else set(TESTS) - {"shared", "copies"}:
        result = run(program, test, "rand:1")
        assert result.returncode == 0, (test, result)


def test_unknown_order(emulator: Emulator) -> None:
    result = run(emulator.program("primitives", "plain"), "mma", "backwards")
    assert "NNOPS_CUDA_ORDER must be seq, rev or rand:SEED" in result.stdout
