"""Does training end at the same place under every precision of conv2d, and under torch?

A net in the manner of VGG, whose layers Winograd's forms compute, and LeNet are trained on real
digits from several seeds with torch.nn, with nnops under "highest" and under "high". Training
amplifies any rounding, so what counts is whether the three differ by more than seeds do.

    python examples/precision.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import digits
import nets
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

import nnops.nn

NETS: dict[str, Callable[[ModuleType], torch.nn.Module]] = {
    "VGG-like": nets.vgg_like,
    "LeNet": nets.LeNet,
}
WAYS: dict[str, tuple[ModuleType, str | None]] = {
    "torch": (torch.nn, None),
    "nnops, highest": (nnops.nn, "highest"),
    "nnops, high": (nnops.nn, "high"),
}


def train(
    make: Callable[[ModuleType], torch.nn.Module],
    nn: ModuleType,
    seed: int,
    epochs: int,
    data: tuple[TensorDataset, TensorDataset],
) -> Iterator[tuple[float, float]]:
    """Yields (loss of the epoch, test accuracy) after every epoch."""
    torch.manual_seed(seed)
    net = make(nn)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    training, test = data
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        losses = []
        for images, labels in DataLoader(training, 64, shuffle=True, generator=order):
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            right = (net(test.tensors[0]).argmax(1) == test.tensors[1]).double().mean().item()
        yield mean(losses), right


def main(epochs: int = 3, seeds: int = 4, limit: int = digits.TRAINING) -> None:
    """Train each net in three ways from each seed, and print losses and accuracies."""
    training, test = digits.split()
    data = (TensorDataset(*training[:limit]), TensorDataset(*test[:limit]))
    table = Table(
        "net", "way", "last loss", "test accuracy", title=f"{seeds} seeds, mean and deviation"
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=len(NETS) * len(WAYS) * seeds * epochs)
        for name, make in NETS.items():
            for way, (nn, precision) in WAYS.items():
                context: Any = nnops.conv_precision(precision) if precision else nullcontext()
                ends = []
                with context:
                    for seed in range(seeds):
                        results = []
                        for result in train(make, nn, seed, epochs, data):
                            results.append(result)
                            progress.advance(task)
                        ends.append(results[-1])
                table.add_row(name, way, *(_spread(each) for each in zip(*ends, strict=True)))
            table.add_section()
    Console(width=100).print(table)


def _spread(values: tuple[float, ...]) -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.4f} +- {deviation:.4f}"


if __name__ == "__main__":
    typer.run(main)
