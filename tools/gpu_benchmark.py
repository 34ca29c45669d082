"""nnops beside torch (cuDNN) on a CUDA device: the samples of the operator database.

Times are those of CUDA events around many calls, alternated, medians of the rounds. Nobody has run
this yet: no machine of the project has a GPU.

    python tools/gpu_benchmark.py [--op conv2d] [--rounds 7] [--out results.jsonl]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from nnops.testing.opdb import CASES
from nnops.testing.samples import (
    DEFAULT_LIST,
    Maker,
    OpCase,
    Sample,
    detached,
    tensors_of,
)

CALLS_MS = 5.0  # of each side in a round, about


def milliseconds(function: Callable[[], object], calls: int) -> float:
    """Of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def step(function: Callable[[Sample], Tensor], sample: Sample) -> Callable[[], object]:
    """A forward pass, and the backward pass where something needs a gradient."""
    leaves = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]

    def run() -> object:
        output = function(sample)
        return torch.autograd.grad(output.sum(), leaves) if leaves else output

    return run


def measure(case: OpCase, sample: Sample, rounds: int) -> tuple[float, float]:
    """(our milliseconds, torch's)"""
    sides = [step(case.ours, sample), step(case.torchs, sample)]
    for side in sides:
        side()
    calls = [max(1, int(CALLS_MS / milliseconds(side, 1))) for side in sides]
    times: list[list[float]] = [[], []]
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            times[index].append(milliseconds(sides[index], calls[index]))
    return median(times[0]), median(times[1])


def main(
    op: Annotated[list[str] | None, typer.Option(help="names of operators; default: all")] = None,
    rounds: int = 7,
    out: Annotated[Path | None, typer.Option(help="JSON lines")] = None,
) -> None:
    """Measure every benchmark sample of the database, forward and backward."""
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no CUDA device")
    device = torch.cuda.get_device_name()
    work = [
        (case, each)
        for case in CASES
        if op is None or case.name in op
        for each in case.benchmark_samples
        if each.shape_list == DEFAULT_LIST
    ]
    rows = []
    for case, each in track(work, "measuring", console=Console(stderr=True)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            sample = detached(each.build(Maker(dtype, requires_grad=True)), device="cuda")
            ours, theirs = measure(case, sample, rounds)
            rows.append((case.name, each.name, str(dtype).removeprefix("torch."), ours, theirs))
    table = Table("op", "sample", "dtype", "ours ms", "torch/ours", title=device)
    for name, sample_name, dtype_name, ours, theirs in sorted(
        rows, key=lambda row: row[4] / row[3]
    ):
        table.add_row(name, sample_name, dtype_name, f"{ours:.4f}", f"{theirs / ours:.2f}")
    Console(width=110).print(table)
    if out is not None:
        keys = ("op", "sample", "dtype", "ours_ms", "torch_ms")
        lines = [{**dict(zip(keys, row, strict=True)), "device": device} for row in rows]
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    typer.run(main)
