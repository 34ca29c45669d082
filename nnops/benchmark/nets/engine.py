"""Every net x size x batch x layout x ISA x threads: built, checked, measured.

Rows, by mode:

train, infer     one each for batch 1 and N: times, against torch and the peers
layers           of the training step at N and the forward at 1: a row per layer and pass
memory           of the training step at N: bytes saved for backward, and the peak
memory-infer     of the forward at N: the peak
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import Module

from nnops import _C
from nnops.benchmark.engine import OURS, settled, where, with_times
from nnops.benchmark.nets import layers
from nnops.benchmark.nets.calls import REST, WARMING, NetPeer, Runner, contestant, eager, ours
from nnops.benchmark.nets.check import Expected, check, check_peer, expected_of
from nnops.benchmark.nets.memory import measure_in_fresh_process
from nnops.benchmark.nets.zoo import Net, Size, prepared
from nnops.benchmark.results import EAGER, LAYERS, NETS, Row, Versus
from nnops.benchmark.timing import Contestant

TRAIN, INFER, MEMORY, LAYER_MODE = "train", "infer", "memory", "layers"
MODES = (TRAIN, INFER, MEMORY, LAYER_MODE)
# Of the time of a row; a net has many layers.
LAYER_SHARE = 0.1


@dataclass(frozen=True)
class NetPlan:
    """What to measure. `batch` stands in for the batches that the nets name beside 1."""

    nets: tuple[Net, ...]
    modes: tuple[str, ...]
    threads: tuple[int, ...]
    isas: tuple[str, ...]
    layouts: tuple[str, ...] = ("NCHW",)
    peers: tuple[NetPeer, ...] = ()
    batch: int | None = None
    seconds: float = 1.0
    isa_forced: bool = False


class Subject:
    """A net in training or in inference, on one batch, and the modes that it has rows in."""

    def __init__(
        self, net: Net, size: Size, batch: int, layout: str, training: bool, modes: tuple[str, ...]
    ) -> None:
        self.net, self.size, self.batch, self.layout = net, size, batch, layout
        self.training, self.modes = training, modes

    @property
    def direction(self) -> str:
        return TRAIN if self.training else INFER

    @property
    def sample(self) -> str:
        return self.size.sample(self.batch)

    @cached_property
    def _prepared(self) -> tuple[Module, Tensor, Tensor | None]:
        return prepared(self.net, self.size, self.batch, self.layout, self.training)

    @property
    def model(self) -> Module:
        return self._prepared[0]

    @property
    def images(self) -> Tensor:
        return self._prepared[1]

    @property
    def labels(self) -> Tensor | None:
        return self._prepared[2]

    @cached_property
    def expected(self) -> Expected:
        return expected_of(self.model, self.images, self.labels)


def subjects(plan: NetPlan) -> Iterator[Subject]:
    for net in plan.nets:
        for size in net.sizes:
            for layout in plan.layouts:
                for training in (True, False):
                    many = plan.batch or (size.training if training else size.inference)
                    for batch in dict.fromkeys((1, many)):
                        modes = _modes(plan, training, batch, many)
                        if modes:
                            yield Subject(net, size, batch, layout, training, modes)


def _modes(plan: NetPlan, training: bool, batch: int, many: int) -> tuple[str, ...]:
    fitting = [TRAIN if training else INFER]
    if batch == many:
        fitting.append(MEMORY)
    if batch == (many if training else 1):
        fitting.append(LAYER_MODE)
    return tuple(mode for mode in fitting if mode in plan.modes)


def row_count(plan: NetPlan) -> int:
    """Rows of nets; those of layers come on top."""
    counted = sum(mode != LAYER_MODE for each in subjects(plan) for mode in each.modes)
    return len(plan.isas) * len(plan.threads) * counted


def run(plan: NetPlan) -> Iterator[Row]:
    """Yields each row as soon as it is measured; leaves ISA and threads as they were."""
    with settled():
        for subject in subjects(plan):
            for isa in plan.isas:
                for threads in plan.threads:
                    _C.set_active_isa(isa)
                    torch.set_num_threads(threads)
                    yield from _rows_of(subject, plan)


def _rows_of(subject: Subject, plan: NetPlan) -> Iterator[Row]:
    row = Row(
        family=NETS,
        op=subject.net.name,
        mode=subject.direction,
        sample=subject.sample,
        kernel_class="net",
        shapes=[[subject.batch, *subject.size.image]],
        dtype="float32",
        layout=subject.layout,
        **where(plan.isa_forced),
    )
    try:
        check(subject.model, subject.images, subject.labels, subject.expected)
    except Exception as error:
        yield _failed(row, error)
        return
    measures = {
        TRAIN: _timed,
        INFER: _timed,
        MEMORY: _weighed,
        LAYER_MODE: _layers,
    }
    for mode in subject.modes:
        try:
            yield from measures[mode](row, subject, plan)
        except Exception as error:
            # The row says why it has no figures; the others are still wanted.
            yield _failed(replace(row, mode=mode), error)


def _failed(row: Row, error: Exception) -> Row:
    return replace(row, error=f"{type(error).__name__}: {error}")


def _timed(row: Row, subject: Subject, plan: NetPlan) -> Iterator[Row]:
    peers = [peer for peer in plan.peers if peer.fits(subject.training, subject.layout)]
    rest = REST if any(peer.foreign for peer in peers) else 0.0
    warming = WARMING if rest or subject.training else 0.0
    contestants = [
        contestant(name, prepare(subject.model, subject.images), subject.labels, rest, warming)
        for name, prepare in ((OURS, ours), (EAGER, eager))
    ]
    absent = {}
    for peer in peers:
        try:
            contestants.append(_ready(peer, subject, rest, warming))
        except Exception as reason:
            absent[peer.name] = f"{type(reason).__name__}: {reason}"
    yield replace(with_times(row, contestants, plan.seconds), absent=absent)


def _ready(peer: NetPeer, subject: Subject, rest: float, warming: float) -> Contestant:
    """Exported, compiled, and checked as far as a peer can be."""
    runner: Runner = peer.prepare(subject.model, subject.images)
    if not subject.training:
        check_peer(runner, subject.expected)
    ready = contestant(peer.name, runner, subject.labels, rest, warming)
    with ready.around():
        ready.call()
    return ready


def _weighed(row: Row, subject: Subject, plan: NetPlan) -> Iterator[Row]:
    memory = {
        who: measure_in_fresh_process(
            *(subject.net.name, subject.size.name, subject.batch, subject.layout),
            *(row.isa, row.threads, who, subject.direction),
        )
        for who in (OURS, EAGER)
    }
    # Of the peak alone, where nothing is saved.
    figures = [each.saved if subject.training else each.peak for each in memory.values()]
    mode = MEMORY if subject.training else f"{MEMORY}-{INFER}"
    row = replace(row, mode=mode, memory=memory)
    if all(figures):
        mine, theirs = (float(figure or 0) for figure in figures)
        ratio = theirs / mine
        row = replace(row, peers={EAGER: Versus(ratio, ratio, ratio)})
    yield row


def _layers(row: Row, subject: Subject, plan: NetPlan) -> Iterator[Row]:
    # A copy: timing a BatchNorm moves its statistics.
    model = copy.deepcopy(subject.model)
    for line in layers.lines_of(model, subject.images):
        for direction, contestants in _passes(line, subject.training):
            described = replace(
                row,
                family=LAYERS,
                op=f"{subject.net.name} {subject.sample}",
                mode=f"{subject.direction} {direction}",
                sample=line.name,
                kernel_class=line.types,
                shapes=[list(line.input.shape)],
                # A figure for each net, batch and direction.
                shape_list="-".join(
                    f"{subject.net.name} {subject.direction} {subject.sample}".split()
                ),
            )
            try:
                yield with_times(described, contestants, LAYER_SHARE * plan.seconds)
            except Exception as error:
                yield _failed(described, error)


def _passes(line: layers.Line, training: bool) -> Iterator[tuple[str, list[Contestant]]]:
    sides = (OURS, EAGER)
    yield "fwd", [line.forward(who) for who in sides]
    if training:
        backwards = [each for who in sides if (each := line.backward(who)) is not None]
        if backwards:
            yield "bwd", backwards
