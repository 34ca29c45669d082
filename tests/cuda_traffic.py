"""How the CUDA kernels meet memory: bank conflicts and sectors, counted where every access is seen.

    NNOPS_EXTENSION=build/cuda-checked python tests/cuda_traffic.py FILE

writes the table. Representative problems run on the checked extension; what check mode counts
(csrc/cuda/emulation/traffic.h) becomes two ratios for each kernel and kind of access:

* bank conflicts: wavefronts of shared memory over the least that the same requests could have
  taken, which is 1 where no two lanes meet in a bank;
* sectors: of 32 bytes of global memory, over the least that hold the bytes which were asked for,
  which is 1 where all bytes of all sectors were wanted.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from cuda_bounds import bound
from torch import Tensor

if __name__ == "__main__":
    import conftest  # noqa: F401  loads the extension that NNOPS_EXTENSION names

import nnops
import nnops.nn.functional as F

# --- problems -------------------------------------------------------------------------------------


def tensor(*size: int, dtype: torch.dtype = torch.float32, layout=torch.contiguous_format):
    """Random numbers that want a gradient."""
    values = torch.randn(size).to(dtype)
    if len(size) == 4:
        values = values.to(memory_format=layout)
    return values.requires_grad_()


def step(output: Tensor) -> None:
    """A backward pass with a gradient in the layout of the output."""
    output.backward(torch.ones_like(output))


def convolution(algorithm: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """3x3 from rows of 16 pixels to rows of 14, which are no whole vectors; and all gradients."""
    groups = 32 if algorithm == "direct" else 1
    channels = 32 // groups
    precision = "tf32" if algorithm == "tensor_cores_tf32" else "ieee"
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    try:
        with nnops.conv_algorithm(algorithm):
            step(
                F.conv2d(
                    tensor(2, 32, 16, 16, dtype=dtype, layout=layout),
                    tensor(32, channels, 3, 3, dtype=dtype, layout=layout),
                    tensor(32, dtype=dtype),
                    groups=groups,
                )
            )
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def many_pixels() -> None:
    """So many that backward_weight shares them out to several blocks."""
    with nnops.conv_algorithm("implicit_gemm"):
        step(F.conv2d(tensor(2, 8, 32, 32), tensor(8, 8, 1, 1)))


def pooling(layout: torch.memory_format) -> None:
    image = tensor(2, 16, 16, 16, layout=layout)
    step(F.max_pool2d(image, 3, stride=2, padding=1))
    pooled = F.max_pool2d(image, 2)
    (gradient,) = torch.autograd.grad(
        pooled, image, pooled.detach().requires_grad_(), create_graph=True
    )
    step(gradient)
    values, indices = F.max_pool2d(image, 2, return_indices=True)
    step(values)
    step(F.max_unpool2d(values.detach().requires_grad_(), indices, 2))


def elementwise(dtype: torch.dtype) -> None:
    step(F.relu(tensor(5000, dtype=dtype)))
    # Not whole blocks of the losses: the last few elements go one by one.
    prediction, target = tensor(65541, dtype=dtype), tensor(65541, dtype=dtype).detach()
    step(F.mse_loss(prediction, target))
    step(F.smooth_l1_loss(prediction, target, reduction="none"))


def class_rows(*size: int) -> None:
    logits, weight = tensor(*size), torch.rand(size[1])
    target = torch.randint(0, size[1], (size[0], *size[2:]))
    step(F.cross_entropy(logits, target, weight, label_smoothing=0.1))
    step(F.nll_loss(logits, target))
    probabilities = torch.softmax(torch.randn(size), 1).requires_grad_()
    step(F.cross_entropy(logits, probabilities))


ROWS, LAST = torch.contiguous_format, torch.channels_last
PROBLEMS: dict[str, Callable[[], None]] = {
    f"{algorithm} {str(dtype)[6:]} {name}": (
        lambda algorithm=algorithm, dtype=dtype, layout=layout: convolution(
            algorithm, dtype, layout
        )
    )
    for algorithm, dtype in (
        ("implicit_gemm", torch.float32),
        ("direct", torch.float32),
        ("direct", torch.float16),
        ("tensor_cores", torch.float16),
        ("tensor_cores_tf32", torch.float32),
    )
    for name, layout in (("row-major", ROWS), ("channels_last", LAST))
} | {
    "implicit_gemm float32 row-major, many pixels": many_pixels,
    "pooling row-major": lambda: pooling(ROWS),
    "pooling channels_last": lambda: pooling(LAST),
    "elementwise float32": lambda: elementwise(torch.float32),
    "elementwise float16": lambda: elementwise(torch.float16),
    "narrow rows": lambda: class_rows(300, 10),
    "wide rows": lambda: class_rows(5, 4096),
    "planes": lambda: class_rows(2, 9, 16, 16),
}


# --- what is counted ------------------------------------------------------------------------------


class Access(NamedTuple):
    kernel: str
    measure: str
    access: str


@cache
def measured(problem: str) -> dict[Access, float]:
    """Of each kernel and kind of access: wavefronts or sectors over the least there could be."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder, "traffic.csv")
        patch.setenv("NNOPS_CUDA_TRAFFIC", str(file))
        PROBLEMS[problem]()
        patch.delenv("NNOPS_CUDA_TRAFFIC")
        F.relu(torch.zeros(1))  # what was counted is written when a launch is not to be counted
        lines = file.read_text().splitlines()
    units: Counter[Access] = Counter()
    least: Counter[Access] = Counter()
    for text, _place, space, access, _width, *numbers in csv.reader(lines):
        name = re.search(r"\w+", text)
        assert name
        key = Access(name[0], "bank conflicts" if space == "shared" else "sectors", access)
        units[key] += int(numbers[2])
        least[key] += int(numbers[3])
    return {key: units[key] / least[key] for key in units}


def markdown() -> str:
    """The largest ratio of each kernel and kind of access, beside what is allowed."""
    worst: dict[Access, tuple[float, str]] = {}
    for problem in PROBLEMS:
        for access, ratio in measured(problem).items():
            worst[access] = max(worst.get(access, (0.0, "")), (ratio, problem))
    lines = [
        "# How the CUDA kernels meet memory",
        "",
        "Written by `tests/cuda_traffic.py`: what the emulator's check mode counts, not a GPU. Of",
        "each kernel the problem in which the ratio is largest; 1 is the best there is. What is",
        "allowed there, and why, stands in tests/cuda_bounds.py.",
    ]
    for measure in ("bank conflicts", "sectors"):
        lines += ["", f"## {measure.capitalize()}", ""]
        lines += ["| kernel | access | largest in | ratio | allowed | why |", "|---" * 6 + "|"]
        for access, (ratio, problem) in sorted(worst.items()):
            if access.measure == measure:
                row = bound(measure, f"{access.kernel} {access.access} in {problem}")
                cells = (access.kernel, access.access, problem, f"{ratio:.2f}", row.limit)
                lines.append(f"| `{cells[0]}` | {' | '.join(map(str, cells[1:]))} | {row.reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.manual_seed(0)
    Path(sys.argv[1]).write_text(markdown())
