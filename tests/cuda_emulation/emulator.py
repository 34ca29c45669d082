"""Programs that run kernels under the emulator of csrc/cuda/emulation, compiled when first used.

Objects are kept in pytest's cache by a hash of what they were made of, so that a session in which
nothing changed compiles nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc"
EMULATOR = SOURCES / "cuda" / "emulation"

COMPILER = os.environ.get("CXX") or "g++"
FLAGS = ["-std=c++20", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
DEFINES = ["-DNNOPS_CUDA_EMULATED", f"-I{SOURCES}"]

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Flags of the kernels, flags of the emulator, flags of the link.
MODES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "plain": (["-O1"], ["-O2"], []),
    "checked": (
        [
            "-O1",
            "-fno-tree-vectorize",
            "-fno-tree-sra",
            "-fsanitize=thread",
            "-DNNOPS_CUDA_CHECKED",
        ],
        ["-O2", "-DNNOPS_CUDA_CHECKED"],
        [],
    ),
    "sanitized": (
        [*SANITIZE, "-O1"],
        [*SANITIZE, "-O1"],
        SANITIZE,
    ),
    "ucontext": (["-O1"], ["-O2", "-DNNOPS_EMULATION_UCONTEXT"], []),
}

ORDERS = ["seq", "rev", "rand:1", "rand:2", "rand:3"]


class Emulator:
    def __init__(self, cache: Path) -> None:
        self.cache = cache
        headers = sorted(SOURCES.glob("cuda/**/*.h")) + sorted(SOURCES.glob("cuda/**/*.cu*"))
        headers += sorted(Path(__file__).parent.glob("*.inc"))
        self.headers = hashlib.sha256(b"".join(path.read_bytes() for path in headers)).hexdigest()

    def object(self, source: Path, flags: list[str]) -> Path:
        command = [COMPILER, *FLAGS, *flags, *DEFINES, "-x", "c++", "-c", str(source)]
        key = hashlib.sha256(source.read_bytes() + "\0".join([self.headers, *command]).encode())
        target = self.cache / f"{source.stem}-{key.hexdigest()[:16]}.o"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}.o")
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.rename(target)
        return target

    def program(self, name: str, mode: str) -> Path:
        """The program of <name>.cu in this folder."""
        kernel_flags, emulator_flags, link_flags = MODES[mode]
        objects = [self.object(Path(__file__).parent / f"{name}.cu", kernel_flags)]
        objects += [self.object(path, emulator_flags) for path in sorted(EMULATOR.glob("*.cpp"))]
        key = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
        target = self.cache / f"{name}-{key}"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}")
            subprocess.run(
                [
                    COMPILER,
                    *link_flags,
                    *map(str, objects),
                    "-ldl",
                    "-pthread",
                    "-o",
                    str(unfinished),
                ],
                check=True,
            )
            unfinished.rename(target)
        return target


def compiler_is_missing() -> bool:
    return shutil.which(COMPILER) is None


def run(
    program: Path, argument: str, order: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NNOPS_CUDA_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program), argument],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
