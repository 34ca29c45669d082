"""`python -m nnops partition`: how conv2d's work is shared by any number of threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnops.algorithms import CONV_PASSES
from nnops.cli.bench import DTYPES, LAYOUTS, LOG_WIDTH, _chosen
from nnops.partition import Partition, conv2d_partition
from nnops.testing.opdb.conv2d import SHAPE_LISTS
from nnops.testing.opdb.conv2d_layers import Layer
from nnops.testing.samples import DEFAULT_LIST

THREADS = (1, 2, 4, 8, 16, 32, 64, 128)
# Above it a thread in four or more has nothing to do.
POOR = 1.3


@dataclass(frozen=True)
class Row:
    """One layer, layout and pass, for every thread count."""

    sample: str
    shape_list: str
    layout: str
    dtype: str
    conv_pass: str
    partitions: tuple[Partition, ...]

    @property
    def worst(self) -> float:
        return max(each.imbalance for each in self.partitions)


def partition(
    shapes: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SHAPE_LISTS)}; default: {DEFAULT_LIST}")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help=f"default: {' '.join(map(str, THREADS))}")
    ] = None,
    conv_pass: Annotated[
        list[str] | None, typer.Option("--pass", help=f"{', '.join(CONV_PASSES)}; default: all")
    ] = None,
    layout: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(LAYOUTS)}; default: all")
    ] = None,
    filter: Annotated[str, typer.Option(help="part of the name of a layer")] = "",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    out: Annotated[Path | None, typer.Option(help="JSON lines with the work of each thread")] = (
        None
    ),
) -> None:
    """Tell how conv2d shares its work: products of the busiest thread over the mean, worst first.

    Asks the algorithms that would run on this CPU level; no more cores are needed than there are.
    """
    for name in conv_pass or ():
        _chosen(CONV_PASSES, name, "--pass")
    lists = {
        name: _chosen(SHAPE_LISTS, name, "--shapes") for name in dict.fromkeys(shapes or ())
    } or {DEFAULT_LIST: SHAPE_LISTS[DEFAULT_LIST]}
    report = [
        row
        for name, layers in lists.items()
        for layer in layers
        if filter in layer.name
        for one in layout or LAYOUTS
        for row in rows_of(
            layer,
            name,
            _chosen(LAYOUTS, one, "--layout"),
            _chosen(DTYPES, dtype, "--dtype"),
            conv_pass or CONV_PASSES,
            threads or THREADS,
        )
    ]
    if not report:
        raise typer.BadParameter("no layer fits --shapes and --filter")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{_line(row)}\n" for row in report))
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(table(report))
    console.print(
        "products of the busiest thread / mean of the threads; after a colon the threads, where "
        "the layer is too small for all that were asked for",
        highlight=False,
    )


def rows_of(
    layer: Layer,
    shape_list: str,
    layout: str,
    dtype: torch.dtype,
    passes: Iterable[str],
    threads: Iterable[int],
) -> Iterator[Row]:
    """The passes that the benchmarks would time: images from outside need no gradient."""
    input, weight = layer.fake(dtype, layout)
    for each in passes:
        if layer.first and each == "backward_input":
            continue
        partitions = tuple(
            conv2d_partition(input, weight, **layer.parameters, conv_pass=each, threads=count)
            for count in threads
        )
        name = str(dtype).removeprefix("torch.")
        yield Row(layer.name, shape_list, layout, name, each, partitions)


def _line(row: Row) -> str:
    partitions = [
        {**asdict(each), "busy": each.busy, "imbalance": each.imbalance} for each in row.partitions
    ]
    return json.dumps({**asdict(row), "partitions": partitions})


def table(rows: Iterable[Row]) -> Table:
    ordered = sorted(rows, key=lambda row: -row.worst)
    result = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "layout", "pass", "algorithm"):
        result.add_column(title, no_wrap=True)
    for each in ordered[0].partitions:
        result.add_column(f"{each.asked} thr", justify="right", no_wrap=True)
    for row in ordered:
        result.add_row(
            *(row.sample, row.layout, row.conv_pass),
            ", ".join(dict.fromkeys(each.algorithm for each in row.partitions)),
            *(_cell(each) for each in row.partitions),
        )
    return result


def _cell(partition: Partition) -> Text:
    fewer = f":{partition.threads}" if partition.threads < partition.asked else ""
    style = "red" if partition.imbalance > POOR else "dim" if fewer else ""
    return Text(f"{partition.imbalance:.2f}{fewer}", style)
