from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_partition_prints_a_table_and_writes_lines(tmp_path: Path) -> None:
    out = tmp_path / "partition.jsonl"
    text = run(
        *("partition", "--filter", "lenet2", "--threads", "1", "3", "--pass", "forward"),
        *("--layout", "NCHW", "--out", str(out)),
    )
    assert "3 thr" in text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["sample"] for row in rows} == {"lenet2 b64", "lenet2 b1"}
    for row in rows:
        assert row["sample"] in text
        assert row["conv_pass"] == "forward"
        one, three = row["partitions"]
        assert one["imbalance"] == 1
        work = {
            count: sum(sum(phase["work"]) for phase in each["phases"] if phase["products"])
            for count, each in ((1, one), (3, three))
        }
        assert work[1] == work[3]


def test_verify_prints_errors_and_writes_lines_and_a_picture(tmp_path: Path) -> None:
    out, plot = tmp_path / "accuracy.jsonl", tmp_path / "accuracy.png"
    files = ("--out", str(out), "--plot", str(plot))
    text = run("verify", "--accuracy", "--channels", "16", "--dtype", "float32", *files)
    assert "winograd_4x4_3x3" in text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["conv_pass"] for row in rows} == {"forward", "backward_input", "backward_weight"}
    for row in rows:
        assert 0 < row["rms"] < row["largest"] < 1e-5
    assert plot.read_bytes().startswith(b"\x89PNG")
