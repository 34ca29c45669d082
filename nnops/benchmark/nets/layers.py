"""A net layer by layer: which of its layers gains what.

The calls of the leaf modules of torch's net are recorded with their inputs, in one forward. Each is
then timed beside nnops.convert() of it, alone, on the recorded input. A convolution or a linear
layer and the BatchNorm, ReLU and max-pool right behind it are one line: convert() may run them as
one.

fwd    forward, no graph
bwd    torch.autograd.grad of the line's parameters, and of its input where the net asks for it,
       through a graph that is kept, with one gradient made before

So a layer finds its input in the cache if it fits, which it may not in the net; what a forward()
computes outside modules (a sum, a flatten) has no line; and convert() may see reasons in the net
not to fuse what it fuses alone. The lines do not add up to the net's time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

import nnops
from nnops.benchmark.timing import Contestant

HEADS = (nn.Conv2d, nn.Linear)
TAILS = (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


@dataclass
class Call:
    """A module in the net, a copy of what it was called with, and what came of it."""

    name: str
    module: Module
    input: Tensor
    # The tensor itself, which says who works on it next.
    received: Tensor
    output: Any = None


@dataclass(frozen=True)
class Line:
    """One layer, or several that follow each other."""

    name: str
    types: str
    input: Tensor
    torchs: Module
    ours: Module

    def forward(self, who: str) -> Contestant:
        return Contestant(who, partial(self._module(who), self.input), torch.no_grad)

    def backward(self, who: str) -> Contestant | None:
        """None where there is nothing to differentiate."""
        module = self._module(who)
        with torch.enable_grad():
            # A layer must not write over a leaf; the copy's own backward hands the gradient on.
            inplace = getattr(module, "inplace", False)
            output = module(self.input.clone() if inplace else self.input)
        if not output.requires_grad:
            return None
        inputs = [self.input] if self.input.requires_grad else []
        inputs += [each for each in module.parameters() if each.requires_grad]
        seed = torch.rand_like(output)
        call = partial(torch.autograd.grad, output, inputs, seed, retain_graph=True)
        return Contestant(who, call, torch.enable_grad)

    def _module(self, who: str) -> Module:
        return self.ours if who == "ours" else self.torchs


def lines_of(net: Module, images: Tensor) -> list[Line]:
    """In the order of the calls."""
    groups: list[list[Call]] = []
    for call in _recorded(net, images):
        last = groups[-1] if groups else []
        follows = (
            isinstance(call.module, TAILS)
            and bool(last)
            and isinstance(last[0].module, HEADS)
            and call.received is last[-1].output
        )
        if follows:
            last.append(call)
        else:
            groups.append([call])
    return [_line(group, net.training) for group in groups]


def _recorded(net: Module, images: Tensor) -> list[Call]:
    """The second call of a module is named "name (2)"."""
    calls: list[Call] = []
    counts: Counter[str] = Counter()

    def before(name: str, module: Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor):
            counts[name] += 1
            label = f"{name} ({counts[name]})" if counts[name] > 1 else name
            kept = inputs[0].detach().clone().requires_grad_(inputs[0].requires_grad)
            calls.append(Call(label, module, kept, inputs[0]))

    def after(module: Module, inputs: tuple[Any, ...], output: object) -> None:
        if calls and calls[-1].module is module:
            calls[-1].output = output

    hooks = []
    for name, module in net.named_modules():
        if not any(module.children()):
            hooks.append(module.register_forward_pre_hook(partial(before, name)))
            hooks.append(module.register_forward_hook(after))
    try:
        with torch.set_grad_enabled(net.training):
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _line(calls: list[Call], training: bool) -> Line:
    modules = [call.module for call in calls]
    module = modules[0] if len(modules) == 1 else nn.Sequential(*modules).train(training)
    return Line(
        name=" + ".join(call.name for call in calls),
        types=" + ".join(type(each).__name__ for each in modules),
        input=calls[0].input,
        torchs=module,
        ours=nnops.convert(module),
    )
