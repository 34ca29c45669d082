"""The benchmark engine: its arithmetic, its refusals, its files. No assertion on a time."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import nnops.nn.functional as F
from nnops import _C
from nnops.__main__ import app
from nnops.benchmark import engine, goals, limits, report, results
from nnops.benchmark.calls import (
    EAGER,
    PEERS,
    Mode,
    contestant,
    output_gradient,
    phases,
    sample_for,
)
from nnops.benchmark.compare import compare
from nnops.benchmark.limits import Limits, at, measure_limits
from nnops.benchmark.machine import OthersLoad
from nnops.benchmark.memory import measure_in_fresh_process, saved_bytes
from nnops.benchmark.nets.zoo import NETS as WHOLE_NETS
from nnops.benchmark.plot import MOST_BARS, draw
from nnops.benchmark.results import Bytes, Results, Row, Versus
from nnops.benchmark.timing import MINIMUM_ROUNDS, Contestant, alternate, calmest, ratios, spread
from nnops.testing.opdb import CASES, FAMILIES, case as case_named
from nnops.testing.opdb.conv2d_grid import CHANNELS, GRID, SIZES
from nnops.testing.opdb.conv2d_layers import Layer
from nnops.testing.opdb.conv2d_nets import NETS
from nnops.testing.samples import (
    DEFAULT_LIST,
    FLOATING,
    LAYOUTS,
    OVERHEAD,
    BenchmarkSample,
    Maker,
    OpCase,
    Sample,
    Work,
)

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


# --- timing ---------------------------------------------------------------------------------------


def test_spread_interpolates_between_the_rounds() -> None:
    values = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert dataclasses.astuple(values) == pytest.approx((3.0, 1.8, 4.2))
    assert dataclasses.astuple(spread([7.0])) == (7.0, 7.0, 7.0)


def test_ratios_are_taken_within_each_round() -> None:
    # The machine slows down by ten in the second round; the ratio does not notice.
    assert dataclasses.astuple(ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])) == (2.0, 2.0, 2.0)


class FakeTime:
    """A clock that only the calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def contestant(self, name: str, seconds: float) -> Contestant:
        def call() -> None:
            self.now += seconds
            self.calls.append(name)

        return Contestant(name, call)


def test_contestants_alternate_take_turns_to_begin_and_fill_their_rounds() -> None:
    fake = FakeTime()
    fast, slow = fake.contestant("fast", 1e-4), fake.contestant("slow", 1e-2)
    rounds = alternate([fast, slow], 0.1, clock=lambda: fake.now)
    assert rounds["fast"] == pytest.approx([1e-4] * len(rounds["fast"]))
    assert rounds["slow"] == pytest.approx([1e-2] * len(rounds["slow"]))
    assert len(rounds["fast"]) == len(rounds["slow"]) >= MINIMUM_ROUNDS
    measured = fake.calls[fake.calls.index("slow") :]
    runs = [name for name, before in zip(measured, ["", *measured], strict=False) if name != before]
    # Two rounds in a row meet at the one that ends the first and begins the second.
    assert runs[-4:] in (["fast", "slow", "fast", "slow"], ["slow", "fast", "slow", "fast"])
    assert fake.calls.count("fast") / len(rounds["fast"]) * 1e-4 >= 2e-3


def test_a_short_budget_still_gets_its_rounds() -> None:
    fake = FakeTime()
    rounds = alternate([fake.contestant("only", 1.0)], 0.0, clock=lambda: fake.now)
    assert rounds["only"] == [1.0] * MINIMUM_ROUNDS


def test_a_disturbed_measurement_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    calm = fake.contestant("calm", 1.0)
    # Two calls to find the number of repetitions, then the rounds.
    seconds = [1.0, 1.0, 10.0, 1.0, 10.0, 1.0, 10.0]

    def call() -> None:
        fake.now += seconds.pop(0) if seconds else 1.0

    monkeypatch.setattr(OthersLoad, "cpus", lambda self: 0.0)
    measured = calmest([calm, Contestant("disturbed", call)], 0.0, clock=lambda: fake.now)
    assert measured.rounds["disturbed"] == [1.0] * MINIMUM_ROUNDS


def test_of_attempts_on_a_busy_machine_the_least_disturbed_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeTime()
    loads = [0.9, 0.4, 0.7]
    monkeypatch.setattr(OthersLoad, "cpus", lambda self: loads.pop(0))
    only = fake.contestant("only", 1.0)
    assert calmest([only], 0.0, clock=lambda: fake.now).others_load == 0.4
    assert not loads


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="asks Linux what runs")
def test_the_load_of_others_counts_them_and_not_us() -> None:
    def spin(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    others = OthersLoad()
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        spin(0.6)
        assert others.cpus() > 0.2
    finally:
        neighbour.kill()
        neighbour.wait()


def test_two_contestants_of_one_name_are_refused() -> None:
    fake = FakeTime()
    with pytest.raises(ValueError, match="names of their own"):
        alternate([fake.contestant("a", 1.0)] * 2, 0.0)


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


# --- the database ---------------------------------------------------------------------------------


class ShapeMaker(Maker):
    """Makes tensors without data, so that the largest samples cost nothing."""

    def tensor(
        self, *shape: int, low: float = -2.0, high: float = 2.0, grad: bool = True
    ) -> Tensor:
        empty = torch.empty(shape, dtype=self.dtype, device="meta")
        return empty.requires_grad_(self.requires_grad and grad)

    def indices(self, *shape: int, high: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_function_has_benchmark_samples_that_build(case: OpCase) -> None:
    keys = [(each.name, each.layout) for each in case.benchmark_samples]
    assert len(set(keys)) == len(keys)
    kinds = {each.kernel_class for each in case.benchmark_samples}
    assert OVERHEAD in kinds
    for benchmark in case.benchmark_samples:
        sample = benchmark.build(ShapeMaker(torch.float32, requires_grad=True))
        forward, backward = case.forward_work(sample), case.backward_work(sample)
        assert forward.read > 0 and forward.written > 0 and backward.written > 0, benchmark.name
        assert benchmark.layout in ("", "NCHW", "channels_last")
        if benchmark.layout == "channels_last":
            assert sample.args[0].is_contiguous(memory_format=torch.channels_last)


MB = 2**20
KNOWN_WORK = [
    # 2 * 8 * 256 * 56 * 56 * 64 products; images of 8 x 56 x 56 pixels, 64 and 256 channels.
    (
        "conv2d",
        "resnet 1x1 64->256 b8",
        Work(822083584, 6488064, 25690112),
        Work(2 * 822083584, 25690112 + 6488064, 6488064),
    ),
    ("max_pool2d", "cifar 64x32x32", Work(0, 8 * MB, 2 * MB), Work(0, 2 * MB + MB // 2, 8 * MB)),
    ("mse_loss", "2^20", Work(3 * MB, 8 * MB, 4), Work(2 * MB, 8 * MB, 4 * MB)),
    (
        "cross_entropy",
        "512x1000",
        Work(2048000, 2048000 + 4096, 4),
        Work(1536000, 2048000 + 4096 + 2048, 2048000),
    ),
    ("relu", "2^20", Work(MB, 4 * MB, 4 * MB), Work(MB, 4 * MB + MB // 8, 4 * MB)),
]


@pytest.mark.parametrize("op, name, forward, backward", KNOWN_WORK)
def test_work_of_known_shapes(op: str, name: str, forward: Work, backward: Work) -> None:
    case = case_named(op)
    benchmark = next(each for each in case.benchmark_samples if each.name == name)
    sample = benchmark.build(ShapeMaker(torch.float32, requires_grad=True))
    assert phases(case, sample, Mode.FORWARD) == (forward,)
    assert phases(case, sample, Mode.BACKWARD) == (backward,)
    assert phases(case, sample, Mode.FULL) == (forward, backward)


def test_the_parts_of_a_backward_share_its_products() -> None:
    case = case_named("conv2d")
    by_name = {each.name: each for each in case.benchmark_samples}
    make = ShapeMaker(torch.float32, requires_grad=True)
    sample = by_name["vgg3_2 b2"].build(make)
    parts = [sample_for(case, sample, mode) for mode in (Mode.BACKWARD_INPUT, Mode.BACKWARD_WEIGHT)]
    assert [[each.requires_grad for each in part.args] for part in parts if part] == [
        [True, False, False],
        [False, True, False],
    ]
    flops = [case.backward_work(part).flops for part in parts if part]
    assert sum(flops) == case.backward_work(sample).flops
    # The images of a first layer need no gradient.
    assert sample_for(case, by_name["vgg1_1 b1"].build(make), Mode.BACKWARD_INPUT) is None


def test_layers_of_numbers_and_of_pairs() -> None:
    square = Layer("square", 1, 8, 4, 14, 3, 2, dilation=2)
    pairs = Layer("pairs", 1, 8, 4, (14, 14), (3, 3), (2, 2), (2, 2), dilation=(2, 2))
    assert (square.padding_pair, square.output_size) == ((2, 2), (7, 7))
    assert (pairs.padding_pair, pairs.output_size) == ((2, 2), (7, 7))
    oblong = Layer("oblong", 2, 8, 4, (14, 9), (5, 1), (1, 3), groups=2)
    sample = oblong.build(ShapeMaker(torch.float32), "NCHW")
    output = case_named("conv2d").torchs(sample)
    assert output.shape[2:] == oblong.output_size == (14, 3)


def test_nets_have_each_of_their_convolutions_once() -> None:
    counts = {
        **{"lenet": 2, "cifar": 3, "alexnet": 5, "vgg16": 9},
        **{"resnet50": 23, "resnext50": 24, "mobilenet_v2": 30},
    }
    assert {net: len(layers) for net, layers in NETS.items()} == counts
    for net, layers in NETS.items():
        geometries = {dataclasses.replace(each, name="") for each in layers}
        assert len(geometries) == len({each.name for each in layers}) == len(layers)
        assert sum(each.first for each in layers) == 1, net


def test_the_grid_is_wide_and_the_same_everywhere() -> None:
    assert len(GRID) == 200
    assert (GRID[0].name, GRID[-1].name) == (
        "grid 4->192 14 2x2 b16",
        "grid 32->34 24 7x7 s4x3 g2 b16",
    )
    built = [each.build(ShapeMaker(torch.float32), "NCHW") for each in GRID]
    strides, dilations, kernels, paddings = (
        [pair_of(sample) for sample in built]
        for pair_of in (
            lambda sample: sample.kwargs["stride"],
            lambda sample: sample.kwargs["dilation"],
            lambda sample: sample.args[1].shape[2:],
            lambda sample: sample.kwargs["padding"],
        )
    )
    for pairs, values in (
        (kernels, {1, 2, 3, 5, 7, 11}),
        (strides, {1, 2, 3, 4}),
        (dilations, {1, 2, 3}),
        ([each.size_pair for each in GRID], set(SIZES)),
        ([(each.channels, each.filters) for each in GRID], set(CHANNELS)),
        (paddings, {0, 1}),
    ):
        assert values <= {value for pair in pairs for value in pair}
        assert any(first != second for first, second in pairs)
    kinds = {each.kernel_class for each in GRID}
    assert kinds == {"3x3s1", "5x5s1", "depthwise", "direct", "narrow"}
    assert any(1 < each.groups < each.channels for each in GRID)


def test_lists_of_shapes_and_layouts_are_chosen() -> None:
    plan = engine.Plan((Mode.FORWARD,), (1,), ("default",), ops=("conv2d", "relu"))

    def found(**changes: tuple[str, ...]) -> list[tuple[str, str]]:
        subjects = engine.subjects(dataclasses.replace(plan, **changes))
        return [(each.benchmark.shape_list, each.benchmark.layout) for each in subjects]

    assert set(found()) == {(DEFAULT_LIST, layout) for layout in (*LAYOUTS, "")}
    assert set(found(layouts=("NCHW",))) == {(DEFAULT_LIST, "NCHW"), (DEFAULT_LIST, "")}
    lists = ("lenet", "grid")
    assert len(found(shape_lists=lists, layouts=("channels_last",))) == len(NETS["lenet"]) + 200


# --- calls, checks, rows --------------------------------------------------------------------------


def tiny(case: OpCase) -> Sample:
    benchmark = next(each for each in case.benchmark_samples if each.kernel_class == OVERHEAD)
    return benchmark.build(Maker(torch.float32, requires_grad=True))


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode != Mode.MEMORY])
def test_the_calls_do_what_the_mode_says(mode: Mode) -> None:
    case = case_named("conv2d")
    sample = sample_for(case, tiny(case), mode)
    assert sample is not None
    seed = output_gradient(case.torch_function, sample, mode)
    timed = contestant("ours", case.our_function, sample, mode, EAGER, seed)
    with timed.around():
        result = timed.call()
    if mode in (Mode.FORWARD, Mode.OVERHEAD):
        assert isinstance(result, Tensor) and not result.requires_grad
    elif mode == Mode.OVERHEAD_GRAD:
        assert isinstance(result, Tensor) and result.requires_grad
    elif mode == Mode.FULL:
        assert [each.grad.shape for each in sample.args] == [each.shape for each in sample.args]
    else:
        wanted = [each.shape for each in sample.args if each.requires_grad]
        assert isinstance(result, tuple) and [each.shape for each in result] == wanted


def test_without_mkldnn_lasts_as_long_as_the_round() -> None:
    enabled = torch.backends.mkldnn.enabled
    with PEERS["no-mkldnn"].around():
        assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled == enabled


def broken_family(function: Callable[..., Tensor]) -> dict[str, tuple[OpCase, ...]]:
    def build(make: Maker) -> Sample:
        return Sample("small", (make.tensor(64),))

    case = dataclasses.replace(
        case_named("relu"),
        function=function,
        benchmark_samples=(BenchmarkSample("small", "vector", build),),
    )
    return {"relu": (case,)}


def slightly_wrong(input: Tensor) -> Tensor:
    return F.relu(input) * (1 + 1e-6)


def wrong_without_grad(input: Tensor) -> Tensor:
    return F.relu(input) if torch.is_grad_enabled() else input


def wrong_gradient(input: Tensor) -> Tensor:
    return F.relu(input).detach() + input * 0


def raising(input: Tensor) -> Tensor:
    raise RuntimeError("no kernel")


@pytest.mark.parametrize("function", [slightly_wrong, wrong_without_grad, wrong_gradient, raising])
def test_wrong_numbers_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(engine, "FAMILIES", broken_family(function))
    plan = engine.Plan((Mode.FORWARD, Mode.FULL), (1,), (_C.active_isa(),), seconds=0.0)
    rows = list(engine.run(plan, {1: LIMITS}))
    assert len(rows) == 2
    for each in rows:
        assert each.error and each.lost
        assert each.ours_us is None and each.peers == {}


def test_right_numbers_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FAMILIES", broken_family(F.relu))
    isa, threads = _C.active_isa(), torch.get_num_threads()
    plan = engine.Plan((Mode.FORWARD,), (1, 2), ("default",), seconds=0.0, isa_forced=True)
    rows = list(engine.run(plan, {1: LIMITS, 2: LIMITS}))
    assert [(each.threads, each.isa, each.error) for each in rows] == [
        (1, "default", ""),
        (2, "default", ""),
    ]
    assert all(each.ours_us and each.percent_of_limit and each.ratio for each in rows)
    for each in rows:
        assert each.limit_us and each.ours_us and each.percent_of_limit
        work = each.ours_us * each.percent_of_limit / 100
        assert each.limit_us == pytest.approx(work + CALLS["fwd"])
    assert (_C.active_isa(), torch.get_num_threads()) == (isa, threads)


def test_saved_bytes_by_where_they_come_from() -> None:
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    sample = Sample("", (image, 2))
    outputs = 2 * 3 * 4 * 4
    assert saved_bytes(F.max_pool2d, sample) == Bytes(0, 0, outputs, None)
    theirs = saved_bytes(torch.nn.functional.max_pool2d, sample)
    assert theirs == Bytes(4 * image.numel(), 0, 8 * outputs, None)
    assert saved_bytes(F.relu, Sample("", (image,))) == Bytes(0, 4 * image.numel(), 0, None)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_peak_memory_of_a_fresh_process() -> None:
    case = case_named("relu")
    benchmark = next(each for each in case.benchmark_samples if each.name == "2^22")
    measured = measure_in_fresh_process(case, benchmark, torch.float32, _C.active_isa(), 1, "ours")
    size = 4 * 2**22
    assert measured.saved == size // 32  # one bit an element
    # Output, its gradient and the input's; the resident set is counted in batches of pages.
    assert measured.peak == pytest.approx(3 * size, rel=0.1)


# --- the command line -----------------------------------------------------------------------------


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_bench_writes_rows_tables_and_plots_and_compare_reads_them(tmp_path: Path) -> None:
    out = tmp_path / "some" / "rows.jsonl"
    command = "bench --op relu cross_entropy --mode fwd full overhead --threads 1 2 --isa default"
    output = run(
        *command.split(), "--filter", "*[x^]1[20]*", "--seconds", "0.01", "--out", str(out)
    )
    assert "geomean" in output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["threads"] for line in lines if line["kind"] == "limits"] == [1, 2]
    found = results.read([out]).rows
    assert {(each.mode, each.threads) for each in found} >= {("fwd", 1), ("fwd", 2), ("full", 2)}
    assert all(each.isa == "default" and each.isa_forced for each in found)
    names = {path.name for path in (tmp_path / "some" / "rows").iterdir()}
    assert "relu-float32-default-1.ratio.png" in names
    assert "relu-float32-default-2.roofline.png" in names

    def slowed(name: str, factor: float) -> str:
        """A file of the same rows, as if nobody else had used the machine."""
        path = tmp_path / name
        with path.open("w") as file:
            for each in found:
                ratios = {
                    key: getattr(each.peers["torch"], key) / factor
                    for key in ("ratio", "p20", "p80")
                }
                peers = {"torch": dataclasses.replace(each.peers["torch"], **ratios)}
                results.write(dataclasses.replace(each, peers=peers, others_load=0.0), file)
        return str(path)

    old = slowed("old.jsonl", 1)
    assert "0 slower" in run("bench-compare", old, old)
    assert "0 slower" not in run("bench-compare", old, slowed("slower.jsonl", 100), code=1)
    markdown = tmp_path / "goals.md"
    assert "relu" in run("bench-report", str(out), "--markdown", str(markdown))
    assert "| relu | full |" in markdown.read_text()


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


def test_bench_refuses_what_it_does_not_know() -> None:
    run("bench", "--mode", "sideways", code=2)
    run("bench", "--op", "no such operator", code=2)
    run("bench", "--peer", "someone", code=2)
    run("bench", "--isa", "sse9", code=2)
    run("bench", "--dtype", "int64", code=2)
    run("bench", "--shapes", "no such net", code=2)
    run("bench", "--layout", "NHCW", code=2)
    run("bench", "--op", "relu", "--shapes", "resnet50", code=2)


def test_families_have_the_cases() -> None:
    assert [case for cases in FAMILIES.values() for case in cases] == list(CASES)
