"""The warp's matrix instructions and conv2d's multiply stage on tensor cores (tensor_cores.cu)."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from emulator import ORDERS, Emulator, run

TESTS = re.findall(r'\{"(\w+)", ', Path(__file__).with_name("tensor_cores.cu").read_text())
TILES = [name for name in TESTS if name.startswith("tiles")]


@pytest.mark.parametrize("test", TESTS)
def test_right(emulator: Emulator, test: str) -> None:
    program = emulator.program("tensor_cores", "plain")
    for order in ORDERS:
        result = run(program, test, order)
        assert result.returncode == 0, (order, result)


@pytest.mark.parametrize("test", TILES)
def test_no_race_and_no_bank_conflict(emulator: Emulator, test: str, tmp_path: Path) -> None:
    """The swizzle: lanes that read or write tiles of shared memory meet in no bank."""
    file = tmp_path / "traffic.csv"
    program = emulator.program("tensor_cores", "checked")
    result = run(program, test, "rand:1", NNOPS_CUDA_TRAFFIC=str(file))
    assert result.returncode == 0, result
    seen = set()
    for _kernel, place, space, access, width, *numbers in csv.reader(file.open()):
        if space == "shared":
            seen.add((access, width))
            _requests, _lanes, wavefronts, least = map(int, numbers)
            assert wavefronts == least, place
    assert {("read", "16"), ("write", "16")} <= seen
