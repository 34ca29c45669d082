"""A small colour network: three optimisers over a DataLoader, named and numbered layers.

python examples/cifar_net.py                       # digits, padded and in three channels
python examples/cifar_net.py --data ~/datasets     # CIFAR-10, read by torchvision
python examples/cifar_net.py --tensorboard runs    # pictures of what ReLU and Sigmoid do
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import digits
import nets
import rich
import torch
import typer
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, Subset

import nnops.nn


class Optimizer(str, Enum):
    sgd = "sgd"
    momentum = "momentum"
    adam = "adam"


def make_optimizer(kind: Optimizer, net: torch.nn.Module) -> torch.optim.Optimizer:
    if kind is Optimizer.adam:
        return torch.optim.Adam(net.parameters())
    momentum = 0.9 if kind is Optimizer.momentum else 0.0
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum)


def datasets(data: Path | None) -> tuple[Dataset, Dataset]:
    """(training, test): CIFAR-10 under `data`, or the digits as 3x32x32 images."""
    if data is None:
        return digits.split(channels=3)
    try:
        from torchvision import transforms
        from torchvision.datasets import CIFAR10
    except ModuleNotFoundError:
        raise SystemExit(
            "--data reads CIFAR-10 with torchvision: pip install torchvision"
        ) from None
    to_tensor = transforms.ToTensor()
    return (
        CIFAR10(data, train=True, transform=to_tensor),
        CIFAR10(data, train=False, transform=to_tensor),
    )


def write_pictures(folder: Path, test: Dataset) -> None:
    """Input and output images of ReLU and Sigmoid, for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise SystemExit("--tensorboard writes with TensorBoard: pip install tensorboard") from None
    images, _ = next(iter(DataLoader(test, batch_size=64)))
    with SummaryWriter(str(folder)) as writer:
        writer.add_images("input", images)
        writer.add_images("relu", nnops.nn.ReLU()(images))
        writer.add_images("sigmoid", nnops.nn.Sigmoid()(images))
    rich.print(f"pictures written: tensorboard --logdir {folder}")


def accuracy(net: torch.nn.Module, test: Dataset) -> float:
    right = count = 0
    with torch.no_grad():
        for images, labels in DataLoader(test, batch_size=250):
            right += int((net(images).argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def main(
    data: Annotated[Path | None, typer.Option(help="folder with CIFAR-10's python batches")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="folder for TensorBoard")] = None,
    optimizer: Optimizer = Optimizer.momentum,
    epochs: int = 2,
    batch: int = 64,
    named: Annotated[bool, typer.Option(help="name the layers, or number them")] = True,
    use_torch: Annotated[bool, typer.Option("--torch", help="torch.nn, not nnops.nn")] = False,
    limit: Annotated[int, typer.Option(help="training images to use; 0: all")] = 0,
) -> None:
    """Train the network for whole epochs and report loss and test accuracy after each."""
    nn = torch.nn if use_torch else nnops.nn
    torch.manual_seed(0)
    net = nets.cifar_net(nn, named)
    rich.print(net)
    training, test = datasets(data)
    if limit:
        training = Subset(training, range(limit))
    if tensorboard is not None:
        write_pictures(tensorboard, test)

    loss_function = nn.CrossEntropyLoss()
    steps = make_optimizer(optimizer, net)
    for epoch in range(epochs):
        total = 0.0
        loader = DataLoader(training, batch_size=batch, shuffle=True)
        for images, labels in track(loader, f"epoch {epoch + 1}"):
            steps.zero_grad()
            loss = loss_function(net(images), labels)
            loss.backward()
            steps.step()
            total += loss.item()
        rich.print(f"loss {total / len(loader):.4f}, test accuracy {accuracy(net, test):.1%}")


if __name__ == "__main__":
    typer.run(main)
