"""Bytes: what forward keeps for backward, and the peak of a training step of the operator.

Saved bytes are those of the storages that autograd packs (torch.autograd.graph.saved_tensors_hooks
sees what C++ nodes and Python Functions save alike), each storage once.

The peak is the growth of the resident set over forward and backward, so it counts everything:
outputs, all gradients, scratch of kernels and of libraries that do not allocate through torch,
which torch's profiler would miss. It is read from Linux' high-water mark (VmHWM, reset before the
step), and in a fresh process, where no buffer of an earlier row is waiting to be used again. Its
grain is some 100 KB.

    python -m nnops.benchmark.memory op sample layout dtype isa threads ours|torch
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nnops import _C
from nnops.benchmark.calls import Function
from nnops.benchmark.results import Bytes
from nnops.testing.compare import outputs_of
from nnops.testing.opdb import case as case_named
from nnops.testing.samples import (
    OVERHEAD,
    BenchmarkSample,
    Maker,
    OpCase,
    Sample,
    tensors_of,
)

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Tells the kernel to forget the high-water mark.
RESET_PEAK = "5"


def saved_bytes(function: Function, sample: Sample, ignored: Iterable[Tensor] = ()) -> Bytes:
    """What one forward keeps, apart from `ignored`; the peak is left out."""
    saved: dict[int, int] = {}
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in ignored}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = outputs_of(function(*sample.args, **sample.kwargs))

    def total(tensors: tuple[Tensor, ...]) -> int:
        pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return sum(saved.pop(pointer, 0) for pointer in pointers)

    inputs = total(tuple(tensors_of(sample)))
    return Bytes(inputs, total(outputs), sum(saved.values()), None)


def measure_in_fresh_process(
    case: OpCase, benchmark: BenchmarkSample, dtype: torch.dtype, isa: str, threads: int, who: str
) -> Bytes:
    return in_fresh_process(
        *("nnops.benchmark.memory", case.name, benchmark.name, benchmark.layout),
        *(str(dtype).removeprefix("torch."), isa, str(threads), who),
    )


def in_fresh_process(module: str, *arguments: str) -> Bytes:
    """What `module` prints, run as a script."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"measuring memory failed:\n{process.stderr}")
    return Bytes(**json.loads(process.stdout))


def _measure(case: OpCase, benchmark: BenchmarkSample, dtype: torch.dtype, who: str) -> Bytes:
    function = case.our_function if who == "ours" else case.torch_function
    make = Maker(dtype, requires_grad=True)
    # Starts threads and initialises libraries, which is not the step's doing.
    for tiny in case.benchmark_samples:
        if tiny.kernel_class == OVERHEAD and tiny.layout == benchmark.layout:
            _step(function, tiny.build(make))
    sample = benchmark.build(make)
    # The peak first: the sample's first step finds nothing that an earlier one has left.
    peak = peak_growth(partial(_step, function, sample))
    return replace(saved_bytes(function, sample), peak=peak)


def peak_growth(call: Callable[[], object]) -> int | None:
    """By how much the resident set grows in the call; None where the system does not tell."""
    if not CLEAR.exists():
        return None
    _give_back_free_memory()
    CLEAR.write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _step(function: Function, sample: Sample) -> None:
    output = outputs_of(function(*sample.args, **sample.kwargs))[0]
    output.backward(torch.ones_like(output) if output.dim() else None)


def _give_back_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {name}")


def main(op: str, sample: str, layout: str, dtype: str, isa: str, threads: str, who: str) -> None:
    _C.set_active_isa(isa)
    torch.set_num_threads(int(threads))
    case = case_named(op)
    (benchmark,) = (
        each for each in case.benchmark_samples if (each.name, each.layout) == (sample, layout)
    )
    print(json.dumps(asdict(_measure(case, benchmark, getattr(torch, dtype), who))))


if __name__ == "__main__":
    main(*sys.argv[1:])
