"""What nvcc makes of the CUDA kernels, seen without a GPU: registers, spills, instructions.

    python tests/cuda_static/kernels.py                  prints the table
    python tests/cuda_static/kernels.py --write FILE     writes it as markdown

Every source is compiled to a cubin per architecture. `ptxas -v` tells registers, shared memory and
spills; nvdisasm (with CUDA, or from the package nvidia-cuda-nvdisasm) the instructions, of which
some are counted, and the loops, which are the branches back.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import site
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # those that cmake/cuda.cmake compiles for
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Werror=all-warnings", "-I", str(CSRC))


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share (CUDA C++ programming guide, technical
    specifications per compute capability)."""

    threads: int
    blocks: int
    shared_bytes: int
    registers: int = 65536


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 << 10),
    80: Multiprocessor(2048, 32, 164 << 10),
    86: Multiprocessor(1536, 16, 100 << 10),
    89: Multiprocessor(1536, 24, 100 << 10),
    90: Multiprocessor(2048, 32, 228 << 10),
    100: Multiprocessor(2048, 32, 228 << 10),
    120: Multiprocessor(1536, 24, 100 << 10),
}
RESERVED_SHARED_BYTES = 1024  # per block, from sm_80 on
CHUNKS = {"double": 2, "float": 4, "bfloat16": 8, "float16": 8}  # elements in 16 bytes


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture."""

    source: str
    name: str  # as in C++, without its parameters
    architecture: int
    registers: int
    static_shared_bytes: int
    spilled_bytes: int
    stack_bytes: int
    threads: int | None  # of __launch_bounds__
    instructions: Counter[str]  # by opcode, as LDG.E.128
    loops: tuple[Counter[str], ...]  # those of each loop that contains no other

    def count(self, pattern: str) -> int:
        """Instructions whose opcode begins with a match of `pattern`."""
        return matches(self.instructions, pattern)

    @property
    def is_trap(self) -> bool:
        """Whether launchers take another kernel on this architecture, and this one is not compiled
        in earnest: tensor cores of sm_75 know float16 alone."""
        halves = "MmaMultiply<float16" in self.name
        return self.architecture < 80 and "MmaMultiply" in self.name and not halves

    @property
    def subject(self) -> str:
        """What bounds are looked up by."""
        return f"{self.name} on {'sm_80 or later' if self.architecture >= 80 else 'sm_75'}"

    @property
    def main_loop(self) -> Counter[str]:
        """The loop with the most arithmetic; empty where there is none."""
        return max(self.loops, key=lambda loop: matches(loop, ARITHMETIC), default=Counter())

    @property
    def dynamic_shared_bytes(self) -> int:
        """What a launch adds; the implicit GEMMs alone do: kTileBytes of conv2d/tile.cuh."""
        if found := re.search(r"MmaMultiply<\w+, MmaShape<(\d+), (\d+), ", self.name):
            rows = int(found[1]) + int(found[2])
        elif found := re.search(
            r"SimtMultiply<(\w+), SimtShape<(\d+), (\d+), (\d+), (\d+)>, (\d)>", self.name
        ):
            threads_m, threads_n, rows_each, columns_each, along_rows = map(int, found.groups()[1:])
            padding = 2 * CHUNKS[found[1]] * along_rows
            rows = threads_m * rows_each + threads_n * columns_each + padding
        else:
            return 0
        return 3 * 64 * rows  # three steps of 64 bytes a row

    def resident_threads(self, dynamic_shared_bytes: int | None = None) -> int | None:
        """Threads of the kernel that fit on a multiprocessor, where its block size is known."""
        if dynamic_shared_bytes is None:
            dynamic_shared_bytes = self.dynamic_shared_bytes
        if self.threads is None:
            return None
        limits = MULTIPROCESSORS[self.architecture]
        warps = -(-self.threads // 32)
        # Registers are given to warps in units of 256.
        per_warp = -(-self.registers * 32 // 256) * 256
        shared = self.static_shared_bytes + dynamic_shared_bytes
        if self.architecture >= 80:
            shared += RESERVED_SHARED_BYTES
        blocks = min(
            limits.blocks,
            limits.threads // (warps * 32),
            limits.registers // per_warp // warps,
            limits.shared_bytes // shared if shared else limits.blocks,
        )
        return blocks * self.threads


def matches(opcodes: Counter[str], pattern: str) -> int:
    return sum(number for opcode, number in opcodes.items() if re.match(pattern, opcode))


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_nvdisasm() -> str | None:
    """CUDA's own, or that of the package nvidia-cuda-nvdisasm in this environment."""
    nvcc = find_nvcc()
    folders = [str(Path(nvcc).resolve().parent)] if nvcc else []
    folders += [
        str(path) for root in site.getsitepackages() for path in Path(root).glob("nvidia/*/bin")
    ]
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=":".join(folders))


def sources() -> list[Path]:
    return sorted((CSRC / "cuda").rglob("*.cu"))


def compile_and_read(source: Path, architecture: int, folder: Path) -> list[Kernel]:
    """The kernels of one source; what was compiled before from the same text is read from `folder`.

    Raises:
        RuntimeError: with what nvcc said, where it fails.
    """
    cubin = folder / f"{source.stem}-sm_{architecture}-{_fingerprint(source)}.cubin"
    log = cubin.with_suffix(".log")
    if not log.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [find_nvcc() or "nvcc", *FLAGS, f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        command += ["-cubin", "-o", str(cubin), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
        log.write_text(result.stderr)
    tool = find_nvdisasm()
    listing = ""
    if tool is not None:
        listing = subprocess.run(
            [tool, str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    return parse(source.name, architecture, log.read_text(), listing)


def all_kernels(
    folder: Path, architectures: Sequence[int] = ARCHITECTURES, jobs: int = 1
) -> list[Kernel]:
    """The kernels of all sources, for each architecture."""
    pairs = [(source, architecture) for source in sources() for architecture in architectures]
    with ThreadPoolExecutor(jobs) as pool:
        lists = pool.map(lambda pair: compile_and_read(*pair, folder), pairs)
        return [kernel for kernels in lists for kernel in kernels]


def parse(source: str, architecture: int, log: str, listing: str) -> list[Kernel]:
    """The kernels in what `ptxas -v` and nvdisasm print."""
    bodies = _bodies(listing)
    threads = _launch_bounds(listing)
    facts: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found[1]
            facts[kernel] = {}
        elif found := re.search(r"Function properties for (\w+)", line):
            kernel = found[1] if found[1] in facts else ""
        elif not kernel:
            continue
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            facts[kernel]["stack"] = int(found[1])
            facts[kernel]["spilled"] = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            facts[kernel]["registers"] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            facts[kernel]["shared"] = int(shared[1]) if shared else 0
    names = _demangled(list(facts))
    return [
        Kernel(
            source,
            names[symbol],
            architecture,
            each["registers"],
            each["shared"],
            each["spilled"],
            each["stack"],
            threads.get(symbol),
            *_counts(bodies.get(symbol, [])),
        )
        for symbol, each in facts.items()
    ]


def _fingerprint(source: Path) -> str:
    """Of the flags, the source, and what it includes of this project."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    waiting, seen = [source], {source}
    while waiting:
        text = waiting.pop().read_text()
        digest.update(text.encode())
        for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
            if (header := CSRC / name).exists() and header not in seen:
                seen.add(header)
                waiting.append(header)
    return digest.hexdigest()[:16]


def _demangled(symbols: list[str]) -> dict[str, str]:
    if not symbols:
        return {}
    result = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return dict(zip(symbols, map(_without_parameters, result.stdout.splitlines()), strict=True))


def _without_parameters(name: str) -> str:
    """void nnops::cuda::(anonymous namespace)::kernel<float, 4>(float*) -> kernel<float, 4>"""
    for noise in ("(anonymous namespace)::", "nnops::cuda::", "nnops::"):
        name = name.replace(noise, "")
    depth = 0
    for index, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:index]
            break
    name = name.removeprefix("void ")
    # (TileOrder)0, (bool)1, 4l -> 0, 1, 4
    return re.sub(r"\b(\d+)[lu]+\b", r"\1", re.sub(r"\(\w+\)(?=\d)", "", name))


def _bodies(listing: str) -> dict[str, list[str]]:
    """Per symbol, the lines of its instructions and labels."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in listing.splitlines():
        if found := re.match(r"\.text\.(\w+):", line):
            lines = bodies.setdefault(found[1], [])
        elif line.startswith("//-----"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return bodies


def _launch_bounds(listing: str) -> dict[str, int]:
    bounds = {}
    symbol, wanted = "", False
    for line in listing.splitlines():
        if found := re.search(r"\.section\s+\.nv\.info\.(\w+),", line):
            symbol = found[1]
        elif "nvinfo :" in line:
            wanted = "EIATTR_MAX_THREADS" in line
        elif wanted and (found := re.search(r"\.word\s+(0x[0-9a-f]+)", line)):
            bounds[symbol] = int(found[1], 16)
            wanted = False
    return bounds


def _counts(lines: list[str]) -> tuple[Counter[str], tuple[Counter[str], ...]]:
    """Opcodes of a body, and of each of its loops that contains no other loop."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in lines:
        if found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(opcodes)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            opcodes.append(found[1])
            if target := re.search(r"BRA.*?\(?(\.L_x_\d+)\)?", line):
                branches.append((len(opcodes), target[1]))
    loops = {(labels[label], end) for end, label in branches if labels.get(label, end) < end}
    # A body that ends with a branch to itself, behind the last exit, pads the code.
    loops = {(begin, end) for begin, end in loops if end - begin > 1}
    inner = [
        loop
        for loop in loops
        if not any(other != loop and loop[0] <= other[0] and other[1] <= loop[1] for other in loops)
    ]
    return Counter(opcodes), tuple(Counter(opcodes[begin:end]) for begin, end in sorted(inner))


ARITHMETIC = r"HMMA|[FDH]FMA|[FDH]ADD|[FDH]MUL"
COLUMNS = {
    "wide loads": r"LDG\S*\.128|LDGSTS\S*\.128",
    "shared": r"LDS|LDSM",
    "of 16 B": r"LDS\S*\.128|LDSM\S*\.4",
    "FMA": r"FFMA|DFMA|HFMA",
    "tensor": r"HMMA",
}
PRODUCTS = r"HMMA|[FDH]FMA"
# Of integers: each converts its divisor, rounding up, to divide as floating numbers. One of 64 bits
# may be a function of its own, which is not seen inside of a loop.
DIVISION = r"I2F\S*\.RP"


def measurements(kernel: Kernel, instructions: bool) -> dict[str, float]:
    """The measures of cuda_bounds.py: those that nvdisasm is needed for, or the others."""
    if not instructions:
        return {
            "spilled bytes": kernel.spilled_bytes,
            "registers": kernel.registers,
            "declared shared bytes": kernel.static_shared_bytes,
            "shared bytes": kernel.static_shared_bytes + kernel.dynamic_shared_bytes,
        }
    loop = kernel.main_loop
    found = {
        "integer divisions in the main loop": matches(loop, DIVISION),
        "16-byte loads": kernel.count(COLUMNS["wide loads"]),
        "products in the main loop": matches(loop, PRODUCTS),
        "ldmatrix in the main loop": matches(loop, r"LDSM\.16\.\w+\.4"),
        "asynchronous copies in the main loop": matches(loop, r"LDGSTS\S*\.128"),
    }
    resident = kernel.resident_threads()  # the block size stands in the listing
    return found if resident is None else found | {"resident threads": resident}


def markdown(kernels: Sequence[Kernel]) -> str:
    """One table per source: a row per kernel and architecture."""
    lines = ["# The CUDA kernels as nvcc compiles them", "", *_explanation(), ""]
    for source in dict.fromkeys(kernel.source for kernel in kernels):
        lines += [f"## {source}", ""]
        head = ["kernel", "sm", "threads", "registers", "shared", "spills", "resident", *COLUMNS]
        lines.append(f"| {' | '.join([*head, 'integer divisions in the main loop'])} |")
        lines.append("|---" * (len(head) + 1) + "|")
        for kernel in kernels:
            if kernel.source != source:
                continue
            resident = kernel.resident_threads()
            cells = [
                f"`{kernel.name}`",
                kernel.architecture,
                kernel.threads or "",
                kernel.registers,
            ]
            shared = kernel.static_shared_bytes + kernel.dynamic_shared_bytes
            cells += [shared, kernel.spilled_bytes, resident or ""]
            cells += [kernel.count(pattern) for pattern in COLUMNS.values()]
            cells.append(matches(kernel.main_loop, DIVISION))
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    return "\n".join(lines)


def _explanation() -> list[str]:
    version = subprocess.run(
        [find_nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=True
    )
    release = re.search(r"release [\d.]+, V([\d.]+)", version.stdout)
    return [
        "Written by `python tests/cuda_static/kernels.py --write`, with nvcc "
        f"{release[1] if release else '?'};",
        "README.md says what ran on a GPU. Shared memory is in bytes, with what a launch adds.",
        "Resident are the threads of the blocks that fit on a multiprocessor at once. The columns",
        "behind them count instructions in the code, not how often they run. What is asked, and",
        "why, stands in tests/cuda_bounds.py.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="file for the table")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "cuda-static")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    arguments = parser.parse_args()
    table = markdown(all_kernels(arguments.cache, arguments.architectures, arguments.jobs))
    if arguments.write is None:
        sys.stdout.write(table)
    else:
        arguments.write.write_text(table)


if __name__ == "__main__":
    main()
