"""The benchmark engine: its timing, its refusals, its command line. No assertion on a time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import nnops.nn.functional as F
from nnops import _C
from nnops.__main__ import app
from nnops.benchmark import engine, results
from nnops.benchmark.calls import EAGER, PEERS, Mode, contestant, output_gradient, sample_for
from nnops.benchmark.limits import Limits
from nnops.benchmark.machine import OthersLoad
from nnops.benchmark.memory import measure_in_fresh_process, saved_bytes
from nnops.benchmark.results import Bytes
from nnops.benchmark.timing import MINIMUM_ROUNDS, Contestant, alternate, calmest, ratios, spread
from nnops.testing.opdb import case as case_named
from nnops.testing.samples import OVERHEAD, BenchmarkSample, Maker, OpCase, Sample

ANY = ((1024, 100.0),)
LIMITS = Limits(1, ANY, ANY, 50.0, calls={"fwd": 1.0, "bwd": 10.0, "full": 20.0})


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
        assert each.limit_us == pytest.approx(work + LIMITS.calls["fwd"])
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


def test_bench_refuses_what_it_does_not_know() -> None:
    run("bench", "--mode", "sideways", code=2)
    run("bench", "--op", "no such operator", code=2)
    run("bench", "--peer", "someone", code=2)
    run("bench", "--isa", "sse9", code=2)
    run("bench", "--dtype", "int64", code=2)
    run("bench", "--shapes", "no such net", code=2)
    run("bench", "--layout", "NHCW", code=2)
    run("bench", "--op", "relu", "--shapes", "resnet50", code=2)
