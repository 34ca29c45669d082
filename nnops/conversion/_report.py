"""What convert() does with each layer, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from nnops.conversion._chains import Chain
from nnops.conversion._exchange import convertible, our_classes
from nnops.conversion._fused import plan_of
from nnops.conversion._plan import Finding, Plan, Planner, is_open
from nnops.conversion._runs import LayerRun
from nnops.nn import functional as F
from nnops.nn.conv import convolution_arguments


@dataclass(frozen=True)
class Row:
    """One layer, one function called by a forward, or one module whose forward stays."""

    name: str  # path in the model; "path: function()" for a function
    layer: str  # the class
    state: str  # "fused", "folded", "swapped" or "left"
    note: str  # with what, or why
    saved: int | None = None  # bytes an image not kept for backward


@dataclass(frozen=True)
class ConversionReport:
    """All rows; printed, a table of the text columns and, with an example, the bytes."""

    rows: list[Row]
    has_example: bool

    def counts(self) -> dict[str, int]:
        """State to the number of rows."""
        return dict(Counter(row.state for row in self.rows))

    @property
    def saved(self) -> int:
        """Bytes an image that training does not keep for backward."""
        return sum(row.saved or 0 for row in self.rows)

    def _cells(self) -> Iterator[tuple[str, ...]]:
        head = ("module", "layer", "state", "with what, or why")
        yield (*head, "not saved") if self.has_example else head
        for row in self.rows:
            cells = (row.name or "(model)", row.layer, row.state, row.note)
            saved = "" if row.saved is None else f"{row.saved:,} B"
            yield (*cells, saved) if self.has_example else cells

    def _summary(self) -> str:
        summary = ", ".join(f"{number} {state}" for state, number in self.counts().items())
        if self.has_example:
            summary += f"; {self.saved:,} bytes an image not saved for backward"
        return summary

    def __str__(self) -> str:
        lines = list(self._cells())
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return "\n".join((*text, self._summary()))

    __repr__ = __str__

    def __rich__(self) -> Any:
        from rich.table import Table

        head, *lines = self._cells()
        table = Table(*head, caption=self._summary(), box=None, pad_edge=False)
        for line in lines:
            table.add_row(*line)
        return table


def report(plain: Module, fused: Module | None, example: Any) -> ConversionReport:
    """The report on `plain`, whose layers are nnops's, one by one.

    Args:
        plain: converted without fusing.
        fused: converted with fusing, to be called with `example`; or None.
        example: a tensor or a tuple of arguments.
    """
    findings: dict[str, Finding] = {}
    functions: list[Row] = []
    reasons: dict[str, str] = {}
    planner = Planner()
    modules = set(convertible(plain))
    for path, module in plain.named_modules():
        found = planner.plan(module) if module in modules else "compiled or scripted"
        if isinstance(found, str):
            reasons[path] = found
            continue
        for finding in found.findings:
            if finding.layer.endswith("()"):
                name = f"{path}: {finding.layer}" if path else finding.layer
                functions.append(Row(name, "function", finding.state, _note(path, finding)))
                continue
            name = _join(path, finding.layer)
            finding = replace(finding, note=_note(path, finding))
            # An outer forward that reaches into a module comes first, and replaces its own.
            if name not in findings or findings[name].state == "left":
                findings[name] = finding
    saved = {} if fused is None else _saved(fused, example)
    rows = []
    for path, module in plain.named_modules():
        row = _row(path, module, findings.get(path), reasons.get(path, ""))
        if row is not None:
            rows.append(Row(*row, saved.get(path)))
    return ConversionReport(rows + functions, fused is not None)


def _note(path: str, finding: Finding) -> str:
    others = (each if each.endswith("()") else _join(path, each) for each in finding.others)
    return f"{finding.note} {', '.join(others)}".rstrip()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _row(
    path: str, module: Module, finding: Finding | None, reason: str
) -> tuple[str, str, str, str] | None:
    kind = type(module).__name__
    if reason == "compiled or scripted":
        return path, kind, "left", reason
    if is_open(module):
        has_layers = any(type(each) in our_classes() for each in module.modules())
        return (path, kind, "left", f"forward: {reason}") if reason and has_layers else None
    if finding is not None and finding.state != "left":
        return path, kind, finding.state, finding.note
    if type(module) in our_classes():
        note = f"not fused: {finding.note}" if finding is not None else ""
        return path, kind, "swapped", note
    if next(module.children(), None) is not None and not is_parametrized(module):
        return None
    return path, kind, "left", _why_left(module)


def _why_left(module: Module) -> str:
    if is_parametrized(module):
        return "parametrized"
    for theirs in our_classes().values():
        if isinstance(module, theirs):
            if isinstance(module, LazyModuleMixin):
                return "lazy: its sizes are not known yet"
            return f"a class derived from {theirs.__name__}"
    return "nnops has no such layer"


def _saved(fused: Module, example: Any) -> dict[str, int]:
    """Path of each convolution with a max-pool behind it to the bytes an image not kept."""
    saved: dict[str, int] = {}
    for path, module in fused.named_modules():
        plan = plan_of(module)
        if plan is not None:
            _measure(plan, path, saved)
    fused.eval()
    arguments = example if isinstance(example, tuple) else (example,)
    with torch.no_grad(), torch.random.fork_rng():
        fused(*arguments)
    return saved


def _measure(plan: Plan, path: str, saved: dict[str, int]) -> None:
    """Lets the chains of a plan write down what they save."""

    def measured(chain: Chain) -> Callable[..., Tensor]:
        if chain.pool_at is None or chain.norm_at is not None:
            return chain
        return _measured(chain, _join(path, chain.head), saved)

    for variant in plan.variants:
        for name, value in variant.scope.items():
            if isinstance(value, Chain):
                variant.scope[name] = measured(value)
            elif isinstance(value, LayerRun):
                variant.scope[name] = value.with_chains(measured)


def _measured(chain: Chain, name: str, saved: dict[str, int]) -> Callable[..., Tensor]:
    def measured(input: Any, conv: Any, *modules: Any) -> Tensor:
        output: Tensor = chain(input, conv, *modules)
        arguments = input if conv is None else convolution_arguments(conv, input)
        shapes: Any = (each.to("meta") if isinstance(each, Tensor) else each for each in arguments)
        whole = F.conv2d(*shapes)
        images = whole.shape[0] if whole.dim() == 4 else 1
        saved[name] = (whole.numel() * whole.element_size() - output.numel()) // max(images, 1)
        return output

    return measured
