"""Tables for the terminal: rows (losses first), the summary against the goals, a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from nnops.benchmark.compare import Change, Comparison
from nnops.benchmark.goals import Line
from nnops.benchmark.results import EAGER, Bytes, Row, Versus

LOSS, GOOD = "red", "green"
# Percent of a limit, up to which it is one: limits are lower bounds, measured through torch.
STILL_LIMITED = 120


def row_table(rows: Iterable[Row]) -> Table:
    """Losses first, the worst on top; then by ratio."""
    ordered = sorted(rows, key=lambda row: (not row.error, not row.lost, row.ratio or math.inf))
    peers = sorted({name for row in ordered for name in row.peers}, key=lambda n: (n != EAGER, n))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("op", "mode", "sample", "layout", "ISA"):
        table.add_column(column, no_wrap=True)
    for column in ("thr", "ours us", *(f"{peer}/ours\n(p20-p80)" for peer in peers)):
        table.add_column(column, justify="right", no_wrap=True)
    # Whole nets have no limits.
    limited = any(row.gb_s is not None for row in ordered)
    for column in ("GB/s", "GFLOP/s", "% limit") if limited else ():
        table.add_column(column, justify="right")
    table.add_column("")
    for row in ordered:
        labels = (row.op, row.mode, row.sample, row.layout, row.isa, str(row.threads))
        if row.error:
            table.add_row(*labels, "error", Text(row.error.partition("\n")[0], LOSS), style=LOSS)
            continue
        table.add_row(
            *labels,
            _number(row.ours_us),
            *(_versus(row.peers.get(peer)) for peer in peers),
            *(_of_limits(row) if limited else ()),
            f"disturbed: others used {row.others_load:.1f} CPUs" if row.disturbed else "",
            style=LOSS if row.lost else "",
        )
    return table


def layer_tables(rows: Iterable[Row]) -> list[Table]:
    """A table per net, batch, layout, ISA and threads: what each layer gains, in its order."""
    tables: dict[tuple[str | int, ...], dict[tuple[str, str], dict[str, Row]]] = {}
    for row in rows:
        direction, _, side = row.mode.partition(" ")
        setting = (row.op, direction, row.layout, row.isa, row.threads)
        lines = tables.setdefault(setting, {})
        lines.setdefault((row.sample, row.kernel_class), {})[side] = row
    return [_layer_table(setting, lines) for setting, lines in tables.items()]


def _layer_table(
    setting: tuple[str | int, ...], lines: dict[tuple[str, str], dict[str, Row]]
) -> Table:
    sides = list(dict.fromkeys(side for line in lines.values() for side in line))
    table = Table(
        title=f"{' '.join(map(str, setting))} thr, layer by layer",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in ("layer", "types"):
        table.add_column(column, overflow="fold")
    for side in sides:
        for column in (f"{side}: torch us", "ours us", "torch/ours"):
            table.add_column(column, justify="right")
    table.add_column("gain us", justify="right")
    sums = {side: [0.0, 0.0] for side in sides}
    for (layer, types), line in lines.items():
        cells: list[str] = []
        gain = 0.0
        for side in sides:
            row = line.get(side)
            if row is None or row.error or row.ours_us is None:
                cells += ["", "", row.error.partition("\n")[0] if row else ""]
                continue
            theirs, ours = row.peers[EAGER].us or 0.0, row.ours_us
            sums[side][0] += theirs
            sums[side][1] += ours
            gain += theirs - ours
            cells += [_number(theirs), _number(ours), _versus(row.peers[EAGER])]
        table.add_row(layer, types, *cells, _number(gain), style=LOSS if gain < 0 else "")
    totals = [
        text
        for theirs, ours in sums.values()
        for text in (
            _number(theirs),
            _number(ours),
            f"{theirs / ours:.2f}" if ours else "",
        )
    ]
    gains = sum(theirs - ours for theirs, ours in sums.values())
    table.add_row("sum of the layers", "", *totals, _number(gains), style="bold")
    return table


def absent_peers(rows: Iterable[Row]) -> list[str]:
    """A line per peer that could not run, and where."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for peer, reason in row.absent.items():
            first = reason.strip().partition("\n")[0]
            reasons.setdefault(f"{peer} did not run: {first}", []).append(row.name)
    return [f"{reason} ({', '.join(dict.fromkeys(names))})" for reason, names in reasons.items()]


def memory_table(rows: Iterable[Row]) -> Table:
    """MB saved for backward (inputs + outputs + else) and the peak of a step, ours and torch's."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("op", "mode", "sample", "layout"):
        table.add_column(column, no_wrap=True)
    for who in ("ours", "torch"):
        table.add_column(f"{who}: saved (in + out + else) MB", justify="right")
        table.add_column(f"{who}: peak MB", justify="right")
    for column in ("saved, torch/ours", "peak, torch/ours"):
        table.add_column(column, justify="right")
    for row in rows:
        labels = (row.op, row.mode, row.sample, row.layout)
        figures = [text for each in row.memory.values() for text in _bytes(each)]
        ours, torchs = (row.memory[who] for who in ("ours", EAGER))
        ratios = (_ratio(torchs.saved, ours.saved), _ratio(torchs.peak, ours.peak))
        table.add_row(*labels, *figures, *ratios)
    return table


def summary_table(lines: Iterable[Line]) -> Table:
    """Per goal, then per op x mode x layout x class without one: mean, worst, and of the limit.

    Each list of shapes and dtype by itself.
    """
    ordered = sorted(lines, key=lambda line: (line.met is None, line.met or False))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("op", "mode", "layout", "class", "list", "sample", "dtype", "ISA"):
        table.add_column(column, no_wrap=True)
    numbers = ("thr", "rows", "geomean", "goal", "at limit", "worst", "floor", "% limit", "goal")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("worst sample", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    for line in ordered:
        goal = line.goal
        table.add_row(
            *(line.op, line.mode, line.layout, line.kernel_class, line.shape_list, line.sample),
            *(line.dtype, line.isa, str(line.threads)),
            f"{line.rows}" + (f" + {line.errors} errors" if line.errors else ""),
            *(_number(line.geomean), _number(goal.geomean if goal else None)),
            _number(line.geomean_at_limit),
            *(_number(line.worst), _number(goal.floor if goal else None)),
            *(_number(line.least_percent), _number(goal.percent if goal else None)),
            line.worst_sample,
            _verdict(line.met),
        )
    return table


def goals_markdown(lines: Iterable[Line]) -> str:
    """A row per goal, a column per CPU, ISA and thread count; the goals that are missed first."""
    by_goal: dict[tuple[str, ...], dict[tuple[str, bool, str, int], Line]] = {}
    for line in lines:
        if line.goal is not None:
            name = (line.op, line.mode, line.layout, line.kernel_class, line.sample, line.dtype)
            setting = (line.isa, not line.isa_forced, line.cpu, line.threads)
            by_goal.setdefault((*name, line.shape_list), {})[setting] = line
    settings = sorted({setting for found in by_goal.values() for setting in found}, reverse=True)

    def share_met(name_and_lines: tuple[object, dict[tuple[str, bool, str, int], Line]]) -> float:
        found = name_and_lines[1].values()
        return sum(bool(line.met) for line in found) / len(found)

    heads = ["op", "mode", "layout", "class", "sample", "dtype", "list"]
    heads += [
        f"{isa}{'' if own else ' forced'}, {threads} thr, {cpu}"
        for isa, own, cpu, threads in settings
    ]
    table = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for labels, found in sorted(by_goal.items(), key=share_met):
        cells = [_goal_cell(found[each]) if each in found else "" for each in settings]
        names = [text.replace("*", "\\*") for text in labels]
        table.append(f"| {' | '.join((*names, *cells))} |")
    return "\n".join(table) + "\n"


def _goal_cell(line: Line) -> str:
    """Mean, worst row and share of the limit, each of what the goal asks for; missed in bold.

    With what it would be at the machine's limit, where that is less than the goal.
    """
    assert line.goal is not None
    limited = line.most_percent <= STILL_LIMITED
    parts = [f"**{line.errors} errors**"] if line.errors else []
    for figure, wanted, unit, sample, at_limit in (
        (line.geomean, line.goal.geomean, "", "", line.geomean_at_limit),
        (line.worst, line.goal.floor, "", f" ({line.worst_sample})", line.worst_at_limit),
        (line.least_percent, line.goal.percent, " %", "", math.nan),
    ):
        if wanted is None:
            continue
        text = f"{_number(figure)} of {_number(wanted)}{unit}{sample}"
        reach = f", at most {_number(at_limit)}" if limited and at_limit < wanted else ""
        parts.append(text if figure >= wanted else f"**{text}**{reach}")
    return "; ".join(parts)


def comparison_table(comparison: Comparison) -> Table:
    """Regressions first, then by factor; what is within the noise stays grey."""

    def order(change: Change) -> tuple[bool, float]:
        return (not change.regressed, change.factor or 0.0)

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("op", "mode", "sample", "layout", "ISA"):
        table.add_column(column, no_wrap=True)
    for column in ("thr", "old", "new", "change", "noise"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for change in sorted(comparison.changes, key=order):
        row = change.row
        verdict, style = "", "dim"
        if change.regressed:
            verdict, style = row.error or "slower", LOSS
        elif change.improved:
            verdict, style = "faster", GOOD
        elif change.disturbed:
            verdict = "disturbed"
        percent = f"{100 * (change.factor - 1):+.1f} %" if change.factor is not None else ""
        table.add_row(
            *(row.op, row.mode, row.sample, row.layout, row.isa, str(row.threads)),
            *(_number(change.old), _number(change.new), percent, f"{100 * change.band:.0f} %"),
            verdict,
            style=style,
        )
    return table


def _number(value: float | None) -> str:
    """Three significant digits, without exponents."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _of_limits(row: Row) -> tuple[str, str, str]:
    return (
        _number(row.gb_s),
        _number(row.gflop_s) if row.flops else "",
        f"{row.percent_of_limit:.0f}" if row.percent_of_limit is not None else "",
    )


def _ratio(theirs: int | None, ours: int | None) -> str:
    return f"{theirs / ours:.2f}" if theirs and ours else ""


def _versus(versus: Versus | None) -> str:
    if versus is None:
        return ""
    return f"{versus.ratio:.2f} ({versus.p20:.2f}-{versus.p80:.2f})"


def _bytes(each: Bytes) -> tuple[str, str]:
    parts = (each.saved_inputs, each.saved_outputs, each.saved_else)
    saved = f"{_megabytes(each.saved)} ({' + '.join(map(_megabytes, parts))})"
    return saved, _megabytes(each.peak) if each.peak is not None else ""


def _megabytes(count: int) -> str:
    return _number(count / 1e6)


def _verdict(met: bool | None) -> Text:
    if met is None:
        return Text("")
    return Text("met", GOOD) if met else Text("missed", LOSS)
