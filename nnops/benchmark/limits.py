"""What this machine can do at most: measured in every run, for every thread count.

* copy: `destination.copy_(source)` between buffers that are used again and again (warm, no page
  faults), by working set (source + destination); read and write both count.
* read: the best of a sum, a maximum and the copy, over a warm buffer.
* calls: what a call costs in which nothing is computed: "fwd" an operator of torch on one element,
  "full" forward and backward of an autograd Function in Python that only allocates, "bwd" its
  backward.
* FMA: the better rate of torch.matmul on large square matrices and of torch.conv2d on a wide 3x3
  layer, in the dtype of the rows. That is a lower bound of the peak: MKL's matmul reaches some 80 %
  of it on CPUs that are not Intel's, oneDNN's direct convolution some 95 %. For bfloat16 and
  float16 it is float32's, which a kernel that converts can reach, unless torch multiplies a matrix
  faster in the dtype itself.

Each is the best of several tries: a limit is what is possible, not what is usual. All of them go
through torch, so they contain its overhead and are lower bounds in turn; a row can exceed 100 %
where its traffic stays in a nearer cache than the copy's, or where Winograd saves multiplications.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import light_apply
from nnops.testing.samples import Work

# Bytes, from within L2 to far beyond the last level.
WORKING_SETS = tuple(2**power for power in range(18, 29))
MATRIX_SIZE, SMALL_MATRIX_SIZE = 2048, 512
# Images, channels, pixels along each side.
IMAGE_SHAPE = (2, 256, 56, 56)
TRY_SECONDS = 4e-3
# A neighbour may disturb all tries in a row: the curves are measured in sweeps, seconds apart.
TRIES, SWEEPS = 3, 3

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """GB/s by working set in bytes, and GFLOP/s in one dtype, on one number of threads.

    `calls`: microseconds of a call that computes nothing, "fwd", "bwd" and "full".
    """

    threads: int
    copy: Curve
    read: Curve
    gflops: float
    dtype: str = "float32"
    calls: dict[str, float] = field(default_factory=dict)

    def bandwidth(self, work: Work) -> float:
        """GB/s possible for this traffic: that of a copy, or of reading if little is written."""
        writes = work.written > 0.1 * work.read
        return at(self.copy if writes else self.read, work.bytes)

    def seconds(self, work: Work) -> float:
        """The least time for this work."""
        return max(self.memory_seconds(work), self.compute_seconds(work))

    def bound(self, work: Work) -> str:
        """What keeps this work from being faster: "memory" or "compute"."""
        return "memory" if self.memory_seconds(work) >= self.compute_seconds(work) else "compute"

    def memory_seconds(self, work: Work) -> float:
        return work.bytes / (self.bandwidth(work) * 1e9)

    def compute_seconds(self, work: Work) -> float:
        return work.flops / (self.gflops * 1e9)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Limits:
        def curve(points: Any) -> Curve:
            return tuple((int(size), float(rate)) for size, rate in points)

        return Limits(**{**values, "copy": curve(values["copy"]), "read": curve(values["read"])})


def at(curve: Curve, size: int) -> float:
    """The curve at `size`: linear between its points over log(size), constant outside."""
    if size <= curve[0][0]:
        return curve[0][1]
    for (below, low), (above, high) in itertools.pairwise(curve):
        if size <= above:
            share = math.log(size / below) / math.log(above / below)
            return low + share * (high - low)
    return curve[-1][1]


def measure_limits(threads: int, dtype: torch.dtype = torch.float32, quick: bool = False) -> Limits:
    """`quick`: one try each, for trying the engine out; some five seconds otherwise."""
    tries, sweeps = (1, 1) if quick else (TRIES, SWEEPS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        copies, reads, arithmetic, calls = [], [], [], []
        for _ in range(sweeps):
            copies.append([_copy_rate(size, tries) for size in WORKING_SETS])
            reads.append([_read_rate(size, tries) for size in WORKING_SETS])
            arithmetic.append(_arithmetic_rate(dtype, tries))
            calls.append(_call_prices(tries))
        copy, read = _curve(copies), _curve([*copies, *reads])
        gflops = max(arithmetic)
        prices = {mode: min(each[mode] for each in calls) for mode in calls[0]}
        return Limits(threads, copy, read, gflops, str(dtype).removeprefix("torch."), prices)
    finally:
        torch.set_num_threads(before)


def _curve(sweeps: list[list[float]]) -> Curve:
    """The best rate of all sweeps at each working set."""
    best = [max(rates) for rates in zip(*sweeps, strict=True)]
    return tuple(zip(WORKING_SETS, best, strict=True))


def _fastest(call: Callable[[], object], tries: int) -> float:
    """Seconds of one call, in the best of several tries."""
    call()
    start = time.perf_counter()
    call()
    count = math.ceil(TRY_SECONDS / max(time.perf_counter() - start, 1e-9))
    best = math.inf
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - start) / count)
    return best


def _copy_rate(size: int, tries: int) -> float:
    source = torch.ones(size // 8)
    destination = torch.zeros_like(source)
    return size / _fastest(lambda: destination.copy_(source), tries) / 1e9


def _read_rate(size: int, tries: int) -> float:
    source = torch.ones(size // 4)
    fastest = min(_fastest(source.sum, tries), _fastest(source.amax, tries))
    return size / fastest / 1e9


def _call_prices(tries: int) -> dict[str, float]:
    allocate = light_apply(
        "AllocateFunction",
        lambda ctx, input: torch.empty_like(input),
        lambda ctx, grad_output: torch.empty_like(grad_output),
    )
    leaf, seed = torch.ones(1, requires_grad=True), torch.ones(1)
    output: Tensor = allocate(leaf)

    def step() -> None:
        leaf.grad = None
        allocate(leaf).backward(seed)

    calls: dict[str, Callable[[], object]] = {
        "fwd": lambda: torch.relu(seed),
        "bwd": lambda: torch.autograd.grad(output, leaf, seed, retain_graph=True),
        "full": step,
    }
    return {mode: 1e6 * _fastest(call, tries) for mode, call in calls.items()}


def _arithmetic_rate(dtype: torch.dtype, tries: int) -> float:
    # Where a CPU cannot compute in it, torch emulates a half dtype, up to 300 times slower: so the
    # matrices that tell are small.
    if dtype.itemsize == 2 and not _is_faster_than_float32(dtype, tries):
        dtype = torch.float32
    return max(_matmul_rate(MATRIX_SIZE, dtype, tries), _conv2d_rate(dtype, tries))


def _is_faster_than_float32(dtype: torch.dtype, tries: int) -> bool:
    own, float32 = (_matmul_rate(SMALL_MATRIX_SIZE, each, tries) for each in (dtype, torch.float32))
    return own > float32


def _matmul_rate(size: int, dtype: torch.dtype, tries: int) -> float:
    a, b, out = (torch.rand(size, size).to(dtype) for _ in range(3))
    seconds = _fastest(lambda: torch.mm(a, b, out=out), tries)
    return 2 * size**3 / seconds / 1e9


def _conv2d_rate(dtype: torch.dtype, tries: int) -> float:
    image = torch.rand(IMAGE_SHAPE).to(dtype)
    weight = torch.rand(IMAGE_SHAPE[1], IMAGE_SHAPE[1], 3, 3).to(dtype)
    with torch.no_grad():
        seconds = _fastest(lambda: torch.conv2d(image, weight, padding=1), tries)
    return 2 * image.numel() * weight[0].numel() / seconds / 1e9
