"""Which OpenMP runtimes the process holds: it must be one, torch's own.

A second runtime brings a second thread pool that fights with the first for the same cores.
"""

from __future__ import annotations

import re
from pathlib import Path

_RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*\.so")


def loaded_openmp_runtimes() -> list[str]:
    """Paths of the OpenMP libraries mapped into this process (Linux; elsewhere an empty list)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(path for path in paths if _RUNTIME.search(path))
