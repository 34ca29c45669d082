"""Does nnops give torch's numbers? LeNet on 5,000 real digits, with torch.nn and with nnops.nn.

Both networks start from the same weights and see the same batches, in float32 and in float64.
Training amplifies rounding: after some hundred steps even two builds of torch differ visibly in
float32. So the verdict asks for agreement where it means something: in float64 over the whole
run, in float32 over the first steps, and in float32 for the accuracy that is reached.

Then the net of torch.nn is timed beside nnops.convert() of it.

    make demo
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType

import digits
import matplotlib
import nets
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nnops.nn
from nnops.benchmark.nets import calls
from nnops.benchmark.nets.memory import saved_by_step
from nnops.benchmark.timing import calmest, ratios

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Largest difference of two losses that counts as the same number.
LIMIT_FLOAT64 = 1e-7
FIRST_STEPS, LIMIT_FIRST_STEPS = 20, 1e-5
# Of the test accuracy in float32: one in fifty digits.
LIMIT_ACCURACY = 0.02
# Of measuring, for a training step and for a forward.
SPEED_SECONDS = 0.5


@dataclass
class Run:
    """One network in training, and what was seen on the way."""

    nn: ModuleType
    dtype: torch.dtype
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        images = images.to(self.dtype)
        self.optimizer.zero_grad()
        loss = self.loss(images, labels)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.nn.functional.cross_entropy(self.net(images), labels)

    def test(self, images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            predicted = self.net(images.to(self.dtype)).argmax(1)
        self.accuracy = (predicted == labels).double().mean().item()


@dataclass
class Gain:
    """A figure of torch's net and of nnops.convert() of it."""

    torchs: float
    ours: float
    ratio: float


def gains(net: torch.nn.Module, images: Tensor, labels: Tensor) -> tuple[Gain, Gain, Gain]:
    """(seconds of a training step, of a forward of one image, bytes saved for backward)."""
    net.train()
    runners = [make(net, images) for make in (calls.eager, calls.ours)]
    saved = [saved_by_step(runner, net, images, labels).saved for runner in runners]
    step = timed(runners, labels)
    net.eval()
    one = timed([make(net, images[:1]) for make in (calls.eager, calls.ours)], None)
    return step, one, Gain(*saved, saved[0] / saved[1])


def timed(runners: list[calls.Runner], labels: Tensor | None) -> Gain:
    """In alternating rounds, by turns, the ratio taken within each."""
    names = ("torch", "nnops")
    contestants = [
        calls.contestant(name, runner, labels) for name, runner in zip(names, runners, strict=True)
    ]
    rounds = calmest(contestants, SPEED_SECONDS).rounds
    torchs, ours = (rounds[name] for name in names)
    return Gain(median(torchs), median(ours), ratios(torchs, ours).median)


def start(nn: ModuleType, dtype: torch.dtype, seed: int, lr: float) -> Run:
    torch.manual_seed(seed)
    net = nets.LeNet(nn).to(dtype)
    return Run(nn, dtype, net, torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9))


def difference(one: Run, other: Run, steps: int | None = None) -> float:
    """Largest difference of the losses; infinite if there is a NaN."""
    pairs = zip(one.losses[:steps], other.losses[:steps], strict=True)
    gaps = [abs(a - b) for a, b in pairs]
    return max(gaps) if all(gap == gap for gap in gaps) else float("inf")


def draw(torchs: Run, ours: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, run, name, colour in (
        (panels[0], torchs, "torch.nn", "tab:blue"),
        (panels[1], ours, "nnops.nn", "tab:orange"),
    ):
        panel.plot(run.losses, color=colour, linewidth=1)
        panel.set_title(f"{name}: test accuracy {run.accuracy:.1%}")
        panel.set_xlabel("training step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("cross-entropy of the batch")
    figure.suptitle("LeNet on 4,000 MNIST digits, float32, same seed, same batches")
    figure.savefig(path, dpi=120)


def main(
    epochs: int = 4,
    batch: int = 50,
    lr: float = 0.01,
    seed: int = 0,
    limit: int = digits.TRAINING,
    picture: Path = Path("results/demo.png"),
) -> None:
    """Train with both, compare, and say whether nnops gave torch's numbers."""
    console = Console()
    training, test = digits.split()
    images, labels = (tensor[:limit] for tensor in training.tensors)
    torchs, ours, torchs64, ours64 = (
        start(nn, dtype, seed, lr)
        for dtype in (torch.float32, torch.float64)
        for nn in (torch.nn, nnops.nn)
    )
    order = torch.Generator().manual_seed(seed)
    batches = [
        indices
        for _ in range(epochs)
        for indices in torch.randperm(len(images), generator=order).split(batch)
    ]
    runs = [torchs, ours, torchs64, ours64]
    for indices in track(batches, f"{epochs} epochs, torch.nn and nnops.nn", console=console):
        for run in runs:
            run.step(images[indices], labels[indices])
        # Neither is always the one that finds the caches warm.
        runs.reverse()
    for run in runs:
        run.test(*test.tensors)
    draw(torchs, ours, picture)
    # A copy: a slice would count as the whole data set.
    step, one, saved = gains(torchs.net, images[:batch].clone(), labels[:batch].clone())

    def row(name: str, values: tuple[float, float], form: str, comment: str) -> None:
        table.add_row(name, *(form.format(value) for value in values), comment)

    gap = difference(torchs, ours)
    first_gap = difference(torchs, ours, FIRST_STEPS)
    gap64 = difference(torchs64, ours64)
    table = Table("", "torch.nn", "nnops.nn", "difference", title="LeNet, float32")
    row("loss, first step", (torchs.losses[0], ours.losses[0]), "{:.4f}", "")
    last = tuple(sum(run.losses[-20:]) / len(run.losses[-20:]) for run in (torchs, ours))
    row("loss, last 20 steps", last, "{:.4f}", "")
    table.add_row("loss curves", "", "", f"at most {gap:.1e}")
    table.add_row(f"loss curves, {FIRST_STEPS} steps", "", "", f"at most {first_gap:.1e}")
    table.add_row("loss curves, float64", "", "", f"at most {gap64:.1e}")
    row("test accuracy", (torchs.accuracy, ours.accuracy), "{:.1%}", "")
    row("test accuracy, float64", (torchs64.accuracy, ours64.accuracy), "{:.1%}", "")
    console.print(table)
    table = Table("", "torch.nn", "convert()", "torch/nnops", title="The same net, converted")
    for name, gain, unit, form in (
        (f"training step, {batch} images (ms)", step, 1e-3, "{:.2f}"),
        ("forward of one image (us)", one, 1e-6, "{:.0f}"),
        ("saved for backward (MB)", saved, 1e6, "{:.2f}"),
    ):
        row(name, (gain.torchs / unit, gain.ours / unit), form, f"{gain.ratio:.2f}")
    console.print(table)
    console.print(f"loss curves: {picture}", highlight=False)
    print(
        f"torch's figure over nnops.convert()'s: training step {step.ratio:.2f}, forward of one "
        f"image {one.ratio:.2f}, bytes saved for backward {saved.ratio:.2f}"
    )

    same = (
        gap64 <= LIMIT_FLOAT64
        and torchs64.accuracy == ours64.accuracy
        and first_gap <= LIMIT_FIRST_STEPS
        and abs(torchs.accuracy - ours.accuracy) <= LIMIT_ACCURACY
    )
    verdict = "gave" if same else "DID NOT give"
    print(
        f"nnops {verdict} torch's numbers: losses in float64 within {gap64:.0e} over "
        f"{len(batches)} steps (limit {LIMIT_FLOAT64:.0e}), in float32 within {first_gap:.0e} over "
        f"the first {FIRST_STEPS} (limit {LIMIT_FIRST_STEPS:.0e}), test accuracy in float64 "
        f"{torchs64.accuracy:.1%} and {ours64.accuracy:.1%} (must be equal), in float32 "
        f"{torchs.accuracy:.1%} and {ours.accuracy:.1%} (limit {LIMIT_ACCURACY:.0%})"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    typer.run(main)
