"""Times contestants in alternating rounds, and takes the ratio within each round.

Clock frequency, other tenants of the machine and the state of malloc drift over seconds. They hit
neighbours in time alike, so the ratio of two measurements of the same round is steady where the
times are not. torch.utils.benchmark.Timer measures one statement to its end before the next one
begins, and pyperf each benchmark in processes of its own: neither can alternate.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from nnops.benchmark.machine import OthersLoad

# A round of a contestant lasts at least this long, to be far above the clock's resolution.
ROUND_SECONDS = 2e-3
MINIMUM_ROUNDS = 7
# A relative spread of the ratios that the calls do not have by themselves.
DISTURBED = 0.4
# CPUs kept busy by others, from which on a row is not to be trusted.
BUSY = 0.15
ATTEMPTS = 3

Clock = Callable[[], float]


@dataclass(frozen=True)
class Contestant:
    """Someone to be timed: `call()` again and again, within `around()`, whose price is not timed.

    What a call returns is freed before the next one, as a training loop does it.
    """

    name: str
    call: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Spread:
    """Median, and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    ordered = sorted(values)
    return Spread(statistics.median(ordered), _percentile(ordered, 0.2), _percentile(ordered, 0.8))


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times faster we are, from the seconds of the same rounds."""
    return spread([their / our for their, our in zip(theirs, ours, strict=True)])


def alternate(
    contestants: Sequence[Contestant], seconds: float, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of every contestant, one entry per round, for about `seconds` in all."""
    names = [contestant.name for contestant in contestants]
    if len(set(names)) != len(names):
        raise ValueError(f"contestants need names of their own, but got {names}")
    repetitions = {contestant.name: _repetitions(contestant, clock) for contestant in contestants}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = clock() + seconds
        number = 0
        while number < MINIMUM_ROUNDS or clock() < end:
            # Whoever goes first finds the caches as the last one left them: take turns.
            first = number % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                count = repetitions[contestant.name]
                rounds[contestant.name].append(_seconds_per_call(contestant, count, clock))
            number += 1
    finally:
        if collecting:
            gc.enable()
    return rounds


@dataclass(frozen=True)
class Measurement:
    """Seconds per call by contestant and round, and how many CPUs others kept busy meanwhile."""

    rounds: dict[str, list[float]]
    others_load: float

    @property
    def disturbance(self) -> float:
        """Above 1: something was going on that is not the calls' doing."""
        return max(_variation(self.rounds) / DISTURBED, self.others_load / BUSY)


def calmest(
    contestants: Sequence[Contestant], seconds: float, clock: Clock = time.perf_counter
) -> Measurement:
    """`alternate`, again where something disturbed it: the attempt that was disturbed least.

    The choice looks at the disturbance alone, not at who won.
    """
    attempts: list[Measurement] = []
    while not attempts or (attempts[-1].disturbance > 1 and len(attempts) < ATTEMPTS):
        others = OthersLoad()
        rounds = alternate(contestants, seconds, clock)
        attempts.append(Measurement(rounds, others.cpus()))
    return min(attempts, key=lambda attempt: attempt.disturbance)


def _variation(rounds: dict[str, list[float]]) -> float:
    """The widest relative spread, p80 - p20 over median, of a ratio to the first contestant."""
    first, *others = rounds.values()
    spreads = [ratios(other, first) for other in others]
    return max(((each.p80 - each.p20) / each.median for each in spreads), default=0.0)


def _repetitions(contestant: Contestant, clock: Clock) -> int:
    """How many calls fill a round; also warms caches, thread pools and malloc."""
    _seconds_per_call(contestant, 1, clock)
    count = 1
    while True:
        elapsed = _seconds_per_call(contestant, count, clock) * count
        if elapsed >= ROUND_SECONDS:
            return count
        growth = ROUND_SECONDS / max(elapsed, 1e-9)
        count = math.ceil(count * min(max(1.2 * growth, 1.2), 10))


def _seconds_per_call(contestant: Contestant, count: int, clock: Clock) -> float:
    call = contestant.call
    with contestant.around():
        start = clock()
        for _ in range(count):
            call()
        return (clock() - start) / count
