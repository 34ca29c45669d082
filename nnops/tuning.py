"""Measured choices of conv2d's algorithms: `nnops.autotune`, `nnops.set_autotune`.

Which algorithm of conv2d runs follows from the dtype and the geometry of one image, by rules that
are fixed in the source (`nnops.explain` prints them): the same everywhere. `nnops.autotune`
measures the algorithms on this machine instead, and where one is faster than the rules' choice,
takes it.

What that gives up: algorithms round differently, and a winner is for one problem on one machine:
all sizes, the batch size included, strides, dtype, precision, CPU, ISA level and number of threads.
So results no longer have equal bits across machines, batch sizes and numbers of threads, nor before
and after measuring. Without a new measurement they still have them from run to run. Errors stay
within the bound of the precision (nnops/precision.py): an algorithm that it forbids is never
measured and never taken.

It is off by default. Winners are kept in a JSON file, autotune-<version of nnops>.json, in the
user's cache folder: NNOPS_CACHE_DIR, or nnops in XDG_CACHE_HOME or in ~/.cache. Processes may use
it at the same time: they write one after the other, and replace the file as a whole.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnops import _library
from nnops.algorithms import CONV_PASSES, forced_algorithm
from nnops.ops.conv2d import Conv2d
from nnops.precision import CONV_PRECISIONS

_C = _library._C

# An algorithm must be so many times as fast as the rules' choice to take its place, and no slower
# in four of five rounds: less may be chance, and is not worth other bits.
LEAST_GAIN = 1.03
# Operators whose first part is a convolution, which takes the winners of conv2d.
FUSED = ("conv2d_relu", "conv2d_max_pool2d", "conv2d_max_pool2d_with_offsets")
# One that takes so many times as long as the fastest, in a single call, is not measured further.
HOPELESS = 3.0

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # sizes and strides


@dataclass(frozen=True)
class Problem:
    """What a winner is for: one call of one pass, without its data."""

    op: str
    input: Layout
    weight: Layout
    output: Layout
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    dtype: str
    precision: str
    isa: str
    threads: int

    def candidates(self) -> list[str]:
        """The algorithms to measure, the rules' choice first."""
        with forced_algorithm(self.op, ""):
            chosen, *others = _C.conv2d_candidates(
                self._compiled(), CONV_PRECISIONS[self.precision]
            )
        # Loops that show what is meant, many times slower than anything else.
        return [chosen, *(each for each in others if each != "reference")]

    def set_winner(self, algorithm: str) -> None:
        precision = CONV_PRECISIONS[self.precision]
        _C.set_conv2d_winner(self._compiled(), precision, self.isa, self.threads, algorithm)

    def call(self) -> Callable[[], Tensor]:
        """The call itself, on random numbers."""

        def random(layout: Layout) -> Tensor:
            return _random(layout, getattr(torch, self.dtype))

        operands: tuple[Any, ...]
        if self.op == "conv2d":
            operands = (random(self.input), random(self.weight), None)
        elif self.op == "conv2d_backward_input":
            operands = (random(self.output), random(self.weight), self.input[0][2:])
        else:
            operands = (random(self.output), random(self.input), self.weight[0][2:])
        return partial(
            getattr(torch.ops.nnops, f"_{self.op}").default,
            *operands,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            CONV_PRECISIONS[self.precision],
        )

    def _compiled(self) -> _C.Conv2dProblem:
        return _C.Conv2dProblem(
            self.op,
            self.input,
            self.weight,
            self.output,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.dtype,
        )


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.stride()


def _random(layout: Layout, dtype: torch.dtype) -> Tensor:
    sizes, strides = layout
    # Elements may share memory, as those of expanded tensors do.
    extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return torch.randn(extent).to(dtype).as_strided(sizes, strides)


@dataclass(frozen=True)
class Tuned:
    """What was measured of one problem."""

    problem: Problem
    chosen: str  # by the rules
    winner: str
    seconds: dict[str, float]  # a call of each algorithm that was measured, in the median
    gain: float  # how many times as fast as `chosen` the winner is, in the median of all rounds


class Tuning(tuple[Tuned, ...]):
    """The problems in the order in which they were met; prints as a table."""

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=None if self else "nothing to choose: no algorithm was measured")
        for title in ("pass", "problem", "by the rules", "winner", "times as fast"):
            table.add_column(title, overflow="fold")
        for each in self:
            won = each.winner != each.chosen
            table.add_row(
                each.problem.op,
                _described(each.problem),
                each.chosen,
                f"[bold green]{each.winner}" if won else each.winner,
                f"{each.gain:.2f}",
            )
        return table

    def __str__(self) -> str:
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return "\n".join(
                f"{each.problem.op} {_described(each.problem)}: {each.chosen} by the rules, "
                f"{each.winner} is {each.gain:.2f} times as fast"
                for each in self
            )
        text = io.StringIO()
        Console(file=text, width=120).print(self)
        return text.getvalue().rstrip()


def _described(problem: Problem) -> str:
    image, weight = ("x".join(map(str, each[0])) for each in (problem.input, problem.weight))
    channels_last = problem.input[1][1] == 1 and problem.input[0][1] > 1
    parameters = "".join(
        f", {name} {value[0] if len(set(value)) == 1 else value}"
        for name, value, usual in (
            ("stride", problem.stride, 1),
            ("padding", problem.padding, 0),
            ("dilation", problem.dilation, 1),
            ("groups", (problem.groups,), 1),
        )
        if set(value) != {usual}
    )
    return (
        f"{image}{' channels_last' if channels_last else ''} by {weight}{parameters}, "
        f"{problem.dtype}, {problem.precision!r}, {problem.threads} threads"
    )


def autotune(
    function: Callable[..., Any], *args: Any, seconds: float = 0.2, **kwargs: Any
) -> Tuning:
    """Measures the algorithms of every convolution that `function` computes, and takes the fastest.

    Calls `function` once to see its convolutions; backward passes count where it calls them. Then
    each is measured on random numbers, with every algorithm that could run it within its precision.
    The winners are used from now on, as after `nnops.set_autotune(True)`, and stored for later
    processes, which need that call alone. An algorithm replaces the rules' choice only if it is at
    least 1.03 times as fast, and no slower in four of five rounds.

        print(nnops.autotune(model, images))
        print(nnops.autotune(lambda: loss(model(images), labels).backward()))

    Winners give up equal bits across machines, batch sizes and numbers of threads, for speed alone
    (nnops/tuning.py). Measure with the batch size and the threads of the real thing, on a machine
    that does nothing else. Where `function` computes gradients of weights, as in training, weights
    are taken to change from call to call.

    Args:
        function: a module or function; what it returns is dropped.
        args: its arguments.
        seconds: how long to measure each problem, at least; big ones take longer.
        kwargs: its other arguments by name.

    Returns:
        What was measured, in the order of the first calls. Compiled code that runs inside is not
        seen, nor are the runs of layers that a converted net computes as one call for few images;
        nor is a problem that only one algorithm can compute.

    Raises:
        NotImplementedError: for convolutions on another device than the CPU.
    """
    recorder = _Recorder()
    with recorder:
        function(*args, **kwargs)
    trains = any(problem.op == "conv2d_backward_weight" for problem in recorder.problems)
    with _packed_weights_kept(not trains), torch.no_grad():
        measured = (_measured(problem, seconds) for problem in recorder.problems)
        tuning = Tuning(each for each in measured if each is not None)
    for each in tuning:
        each.problem.set_winner(each.winner)
    _store({each.problem: each.winner for each in tuning})
    set_autotune(True)
    return tuning


def set_autotune(enabled: bool) -> None:
    """Sets whether conv2d takes measured winners, in this process; at the start it does not.

    The environment variable NNOPS_AUTOTUNE=1 sets it at the start. Winners are those of
    `nnops.autotune` in this process, and those that the file in the cache folder has for this CPU
    now. A file that cannot be read is ignored with a warning. Problems that were not measured are
    computed as without.

    Args:
        enabled: False: choose by the rules again; the winners are kept.
    """
    if enabled:
        for problem, algorithm in _read(_path()).get(_cpu(), {}).items():
            # Algorithms and ISA levels of other builds, and what is no problem at all.
            with suppress(KeyError, TypeError, ValueError, RuntimeError):
                problem.set_winner(algorithm)
    _C.set_autotune(enabled)


@contextmanager
def autotuning(enabled: bool = True) -> Iterator[None]:
    """Sets it while the context lasts, for all threads: backward passes run in threads of torch's.

    Args:
        enabled: whether conv2d takes measured winners.
    """
    before = _C.autotune()
    set_autotune(enabled)
    try:
        yield
    finally:
        _C.set_autotune(before)


class _Recorder(TorchDispatchMode):
    """Keeps the problem of every convolution, each once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.problems: dict[Problem, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Eager calls go to `_conv2d`, which is conv2d without autograd.
        op = func._schema.name.removeprefix("nnops::").removeprefix("_")
        if func.namespace == "nnops" and (op in CONV_PASSES.values() or op in FUSED):
            names = [argument.name for argument in func._schema.arguments]
            arguments = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            if op in FUSED:
                self._refuse_devices(result[0] if isinstance(result, tuple) else result)
                self._record("conv2d", arguments, _convolved(*args))
            else:
                self._refuse_devices(result)
                self._record(op, arguments, result)
        return result

    @staticmethod
    def _refuse_devices(result: Tensor) -> None:
        if result.device.type != "cpu" or _C.active_isa() == "cuda":
            raise NotImplementedError(
                "autotune: only convolutions on the CPU are measured, but got tensors on "
                f"{result.device} computed by {_C.last_choice()[2]}"
            )

    def _record(self, op: str, arguments: dict[str, Any], result: Tensor) -> None:
        result_name = {
            "conv2d": "output",
            "conv2d_backward_input": "input",
            "conv2d_backward_weight": "weight",
        }[op]
        tensors = {"output": arguments.get("grad_output"), **arguments, result_name: result}
        input, weight, output = (tensors[name] for name in ("input", "weight", "output"))
        if input.numel() == 0 or output.numel() == 0:
            return
        precisions = {number: name for name, number in CONV_PRECISIONS.items()}
        problem = Problem(
            op,
            _layout(input),
            _layout(weight),
            _layout(output),
            tuple(arguments["stride"]),
            tuple(arguments["padding"]),
            tuple(arguments["dilation"]),
            arguments["groups"],
            dtype=str(result.dtype).removeprefix("torch."),
            precision=precisions.get(arguments.get("precision", 0), _C.conv_precision()),
            isa=_C.active_isa(),
            threads=torch.get_num_threads(),
        )
        self.problems[problem] = None


def _convolved(input: Tensor, weight: Tensor, *others: Any) -> Tensor:
    """The output of the convolution in a fused operator, without its numbers: nobody has it."""
    meta: Tensor = Conv2d.fake(input.to("meta"), weight.to("meta"), *others[:5])
    return meta


@contextmanager
def _packed_weights_kept(kept: bool) -> Iterator[None]:
    """Whether calls with the same weight pack it once, or each anew."""
    limit = _C.packed_weights_limit()
    try:
        if not kept:
            _C.set_packed_weights_limit(0)
        yield
    finally:
        _C.set_packed_weights_limit(limit)


def _measured(problem: Problem, seconds: float) -> Tuned | None:
    # Its modules import nnops.
    from nnops.benchmark.timing import Contestant, alternate, ratios, spread

    candidates = problem.candidates()
    if len(candidates) == 1:
        return None
    call = problem.call()
    single = {name: _single_call(problem, name, call) for name in candidates}
    hopeful = [name for name in candidates if single[name] <= HOPELESS * min(single.values())]
    chosen = candidates[0]
    contestants = [
        Contestant(name, call, partial(forced_algorithm, problem.op, name))
        for name in dict.fromkeys([chosen, *hopeful])
    ]
    rounds = alternate(contestants, seconds)
    gains = {name: ratios(rounds[chosen], times) for name, times in rounds.items()}
    faster = [name for name, gain in gains.items() if gain.median >= LEAST_GAIN and gain.p20 >= 1]
    winner = max(faster, key=lambda name: gains[name].median, default=chosen)
    medians = {name: spread(times).median for name, times in rounds.items()}
    return Tuned(problem, chosen, winner, medians, gains[winner].median)


def _single_call(problem: Problem, algorithm: str, call: Callable[[], Tensor]) -> float:
    with forced_algorithm(problem.op, algorithm):
        call()
        times = []
        for _ in range(2):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)


def _cpu() -> str:
    from nnops.benchmark.machine import cpu_model

    return cpu_model()


# What the file holds: CPU model to its winners.
Winners = dict[str, dict[Problem, str]]
_VERSION = _C.build_info()["version"]


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.environ.get("NNOPS_CACHE_DIR") or os.path.join(cache, "nnops")
    return Path(folder) / f"autotune-{_VERSION}.json"


def _read(path: Path) -> Winners:
    try:
        content = json.loads(path.read_text())
        if content["nnops"] != _VERSION:
            raise ValueError(f"it is of nnops {content['nnops']}")
        return {
            cpu: {_problem_of(entry): entry["algorithm"] for entry in entries}
            for cpu, entries in content["winners"].items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"nnops.autotune: {path} holds no winners that can be read and is ignored: "
            f"{type(error).__name__}: {error}",
            stacklevel=3,
        )
        return {}


def _problem_of(entry: dict[str, Any]) -> Problem:
    return Problem(**{field.name: _as_tuples(entry[field.name]) for field in fields(Problem)})


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _store(winners: dict[Problem, str]) -> None:
    """Adds them to what the file holds now; readers see the old file or the new one, no part."""
    if not winners:
        return
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stored = _read(path)
            stored[_cpu()] = {**stored.get(_cpu(), {}), **winners}
            _replace(path, stored)
    except OSError as error:
        warnings.warn(
            f"nnops.autotune: the winners are not stored for later processes: {error}",
            stacklevel=3,
        )


def _replace(path: Path, winners: Winners) -> None:
    content = {
        "nnops": _VERSION,
        "winners": {
            cpu: [{**asdict(problem), "algorithm": name} for problem, name in entries.items()]
            for cpu, entries in winners.items()
        },
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "w") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if os.environ.get("NNOPS_AUTOTUNE") == "1":
    set_autotune(True)
