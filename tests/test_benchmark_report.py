"""What is made of the benchmark's rows: limits, goals, comparisons, files, plots."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from nnops.benchmark import goals, limits, report, results
from nnops.benchmark.calls import Mode
from nnops.benchmark.compare import compare
from nnops.benchmark.limits import Limits, at, measure_limits
from nnops.benchmark.nets.zoo import NETS as WHOLE_NETS
from nnops.benchmark.plot import MOST_BARS, draw
from nnops.benchmark.results import Bytes, Results, Row, Versus
from nnops.testing.opdb import case as case_named
from nnops.testing.samples import FLOATING, Work

DTYPES = [str(dtype).removeprefix("torch.") for dtype in FLOATING]
CALLS = {"fwd": 1.0, "bwd": 10.0, "full": 20.0}
LIMITS = Limits(1, ((1024, 100.0), (4096, 10.0)), ((1024, 200.0), (4096, 20.0)), 50.0, calls=CALLS)


def row(ratio: float = 2.0, spread: float = 0.0, **changes: object) -> Row:
    versus = Versus(ratio, ratio * (1 - spread / 2), ratio * (1 + spread / 2), 10.0)
    values: dict[str, object] = {
        **{"family": "relu", "op": "relu", "mode": "full", "sample": "2^12"},
        **{"kernel_class": "vector", "shapes": [[4096]], "dtype": "float32", "layout": ""},
        **{"isa": "avx512", "isa_forced": False, "threads": 1, "torch": "2", "nnops": "0"},
        **{"commit": "abc", "cpu": "a CPU", "ours_us": 5.0, "peers": {"torch": versus}},
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


# --- limits, goals, comparison --------------------------------------------------------------------


def test_limits_between_and_outside_their_points() -> None:
    curve = ((1024, 100.0), (4096, 10.0))
    assert at(curve, 1) == 100.0
    assert at(curve, 2048) == pytest.approx(55.0)
    assert at(curve, 1 << 30) == 10.0


def test_the_limit_is_that_of_the_scarcer_resource() -> None:
    reading, copying = Work(0, 1024, 0), Work(0, 512, 512)
    assert LIMITS.seconds(reading) == pytest.approx(1024 / 200e9)
    assert LIMITS.seconds(copying) == pytest.approx(1024 / 100e9)
    computing = Work(10**6, 512, 512)
    assert (LIMITS.bound(copying), LIMITS.bound(computing)) == ("memory", "compute")
    assert LIMITS.seconds(computing) == pytest.approx(1e6 / 50e9)


def test_every_goal_is_about_rows_that_exist() -> None:
    for goal in goals.goals():
        if goal.op in WHOLE_NETS:
            continue  # test_benchmark_nets.py
        figures = [goal.geomean, goal.floor, goal.percent]
        assert any(figures) and all(figure is None or figure > 0 for figure in figures)
        assert not goal.geomean or not goal.floor or goal.floor <= goal.geomean
        mode, case = Mode(goal.mode), case_named(goal.op)
        covered = [
            each
            for dtype in DTYPES
            for each in case.benchmark_samples
            if mode.fits(case, each)
            and goal.covers(
                row(
                    op=goal.op,
                    mode=goal.mode,
                    layout=each.layout,
                    kernel_class=each.kernel_class,
                    shape_list=each.shape_list,
                    sample=each.name,
                    dtype=dtype,
                )
            )
        ]
        assert covered, goal


def test_summary_holds_means_and_worst_against_the_goal_of_the_isa() -> None:
    rows = [row(4.0, sample="a"), row(1.0, sample="b"), row(1.1, isa="avx2", sample="a")]
    best, lower = sorted(goals.summary(rows), key=lambda line: line.isa, reverse=True)
    assert (best.rows, best.geomean, best.worst, best.worst_sample) == (2, 2.0, 1.0, "b")
    assert best.met
    assert lower.goal and lower.goal.geomean == pytest.approx(0.8 * 1.3)
    assert lower.met
    assert not goals.summary([row(4.0), row(0.5, sample="b")])[0].met
    assert not goals.summary([row(4.0), row(sample="b", peers={}, error="wrong")])[0].met
    (ungoaled,) = goals.summary([row(op="template_op")])
    assert ungoaled.met is None
    for percent, met in ((89.0, False), (91.0, True)):
        large = row(op="mse_loss", mode="fwd", sample="2^24", percent_of_limit=percent)
        assert [line.met for line in goals.summary([large])] == [met]


def test_goals_as_markdown_begin_with_what_is_missed() -> None:
    settings: list[dict[str, object]] = [{}, {"threads": 2}, {"isa": "avx2"}]
    rows = [row(4.0, **setting) for setting in settings]
    rows += [row(9.0, op="mse_loss", **setting) for setting in settings[:2]]
    rows.append(row(1.0, op="mse_loss", sample="b", threads=2))
    heads, _, first, second = report.goals_markdown(goals.summary(rows)).splitlines()
    assert heads.split(" | ")[7:] == [
        "avx512, 2 thr, a CPU",
        "avx512, 1 thr, a CPU",
        "avx2, 1 thr, a CPU |",
    ]
    assert first.startswith("| mse_loss | full |")
    assert first.endswith("| **3 of 5**; **1 of 2 (b)** | 9 of 5; 9 of 2 (2^12) |  |")
    assert second.endswith("| 4 of 1.04; 4 of 0.76 (2^12) |") and "**" not in second


def test_rows_of_another_cpu_stay_beside_each_other(tmp_path: Path) -> None:
    files = []
    for index, each in enumerate(
        [row(4.0), row(5.0, cpu="another"), row(6.0, isa_forced=True), row(7.0)]
    ):
        files.append(tmp_path / f"{index}.jsonl")
        with files[-1].open("w") as file:
            results.write(each, file)
    measured = results.read(files).rows
    assert sorted(each.ratio or 0 for each in measured) == [5, 6, 7]
    heads, *_ = report.goals_markdown(goals.summary(measured)).splitlines()
    assert heads.split(" | ")[7:] == [
        "avx512, 1 thr, another",
        "avx512, 1 thr, a CPU",
        "avx512 forced, 1 thr, a CPU |",
    ]


def test_summary_says_what_rows_at_their_limits_would_have() -> None:
    rows = [row(2.0, percent_of_limit=50.0), row(9.0, sample="b", percent_of_limit=225.0)]
    (line,) = goals.summary([*rows, row(sample="c", peers={}, error="wrong")])
    assert line.geomean_at_limit == pytest.approx(6.0)  # of 4 and 9, which is beyond its limit
    assert line.worst_at_limit == pytest.approx(4.0)
    assert math.isnan(goals.summary([row(2.0, percent_of_limit=None)])[0].geomean_at_limit)
    # With the price of a call 80 of 100 us are the least.
    (line,) = goals.summary([row(2.0, percent_of_limit=50.0, ours_us=100.0, limit_us=80.0)])
    assert line.geomean_at_limit == pytest.approx(2.5)


def test_goals_say_what_is_out_of_reach() -> None:
    rows = [row(2.0, op="mse_loss", percent_of_limit=50.0), row(1.5, op="relu")]
    first, second = report.goals_markdown(goals.summary(rows)).splitlines()[2:]
    assert first.endswith("| **2 of 5**, at most 4; 2 of 2 (2^12) |")
    assert "at most" not in second
    beyond = row(2.0, op="mse_loss", sample="b", percent_of_limit=150.0)
    assert "at most" not in report.goals_markdown(goals.summary([rows[0], beyond]))


def test_a_pattern_of_a_goal_may_be_turned_round() -> None:
    goal = dataclasses.replace(goals.goals()[0], op="relu", mode="full", layout="*")
    wide = dataclasses.replace(goal, kernel_class="*", shape_list="!grid", dtype="!float*")
    half = row(dtype="bfloat16")
    assert wide.covers(half)
    assert not wide.covers(row())
    assert not wide.covers(dataclasses.replace(half, shape_list="grid"))


def test_summary_keeps_lists_and_dtypes_apart() -> None:
    of_conv2d = partial(row, op="conv2d", mode="fwd", layout="NCHW", kernel_class="direct")
    rows = [of_conv2d(2.0), of_conv2d(1.0, shape_list="grid"), of_conv2d(0.9, dtype="bfloat16")]
    found = {(line.shape_list, line.dtype): line for line in goals.summary(rows)}
    assert len(found) == 3 and all(line.rows == 1 and line.goal for line in found.values())
    assert found["goals", "float32"].met
    grid = found["grid", "float32"]
    assert grid.met and grid.goal and (grid.goal.geomean, grid.goal.floor) == (None, 0.95)
    assert not found["goals", "bfloat16"].met


def test_limits_are_those_of_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKING_SETS", (2**18, 2**19))
    in_hardware = {torch.float32, torch.float64, torch.bfloat16}

    def rate(size: int, dtype: torch.dtype, tries: int) -> float:
        return 64 / dtype.itemsize if dtype in in_hardware else 1.0

    monkeypatch.setattr(limits, "_matmul_rate", rate)
    monkeypatch.setattr(limits, "_conv2d_rate", lambda dtype, tries: 0.0)
    measured = [measure_limits(1, dtype, quick=True) for dtype in FLOATING]
    # torch emulates float16 here: a kernel that converts reaches the rate of float32.
    assert [(each.dtype, each.gflops) for each in measured] == [
        *(("float32", 16.0), ("float64", 8.0)),
        *(("bfloat16", 32.0), ("float16", 16.0)),
    ]
    for each in measured:
        assert set(each.calls) == {mode.direction for mode in Mode if mode.has_limits}
        assert 0 < each.calls["fwd"] < each.calls["full"]


def changed(old: Row, new: Row) -> tuple[bool, bool]:
    (change,) = compare(Results([], [old]), Results([], [new])).changes
    return change.regressed, change.improved


def test_compare_marks_only_what_exceeds_the_noise_of_both() -> None:
    assert changed(row(2.0), row(1.95)) == (False, False)
    assert changed(row(2.0), row(1.8)) == (True, False)
    assert changed(row(2.0), row(2.2)) == (False, True)
    assert changed(row(2.0, spread=0.1), row(1.8, spread=0.1)) == (False, False)
    assert changed(row(2.0, spread=0.1), row(1.5, spread=0.1)) == (True, False)
    assert changed(row(2.0), row(peers={}, error="wrong")) == (True, False)
    assert changed(row(peers={}, error="wrong"), row(2.0)) == (False, False)
    assert changed(row(2.0), row(1.0, others_load=0.9)) == (False, False)
    assert changed(row(2.0), row(1.6, bound="memory", bytes=2**27)) == (False, False)
    assert changed(row(2.0), row(1.6, bound="memory", bytes=2**20)) == (True, False)


def test_compare_lists_rows_without_counterpart_and_other_machines() -> None:
    old, new = row(sample="a"), row(sample="b", cpu="another CPU")
    comparison = compare(Results([], [old]), Results([], [new]))
    assert (comparison.changes, comparison.only_old, comparison.only_new) == ([], [old], [new])
    assert any("cpu differs" in warning for warning in comparison.warnings)


# --- files ----------------------------------------------------------------------------------------


def test_a_result_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    timed = row(gb_s=1.5, rounds=7)
    counted = row(mode="memory", memory={"ours": Bytes(1, 2, 3, None)})
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for line in (LIMITS, timed, counted):
            results.write(line, file)
    assert results.read([path]) == Results([LIMITS], [timed, counted])
    assert results.read([path]).limits_of(1, "float32") == LIMITS


def test_of_rows_measured_twice_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        results.write(row(2.0), file)
        results.write(row(3.0), file)
    assert [each.ratio for each in results.read([path]).rows] == [3.0]


# --- plots ----------------------------------------------------------------------------------------


def test_many_rows_are_drawn_in_order_with_the_worst_named(tmp_path: Path) -> None:
    rows = [
        row(
            1 + index / 100,
            **{"family": "conv2d", "op": "conv2d", "layout": "NCHW", "shape_list": "grid"},
            **{"sample": f"shape {index}", "flops": 10**6, "bytes": 10**5, "bound": "compute"},
        )
        for index in range(MOST_BARS + 1)
    ]
    paths = draw(Results([LIMITS], rows), tmp_path)
    assert [path.name for path in paths] == [
        "conv2d-grid-float32-avx512-1.ratio.png",
        "conv2d-grid-float32-avx512-1.roofline.png",
    ]
    assert all(path.exists() for path in paths)
