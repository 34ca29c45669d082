"""What the rows are held against: goals.csv, and which of its goals a result meets.

A goal covers all rows of its op and mode whose layout, kernel class, list of shapes, sample and
dtype match its patterns; "!" before a pattern turns it round. Each list is summed up by itself. A
goal may ask for the rows' geometric mean, for a floor under each, and for a share of the machine's
limit, in percent, of each; what it does not ask for is left empty. Below AVX-512 80 % of the
figures will do, except of those of memory.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import TypeVar

from nnops.benchmark.results import LAYERS, Row
from nnops.testing.samples import OVERHEAD

Key = TypeVar("Key", bound=Hashable)

SHARE_BELOW_AVX512 = 0.8
MEMORY = "memory"


@dataclass(frozen=True)
class Goal:
    op: str
    mode: str
    layout: str
    kernel_class: str
    shape_list: str
    sample: str
    dtype: str
    geomean: float | None
    floor: float | None
    percent: float | None

    def covers(self, row: Row) -> bool:
        return (
            (row.op, row.mode) == (self.op, self.mode)
            and _matches(row.layout, self.layout)
            and _matches(row.kernel_class, self.kernel_class)
            and _matches(row.shape_list, self.shape_list)
            and _matches(row.sample, self.sample)
            and _matches(row.dtype, self.dtype)
        )


def _matches(text: str, pattern: str) -> bool:
    if pattern.startswith("!"):
        return not fnmatchcase(text, pattern[1:])
    return fnmatchcase(text, pattern)


@dataclass(frozen=True)
class Line:
    """Rows of one list, dtype and setting, summed up: of a goal, or of a class without one."""

    op: str
    mode: str
    layout: str
    kernel_class: str
    shape_list: str
    sample: str
    dtype: str
    isa: str
    threads: int
    cpu: str
    isa_forced: bool
    rows: int
    geomean: float
    worst: float
    worst_sample: str
    least_percent: float
    # Mean and worst if every row, those aside that are beyond it, took what its limit asks for.
    geomean_at_limit: float
    worst_at_limit: float
    # Of the limit; far above 100 where it is none, as for Winograd.
    most_percent: float
    # Already lowered for the ISA; None: no goal covers these rows.
    goal: Goal | None = None
    errors: int = 0

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        if self.goal is None:
            return None
        pairs = (
            (self.geomean, self.goal.geomean),
            (self.worst, self.goal.floor),
            (self.least_percent, self.goal.percent),
        )
        reached = all(wanted is None or figure >= wanted for figure, wanted in pairs)
        return reached and not self.errors


@cache
def goals() -> tuple[Goal, ...]:
    text = resources.files("nnops.benchmark").joinpath("goals.csv").read_text()
    return tuple(map(_goal, csv.DictReader(text.splitlines())))


def _goal(fields: dict[str, str]) -> Goal:
    def figure(name: str) -> float | None:
        return float(fields[name]) if fields[name] else None

    return Goal(
        op=fields["op"],
        mode=fields["mode"],
        layout=fields["layout"],
        kernel_class=fields["kernel_class"],
        shape_list=fields["shape_list"],
        sample=fields["sample"],
        dtype=fields["dtype"],
        geomean=figure("geomean"),
        floor=figure("floor"),
        percent=figure("percent"),
    )


def goal_on(goal: Goal, isa: str) -> Goal:
    """`goal` with the figures that this ISA is to reach."""
    # Bytes are the same on all.
    if isa == "avx512" or goal.mode == MEMORY:
        return goal

    def lowered(figure: float | None) -> float | None:
        return None if figure is None else figure * SHARE_BELOW_AVX512

    return replace(
        goal,
        geomean=lowered(goal.geomean),
        floor=lowered(goal.floor),
        percent=lowered(goal.percent),
    )


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def summary(rows: Iterable[Row]) -> list[Line]:
    """Per list, dtype, ISA, CPU and thread count a line for each goal, then each class without.

    Bytes, the price of a call and the layers of a net are no matter of classes: where no goal
    covers them, their rows say it all.
    """
    rows = [row for row in rows if _has_class(row) or any(goal.covers(row) for goal in goals())]
    lines = []
    for _, here in sorted(_grouped(rows, _setting).items()):
        for goal in goals():
            covered = [row for row in here if goal.covers(row)]
            if covered:
                lines.append(_line(covered, goal))
        others = [row for row in here if not any(goal.covers(row) for goal in goals())]
        lines += [_line(group, None) for group in _grouped(others, _class).values()]
    return [line for line in lines if line.rows or line.errors]


def _has_class(row: Row) -> bool:
    return not row.memory and row.kernel_class != OVERHEAD and row.family != LAYERS


def _setting(row: Row) -> tuple[str | int, ...]:
    return (row.isa, row.isa_forced, row.cpu, row.threads, row.dtype, row.shape_list)


def _class(row: Row) -> tuple[str, ...]:
    return (row.op, row.mode, row.layout, row.kernel_class)


def _grouped(rows: list[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _line(rows: list[Row], goal: Goal | None) -> Line:
    first = rows[0]
    measured = [(row.ratio, row.sample) for row in rows if row.ratio is not None]
    worst, worst_sample = min(measured, default=(math.nan, ""))
    percents = [row.percent_of_limit for row in rows if row.percent_of_limit is not None]
    at_limit = [row.ratio_at_limit for row in rows if row.ratio_at_limit is not None]
    return Line(
        op=first.op,
        mode=first.mode,
        layout=goal.layout if goal else first.layout,
        kernel_class=goal.kernel_class if goal else first.kernel_class,
        shape_list=first.shape_list,
        sample=goal.sample if goal else "*",
        dtype=first.dtype,
        isa=first.isa,
        threads=first.threads,
        cpu=first.cpu,
        isa_forced=first.isa_forced,
        rows=len(measured),
        geomean=geometric_mean([ratio for ratio, _ in measured]),
        worst=worst,
        worst_sample=worst_sample,
        least_percent=min(percents, default=math.nan),
        geomean_at_limit=geometric_mean(at_limit),
        worst_at_limit=min(at_limit, default=math.nan),
        most_percent=max(percents, default=math.nan),
        goal=goal_on(goal, first.isa) if goal else None,
        errors=sum(bool(row.error) for row in rows),
    )
