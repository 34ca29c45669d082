"""Two result files, row by row: what changed by more than the noise of both.

What is compared is the ratio to torch eager, which the machine's mood changes least. The band is
the sum of both relative spreads, (p80 - p20) / median, and at least 5 %: within it a change means
nothing. Where the data does not fit into a cache it is at least 30 %: which pages a process gets
shifts its ratios that much from run to run, while within a run they stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnops.benchmark.results import EAGER, Results, Row, Versus

LEAST_BAND, LEAST_BAND_BEYOND_CACHE = 0.05, 0.3
CACHE_BYTES = 2**25


@dataclass(frozen=True)
class Change:
    """`factor` above 1: the new one is faster. None where one of the two has no figure."""

    row: Row
    old: float | None
    new: float | None
    factor: float | None
    band: float
    # One of the two was measured while others kept the CPUs busy, so the factor says nothing.
    disturbed: bool

    @property
    def regressed(self) -> bool:
        """Slower by more than noise, or no figure any more."""
        if self.factor is None:
            return self.old is not None
        return not self.disturbed and self.factor < 1 / (1 + self.band)

    @property
    def improved(self) -> bool:
        return not self.disturbed and self.factor is not None and self.factor > 1 + self.band


@dataclass(frozen=True)
class Comparison:
    changes: list[Change]
    only_old: list[Row]
    only_new: list[Row]
    # Reasons for which ratios of the two files may not be comparable.
    warnings: list[str]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.regressed]


def compare(old: Results, new: Results) -> Comparison:
    old_rows = {row.key: row for row in old.rows}
    new_rows = {row.key: row for row in new.rows}
    shared = [key for key in new_rows if key in old_rows]
    warnings = []
    for what in ("torch", "cpu"):
        before = {getattr(row, what) for row in old.rows}
        after = {getattr(row, what) for row in new.rows}
        if before != after:
            warnings.append(f"{what} differs: {sorted(before)}, {sorted(after)}")
    return Comparison(
        [_change(old_rows[key], new_rows[key]) for key in shared],
        [row for key, row in old_rows.items() if key not in new_rows],
        [row for key, row in new_rows.items() if key not in old_rows],
        warnings,
    )


def _change(old: Row, new: Row) -> Change:
    before, after = old.peers.get(EAGER), new.peers.get(EAGER)
    factor = after.ratio / before.ratio if before and after else None
    return Change(
        new,
        before.ratio if before else None,
        after.ratio if after else None,
        factor,
        max(_least_band(new), _spreads(before, after)),
        old.disturbed or new.disturbed,
    )


def _least_band(row: Row) -> float:
    beyond_cache = row.bound == "memory" and row.bytes >= CACHE_BYTES
    return LEAST_BAND_BEYOND_CACHE if beyond_cache else LEAST_BAND


def _spreads(old: Versus | None, new: Versus | None) -> float:
    return sum((each.p80 - each.p20) / each.ratio for each in (old, new) if each is not None)
