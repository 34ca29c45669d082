"""Every sample of the database x ISA x threads x mode: built, checked, measured; one row each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

import nnops
from nnops import _C
from nnops.benchmark import machine
from nnops.benchmark.calls import (
    EAGER,
    Mode,
    Peer,
    contestant,
    output_gradient,
    phases,
    sample_for,
)
from nnops.benchmark.check import Expected, check, expected_of
from nnops.benchmark.limits import Limits
from nnops.benchmark.memory import measure_in_fresh_process
from nnops.benchmark.results import Row, Versus
from nnops.benchmark.timing import Contestant, calmest, ratios, spread
from nnops.testing.opdb import FAMILIES
from nnops.testing.samples import (
    DEFAULT_LIST,
    NO_WORK,
    BenchmarkSample,
    Maker,
    OpCase,
    Sample,
    tensors_of,
)

OURS = "ours"


@dataclass(frozen=True)
class Plan:
    """What to measure. `ops` are names of functions or families; empty: all; so for `layouts`."""

    modes: tuple[Mode, ...]
    threads: tuple[int, ...]
    isas: tuple[str, ...]
    ops: tuple[str, ...] = ()
    shape_lists: tuple[str, ...] = (DEFAULT_LIST,)
    # Operators without a choice of layouts have their rows anyway.
    layouts: tuple[str, ...] = ()
    # Rows whose "op sample layout class" contains this, or matches it as a pattern.
    filter: str = ""
    dtype: torch.dtype = torch.float32
    peers: tuple[Peer, ...] = ()
    seconds: float = 1.0
    isa_forced: bool = False


@dataclass(frozen=True)
class Subject:
    """One sample, and the modes that it has rows in."""

    family: str
    case: OpCase
    benchmark: BenchmarkSample
    modes: tuple[Mode, ...]


def subjects(plan: Plan) -> list[Subject]:
    found = []
    for family, cases in FAMILIES.items():
        for case in cases:
            if plan.ops and case.name not in plan.ops and family not in plan.ops:
                continue
            if plan.dtype not in case.dtypes:
                continue
            for benchmark in case.benchmark_samples:
                modes = tuple(mode for mode in plan.modes if mode.fits(case, benchmark))
                if modes and _selected(plan, case, benchmark):
                    found.append(Subject(family, case, benchmark, modes))
    return found


def _selected(plan: Plan, case: OpCase, benchmark: BenchmarkSample) -> bool:
    if benchmark.shape_list not in plan.shape_lists:
        return False
    if plan.layouts and benchmark.layout and benchmark.layout not in plan.layouts:
        return False
    text = f"{case.name} {benchmark.name} {benchmark.layout} {benchmark.kernel_class}"
    return plan.filter in text or fnmatchcase(text, plan.filter)


def row_count(plan: Plan) -> int:
    """How many rows there will be at most; some samples lack the gradient that a mode times."""
    settings = len(plan.isas) * len(plan.threads)
    return settings * sum(len(subject.modes) for subject in subjects(plan))


def run(plan: Plan, limits: dict[int, Limits]) -> Iterator[Row]:
    """Yields each row as soon as it is measured; leaves ISA and threads as they were."""
    with settled():
        for subject in subjects(plan):
            yield from _rows_of(subject, plan, limits)


@contextmanager
def settled() -> Iterator[None]:
    """Gives ISA and threads back at the end.

    Lets glibc keep freed memory of up to 31 MB from now on, as it does in every process that has
    freed a tensor as large; else it depends on the rows before whether an output of some megabytes
    is the same memory again and again or fresh pages from the system at every call.
    """
    isa, threads = _C.active_isa(), torch.get_num_threads()
    torch.empty(31 << 20, dtype=torch.uint8)
    try:
        yield
    finally:
        _C.set_active_isa(isa)
        torch.set_num_threads(threads)


def _rows_of(subject: Subject, plan: Plan, limits: dict[int, Limits]) -> Iterator[Row]:
    case = subject.case
    sample = subject.benchmark.build(Maker(plan.dtype, requires_grad=True))
    expected = expected_of(case, sample)
    for isa in plan.isas:
        _C.set_active_isa(isa)
        for threads in plan.threads:
            torch.set_num_threads(threads)
            error = _wrong_numbers(case, sample, expected)
            for mode in subject.modes:
                differentiated = sample_for(case, sample, mode)
                if differentiated is None:
                    continue
                row = _description(subject, sample, mode, plan)
                try:
                    if error:
                        raise error
                    if mode == Mode.MEMORY:
                        row = _with_memory(row, subject, plan)
                    else:
                        row = _with_times(
                            row, subject, differentiated, mode, plan, limits.get(threads)
                        )
                except Exception as reason:
                    # The row says why it has no figures; the others are still wanted.
                    row = replace(row, error=f"{type(reason).__name__}: {reason}")
                yield row


def _wrong_numbers(case: OpCase, sample: Sample, expected: Expected) -> Exception | None:
    try:
        check(case, sample, expected)
    except Exception as error:
        return error
    return None


def _description(subject: Subject, sample: Sample, mode: Mode, plan: Plan) -> Row:
    case = subject.case
    return Row(
        family=subject.family,
        op=case.name,
        mode=mode.value,
        sample=subject.benchmark.name,
        kernel_class=subject.benchmark.kernel_class,
        shapes=[list(tensor.shape) for tensor in tensors_of(sample)],
        dtype=str(plan.dtype).removeprefix("torch."),
        layout=subject.benchmark.layout,
        shape_list=subject.benchmark.shape_list,
        **where(plan.isa_forced),
    )


def where(isa_forced: bool) -> dict[str, Any]:
    """The part of a row that says where and on what it is measured."""
    return {
        "isa": _C.active_isa(),
        "isa_forced": isa_forced,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "nnops": nnops.__version__,
        "commit": machine.commit(),
        "cpu": machine.cpu_model(),
    }


def _with_times(
    row: Row, subject: Subject, sample: Sample, mode: Mode, plan: Plan, limits: Limits | None
) -> Row:
    case = subject.case
    peers = [
        peer
        for peer in (EAGER, *plan.peers)
        if not peer.families or subject.family in peer.families
    ]
    if any(peer.name == "compile" for peer in peers):
        torch.compiler.reset()
    seed = output_gradient(case.torch_function, sample, mode)
    works = phases(case, sample, mode)
    work = sum(works, start=NO_WORK)
    timed = with_times(
        replace(row, flops=work.flops, bytes=work.bytes),
        [
            contestant(OURS, case.our_function, sample, mode, Peer(OURS), seed),
            *(
                contestant(peer.name, case.torch_function, sample, mode, peer, seed)
                for peer in peers
            ),
        ],
        plan.seconds,
    )
    if limits is None or not works or timed.ours_us is None:
        return timed
    seconds = timed.ours_us / 1e6
    least = sum(map(limits.seconds, works))
    return replace(
        timed,
        gb_s=work.bytes / seconds / 1e9,
        gflop_s=work.flops / seconds / 1e9,
        bound=limits.bound(work),
        percent_of_limit=100 * least / seconds,
        limit_us=1e6 * least + limits.calls[mode.direction],
    )


def with_times(row: Row, contestants: Sequence[Contestant], seconds: float) -> Row:
    """`row` with the times of OURS, and the ratios of all others to it."""
    measurement = calmest(contestants, seconds)
    rounds = measurement.rounds
    ours = spread(rounds[OURS])
    peers = {}
    for name, theirs in rounds.items():
        if name != OURS:
            ratio = ratios(theirs, rounds[OURS])
            peers[name] = Versus(ratio.median, ratio.p20, ratio.p80, spread(theirs).median * 1e6)
    return replace(
        row,
        rounds=len(rounds[OURS]),
        ours_us=ours.median * 1e6,
        ours_p20_us=ours.p20 * 1e6,
        ours_p80_us=ours.p80 * 1e6,
        peers=peers,
        others_load=measurement.others_load,
    )


def _with_memory(row: Row, subject: Subject, plan: Plan) -> Row:
    ours, torchs = (
        measure_in_fresh_process(
            subject.case, subject.benchmark, plan.dtype, row.isa, row.threads, who
        )
        for who in (OURS, EAGER.name)
    )
    memory = {OURS: ours, EAGER.name: torchs}
    if not ours.saved:
        return replace(row, memory=memory)
    ratio = torchs.saved / ours.saved
    return replace(row, memory=memory, peers={EAGER.name: Versus(ratio, ratio, ratio)})
