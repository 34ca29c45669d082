"""Bytes of a net: what a training step keeps for backward, and the peaks of a step and a forward.

As for operators (nnops/benchmark/memory.py), in fresh processes. Parameters, buffers and the batch
do not count as saved: whoever trains the net holds them anyway. (Nor do they in what the goals
start from: 2.9 MB that torch keeps for 64 images of LeNet, 20.2 MB for the CIFAR-10 network.)

    python -m nnops.benchmark.nets.memory net size batch layout isa threads ours|torch train|infer
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn import Module

from nnops import _C
from nnops.benchmark.memory import in_fresh_process, peak_growth, saved_bytes
from nnops.benchmark.nets import calls, zoo
from nnops.benchmark.results import Bytes
from nnops.testing.samples import Sample


def measure_in_fresh_process(
    net: str, size: str, batch: int, layout: str, isa: str, threads: int, who: str, mode: str
) -> Bytes:
    return in_fresh_process(
        *("nnops.benchmark.nets.memory", net, size, str(batch), layout, isa, str(threads)),
        *(who, mode),
    )


def measure(net: zoo.Net, size: zoo.Size, batch: int, layout: str, who: str, mode: str) -> Bytes:
    # Starts threads and initialises libraries, which is not the net's doing.
    tiny = zoo.NETS["lenet"]
    _measure(tiny, tiny.sizes[0], 1, layout, who, mode)
    return _measure(net, size, batch, layout, who, mode)


def _measure(net: zoo.Net, size: zoo.Size, batch: int, layout: str, who: str, mode: str) -> Bytes:
    model, images, labels = zoo.prepared(net, size, batch, layout, mode == "train")
    runner = (calls.ours if who == "ours" else calls.eager)(model, images)
    timed = calls.contestant(who, runner, labels)
    with timed.around():
        # The peak first: the net's first step finds nothing that an earlier one has left.
        peak = peak_growth(timed.call)
        if labels is None:
            return Bytes(0, 0, 0, peak)
        return replace(saved_by_step(runner, model, images, labels), peak=peak)


def saved_by_step(runner: calls.Runner, model: Module, images: Tensor, labels: Tensor) -> Bytes:
    """What forward and loss keep for backward; the peak is left out."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        # The runner has the images.
        return runner.loss_of(labels)

    held = (*model.parameters(), *model.buffers(), images, labels)
    return saved_bytes(loss, Sample("", (images, labels)), ignored=held)


def main(
    name: str,
    size: str,
    batch: str,
    layout: str,
    isa: str,
    threads: str,
    who: str,
    mode: str,
) -> None:
    _C.set_active_isa(isa)
    torch.set_num_threads(int(threads))
    net = zoo.find(name)
    (found,) = (each for each in net.sizes if each.name == size)
    print(json.dumps(asdict(measure(net, found, int(batch), layout, who, mode))))


if __name__ == "__main__":
    main(*sys.argv[1:])
