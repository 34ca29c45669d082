"""`python -m nnops info`: what was built, what this machine runs, what would be chosen."""

from __future__ import annotations

import platform

import torch
from rich.console import Console
from rich.table import Table

import nnops
from nnops import _C
from nnops._openmp import loaded_openmp_runtimes


def rows() -> list[tuple[str, str]]:
    """(what, value) for every line of the report."""
    build = _C.build_info()
    return [
        ("nnops", f"{nnops.__version__} ({nnops.__path__[0]})"),
        ("torch", f"{torch.__version__} (compiled with {build['torch']})"),
        ("Python", platform.python_version()),
        ("compiler", build["compiler"]),
        ("CUDA", cuda()),
        ("ISA levels", f"{', '.join(_C.available_isas())}; active: {_C.active_isa()}"),
        ("dot products", "of bfloat16, AVX512_BF16" if _C.cpu_has_bfloat16_dots() else "none"),
        ("threads", str(torch.get_num_threads())),
        ("OpenMP runtime", "\n".join(loaded_openmp_runtimes()) or "unknown on this system"),
    ]


def cuda() -> str:
    """What was built, and whether a kernel runs on this machine."""
    built = _C.build_info()["cuda"]
    if built == "not built":
        return built
    try:
        _C.check_cuda()
    except RuntimeError as error:
        return f"{built}\n{error}"
    return f"{built}\na kernel ran"


def info() -> None:
    """Print the version, the build, the CPU levels in use and the algorithms of each operator."""
    console = Console()
    report = Table(show_header=False, box=None, pad_edge=False)
    report.add_column(style="bold")
    # Paths are for copying: folded, never cut short.
    report.add_column(overflow="fold")
    for row in rows():
        report.add_row(*row)
    console.print(report, highlight=False)

    algorithms = Table("operator", "algorithms, in the order in which they are tried")
    on_cuda = _C.cuda_algorithms()
    for name, names in sorted(_C.algorithms().items()):
        algorithms.add_row(name, ", ".join(names))
        if on_cuda and on_cuda[name] != names:
            algorithms.add_row("  on CUDA", ", ".join(on_cuda[name]))
    console.print(algorithms, highlight=False)
