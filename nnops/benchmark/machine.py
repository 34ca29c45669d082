"""Where and on what a row was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from functools import cache
from pathlib import Path

import nnops

STAT = Path("/proc/stat")
# Fields of its first line that are not work: idle, iowait; and guests, which user contains already.
IDLE_FIELDS, GUEST_FIELDS = (3, 4), (8, 9)


@cache
def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """`git describe` of the sources that run; "" for an installed package."""
    root = Path(nnops.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class OthersLoad:
    """How many CPUs other processes (or other guests of the host) keep busy from now on.

    With as many threads as CPUs, one busy neighbour makes every parallel region wait for the
    scheduler: times are then multiples of its slice, steady and wrong. So the spread of the rounds
    does not show it; this does. Linux only, with a resolution of 10 ms.
    """

    def __init__(self) -> None:
        self._before = self._seconds()

    def cpus(self) -> float:
        """Mean number of CPUs since the start; 0 where nobody counts."""
        wall, busy, ours = (
            now - then for now, then in zip(self._seconds(), self._before, strict=True)
        )
        return max(0.0, (busy - ours) / wall) if wall > 0 else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Wall clock, CPU time of the machine, CPU time of this process."""
        times = os.times()
        ours = times.user + times.system
        if not STAT.exists():
            return time.perf_counter(), ours, ours
        fields = [int(field) for field in STAT.read_text().splitlines()[0].split()[1:]]
        work = sum(
            value
            for index, value in enumerate(fields)
            if index not in (*IDLE_FIELDS, *GUEST_FIELDS)
        )
        return time.perf_counter(), work / os.sysconf("SC_CLK_TCK"), ours
