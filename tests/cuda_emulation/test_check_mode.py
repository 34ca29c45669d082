"""What check mode counts, and how it knows where global memory ends."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from emulator import COMPILER, EMULATOR, FLAGS, Emulator, run


def test_traffic(emulator: Emulator, tmp_path: Path) -> None:
    """The wavefronts and sectors of zoo.cu, counted by hand."""
    file = tmp_path / "traffic.csv"
    result = run(emulator.program("zoo", "checked"), "none", "seq", NNOPS_CUDA_TRAFFIC=str(file))
    assert result.returncode == 0
    counts: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for kernel, place, space, access, width, *numbers in csv.reader(file.open()):
        assert "zoo.cu:" in place
        counts.setdefault((kernel, space, access, width), []).append(tuple(map(int, numbers)))

    # Two warps read and write 64 consecutive floats: 4 sectors each, no bank conflict.
    assert counts["(reverse)", "global", "read", "4"] == [(2, 64, 8, 8)]
    assert counts["(reverse)", "shared", "write", "4"] == [(2, 64, 2, 2)]
    # ldmatrix from rows of 32 bytes: rows 0 and 4 of a matrix are in the same banks. x4 and x2.
    assert counts["(multiply)", "shared", "read", "16"] == [(1, 32, 8, 4), (1, 16, 4, 2)]
    # Every fourth float, by 3 blocks of 2 tiles, 2 warps and 4 rounds.
    assert (48, 1536, 192, 48) in counts["(scale_by_tile_sum)", "shared", "read", "4"]
    assert counts["(scale_by_tile_sum)", "global", "write", "4"][0] == (48, 1536, 768, 192)
    # cp.async of 16 bytes a lane: 4 wavefronts at best.
    assert counts["(scale_by_tile_sum)", "shared", "write", "16"] == [(12, 384, 48, 48)]


PRELOADED = """
import ctypes

c = ctypes.CDLL(None)
memory, begin, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()


def find(address):
    c.nnops_find_allocation.restype = ctypes.c_bool
    address = ctypes.c_void_p(address)
    if c.nnops_find_allocation(address, ctypes.byref(begin), ctypes.byref(size)):
        return begin.value, size.value


assert c.posix_memalign(ctypes.byref(memory), ctypes.c_size_t(64), ctypes.c_size_t(100)) == 0
assert ctypes.string_at(memory, 100) == b"\\xff" * 100
assert find(memory.value) == find(memory.value + 99) == (memory.value, 100)
assert find(memory.value - 1) is None and find(memory.value + 100) is None
c.free(memory)
assert find(memory.value) is None
"""


def test_preloaded_allocations(emulator: Emulator, tmp_path: Path) -> None:
    library = tmp_path / "allocations.so"
    source = EMULATOR / "preload" / "allocations.cpp"
    subprocess.run([COMPILER, *FLAGS, "-fPIC", "-shared", source, "-o", library], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library)}
    subprocess.run([sys.executable, "-c", PRELOADED], env=environment, check=True)
