"""nnops beside torch (cuDNN) on a CUDA device: operators, pass by pass, and whole nets.

Two times of each, medians of alternating rounds:

call    CUDA events around many calls: what a program sees. Small calls wait for Python, not for
        the device.
device  the same calls captured in a CUDA graph and replayed: the kernels alone.

Operators are the samples of the operator database, convolutions with as many images as a GPU is
given. Numbers are compared with torch's first.

    python tools/gpu_benchmark.py [--op conv2d] [--dtype float16] [--rounds 5] [--out results.jsonl]
    python tools/gpu_benchmark.py --read results.jsonl [--report results.md] [--plot results.png]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Annotated, ClassVar

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import nnops
from nnops.benchmark.calls import EAGER, Mode, contestant, output_gradient, sample_for
from nnops.benchmark.nets.calls import eager, ours, training_step
from nnops.benchmark.nets.zoo import NETS, prepared
from nnops.benchmark.timing import Contestant
from nnops.testing.compare import outputs_of
from nnops.testing.opdb import CASES
from nnops.testing.opdb.conv2d_layers import LAYERS
from nnops.testing.samples import (
    DEFAULT_LIST,
    LAYOUTS,
    BenchmarkSample,
    Maker,
    OpCase,
    Sample,
    tensors_of,
)

ROUND_MS = 3.0  # of each side, about
MOST_CALLS = 200
GRAPH_CALLS = 10
IMAGES = 64
MOST_ELEMENTS = 1 << 26  # of an image tensor
# Net, images in a step, image size where a net has several.
NET_BATCHES = (
    ("lenet", 64),
    ("lenet", 1024),
    ("cifar", 64),
    ("cifar", 1024),
    ("alexnet", 64),
    ("vgg11", 32),
    ("resnet18", 64),
)

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Milliseconds; `error` is the distance of the results from torch's over their length."""

    op: str
    sample: str
    layout: str
    dtype: str
    mode: str
    algorithm: str
    error: float
    ours: float
    torch: float
    ours_device: float
    torch_device: float
    device: str

    @property
    def ratio(self) -> float:
        return self.torch / self.ours

    @property
    def device_ratio(self) -> float:
        return self.torch_device / self.ours_device


def milliseconds(call: Call, calls: int) -> float:
    """Of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def alternated(sides: list[Call], rounds: int) -> list[float]:
    """Medians, in milliseconds."""
    counts = []
    for side in sides:
        side()
        counts.append(min(MOST_CALLS, max(1, math.ceil(ROUND_MS / milliseconds(side, 1)))))
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds):
        order = range(len(sides)) if turn % 2 else reversed(range(len(sides)))
        for index in order:
            times[index].append(milliseconds(sides[index], counts[index]))
    return [median(each) for each in times]


def replayed(call: Call) -> Call:
    """GRAPH_CALLS calls as one; everything has been computed once on the current stream."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(GRAPH_CALLS):
            call()
    return graph.replay


def on_device(sides: list[Call], rounds: int) -> list[float]:
    """NaN where a call cannot be captured."""
    try:
        graphs = [replayed(side) for side in sides]
    except RuntimeError:
        torch.cuda.synchronize()
        return [math.nan] * len(sides)
    return [time / GRAPH_CALLS for time in alternated(graphs, rounds)]


def distance(ours: object, theirs: object) -> float:
    pairs = zip(outputs_of(ours), outputs_of(theirs), strict=True)
    shares = [
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
        for a, b in pairs
        if b.numel()
    ]
    return max(shares, default=0.0)


def passes(case: OpCase, sample: Sample) -> Iterator[tuple[str, list[Call]]]:
    """(mode, [ours, torch's]): forward and the gradients, by operand where these are operators."""
    backward = [Mode(f"bwd-{part}") for part in case.backward_parts] or [Mode.BACKWARD]
    for mode in (Mode.FORWARD, *backward):
        own = sample_for(case, sample, mode)
        if own is None or not (
            mode == Mode.FORWARD or any(each.requires_grad for each in tensors_of(own))
        ):
            continue
        seed = output_gradient(case.our_function, own, mode)
        sides = [
            contestant(name, function, own, mode, EAGER, seed)
            for name, function in (("ours", case.our_function), ("torch", case.torch_function))
        ]
        yield mode.value, [_within(side) for side in sides]


def _within(side: Contestant) -> Call:
    def call() -> object:
        with side.around():
            return side.call()

    return call


def algorithm_of(call: Call) -> str:
    chosen = [each.algorithm for each in nnops.explain(call)]
    return chosen[-1] if chosen else ""


def samples_of(case: OpCase) -> Iterator[BenchmarkSample]:
    if case.name != "conv2d":
        for each in case.benchmark_samples:
            if each.shape_list == DEFAULT_LIST:
                yield each
        return
    seen = set()
    for layer in LAYERS:
        stem, _, batch = layer.name.rpartition(" b")
        if int(batch) > 1:
            image = max(
                layer.channels * math.prod(layer.size_pair),
                layer.filters * math.prod(layer.output_size),
            )
            images = min(IMAGES, MOST_ELEMENTS // image)
            layer = replace(layer, name=f"{stem} b{images}", batch=images)
        if layer.name not in seen:
            seen.add(layer.name)
            for layout in LAYOUTS:
                build = partial(layer.build, layout=layout)
                yield BenchmarkSample(layer.name, layer.kernel_class, build, layout)


def _device() -> str:
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def operator_rows(
    case: OpCase, each: BenchmarkSample, dtype: torch.dtype, rounds: int
) -> Iterator[Row]:
    sample = each.build(Maker(dtype, "cuda", requires_grad=True))
    for mode, sides in passes(case, sample):
        error = distance(*(side() for side in sides))
        algorithm = algorithm_of(sides[0])
        times = alternated(sides, rounds) + on_device(sides, rounds)
        name = str(dtype).removeprefix("torch.")
        yield Row(
            case.name, each.name, each.layout, name, mode, algorithm, error, *times, _device()
        )


def net_rows(name: str, images: int, layout: str, rounds: int) -> Iterator[Row]:
    """A step of SGD, and a forward without gradients; never in a graph."""
    net = NETS[name]
    for training in (True, False):
        model, batch, labels = prepared(net, net.sizes[0], images, layout, training)
        model, batch = model.to("cuda"), batch.to("cuda")
        runners = [make(model, batch) for make in (ours, eager)]
        sides: list[Call] = []
        with torch.no_grad():
            error = math.nan if training else distance(*(each.scores() for each in runners))
        for runner in runners:
            if labels is not None:
                sides.append(training_step(runner, labels.to("cuda")))
            else:
                sides.append(torch.no_grad()(runner.forward))
        times = alternated(sides, rounds) + [math.nan] * 2
        mode = "train" if training else "infer"
        yield Row(name, f"b{images}", layout, "float32", mode, "", error, *times, _device())


def measured(
    ops: list[str] | None, dtypes: list[str], rounds: int, console: Console
) -> Iterator[Row]:
    """Every benchmark sample of the database, forward and backward, and the nets."""
    work: list[Callable[[], Iterator[Row]]] = [
        partial(net_rows, name, images, layout, rounds)
        for name, images in NET_BATCHES
        for layout in LAYOUTS
        if ops is None or name in ops
    ]
    work += [
        partial(operator_rows, case, each, getattr(torch, name), rounds)
        for case in CASES
        if ops is None or case.name in ops
        for each in samples_of(case)
        for name in dtypes
    ]
    with torch.cuda.stream(torch.cuda.Stream()):
        for measure in track(work, "measuring", console=Console(stderr=True)):
            try:
                yield from measure()
            except Exception as error:
                # The others are still wanted.
                console.print(f"[red]{measure.args[:3]}: {type(error).__name__}: {error}")


def main(
    op: Annotated[list[str] | None, typer.Option(help="operators or nets; default: all")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="default: float32 float16")] = None,
    rounds: int = 5,
    out: Annotated[Path | None, typer.Option(help="JSON lines")] = None,
    read: Annotated[
        Path | None, typer.Option(help="show these JSON lines, measure nothing")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="write a summary in Markdown")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the rows")] = None,
) -> None:
    """Measure nnops beside torch on a CUDA device, and show what came out."""
    console = Console(width=150)
    if read is not None:
        rows = [Row(**json.loads(line)) for line in read.read_text().splitlines()]
    elif not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no CUDA device")
    else:
        rows = []
        for row in measured(op, dtype or ["float32", "float16"], rounds, console):
            rows.append(row)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
    if read is None:
        console.print(row_table(rows))
    console.print(Columns.of(rows).table())
    if report is not None:
        report.write_text(Columns.of(rows).markdown())
    if plot is not None:
        draw(rows, plot)


def row_table(rows: list[Row]) -> Table:
    table = Table(
        *("op", "sample", "layout", "dtype", "mode", "algorithm", "error"),
        *("ours ms", "torch/ours", "device ms", "torch/ours"),
    )
    for row in sorted(rows, key=lambda row: row.ratio):
        table.add_row(
            *(row.op, row.sample, row.layout, row.dtype, row.mode, row.algorithm),
            *(f"{row.error:.1e}", f"{row.ours:.4f}", f"{row.ratio:.2f}"),
            *(f"{row.ours_device:.4f}", f"{row.device_ratio:.2f}"),
        )
    return table


_TIMES = (
    "Geometric means and the worst rows: of calls as a program makes them, where small ones wait "
    "for Python, and of the kernels alone, replayed in a CUDA graph (not of what waits for the "
    "device)."
)


@dataclass(frozen=True)
class Columns:
    """The summary: geometric means of torch's time over ours, and the worst row of each group."""

    title: str
    lines: list[tuple[str, ...]]
    HEAD: ClassVar = ("op", "dtype", "mode", "rows", "calls", "worst", "device", "worst")

    @staticmethod
    def of(rows: list[Row]) -> Columns:
        def figures(ratios: list[float]) -> tuple[str, str]:
            ratios = [ratio for ratio in ratios if math.isfinite(ratio)]
            return (f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}") if ratios else ("", "")

        lines = []
        for key in dict.fromkeys((row.op, row.dtype, row.mode) for row in rows):
            group = [row for row in rows if (row.op, row.dtype, row.mode) == key]
            calls = figures([row.ratio for row in group])
            device = figures([row.device_ratio for row in group])
            lines.append((*key, str(len(group)), *calls, *device))
        return Columns(f"torch / ours, {' and '.join(sorted({row.device for row in rows}))}", lines)

    def table(self) -> Table:
        table = Table(*self.HEAD, title=self.title)
        for line in self.lines:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        text = [f"# {self.title}", "", f"Written by `tools/gpu_benchmark.py --report`. {_TIMES}"]
        text += ["", f"| {' | '.join(self.HEAD)} |", "|---" * len(self.HEAD) + "|"]
        text += [f"| {' | '.join(line)} |" for line in self.lines]
        return "\n".join(text) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Each row's ratio of the kernels alone, a line an operator."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if math.isfinite(row.device_ratio):
            by_dtype = groups.setdefault((row.op, row.mode), {})
            by_dtype.setdefault(row.dtype, []).append(row.device_ratio)
    figure = Figure(figsize=(9, 0.28 * len(groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    dtypes = sorted({dtype for each in groups.values() for dtype in each})
    for index, dtype in enumerate(dtypes):
        points = [
            (ratio, line + (index - (len(dtypes) - 1) / 2) * 0.25)
            for line, each in enumerate(groups.values())
            for ratio in each.get(dtype, ())
        ]
        ratios, places = zip(*points, strict=True)
        axes.scatter(ratios, places, s=9, alpha=0.6, label=dtype)
    axes.set_yticks(range(len(groups)), [" ".join(key) for key in groups])
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("torch's time / ours, kernels alone; right of the line nnops is faster")
    axes.set_title(" and ".join(sorted({row.device for row in rows})))
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
