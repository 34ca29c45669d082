"""The bug zoo: check mode must find every bug of zoo.cu in every order of threads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emulator import ORDERS, Emulator, run

BUGS = dict(
    re.findall(r'^BUG\((\w+), "(.*)"\)$', Path(__file__).with_name("bugs.inc").read_text(), re.M)
)
assert BUGS.pop("none") == ""


@pytest.mark.parametrize("bug", BUGS)
def test_found(emulator: Emulator, bug: str) -> None:
    program = emulator.program("zoo", "checked")
    for order in ORDERS:
        result = run(program, bug, order)
        assert result.returncode == 1, f"not found in order {order}: {result}"
        assert re.search(BUGS[bug], result.stdout), (order, result.stdout)
        assert "kernel (" in result.stdout and "zoo.cu:" in result.stdout


@pytest.mark.parametrize("mode", ["plain", "checked", "sanitized"])
@pytest.mark.parametrize("order", ORDERS)
def test_clean(emulator: Emulator, mode: str, order: str) -> None:
    result = run(emulator.program("zoo", mode), "none", order)
    assert result.returncode == 0, result


@pytest.mark.parametrize(
    "bug", ["shared_past_the_end", "global_past_the_end", "ldmatrix_past_the_end"]
)
def test_sanitizers_see_arrays(emulator: Emulator, bug: str) -> None:
    result = run(emulator.program("zoo", "sanitized"), bug, "seq")
    assert re.search("AddressSanitizer|runtime error: index", result.stderr)


@pytest.mark.parametrize(
    "bug", ["missing_barrier", "wait_without_barrier", "copy_async_without_wait"]
)
def test_plain_results_are_wrong(emulator: Emulator, bug: str) -> None:
    """Without check mode the worst order of threads shows in the results."""
    assert run(emulator.program("zoo", "plain"), bug, "seq").returncode == 2


def test_overrun_of_shared_memory_is_seen_in_plain_mode(emulator: Emulator) -> None:
    result = run(emulator.program("zoo", "plain"), "shared_past_the_end", "seq")
    assert result.returncode == 1
    assert "past the end of shared array exchange" in result.stdout
