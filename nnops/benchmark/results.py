"""The result file: JSON lines, first the limits of the machine, then one row per case.

A line has a `kind`: "limits" (one per thread count and dtype) or "row". bench/README.md says what
the columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from nnops.benchmark.limits import Limits
from nnops.benchmark.timing import BUSY
from nnops.testing.samples import DEFAULT_LIST

EAGER = "torch"
# Families of rows that are not operators: whole nets, and the layers of one.
NETS, LAYERS = "nets", "layers"


@dataclass(frozen=True)
class Versus:
    """A peer's figure over ours: how many times better we are. `us` is its median time."""

    ratio: float
    p20: float
    p80: float
    us: float | None = None


@dataclass(frozen=True)
class Bytes:
    """Kept by forward for backward, by storage; and the growth of the process in a full step."""

    saved_inputs: int
    saved_outputs: int
    saved_else: int
    peak: int | None

    @property
    def saved(self) -> int:
        return self.saved_inputs + self.saved_outputs + self.saved_else


@dataclass(frozen=True)
class Row:
    """One op, mode, sample, ISA and thread count. `error` is why there are no figures."""

    family: str
    op: str
    mode: str
    sample: str
    kernel_class: str
    shapes: list[list[int]]
    dtype: str
    layout: str
    isa: str
    isa_forced: bool
    threads: int
    torch: str
    nnops: str
    commit: str
    cpu: str
    flops: int = 0
    bytes: int = 0
    rounds: int = 0
    ours_us: float | None = None
    ours_p20_us: float | None = None
    ours_p80_us: float | None = None
    gb_s: float | None = None
    gflop_s: float | None = None
    bound: str = ""
    percent_of_limit: float | None = None
    # The least time by the limits, with the price of a call that computes nothing.
    limit_us: float | None = None
    peers: dict[str, Versus] = field(default_factory=dict)
    memory: dict[str, Bytes] = field(default_factory=dict)
    shape_list: str = DEFAULT_LIST
    # CPUs that other processes kept busy meanwhile.
    others_load: float = 0.0
    # Peers that could not run, and why.
    absent: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> tuple[str | int, ...]:
        """What makes a row of one file the counterpart of a row of another."""
        return (
            *(self.op, self.mode, self.sample, self.layout, self.dtype),
            *(self.isa, self.threads),
        )

    @property
    def name(self) -> str:
        """For people: what the row is about, apart from ISA and threads."""
        words = (self.op, self.mode, self.sample, self.layout)
        return " ".join(word for word in words if word)

    @property
    def ratio(self) -> float | None:
        """Against torch eager."""
        versus = self.peers.get(EAGER)
        return versus.ratio if versus else None

    @property
    def ratio_at_limit(self) -> float | None:
        """`ratio` if we took the least time; as it is where we take less, as Winograd may.

        Older rows do not know the price of a call.
        """
        if self.ratio is None or self.percent_of_limit is None:
            return None
        factor = 100 / self.percent_of_limit
        if self.limit_us is not None and self.ours_us is not None:
            factor = self.ours_us / self.limit_us
        return self.ratio * max(1.0, factor)

    @property
    def lost(self) -> bool:
        """Slower than one of the peers, or in error."""
        return bool(self.error) or any(versus.ratio < 1 for versus in self.peers.values())

    @property
    def disturbed(self) -> bool:
        """Measured on a machine that was not ours: not to be trusted."""
        return self.others_load > BUSY

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Row:
        peers = {name: Versus(**versus) for name, versus in values.pop("peers").items()}
        memory = {name: Bytes(**each) for name, each in values.pop("memory").items()}
        return Row(**values, peers=peers, memory=memory)


@dataclass
class Results:
    limits: list[Limits] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, line: Limits | Row) -> None:
        if isinstance(line, Row):
            self.rows.append(line)
        else:
            self.limits.append(line)

    def limits_of(self, threads: int, dtype: str) -> Limits | None:
        wanted = (threads, dtype)
        matching = [each for each in self.limits if (each.threads, each.dtype) == wanted]
        return matching[-1] if matching else None


def write(line: Limits | Row, file: TextIO) -> None:
    """Appends one line and flushes, so that what was measured survives an interruption."""
    kind = "row" if isinstance(line, Row) else "limits"
    file.write(json.dumps({"kind": kind, **line.as_json()}) + "\n")
    file.flush()


def read(paths: Iterable[Path]) -> Results:
    """All rows of these files; of those with the same key, measured on a like CPU, the last."""
    results = Results()
    for line in _lines(paths):
        results.add(line)
    latest = {(row.key, row.cpu, row.isa_forced): row for row in results.rows}
    return Results(results.limits, list(latest.values()))


def _lines(paths: Iterable[Path]) -> Iterator[Limits | Row]:
    for path in paths:
        for text in path.read_text().splitlines():
            values = json.loads(text)
            kind = values.pop("kind")
            yield Row.from_json(values) if kind == "row" else Limits.from_json(values)
