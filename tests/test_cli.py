from __future__ import annotations

import os
import subprocess
import sys

import torch

import nnops
from nnops import _C


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "nnops", *arguments]
    # Wide enough that no line is folded.
    environment = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def test_info_names_versions_levels_and_algorithms() -> None:
    report = run("info")
    assert nnops.__version__ in report
    assert torch.__version__ in report
    assert f"active: {_C.active_isa()}" in report
    assert "libgomp" in report
    for operator in _C.algorithms():
        assert operator in report


def test_help_lists_the_verbs() -> None:
    assert "info" in run("--help")
