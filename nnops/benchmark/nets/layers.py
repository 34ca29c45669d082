"""A net layer by layer: which of its layers gains what.

The calls of the leaf modules are recorded, with their inputs, in one forward of torch's net and one
of ours. Layers of the same name are then timed against each other, each alone, on its recorded
input. What nnops fused is one layer of ours and several of torch's: those are called in turn.

fwd    forward, no graph
bwd    torch.autograd.grad of the layer's parameters, and of its input where the net asks for it,
       through a graph that is kept, with one gradient made before

So a layer finds its input in the cache if it fits, which it may not in the net, and what a
forward() computes outside modules (a sum, a flatten) has no line: the lines do not add up to the
net's time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Identity, Module

from nnops.benchmark.timing import Contestant


@dataclass(frozen=True)
class Call:
    """A leaf module, and a copy of what it was called with."""

    name: str
    module: Module
    input: Tensor


@dataclass
class Group:
    """Calls of torch's and the calls of ours that do the same."""

    torchs: list[Call] = field(default_factory=list)
    ours: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " + ".join(call.name for call in self.torchs or self.ours)

    @property
    def types(self) -> str:
        return " + ".join(type(call.module).__name__ for call in self.torchs or self.ours)


def record(net: Module, images: Tensor) -> list[Call]:
    """In the order of the calls; the second of a module is named "name (2)"."""
    calls: list[Call] = []
    counts: Counter[str] = Counter()
    depth = 0

    def before(name: str, module: Module, inputs: tuple[Any, ...]) -> None:
        nonlocal depth
        depth += 1
        # What a layer of ours is made of is not of interest.
        if depth == 1 and len(inputs) == 1 and isinstance(inputs[0], Tensor):
            counts[name] += 1
            label = f"{name} ({counts[name]})" if counts[name] > 1 else name
            recorded = inputs[0].detach().clone().requires_grad_(inputs[0].requires_grad)
            calls.append(Call(label, module, recorded))

    def after(module: Module, inputs: object, output: object) -> None:
        nonlocal depth
        depth -= 1

    hooks = []
    for name, module in net.named_modules():
        ours = type(module).__module__.startswith("nnops.")
        if ours or not any(module.children()):
            hooks.append(module.register_forward_pre_hook(partial(before, name)))
            hooks.append(module.register_forward_hook(after))
    try:
        with torch.set_grad_enabled(net.training):
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def grouped(torchs: list[Call], ours: list[Call]) -> list[Group]:
    """A group begins with each layer that both have; what only one of them has belongs to it."""
    ours = [call for call in ours if not isinstance(call.module, Identity)]
    shared = [call.name for call in torchs if call.name in {each.name for each in ours}]
    groups = {name: Group() for name in shared} or {"": Group()}
    for calls, side in ((torchs, "torchs"), (ours, "ours")):
        # What comes before the first shared layer goes with it.
        group = next(iter(groups.values()))
        for call in calls:
            group = groups.get(call.name, group)
            getattr(group, side).append(call)
    return list(groups.values())


def forward_contestant(name: str, calls: list[Call]) -> Contestant:
    def call() -> None:
        for each in calls:
            each.module(each.input)

    return Contestant(name, call, torch.no_grad)


def backward_contestant(name: str, calls: list[Call]) -> Contestant | None:
    """None where there is nothing to differentiate."""
    backwards = [backward for each in calls if (backward := _backward(each)) is not None]
    if not backwards:
        return None

    def call() -> None:
        for backward in backwards:
            backward()

    return Contestant(name, call, _with_graph)


@contextmanager
def _with_graph() -> Iterator[None]:
    with torch.enable_grad():
        yield


def _backward(call: Call) -> Callable[[], object] | None:
    with torch.enable_grad():
        # In-place layers must not write over a leaf; the copy's own backward costs nothing.
        inplace = getattr(call.module, "inplace", False)
        output = call.module(call.input.clone() if inplace else call.input)
    if not output.requires_grad:
        return None
    inputs = [call.input] if call.input.requires_grad else []
    inputs += [each for each in call.module.parameters() if each.requires_grad]
    return partial(torch.autograd.grad, output, inputs, torch.rand_like(output), retain_graph=True)
