"""Do models of torchvision and timm convert, and give torch's numbers?

Each architecture is built with random weights and converted. In float64, where rounding hides
nothing, a training step (output and every gradient) and a call in eval mode, where BatchNorm is
folded, are held against torch's. In float32 the training step must equal, bit for bit, that of the
model converted without fusing; there both models are timed, in turns.

    pip install torchvision timm rich typer
    python examples/zoo.py                     # all of them, some minutes
    python examples/zoo.py resnet18 timm/dla34
    python examples/zoo.py --out bench/results/conversion_zoo.md
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nnops

# Name (of torchvision, or of timm behind "timm/") to the side of its images here.
MODELS = {
    "squeezenet1_1": 96,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "googlenet": 96,
    "inception_v3": 139,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x1_0": 64,
    "mnasnet0_5": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "timm/resnet26d": 64,
    "timm/seresnext26d_32x4d": 64,
    "timm/skresnet18": 64,
    "timm/res2net50_26w_4s": 64,
    "timm/dla34": 64,
    "timm/hrnet_w18_small": 64,
    "timm/ese_vovnet19b_dw": 64,
    "timm/cspresnet50": 64,
    "timm/repvgg_a0": 64,
    "timm/ghostnet_100": 64,
    "timm/selecsls42b": 64,
    "timm/tf_efficientnet_b0": 64,
    "timm/resnetv2_50": 64,
    "timm/inception_v4": 107,
    "alexnet": 96,
    "vgg11": 64,
    "vgg16_bn": 64,
}
# Largest difference over largest value, in float64. Deep nets amplify the last bit.
TOLERANCE = 1e-8


@dataclass
class Outcome:
    """What came out for one architecture."""

    name: str
    counts: dict[str, int]
    step: float  # worst relative difference of output and gradients from torch's, float64
    folded: float  # of the output in eval mode without gradients, float64
    same_bits: bool  # as the model converted without fusing, float32
    faster_step: float  # torch's time over ours: forward and backward, float32
    faster_eval: float  # one image in eval mode

    @property
    def equal(self) -> bool:
        return self.step <= TOLERANCE and self.folded <= TOLERANCE and self.same_bits

    def cells(self) -> list[str]:
        numbers = [str(self.counts.get(state, 0)) for state in ("fused", "folded", "swapped")]
        bits = "yes" if self.same_bits else "NO"
        verdict = "yes" if self.equal else "NO"
        ratios = [f"{self.faster_step:.2f}", f"{self.faster_eval:.2f}"]
        differences = [f"{self.step:.0e}", f"{self.folded:.0e}"]
        return [self.name, verdict, *ratios, *differences, bits, *numbers]


HEADS = (
    "model",
    "equal",
    "step, torch / ours",
    "one image",
    "training step",
    "eval, folded",
    "bits as unfused",
    "fused",
    "folded",
    "swapped",
)


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        model: torch.nn.Module = timm.create_model(name.removeprefix("timm/"))
    else:
        import torchvision

        # The Inceptions would draw their weights slowly, from a truncated normal distribution, and
        # the second classifier of the third wants images of 299x299.
        options: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            options = {"init_weights": False, "aux_logits": name == "googlenet"}
        model = torchvision.models.get_model(name, **options)
    return model


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [each for each in output if each is not None]


def step(model: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs in training mode, gradients by the images and all parameters, and buffers then."""
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(1)  # dropout's
    images = images.clone().requires_grad_()
    outputs = tensors(model.train()(images))
    parameters = [each for each in model.parameters() if each.requires_grad]
    loss = sum((each * torch.linspace(-1, 1, each[0].numel()).to(each)).sum() for each in outputs)
    gradients = torch.autograd.grad(loss, [images, *parameters], allow_unused=True)
    results = [each for each in (*outputs, *gradients) if each is not None]
    results += [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(state[name])
    return [each.detach() for each in results]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference over the largest value, of the worst pair of tensors."""
    assert [each.shape for each in ours] == [each.shape for each in theirs]
    worst = 0.0
    # A gradient that is zero but for rounding, as of a bias before a BatchNorm, is held against
    # the largest of all gradients.
    floor = 1e-6 * max(float(each.abs().max()) for each in theirs if each.numel())
    for one, other in zip(ours, theirs, strict=True):
        if other.numel():
            scale = max(float(other.abs().max()), floor)
            worst = max(worst, float((one - other).abs().max()) / scale)
    return worst


def ratio(theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> float:
    """Median of torch's time over ours, called in turns."""

    def seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    theirs(), ours()
    return median(seconds(theirs) / seconds(ours) for _ in range(rounds))


def forward_and_backward(model: torch.nn.Module, images: Tensor) -> None:
    model.zero_grad()
    sum(each.square().mean() for each in tensors(model(images))).backward()


def times(model: torch.nn.Module, images: Tensor) -> tuple[float, float]:
    """torch's time over ours for a training step, and for one image in eval mode."""
    theirs = copy.deepcopy(model).float().train()
    ours = nnops.convert(theirs)
    step = ratio(
        lambda: forward_and_backward(theirs, images),
        lambda: forward_and_backward(ours, images),
        rounds=7,
    )
    theirs.eval(), ours.eval()
    image = images[:1]
    with torch.no_grad():
        return step, ratio(lambda: theirs(image), lambda: ours(image), rounds=15)


def examine(name: str) -> Outcome:
    model = build(name)
    side = MODELS.get(name, 64)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2)) - 0.5
    counts = nnops.conversion_report(model).counts()

    faster = times(model, images)
    model.double()
    converted, unfused = nnops.convert(model), nnops.convert(model, fuse=False)
    pairs = zip(
        *(step(copy.deepcopy(each).float(), images) for each in (converted, unfused)), strict=True
    )
    same_bits = all(torch.equal(one, other) for one, other in pairs)
    images = images.double()
    trained = difference(step(converted, images), step(model, images))
    with torch.no_grad():
        ours = tensors(converted.eval()(images))
        folded = difference(ours, tensors(model.eval()(images)))
    return Outcome(name, counts, trained, folded, same_bits, *faster)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="default: all known here")] = None,
    out: Annotated[Path | None, typer.Option(help="also write a Markdown table")] = None,
) -> None:
    """Convert models of torchvision and timm, and compare outputs and gradients with torch's."""
    outcomes: list[Outcome] = []
    failed: list[tuple[str, str]] = []
    for name in track(names or list(MODELS), console=Console(stderr=True), transient=True):
        try:
            outcomes.append(examine(name))
        except Exception as error:  # one model must not end the list
            failed.append((name, f"{type(error).__name__}: {error}"))
        gc.collect()
        outcomes.sort(key=lambda outcome: (outcome.equal, outcome.faster_step))
        if out is not None:  # after every model: a run that is cut short leaves what it has
            out.write_text(markdown(outcomes, failed))

    table = Table(*HEADS, box=None, pad_edge=False)
    for outcome in outcomes:
        table.add_row(*outcome.cells())
    console = Console()
    console.print(table)
    for name, reason in failed:
        console.print(f"{name} failed: {reason}", markup=False)
    equal = sum(outcome.equal for outcome in outcomes)
    console.print(f"{equal} of {len(outcomes) + len(failed)} equal torch's")
    if equal < len(outcomes) + len(failed):
        raise typer.Exit(1)


def markdown(outcomes: list[Outcome], failed: list[tuple[str, str]]) -> str:
    versions = [f"{name} {version(name)}" for name in ("torch", "torchvision", "timm")]
    lines = [
        "# Models of torchvision and timm, converted",
        "",
        f"`python examples/zoo.py`, {', '.join(versions)}. Random weights, two images of the sizes",
        f"that the script names, {torch.get_num_threads()} threads, "
        f"{nnops._library._C.active_isa()}.",
        "",
        "* step, torch / ours: torch's time over ours, forward and backward in float32; one image:",
        "  the same in eval mode without gradients. Medians of calls in turns;",
        "* training step, and eval, folded: difference from torch in float64, the largest over the",
        "  largest value, of the worst tensor among output, gradients of all parameters and of the",
        "  images, and running statistics;",
        "* bits as unfused: the same step in float32, against nnops's layers one by one;",
        "* fused, folded, swapped: layers, and functions called by a forward; what has a BatchNorm",
        "  in front is fused in eval mode only.",
        "",
        "Those not equal come first, then the slowest steps.",
        "",
        f"| {' | '.join(HEADS)} |",
        f"|{'---|' * len(HEADS)}",
    ]
    lines += [f"| {' | '.join(outcome.cells())} |" for outcome in outcomes]
    lines += [f"| {name} | failed: {reason} |" for name, reason in failed]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
