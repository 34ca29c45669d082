"""`python -m nnops verify --accuracy`: conv2d's errors against float64, beside torch's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nnops import _C
from nnops.cli.bench import LOG_WIDTH
from nnops.testing.accuracy import CHANNELS, DTYPES, TORCH, Accuracy, accuracies

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def verify(
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="conv2d's errors, algorithm by algorithm")
    ] = False,
    channels: Annotated[
        list[int] | None, typer.Option(help=f"default: {' '.join(map(str, CHANNELS))}")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(DTYPE_NAMES)}; default: all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines")] = None,
    plot: Annotated[Path | None, typer.Option(help="a picture (PNG)")] = None,
) -> None:
    """Hold results against float64, and print how far off they are, beside torch's own."""
    if not accuracy:
        raise typer.BadParameter("say what to verify: --accuracy")
    unknown = set(dtype or ()) - set(DTYPE_NAMES)
    if unknown:
        raise typer.BadParameter(f"dtype must be one of {', '.join(DTYPE_NAMES)}, not {unknown}")
    chosen = tuple(DTYPE_NAMES[name] for name in dtype or DTYPE_NAMES)
    console = Console(stderr=True)
    rows = list(
        track(
            accuracies(tuple(channels or CHANNELS), chosen),
            "errors against float64",
            console=console,
            transient=True,
        )
    )
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=LOG_WIDTH)).print(_table(rows))
    if out is not None:
        facts = {"isa": _C.active_isa(), "torch": torch.__version__}
        out.write_text("".join(json.dumps({**asdict(row), **facts}) + "\n" for row in rows))
    if plot is not None:
        draw(rows, plot)


def _table(rows: Iterable[Accuracy]) -> Table:
    table = Table(title=f"conv2d against float64 ({_C.active_isa()}); unit: the result's deviation")
    for name in ("pass", "dtype", "kernel", "channels", "algorithm"):
        table.add_column(name)
    for name in ("largest", "mean", "rms", "largest in ulps", "rms / torch's"):
        table.add_column(name, justify="right")
    torchs = 0.0
    for row in rows:
        if row.algorithm == TORCH:
            table.add_section()
            torchs = row.rms
        first = row.algorithm == TORCH
        table.add_row(
            row.conv_pass if first else "",
            row.dtype if first else "",
            f"{row.kernel}x{row.kernel}" if first else "",
            str(row.channels) if first else "",
            row.algorithm,
            f"{row.largest:.1e}",
            f"{row.mean:.1e}",
            f"{row.rms:.1e}",
            f"{row.ulps:.1f}",
            f"{row.rms / torchs:.2f}",
        )
    return table


def draw(rows: list[Accuracy], path: Path) -> None:
    """Largest and mean square errors of float32 over the channels, a panel for each pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.dtype == "float32"]
    passes = list(dict.fromkeys(row.conv_pass for row in rows))
    figure, panels = plt.subplots(
        2, len(passes), figsize=(4.6 * len(passes), 7.2), sharex=True, sharey="row", squeeze=False
    )
    lines = {}
    names = list(dict.fromkeys((row.algorithm, row.kernel) for row in rows))
    colors = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(n for n, _ in names))}
    for column, conv_pass in enumerate(passes):
        for line, quantity in enumerate(("largest", "rms")):
            panel = panels[line][column]
            for algorithm, kernel in names:
                points = [
                    (row.channels, getattr(row, quantity))
                    for row in rows
                    if (row.conv_pass, row.algorithm, row.kernel) == (conv_pass, algorithm, kernel)
                ]
                if not points:
                    continue
                (lines[f"{algorithm}, {kernel}x{kernel}"],) = panel.plot(
                    *zip(*points, strict=True),
                    marker="o" if kernel == 3 else "s",
                    markersize=4,
                    linestyle="-" if kernel == 3 else "--",
                    color="black" if algorithm == TORCH else colors[algorithm],
                    linewidth=2.2 if algorithm == TORCH else 1.2,
                )
            bound = 1e-5 if quantity == "largest" else 1.5e-6
            lines["bound of precision 'high'"] = panel.axhline(bound, color="red", linestyle=":")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            if line == 0:
                panel.set_title(conv_pass)
            else:
                panel.set_xlabel("channels")
        panels[0][0].set_ylabel("largest error")
        panels[1][0].set_ylabel("root mean square error")
    figure.suptitle(
        f"conv2d float32 against float64, in standard deviations of the result ({_C.active_isa()})"
    )
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
