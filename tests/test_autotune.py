"""Measured winners: used where autotuning is on and they are allowed, kept in a safe file."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn.functional as F
from nnops import _C, tuning
from nnops.algorithms import CONV_PASSES, forced_algorithm
from nnops.benchmark import timing
from nnops.partition import conv2d_partition
from nnops.testing.compare import assert_same_call
from nnops.testing.samples import Sample
from nnops.tuning import Problem

RULES = "winograd_4x4_3x3"  # what the rules choose for `images` and `weights`
OTHERS = {
    "conv2d": "expanded_planes",
    "conv2d_backward_input": "winograd_2x2_3x3",
    "conv2d_backward_weight": "winograd_2x2_3x3",
}
ALIKE = [1.0] * 5
TWICE = [2.0] * 5
SIX_POINTS = {"winograd_4x4_3x3", "winograd_2x2_5x5"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of winners, in a folder of its own; nothing is left of a test in the process."""
    monkeypatch.setenv("NNOPS_CACHE_DIR", str(tmp_path))
    yield tmp_path / f"autotune-{nnops.__version__}.json"
    nnops.set_autotune(False)
    _C.clear_conv2d_winners()


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 32, 9, 8)


def weights() -> Tensor:
    return torch.randn(32, 32, 3, 3)


def convolve(x: Tensor, w: Tensor, **settings: Any) -> Tensor:
    return F.conv2d(x, w, padding=1, **settings)


def train(x: Tensor, w: Tensor) -> None:
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    convolve(*leaves).square().sum().backward()


def problems(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Problem]:
    recorder = tuning._Recorder()
    with recorder:
        function(*args, **kwargs)
    return {problem.op: problem for problem in recorder.problems}


def chosen(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str]:
    calls = nnops.explain(function, *args, **kwargs)
    return {call.op: call.algorithm for call in calls if call.op in CONV_PASSES.values()}


@pytest.fixture
def wins(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """wins(speeds): what measurements find, in each of five rounds, by (op, algorithm); 1 if not.

    All are called once, so that what cannot run fails.
    """

    def install(speeds: dict[tuple[str, str], list[float]]) -> None:
        def measured(
            contestants: list[timing.Contestant], seconds: float
        ) -> dict[str, list[float]]:
            rounds = {}
            for each in contestants:
                with each.around():
                    each.call()
                op, algorithm, _ = _C.last_choice()
                assert algorithm == each.name
                rounds[each.name] = [1 / each for each in speeds.get((op, algorithm), ALIKE)]
            return rounds

        monkeypatch.setattr(timing, "alternate", measured)
        monkeypatch.setattr(tuning, "_single_call", lambda *args: 1.0)

    return install


def test_a_winner_is_taken_where_autotuning_is_on(isa: str) -> None:
    x, w = images(), weights()
    problems(convolve, x, w)["conv2d"].set_winner("expanded_planes")
    assert chosen(convolve, x, w) == {"conv2d": RULES}
    with nnops.autotuning():
        (call,) = nnops.explain(convolve, x, w)
        assert call.algorithm == _C.last_choice()[1] == "expanded_planes"
        reasons = {each.reason for each in call.candidates if not each.chosen}
        assert reasons == {"expanded_planes is the fastest of those measured"}
        with forced_algorithm("conv2d", "expanded_planes"):
            expected = convolve(x, w)
        assert torch.equal(convolve(x, w), expected)
        with nnops.conv_algorithm("reference"):
            assert chosen(convolve, x, w) == {"conv2d": "reference"}
        with nnops.autotuning(False):
            assert chosen(convolve, x, w) == {"conv2d": RULES}
        assert chosen(convolve, x, w) == {"conv2d": "expanded_planes"}
    assert chosen(convolve, x, w) == {"conv2d": RULES}


def test_a_winner_is_for_its_own_problem_alone() -> None:
    x, w = images(), weights()
    problems(convolve, x, w)["conv2d"].set_winner("reference")
    nnops.set_autotune(True)
    assert chosen(convolve, x, w) == {"conv2d": "reference"}
    # Torch makes up the strides of dimensions of one element.
    one = images(1)
    problems(convolve, one, w)["conv2d"].set_winner("reference")
    assert chosen(convolve, one.as_strided(one.shape, (7, *one.stride()[1:])), w) == {
        "conv2d": "reference"
    }
    for other in (
        lambda: convolve(images(3), w),
        lambda: convolve(x.double(), w.double()),
        lambda: convolve(x.to(memory_format=torch.channels_last), w),
        lambda: convolve(x, w, precision="highest"),
        lambda: convolve(x, w, dilation=2),
        lambda: convolve(x[..., 1:], w),
    ):
        assert "reference" not in chosen(other).values()
    threads = torch.get_num_threads()
    assert conv2d_partition(x, w, padding=1, threads=threads + 1).algorithm == RULES
    torch.set_num_threads(threads + 1)
    try:
        assert chosen(convolve, x, w) == {"conv2d": RULES}
    finally:
        torch.set_num_threads(threads)


def test_the_report_of_partitions_respects_winners() -> None:
    x, w = images(), weights()
    problems(convolve, x, w)["conv2d"].set_winner("expanded_planes")
    with nnops.autotuning():
        partition = conv2d_partition(x, w, padding=1, threads=torch.get_num_threads())
    assert partition.algorithm == "expanded_planes"


@pytest.mark.parametrize("name", sorted(SIX_POINTS))
def test_highest_precision_takes_no_form_of_six_points(name: str) -> None:
    size = 3 if "3x3" in name else 5
    x, w = torch.randn(2, 64, 16, 16, requires_grad=True), torch.randn(64, 64, size, size)
    w.requires_grad_()

    def step(precision: str) -> None:
        F.conv2d(x, w, padding=size // 2, precision=precision).sum().backward()

    for problem in problems(step, "highest").values():
        assert not SIX_POINTS & set(problem.candidates())
        problem.set_winner(name)
    for problem in problems(step, "high").values():
        assert name in problem.candidates()
        problem.set_winner(name)
    nnops.set_autotune(True)
    assert set(chosen(step, "high").values()) == {name}
    highest = chosen(step, "highest")
    assert len(highest) == 3
    assert not SIX_POINTS & set(highest.values())
    with nnops.conv_precision("highest"):
        assert chosen(step, None) == highest


def test_a_winner_that_cannot_run_is_not_taken() -> None:
    x, w = images(), weights()
    problems(convolve, x, w)["conv2d"].set_winner("depthwise_rows")
    with nnops.autotuning():
        assert chosen(convolve, x, w) == {"conv2d": RULES}


def test_autotune_takes_stores_and_reports_the_fastest(
    wins: Callable[..., None], cache: Path
) -> None:
    x, w = images(), weights()
    before = chosen(train, x, w)
    second = {("conv2d", "winograd_2x2_3x3"): [1.9] * 5}
    wins({**dict.fromkeys(OTHERS.items(), TWICE), **second})
    limit = nnops.packed_weight_cache().limit
    tuned = nnops.autotune(train, x, w)
    assert nnops.packed_weight_cache().limit == limit
    assert {each.problem.op: each.winner for each in tuned} == OTHERS
    assert {each.problem.op: each.chosen for each in tuned} == before
    assert {each.gain for each in tuned} == {2.0}
    assert "reference" not in tuned[0].seconds and RULES in tuned[0].seconds
    for part in ("2x32x9x8 by 32x32x3x3", "padding 1", "expanded_planes", RULES, "2.00"):
        assert part in str(tuned)
    assert chosen(train, x, w) == OTHERS, "it is on"
    assert [path.name for path in cache.parent.glob("*.json*")] == [cache.name]

    _C.clear_conv2d_winners()
    assert chosen(train, x, w) == before
    nnops.set_autotune(True)
    assert chosen(train, x, w) == OTHERS


@pytest.mark.parametrize("speeds", [[tuning.LEAST_GAIN - 0.01] * 5, [2.0, 2.0, 2.0, 0.9, 0.9]])
def test_a_small_or_doubtful_gain_is_none(speeds: list[float], wins: Callable[..., None]) -> None:
    x, w = images(), weights()
    wins({("conv2d", "expanded_planes"): speeds})
    (tuned,) = nnops.autotune(convolve, x, w)
    assert (tuned.winner, tuned.gain) == (RULES, 1.0)
    assert chosen(convolve, x, w) == {"conv2d": RULES}


def test_autotune_measures_every_candidate_for_real() -> None:
    x, w = images(), weights()
    tuned = nnops.autotune(train, x, w, seconds=0.0)
    assert [each.problem.op for each in tuned] == list(OTHERS)
    for each in tuned:
        assert {each.winner, each.chosen} <= set(each.seconds) <= set(each.problem.candidates())
        assert min(each.seconds.values()) > 0
    assert chosen(train, x, w) == {each.problem.op: each.winner for each in tuned}


def test_what_leaves_no_choice_is_not_measured(cache: Path) -> None:
    integers = torch.ones(1, 3, 9, 9, dtype=torch.int32)
    tuned = nnops.autotune(lambda: (F.conv2d(integers, integers), convolve(images(0), weights())))
    assert tuned == ()
    assert "nothing to choose" in str(tuned)
    assert not cache.exists()


def test_expanded_gradients_are_measured_as_they_are() -> None:
    x = images().requires_grad_()
    tuned = nnops.autotune(lambda: convolve(x, weights()).sum().backward(), seconds=0.0)
    (gradient,) = [each for each in tuned if each.problem.op == "conv2d_backward_input"]
    assert gradient.problem.output[1] == (0, 0, 0, 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_in_fused_operators_are_those_alone(layout: torch.memory_format) -> None:
    x, w = images().to(memory_format=layout), weights()
    alone = problems(convolve, x, w)
    window = {"padding": 1, "pool_kernel_size": 2}
    assert problems(F.conv2d_relu, x, w, padding=1) == alone
    assert problems(F.conv2d_max_pool2d, x, w, **window) == alone
    trained = w.clone().requires_grad_()
    assert problems(F.conv2d_relu_max_pool2d, x, trained, **window) == alone


def test_other_devices_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="only convolutions on the CPU are measured"):
        nnops.autotune(convolve, images().to("meta"), weights().to("meta"))
    assert not _C.autotune()


def test_training_is_correct_with_winners(wins: Callable[..., None], isa: str) -> None:
    x, w = images().requires_grad_(), weights().requires_grad_()
    wins(dict.fromkeys(OTHERS.items(), TWICE))
    nnops.autotune(train, x.detach(), w.detach())
    sample = Sample("tuned", (x, w, None, 1, 1))
    assert chosen(train, x.detach(), w.detach()) == OTHERS
    assert_same_call(F.conv2d, torch.nn.functional.conv2d, sample, "autotuned")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"winners": {}}',
        b'{"nnops": "0.0.1", "winners": {}}',
        b'{"nnops": "VERSION", "winners": 3}',
        b'{"nnops": "VERSION", "winners": {"cpu": [{"op": "conv2d"}]}}',
    ],
    ids=lambda content: content[:24].decode(errors="replace"),
)
def test_files_that_are_no_winners_are_ignored_aloud_and_replaced(
    content: bytes, cache: Path, wins: Callable[..., None]
) -> None:
    x, w = images(), weights()
    cache.write_bytes(content.replace(b"VERSION", nnops.__version__.encode()))
    with pytest.warns(UserWarning, match="holds no winners that can be read and is ignored"):
        nnops.set_autotune(True)
    assert chosen(convolve, x, w) == {"conv2d": RULES}
    wins({("conv2d", "expanded_planes"): TWICE})
    with pytest.warns(UserWarning, match="is ignored"):
        nnops.autotune(convolve, x, w)
    _C.clear_conv2d_winners()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nnops.set_autotune(True)
    assert chosen(convolve, x, w) == {"conv2d": "expanded_planes"}


def test_entries_of_other_builds_and_machines_are_ignored_and_kept(cache: Path) -> None:
    x, w = images(), weights()
    problem = problems(convolve, x, w)["conv2d"]
    tuning._store({problem: "expanded_planes"})
    content = json.loads(cache.read_text())
    (cpu,) = content["winners"]
    (entry,) = content["winners"][cpu]
    strange = [
        {"isa": "avx1024"},
        {"op": "conv3d"},
        {"precision": "low"},
        {"dtype": "float8"},
        {"threads": "two"},
        {"groups": 0},
        {"groups": 2**70},
        {"stride": [0, 1]},
        {"padding": 1},
        {"input": [[1], [1]]},
    ]
    for n, algorithm in ((3, "fastest"), (4, 3)):
        other = problems(convolve, images(n), w)["conv2d"]
        strange.append({"input": other.input, "output": other.output, "algorithm": algorithm})
    content["winners"][cpu] += [{**entry, **change} for change in strange]
    content["winners"]["another CPU"] = [{**entry, "algorithm": "reference"}]
    cache.write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nnops.set_autotune(True)
    assert chosen(convolve, x, w) == {"conv2d": "expanded_planes"}
    assert chosen(convolve, images(3), w) == {"conv2d": RULES}

    tuning._store({problem: "reference"})
    written = json.loads(cache.read_text())["winners"]
    assert written["another CPU"] == content["winners"]["another CPU"]
    assert len(written[cpu]) == len(content["winners"][cpu])


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wins: Callable[..., None]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NNOPS_CACHE_DIR", str(tmp_path / "file" / "folder"))
    wins({("conv2d", "expanded_planes"): TWICE})
    x, w = images(), weights()
    with pytest.warns(UserWarning, match="not stored for later processes"):
        nnops.autotune(convolve, x, w)
    assert chosen(convolve, x, w) == {"conv2d": "expanded_planes"}


def test_the_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNOPS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuning._path().parent == tmp_path / "xdg" / "nnops"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning._path().parent == tmp_path / ".cache" / "nnops"


def test_processes_that_write_at_once_lose_nothing(cache: Path) -> None:
    problem = problems(convolve, images(), weights())["conv2d"]
    context = multiprocessing.get_context("fork")
    threads_of = {"a": range(1, 31), "b": range(101, 131)}

    def write(threads: range) -> None:
        for number in threads:
            tuning._store({Problem(**{**vars(problem), "threads": number}): "reference"})

    processes = [context.Process(target=write, args=(each,)) for each in threads_of.values()]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if cache.exists():
            json.loads(cache.read_text())
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (entries,) = json.loads(cache.read_text())["winners"].values()
    assert {entry["threads"] for entry in entries} == {
        number for numbers in threads_of.values() for number in numbers
    }
    assert sorted(path.suffix for path in cache.parent.iterdir()) == [".json", ".lock"]


def test_threads_may_call_while_winners_change() -> None:
    x, w = images(), weights()
    problem = problems(convolve, x, w)["conv2d"]
    expected = {}
    for name in (RULES, "reference"):
        with forced_algorithm("conv2d", name):
            expected[name] = convolve(x, w)
    stop = threading.Event()
    wrong: list[Tensor] = []

    def call() -> None:
        while not stop.is_set():
            result = convolve(x, w)
            if not any(torch.equal(result, each) for each in expected.values()):
                wrong.append(result)

    callers = [threading.Thread(target=call) for _ in range(2)]
    nnops.set_autotune(True)
    for caller in callers:
        caller.start()
    for number in range(200):
        problem.set_winner((RULES, "reference")[number % 2])
        nnops.set_autotune(number % 3 > 0)
        if number % 50 == 0:
            _C.clear_conv2d_winners()
    stop.set()
    for caller in callers:
        caller.join()
    assert not wrong


def test_later_processes_use_the_file_if_they_say_so(cache: Path) -> None:
    x, w = images(), weights()
    tuning._store({problems(convolve, x, w)["conv2d"]: "expanded_planes"})
    program = (
        "import torch, nnops, nnops.nn.functional as F\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "x, w = torch.ones(2, 32, 9, 8), torch.ones(32, 32, 3, 3)\n"
        "print(nnops.explain(F.conv2d, x, w, padding=1)[0].algorithm)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NNOPS_AUTOTUNE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "expanded_planes", result.stderr
