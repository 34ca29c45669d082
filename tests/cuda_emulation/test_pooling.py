"""The arithmetic behind the pooling kernels, past 2^31 too (pooling.cu)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emulator import Emulator, run

TESTS = re.findall(r'\{"(\w+)", \w+\}', Path(__file__).with_name("pooling.cu").read_text())


@pytest.mark.parametrize("test", TESTS)
def test_pooling(emulator: Emulator, test: str) -> None:
    result = run(emulator.program("pooling", "plain"), test, "rand:1")
    assert result.returncode == 0, result
