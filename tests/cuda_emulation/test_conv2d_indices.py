"""The index arithmetic of conv2d's CUDA kernels (conv2d_indices.cu)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emulator import Emulator, run

TESTS = re.findall(r'\{"(\w+)", \w+\}', Path(__file__).with_name("conv2d_indices.cu").read_text())


@pytest.mark.parametrize("test", TESTS)
def test_indices(emulator: Emulator, test: str) -> None:
    result = run(emulator.program("conv2d_indices", "plain"), test, "seq")
    assert result.returncode == 0, result
