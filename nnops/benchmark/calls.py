"""What is timed: the call of each mode, ours and the peers', prepared from one sample.

fwd            function(...) under no_grad
bwd            torch.autograd.grad through a graph that is kept, with a gradient made before
bwd-input,     the same for one operand alone: torch is asked for one output of
bwd-weight     aten::convolution_backward, we run one operator
full           the operator's share of a training step: gradients dropped, forward, backward
overhead       function(...) on a tiny input under no_grad: the price of a call
overhead-grad  the same, recording the graph
memory         no times: bytes (memory.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor

import nnops
from nnops.benchmark.timing import Contestant
from nnops.testing.compare import outputs_of
from nnops.testing.samples import (
    OVERHEAD,
    BenchmarkSample,
    OpCase,
    Sample,
    Work,
    map_tensors,
    tensors_of,
)

Function = Callable[..., Any]


class Mode(str, Enum):
    FORWARD = "fwd"
    BACKWARD = "bwd"
    BACKWARD_INPUT = "bwd-input"
    BACKWARD_WEIGHT = "bwd-weight"
    FULL = "full"
    OVERHEAD = "overhead"
    OVERHEAD_GRAD = "overhead-grad"
    MEMORY = "memory"

    @property
    def backward_part(self) -> str:
        """The operand whose gradient alone is timed, or ""."""
        parts = (Mode.BACKWARD_INPUT, Mode.BACKWARD_WEIGHT)
        return self.value.removeprefix("bwd-") if self in parts else ""

    @property
    def direction(self) -> str:
        """What is timed, whoever's gradient it is: "fwd", "bwd" or "full"."""
        return self.value.partition("-")[0]

    @property
    def needs_gradients(self) -> bool:
        return self not in (Mode.FORWARD, Mode.OVERHEAD)

    @property
    def has_limits(self) -> bool:
        """Whether the time is that of work, which a limit of the machine can be held against."""
        return self not in (Mode.OVERHEAD, Mode.OVERHEAD_GRAD, Mode.MEMORY)

    def fits(self, case: OpCase, benchmark: BenchmarkSample) -> bool:
        """Whether this sample has a row in this mode, as far as one can tell without building."""
        if (benchmark.kernel_class == OVERHEAD) != (self in (Mode.OVERHEAD, Mode.OVERHEAD_GRAD)):
            return False
        return not self.backward_part or self.backward_part in case.backward_parts


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    # Not mkldnn.flags(): that sets its other flags too, and warns of one.
    before, *_ = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before, _fp32_precision=None)


def _compiled(function: Function) -> Function:
    compiled: Function = torch.compile(function, dynamic=False)
    return compiled


@contextmanager
def changing_weights() -> Iterator[None]:
    """Packed weights are not found, as in training: here the weights stay, there they change."""
    limit = nnops.packed_weight_cache().limit
    nnops.set_packed_weight_cache(0)
    try:
        yield
    finally:
        nnops.set_packed_weight_cache(limit)


@dataclass(frozen=True)
class Peer:
    """Someone to be measured against: torch's function, changed or run in a certain way."""

    name: str
    change: Callable[[Function], Function] = lambda function: function
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    # Families of the database; empty: all.
    families: tuple[str, ...] = ()


EAGER = Peer("torch")
PEERS = {
    peer.name: peer
    for peer in (
        EAGER,
        Peer("compile", change=_compiled),
        Peer("no-mkldnn", around=_without_mkldnn, families=("conv2d",)),
    )
}


def sample_for(case: OpCase, sample: Sample, mode: Mode) -> Sample | None:
    """`sample` with those tensors needing a gradient that `mode` differentiates; None: no row."""
    if not mode.needs_gradients:
        return map_tensors(sample, Tensor.detach)
    if mode.backward_part:
        wanted = sample.args[case.backward_parts.index(mode.backward_part)]
        if not wanted.requires_grad:
            return None
        return map_tensors(sample, lambda tensor: tensor.detach().requires_grad_(tensor is wanted))
    return sample


def phases(case: OpCase, sample: Sample, mode: Mode) -> tuple[Work, ...]:
    """The work of the call, by passes over the data; none for overhead and memory."""
    forward, backward = case.forward_work(sample), case.backward_work(sample)
    if mode == Mode.FORWARD:
        return (forward,)
    if mode == Mode.FULL:
        return (forward, backward)
    return (backward,) if mode.value.startswith("bwd") else ()


def output_gradient(function: Function, sample: Sample, mode: Mode) -> Tensor | None:
    """What `mode` propagates back: made once for all contestants, whose reads then cost the same.

    None where there is nothing to propagate, or where a loss starts by itself.
    """
    if mode == Mode.FORWARD or not mode.has_limits:
        return None
    with torch.no_grad():
        output = outputs_of(function(*sample.args, **sample.kwargs))[0]
    if output.dim():
        return torch.rand_like(output)
    return None if mode == Mode.FULL else torch.ones_like(output)


def contestant(
    name: str, function: Function, sample: Sample, mode: Mode, peer: Peer, seed: Tensor | None
) -> Contestant:
    """`sample` comes from sample_for, `seed` from output_gradient."""

    @contextmanager
    def around() -> Iterator[None]:
        weights = changing_weights() if mode.needs_gradients else nullcontext()
        with torch.set_grad_enabled(mode.needs_gradients), peer.around(), weights:
            yield

    with around():
        call = _call(peer.change(function), sample, mode, seed)
    return Contestant(name, call, around)


def _call(
    function: Function, sample: Sample, mode: Mode, seed: Tensor | None
) -> Callable[[], object]:
    forward = partial(function, *sample.args, **sample.kwargs)
    leaves = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    if mode == Mode.FORWARD or not mode.has_limits:
        return forward
    if mode != Mode.FULL:
        output = outputs_of(forward())[0]
        return partial(torch.autograd.grad, output, leaves, seed, retain_graph=True)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        outputs_of(forward())[0].backward(seed)

    return step
