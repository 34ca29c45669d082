"""What the rows are held against: goals.csv, and which of its goals a result meets.

A goal covers all rows of its op and mode whose layout and kernel class match its patterns: their
geometric mean, and none below the floor. Below AVX-512 80 % of the figures will do.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources

from nnops.benchmark.results import Row
from nnops.testing.samples import OVERHEAD

SHARE_BELOW_AVX512 = 0.8
# The goals are for this dtype.
DTYPE = "float32"


@dataclass(frozen=True)
class Goal:
    op: str
    mode: str
    layout: str
    kernel_class: str
    geomean: float
    floor: float

    def covers(self, row: Row) -> bool:
        return (
            (row.op, row.mode, row.dtype) == (self.op, self.mode, DTYPE)
            and fnmatchcase(row.layout, self.layout)
            and fnmatchcase(row.kernel_class, self.kernel_class)
        )


@dataclass(frozen=True)
class Line:
    """Rows of one ISA and thread count, summed up: those of a goal, or of a class without one."""

    op: str
    mode: str
    layout: str
    kernel_class: str
    dtype: str
    isa: str
    threads: int
    rows: int
    geomean: float
    worst: float
    worst_sample: str
    # None where there is no goal; already lowered for the ISA.
    goal_geomean: float | None = None
    goal_floor: float | None = None
    errors: int = 0

    @property
    def met(self) -> bool | None:
        if self.goal_geomean is None or self.goal_floor is None:
            return None
        return (
            not self.errors and self.geomean >= self.goal_geomean and self.worst >= self.goal_floor
        )


@cache
def goals() -> tuple[Goal, ...]:
    text = resources.files("nnops.benchmark").joinpath("goals.csv").read_text()
    return tuple(
        Goal(
            each["op"],
            each["mode"],
            each["layout"],
            each["kernel_class"],
            float(each["geomean"]),
            float(each["floor"]),
        )
        for each in csv.DictReader(text.splitlines())
    )


def share(isa: str) -> float:
    """Of the figures of a goal, what this ISA is to reach."""
    return 1.0 if isa == "avx512" else SHARE_BELOW_AVX512


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def summary(rows: Iterable[Row]) -> list[Line]:
    """One line per goal, ISA and thread count, then one per class that no goal covers.

    Bytes and the price of a call are no matter of classes: their rows say it all.
    """
    rows = [row for row in rows if not row.memory and row.kernel_class != OVERHEAD]
    machines = sorted({(row.isa, row.threads, row.dtype) for row in rows})
    lines = []
    for isa, threads, dtype in machines:
        here = [row for row in rows if (row.isa, row.threads, row.dtype) == (isa, threads, dtype)]
        for goal in goals():
            covered = [row for row in here if goal.covers(row)]
            if covered:
                lines.append(_line(covered, goal))
        others = [row for row in here if not any(goal.covers(row) for goal in goals())]
        for group in _by_class(others):
            lines.append(_line(group, None))
    return [line for line in lines if line.rows or line.errors]


def _by_class(rows: list[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row.op, row.mode, row.layout, row.kernel_class)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _line(rows: list[Row], goal: Goal | None) -> Line:
    first = rows[0]
    measured = [(row.ratio, row.sample) for row in rows if row.ratio is not None]
    worst, worst_sample = min(measured, default=(math.nan, ""))
    scale = share(first.isa)
    return Line(
        op=first.op,
        mode=first.mode,
        layout=goal.layout if goal else first.layout,
        kernel_class=goal.kernel_class if goal else first.kernel_class,
        dtype=first.dtype,
        isa=first.isa,
        threads=first.threads,
        rows=len(measured),
        geomean=geometric_mean([ratio for ratio, _ in measured]),
        worst=worst,
        worst_sample=worst_sample,
        goal_geomean=goal.geomean * scale if goal else None,
        goal_floor=goal.floor * scale if goal else None,
        errors=sum(bool(row.error) for row in rows),
    )
