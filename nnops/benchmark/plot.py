"""Plots of a result file, per family x list of shapes x dtype x ISA x thread count.

A bar for the ratio of each row, or, where there are too many for that, of the worst ones, above all
ratios class by class; and a roofline.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from nnops.benchmark.goals import geometric_mean
from nnops.benchmark.limits import Limits, at
from nnops.benchmark.results import EAGER, NETS, Results, Row, Versus
from nnops.testing.samples import DEFAULT_LIST

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

WIN, LOSS, PEER, ROOF = "#2a7f62", "#c0392b", "#8a8a8a", "#404040"
TITLES = {"memory": "memory: bytes saved", "memory-infer": "memory-infer: peak"}
MARKERS = "os^Dvp*hX<>P"
# Beyond that many lines nobody reads them.
MOST_BARS = 60
WORST = 15
ROW_INCHES, PANEL_INCHES, LABEL_INCHES = 0.23, 3.4, 2.6


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes all plots into `folder`, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for title, stem, rows in _figures(results.rows):
        path = folder / f"{stem}.ratio.png"
        many = len({_label(row, False) for row in rows}) > MOST_BARS
        (_ratio_ranks if many else _ratio_bars)(rows, title, path)
        paths.append(path)
        limits = results.limits_of(rows[0].threads, rows[0].dtype)
        measured = [row for row in rows if row.bound and row.ours_us]
        if limits is not None and measured:
            path = folder / f"{stem}.roofline.png"
            _roofline(measured, limits, title, path)
            paths.append(path)
    return paths


def _figures(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    groups: dict[tuple[str, str, str, str, int], list[Row]] = {}
    for row in rows:
        if row.ratio is not None:
            key = (row.family, row.shape_list, row.dtype, row.isa, row.threads)
            groups.setdefault(key, []).append(row)
    for (family, shape_list, dtype, isa, threads), group in groups.items():
        name = [family] if shape_list == DEFAULT_LIST else [family, shape_list]
        plural = "s" if threads > 1 else ""
        what = f"{' '.join(name)} {dtype}, {isa}, {threads} thread{plural}"
        title = f"{what}, torch {group[0].torch}"
        yield title, f"{'-'.join(name)}-{dtype}-{isa}-{threads}", group


# --- ratio bars -----------------------------------------------------------------------------------


def _label(row: Row, with_op: bool) -> str:
    words = [row.op] if with_op else []
    words.append(row.sample)
    if row.layout:
        words.append("CL" if row.layout == "channels_last" else row.layout)
    return "  ".join(words)


def _ratio_bars(rows: list[Row], title: str, path: Path) -> None:
    """One panel per mode, one line per sample; the bar starts at 1, where we are as fast."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    with_op = len({row.op for row in rows}) > 1 or rows[0].family == NETS
    labels = list(dict.fromkeys(_label(row, with_op) for row in rows))
    position = {label: index for index, label in enumerate(labels)}
    figure, panels = plt.subplots(
        1,
        len(modes),
        figsize=(
            LABEL_INCHES + PANEL_INCHES * len(modes),
            1.5 + ROW_INCHES * max(len(labels), 4),
        ),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    others = sorted({peer for row in rows for peer in row.peers} - {EAGER})
    for axes, mode in zip(panels[0], modes, strict=True):
        here = [row for row in rows if row.mode == mode]
        _bars(axes, here, [position[_label(row, with_op)] for row in here], others)
        axes.set_title(TITLES.get(mode, mode), fontsize=10)
    panels[0][0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0][0].set_ylim(len(labels) - 0.4, -0.6)
    legend = [Line2D([], [], color=ROOF, lw=0.8, label="p20 to p80 of the rounds")]
    legend += [
        Line2D([], [], color=PEER, marker=MARKERS[index], ls="", label=f"{peer} / ours")
        for index, peer in enumerate(others)
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=8)
    figure.suptitle(f"torch eager / nnops: {title}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Any, rows: list[Row], positions: list[int], others: list[str]) -> None:
    eager = [row.peers[EAGER] for row in rows]
    for position, versus in zip(positions, eager, strict=True):
        color = WIN if versus.ratio >= 1 else LOSS
        axes.barh(position, versus.ratio - 1, left=1, height=0.7, color=color, alpha=0.85)
        axes.plot([versus.p20, versus.p80], [position] * 2, color=ROOF, lw=0.8)
    for row, position in zip(rows, positions, strict=True):
        for index, peer in enumerate(others):
            if peer in row.peers:
                ratio = row.peers[peer].ratio
                axes.plot(ratio, position, MARKERS[index], color=PEER, ms=4)
    axes.set_xscale("log")
    lowest, highest = _extent([versus for row in rows for versus in row.peers.values()])
    # The figures stand at the right edge, in a column that no bar reaches.
    right = highest * (highest / lowest) ** 0.28
    axes.set_xlim(lowest, right)
    for position, versus in zip(positions, eager, strict=True):
        color = LOSS if versus.ratio < 1 else ROOF
        axes.text(
            *(
                0.985,
                position,
                f"{versus.ratio:.2f}" if versus.ratio < 10 else f"{versus.ratio:.1f}",
            ),
            transform=axes.get_yaxis_transform(),
            **{"ha": "right", "va": "center", "fontsize": 7, "color": color},
        )
    axes.axvline(1, color=ROOF, lw=1)
    _plain_log_ticks(axes.xaxis, right / lowest)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)


def _ratio_ranks(rows: list[Row], title: str, path: Path) -> None:
    """One column per mode: above the bars of the worst rows, below all ratios, class by class."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    with_op = len({row.op for row in rows}) > 1
    classes = list(dict.fromkeys(_series(row) for row in rows))
    figure, panels = plt.subplots(
        2,
        len(modes),
        figsize=((LABEL_INCHES + PANEL_INCHES) * len(modes), 2.0 + 2.2 * ROW_INCHES * WORST),
        squeeze=False,
        layout="constrained",
    )
    for (bars, ranks), mode in zip(panels.T, modes, strict=True):
        here = sorted((row for row in rows if row.mode == mode), key=_ratio)
        worst = here[:WORST]
        _bars(bars, worst, list(range(len(worst))), [])
        bars.set_yticks(range(len(worst)), [_label(row, with_op) for row in worst], fontsize=8)
        bars.set_ylim(WORST - 0.4, -0.6)
        bars.set_title(f"{mode}: the worst", fontsize=10)
        _ranks(ranks, here, classes)
        slower = sum(_ratio(row) < 1 for row in here)
        ranks.set_title(f"{mode}: {slower} of {len(here)} rows below 1", fontsize=10)
    legend = [Line2D([], [], color=ROOF, lw=0.8, label="p20 to p80 of the rounds")]
    figure.legend(handles=legend, loc="outside lower center", fontsize=8)
    figure.suptitle(f"torch eager / nnops: {title}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratio(row: Row) -> float:
    return row.peers[EAGER].ratio


def _ranks(axes: Any, rows: list[Row], classes: list[str]) -> None:
    """A band for each class, in which its rows, that come in order, lie below each other."""
    labels = []
    for band, name in enumerate(classes):
        members = [row for row in rows if _series(row) == name]
        mean = f"\ngeomean {geometric_mean([_ratio(row) for row in members]):.2f}"
        labels.append(f"{name}, {len(members)} rows{mean if members else ''}")
        for rank, row in enumerate(members):
            versus = row.peers[EAGER]
            y = band + 0.8 * ((rank + 0.5) / len(members) - 0.5)
            color = WIN if versus.ratio >= 1 else LOSS
            axes.plot([versus.p20, versus.p80], [y, y], color=ROOF, lw=0.6, alpha=0.6)
            axes.plot(versus.ratio, y, "o", color=color, ms=4, mec="white", mew=0.3)
    axes.set_xscale("log")
    lowest, highest = _extent([row.peers[EAGER] for row in rows])
    axes.set_xlim(lowest, highest)
    axes.axvline(1, color=ROOF, lw=1)
    axes.set_yticks(range(len(classes)), labels, fontsize=8)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.hlines(np.arange(1, len(classes)) - 0.5, lowest, highest, color="#dddddd", lw=0.6)
    _plain_log_ticks(axes.xaxis, highest / lowest)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)


def _extent(versus: list[Versus]) -> tuple[float, float]:
    lowest = min(min(each.p20, each.ratio) for each in versus)
    highest = max(max(each.p80, each.ratio) for each in versus)
    return min(lowest * 0.9, 0.8), max(highest * 1.1, 1.25)


def _plain_log_ticks(axis: Any, span: float) -> None:
    subs = (1, 2, 5) if span < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# --- rooflines ------------------------------------------------------------------------------------


def _roofline(rows: list[Row], limits: Limits, title: str, path: Path) -> None:
    """Arithmetic against its intensity where that is the limit, else traffic by working set."""
    # A training step is two passes with a limit each; there is no one place for it.
    rows = [row for row in rows if row.mode != "full"] or rows
    modes = list(dict.fromkeys(row.mode for row in rows))
    compute = sum(row.bound == "compute" for row in rows) > len(rows) / 2
    figure, panels = plt.subplots(
        1,
        len(modes),
        figsize=(1.0 + 4.6 * len(modes), 5.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    series = list(dict.fromkeys(_series(row) for row in rows))
    for axes, mode in zip(panels[0], modes, strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        (_compute_roof if compute else _memory_roof)(axes, rows, limits)
        _points(axes, [row for row in rows if row.mode == mode], series, compute)
        axes.grid(which="both", color="#e6e6e6", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.set_title(mode, fontsize=10)
    panels[0][0].set_ylabel("GFLOP/s" if compute else "GB/s")
    handles, labels = panels[0][0].get_legend_handles_labels()
    roofs = dict(zip(labels, handles, strict=True))
    legend = [handle for label, handle in roofs.items() if label.startswith("limit")]
    legend += [
        Line2D([], [], color=color, marker=marker, ls="", label=name)
        for name in series
        for color, marker in [_look(series, name)]
    ]
    legend.append(Line2D([], [], color=PEER, lw=0.8, marker="_", label="down or up to torch eager"))
    figure.legend(handles=legend, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(axes: Any, rows: list[Row], series: list[str], compute: bool) -> None:
    """Ours as markers, each with a stem that ends at torch eager's rate."""
    for row in rows:
        color, marker = _look(series, _series(row))
        x = row.flops / row.bytes if compute else row.bytes
        amount = (row.flops if compute else row.bytes) / 1e3
        ours = amount / (row.ours_us or 1)
        theirs = amount / (row.peers[EAGER].us or 1)
        axes.plot([x, x], [ours, theirs], color=color, lw=0.8, alpha=0.6)
        axes.plot(x, theirs, "_", color=color, ms=8)
        axes.plot(x, ours, marker, color=color, ms=6, mec="white", mew=0.5)


def _look(series: list[str], name: str) -> tuple[Any, str]:
    index = series.index(name)
    return plt.get_cmap("tab10")(index % 10), MARKERS[index % len(MARKERS)]


def _series(row: Row) -> str:
    """Many ops of one family share a class, and one op has many classes."""
    kind = row.op if row.family != row.op else row.kernel_class
    return f"{kind} CL" if row.layout == "channels_last" else kind


def _memory_roof(axes: Any, rows: list[Row], limits: Limits) -> None:
    sizes = np.geomspace(limits.copy[0][0], limits.copy[-1][0], 200)
    for curve, style, name in ((limits.copy, "-", "copy"), (limits.read, "--", "read")):
        rates = [at(curve, int(size)) for size in sizes]
        axes.plot(sizes, rates, style, color=ROOF, lw=1.2, label=f"limit: {name}, warm")
    axes.set_xlabel("bytes read + written, each once per pass")
    axes.xaxis.set_major_locator(LogLocator(base=4, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _size(size)))
    _plain_log_ticks(axes.yaxis, 1e3)


def _size(size: float) -> str:
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if size >= scale:
            return f"{size / scale:g} {unit}"
    return f"{size:g} B"


def _compute_roof(axes: Any, rows: list[Row], limits: Limits) -> None:
    intensities = [row.flops / row.bytes for row in rows]
    x = np.geomspace(min(intensities) / 1.5, max(intensities) * 1.5, 200)
    far = limits.copy[-1][1]
    axes.plot(
        x, np.minimum(x * far, limits.gflops), "-", color=ROOF, lw=1.2, label="limit: DRAM, FMA"
    )
    near = max(rate for _, rate in limits.copy)
    axes.plot(
        x, np.minimum(x * near, limits.gflops), "--", color=ROOF, lw=1, label="limit: cache, FMA"
    )
    axes.set_xlabel("arithmetic intensity: operations / byte")
    _plain_log_ticks(axes.xaxis, 1e3)
    _plain_log_ticks(axes.yaxis, 1e3)
