"""`python -m nnops bench`, `bench-report` and `bench-compare`: nnops beside torch, measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand

from nnops import _C
from nnops.benchmark import engine, goals, report, results
from nnops.benchmark.calls import PEERS, Mode
from nnops.benchmark.compare import compare
from nnops.benchmark.limits import Limits, measure_limits
from nnops.benchmark.nets import engine as nets, zoo
from nnops.benchmark.nets.calls import NET_PEERS, NetPeer
from nnops.testing.opdb import CASES
from nnops.testing.samples import DEFAULT_LIST, FLOATING, LAYOUTS as ALL_LAYOUTS

# A mode on the command line may stand for several.
MODES: dict[str, tuple[Mode, ...]] = {
    **{mode.value: (mode,) for mode in Mode},
    "overhead": (Mode.OVERHEAD, Mode.OVERHEAD_GRAD),
}
NET_MODES = {name: name for name in nets.MODES}
ISAS = {name: name for name in _C.available_isas()}
# In the order of the database, the default first.
SHAPE_LISTS = {
    each.shape_list: each.shape_list for case in CASES for each in case.benchmark_samples
}
LAYOUTS = {name: name for name in ALL_LAYOUTS}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}
DEFAULT_MODES = ("fwd", "full")
# Rows as short as this try the engine out, and the limits need not be good either.
QUICK_SECONDS = 0.1
LOG_WIDTH = 190
DEFAULT_OUT = Path("results/bench.jsonl")


class ManyValues(TyperCommand):
    """Takes `--threads 1 2` for `--threads 1 --threads 2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeated = {
            name for parameter in self.params if parameter.multiple for name in parameter.opts
        }
        expanded: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in repeated else ""
            elif option and expanded[-1] != option:
                expanded.append(option)
            expanded.append(word)
        return super().parse_args(ctx, expanded)


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"whole nets in place of operators: {', '.join(zoo.NETS)}, or module:function "
            "that returns a model, or one and its images [N, C, H, W]"
        ),
    ] = None,
    op: Annotated[
        list[str] | None, typer.Option(help="functions or families; default: all")
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(MODES)}; default: fwd full; "
            f"of nets: {', '.join(nets.MODES)}; default: all"
        ),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="default: as torch has it")] = None,
    isa: Annotated[
        list[str] | None, typer.Option(help="levels to force; default: the active one")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="besides torch eager: compile, no-mkldnn; "
            f"of nets: {', '.join(NET_PEERS)}; default: those that are installed"
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="of nets, beside 1; default: the net's own")
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SHAPE_LISTS)}; default: {DEFAULT_LIST}")
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(LAYOUTS)}; default: all; of nets: NCHW"),
    ] = None,
    filter: Annotated[str, typer.Option(help='part or pattern of "op sample layout class"')] = "",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    seconds: Annotated[float, typer.Option(help="measuring time per row")] = 1.0,
    out: Annotated[Path, typer.Option(help="JSON lines; plots go to the folder of that name")] = (
        DEFAULT_OUT
    ),
    plot: Annotated[bool, typer.Option(help="needs matplotlib")] = True,
) -> None:
    """Measure nnops beside torch: the same calls in alternating rounds, checked first."""
    console = _console()
    where: dict[str, Any] = {
        "threads": tuple(threads or ()) or (torch.get_num_threads(),),
        "isas": tuple(_chosen(ISAS, name, "--isa") for name in isa or [_C.active_isa()]),
        "isa_forced": bool(isa),
        "seconds": seconds,
    }
    if model:
        for option, value in (("--op", op), ("--shapes", shapes), ("--filter", filter)):
            if value:
                raise typer.BadParameter(f"{option} is for operators, not for --model")
        if dtype != "float32":
            raise typer.BadParameter(f"--model is measured in float32, but got --dtype {dtype}")
        net_plan = nets.NetPlan(
            nets=tuple(map(_net, model)),
            modes=tuple(_chosen(NET_MODES, name, "--mode") for name in mode or nets.MODES),
            layouts=tuple(_chosen(LAYOUTS, name, "--layout") for name in layout or ("NCHW",)),
            peers=_net_peers(peer, console),
            batch=batch,
            **where,
        )
        total = nets.row_count(net_plan)
        lines: Iterator[Limits | results.Row] = nets.run(net_plan)
    else:
        if batch:
            raise typer.BadParameter("--batch is for --model")
        plan = engine.Plan(
            modes=tuple(
                each for name in mode or DEFAULT_MODES for each in _chosen(MODES, name, "--mode")
            ),
            ops=tuple(op or ()),
            shape_lists=tuple(
                _chosen(SHAPE_LISTS, name, "--shapes") for name in shapes or [DEFAULT_LIST]
            ),
            layouts=tuple(_chosen(LAYOUTS, name, "--layout") for name in layout or ()),
            filter=filter,
            dtype=_chosen(DTYPES, dtype, "--dtype"),
            peers=tuple(_chosen(PEERS, name, "--peer") for name in peer or ()),
            **where,
        )
        total, lines = engine.row_count(plan), _limits_and_rows(plan)
        if not total:
            options = "--op, --mode, --shapes, --layout and --filter"
            raise typer.BadParameter(f"no row of the database fits {options}")
    measured = results.Results()
    out.parent.mkdir(parents=True, exist_ok=True)
    interrupted = False
    with out.open("w") as file:
        try:
            _measure(lines, total, measured, file, console)
        except KeyboardInterrupt:
            interrupted = True
    _show(measured, console)
    if plot:
        _plot(measured, out, console)
    if interrupted or any(row.error for row in measured.rows):
        raise typer.Exit(1)


def bench_report(
    files: Annotated[list[Path], typer.Argument(help="result files, read as one")],
    plot: Annotated[Path | None, typer.Option(help="draw the plots into this folder")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write what came of the goals here")] = None,
) -> None:
    """Print the tables of result files again, and draw their plots."""
    console = _console()
    measured = results.read(files)
    _show(measured, console)
    if markdown is not None:
        markdown.write_text(report.goals_markdown(goals.summary(measured.rows)))
    if plot is not None:
        _plot(measured, plot.with_suffix(".jsonl"), console)


def bench_compare(old: Path, new: Path) -> None:
    """Compare two result files; exit code 1 if a row became slower by more than the noise."""
    console = _console()
    comparison = compare(results.read([old]), results.read([new]))
    for warning in comparison.warnings:
        console.print(f"[yellow]{warning}")
    console.print(report.comparison_table(comparison))
    missing, added = len(comparison.only_old), len(comparison.only_new)
    console.print(
        f"{len(comparison.changes)} rows in both, {missing} only in the old file, {added} only in "
        f"the new one; [bold]{len(comparison.regressions)} slower by more than the noise"
    )
    if comparison.regressions:
        raise typer.Exit(1)


def _console() -> Console:
    """As wide as the tables where the output is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def _chosen(table: dict[str, Any], name: str, option: str) -> Any:
    if name not in table:
        raise typer.BadParameter(f"{option} must be one of {', '.join(table)}, but got {name}")
    return table[name]


def _net(name: str) -> zoo.Net:
    try:
        return zoo.find(name)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(f"--model: {error}") from error


def _net_peers(names: list[str] | None, console: Console) -> tuple[NetPeer, ...]:
    """Those asked for, which must be there; or all that are, and a line about the others."""
    if names is None:
        missing = [peer.name for peer in NET_PEERS.values() if not peer.installed]
        if missing:
            console.print(f"not installed: {', '.join(missing)} (pip install 'nnops\\[peers]')")
        return tuple(peer for peer in NET_PEERS.values() if peer.installed)
    peers: list[NetPeer] = [_chosen(NET_PEERS, name, "--peer") for name in names]
    for peer in peers:
        if not peer.installed:
            raise typer.BadParameter(f"--peer {peer.name} needs {' and '.join(peer.modules)}")
    return tuple(peers)


def _limits_and_rows(plan: engine.Plan) -> Iterator[Limits | results.Row]:
    limits: dict[int, Limits] = {}
    for threads in plan.threads if any(mode.has_limits for mode in plan.modes) else ():
        limits[threads] = measure_limits(threads, plan.dtype, plan.seconds < QUICK_SECONDS)
        yield limits[threads]
    yield from engine.run(plan, limits)


def _measure(
    lines: Iterable[Limits | results.Row],
    total: int,
    measured: results.Results,
    file: Any,
    console: Console,
) -> None:
    progress = Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
        console=console,
    )
    # Drawn between rows only: a thread that draws would disturb what is measured.
    with Live(progress, console=console, vertical_overflow="ellipsis", auto_refresh=False) as live:
        task = progress.add_task("", total=total)
        for line in lines:
            results.write(line, file)
            measured.add(line)
            if isinstance(line, Limits):
                progress.update(task, description="limits")
            else:
                # How many layers a net has is known only when they are measured.
                counts = line.family != results.LAYERS
                progress.update(task, advance=int(counts), description=line.name)
            # On a terminal the table grows while measuring; a log gets it once, at the end.
            if console.is_terminal:
                live.update(Group(progress, *_row_tables(measured.rows)), refresh=True)
        live.update(progress)
    console.print()


def _row_tables(rows: Iterable[results.Row]) -> list[Any]:
    layers = [row for row in rows if row.family == results.LAYERS]
    rows = [row for row in rows if row.family != results.LAYERS]
    timed = [row for row in rows if not row.memory]
    counted = [row for row in rows if row.memory]
    tables = [report.row_table(timed)] if timed else []
    tables += [report.memory_table(counted)] if counted else []
    return [*tables, *report.layer_tables(layers)]


def _show(measured: results.Results, console: Console) -> None:
    for limits in measured.limits:
        (near, near_rate), (far, far_rate) = limits.copy[0], limits.copy[-1]
        console.print(
            f"limits, {limits.threads} threads: copy {near_rate:.0f} GB/s at {near >> 10} KB, "
            f"{far_rate:.0f} GB/s at {far >> 20} MB; read {limits.read[-1][1]:.0f} GB/s at "
            f"{far >> 20} MB; {limits.gflops:.0f} GFLOP/s {limits.dtype}",
            highlight=False,
        )
    for table in _row_tables(measured.rows):
        console.print(table, "")
    for line in report.absent_peers(measured.rows):
        console.print(f"[yellow]{escape(line)}", highlight=False)
    disturbed = sum(row.disturbed for row in measured.rows)
    if disturbed:
        console.print(f"[yellow]{disturbed} rows were measured while others used the CPUs")
    lines = goals.summary(measured.rows)
    if lines:
        console.print(report.summary_table(lines))


def _plot(measured: results.Results, out: Path, console: Console) -> None:
    from nnops.benchmark.plot import draw

    for path in draw(measured, out.with_suffix("")):
        console.print(str(path), highlight=False)
