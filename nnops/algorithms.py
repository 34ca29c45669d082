"""Which algorithm runs, why, and how to choose another: `nnops.explain`, `nnops.conv_algorithm`.

Every operator with several algorithms keeps them in an ordered list. Each says whether it can
compute a problem and whether it is likely the fastest of those that remain; the first for which
both hold runs (`python -m nnops info` prints the lists), unless autotuning is on and another was
measured to be faster (nnops/tuning.py).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnops import _library

_C = _library._C

CONV_PASSES = {
    "forward": "conv2d",
    "backward_input": "conv2d_backward_input",
    "backward_weight": "conv2d_backward_weight",
}


@contextmanager
def forced_algorithm(op: str, algorithm: str) -> Iterator[None]:
    """Makes one operator take one algorithm on the calling thread while the context lasts.

    That thread then computes gradients on CUDA too, instead of a thread of torch's.

    Raises:
        ValueError: for an algorithm that the operator does not have.
        RuntimeError: in the context, for a problem that the algorithm cannot compute.
    """
    before = _C.force_algorithm(op, algorithm)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _C.force_algorithm(op, before)


@contextmanager
def conv_algorithm(
    algorithm: str | None = None,
    *,
    forward: str | None = None,
    backward_input: str | None = None,
    backward_weight: str | None = None,
) -> Iterator[None]:
    """Makes conv2d take an algorithm by name, on the calling thread, while the context lasts.

    `algorithm` is for every pass that has one of this name; passes without make their ordinary
    choice. The other arguments name the algorithm of one pass and go before it. Contexts nest: what
    an inner one leaves open stays as it is outside. A gradient is computed by what is forced where
    `backward` is called, not where the forward pass was; that thread then computes gradients on
    CUDA too, instead of a thread of torch's.

        with nnops.conv_algorithm("reference"): ...
        with nnops.conv_algorithm(forward="pixel_rows"): ...

    Raises:
        ValueError: for a name that no pass has, or not the pass it is given for.
        RuntimeError: in the context, for a problem that the algorithm cannot compute.
    """
    everywhere = (_C.algorithms(), _C.cuda_algorithms())
    lists = {
        name: list(dict.fromkeys(each for lists in everywhere for each in lists.get(op, ())))
        for name, op in CONV_PASSES.items()
    }
    if algorithm is not None and not any(algorithm in names for names in lists.values()):
        known = sorted({name for names in lists.values() for name in names})
        raise ValueError(
            f"conv_algorithm: the algorithm must be one of {', '.join(known)}, "
            f"but got {algorithm!r}"
        )
    wanted = {
        "forward": forward,
        "backward_input": backward_input,
        "backward_weight": backward_weight,
    }
    for name, choice in wanted.items():
        if choice is not None and choice not in lists[name]:
            raise ValueError(
                f"conv_algorithm: {name} must be one of {', '.join(lists[name])}, "
                f"but got {choice!r}"
            )
    with ExitStack() as stack:
        for name, op in CONV_PASSES.items():
            choice = wanted[name]
            if choice is None and algorithm in lists[name]:
                choice = algorithm
            if choice is not None:
                stack.enter_context(forced_algorithm(op, choice))
        yield


@dataclass(frozen=True)
class Candidate:
    """One algorithm of a call, in the order in which they are asked."""

    algorithm: str
    reason: str  # why it does not run; empty for the one that does

    @property
    def chosen(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    op: str
    geometry: dict[str, str]  # argument to its sizes and layout, or its value
    dtype: str
    isa: str
    threads: int  # 0 where there was nothing to compute, and on CUDA
    candidates: tuple[Candidate, ...]

    @property
    def algorithm(self) -> str:
        return next(each.algorithm for each in self.candidates if each.chosen)


class Explanation(tuple[Call, ...]):
    """The calls in the order in which they were made; prints as a table."""

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=None if self else "no call of an nnops operator")
        for title in ("operator", "problem", "algorithm", "why"):
            table.add_column(title, overflow="fold")
        for call in self:
            problem = [f"{name} {text}" for name, text in call.geometry.items()]
            threads = "" if call.isa == "cuda" else f", {call.threads or 'no'} threads"
            problem.append(f"{call.dtype}, {call.isa}{threads}")
            for row, each in enumerate(call.candidates):
                table.add_row(
                    "" if row else call.op,
                    "" if row else "\n".join(problem),
                    f"[bold green]{each.algorithm}" if each.chosen else each.algorithm,
                    "[bold green]runs" if each.chosen else each.reason,
                )
            table.add_section()
        return table

    def __str__(self) -> str:
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return "\n".join(
                f"{call.op} {call.geometry} {call.dtype}, {call.isa}, {call.threads} threads: "
                + "; ".join(f"{one.algorithm}: {one.reason or 'runs'}" for one in call.candidates)
                for call in self
            )
        text = io.StringIO()
        Console(file=text, width=120).print(self)
        return text.getvalue().rstrip()


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Calls `function` and tells which algorithm each call of an nnops operator took, and why.

    Backward passes count where `function` calls them: pass a function that does.

        print(nnops.explain(model, images))
        print(nnops.explain(lambda: loss(model(images)).backward()))

    Args:
        function: a module or function; what it returns is dropped.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        The calls of the calling thread, in order. Compiled code that runs inside is not seen.
    """
    recorder = _Recorder()
    with recorder:
        function(*args, **kwargs)
    return Explanation(recorder.calls)


class _Recorder(TorchDispatchMode):
    """Keeps, for every call of torch.ops.nnops, its arguments and what was chosen in C++."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace != "nnops":
            return func(*args, **(kwargs or {}))
        names = [argument.name for argument in func._schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        geometry = {name: _described(value) for name, value in arguments.items()}
        _C.start_trace()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            for op, dtype, isa, threads, candidates in _C.stop_trace():
                self.calls.append(
                    Call(
                        op, geometry, dtype, isa, threads, tuple(Candidate(*c) for c in candidates)
                    )
                )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    sizes = "x".join(map(str, value.shape)) or "scalar"
    if value.is_contiguous():
        return sizes
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return f"{sizes} channels_last"
    return f"{sizes} strides {value.stride()}"
