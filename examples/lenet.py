"""LeNet on nnops: its graph, an update written by hand, torch's optimiser, and real digits.

python examples/lenet.py                # with nnops.nn
python examples/lenet.py --torch        # the same with torch.nn: the same numbers
"""

from __future__ import annotations

from types import ModuleType

import digits
import nets
import rich
import torch
import typer
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

import nnops.nn


def show_graph(loss: Tensor) -> None:
    """The backward graph along its first inputs, from the loss to the first convolution."""
    names = []
    node = loss.grad_fn
    while node is not None:
        names.append(type(node).__name__)
        # Of a layer's inputs, the one that was computed; parameters are leaves of the graph.
        children = (child for child, _ in node.next_functions)
        node = next((child for child in children if child and child.next_functions), None)
    rich.print("graph, from the loss down:", " → ".join(names))


def one_random_step(nn: ModuleType, net: nets.LeNet) -> None:
    """The steps of a first lesson: any gradient, a loss, its graph, updates by hand and by SGD."""
    image = torch.randn(1, 1, 32, 32)
    scores = net(image)
    net.zero_grad()
    scores.backward(torch.randn(1, 10))

    loss_function = nn.MSELoss()
    target = torch.randn(1, 10)
    loss = loss_function(net(image), target)
    show_graph(loss)

    net.zero_grad()
    rich.print("conv1.bias.grad before:", net.conv1.bias.grad)
    loss.backward()
    rich.print("conv1.bias.grad after: ", net.conv1.bias.grad)

    learning_rate = 0.01
    for parameter in net.parameters():
        parameter.data.sub_(parameter.grad.data * learning_rate)
    rich.print("loss before the update by hand:", loss.item())
    rich.print("loss after it:                 ", loss_function(net(image), target).item())

    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
    optimizer.zero_grad()
    loss_function(net(image), target).backward()
    optimizer.step()
    rich.print("loss after a step of SGD:      ", loss_function(net(image), target).item())


def accuracy(net: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (net(images).argmax(1) == labels).float().mean().item()


def main(
    epochs: int = 3,
    batch: int = 50,
    lr: float = 0.01,
    use_torch: bool = typer.Option(False, "--torch", help="torch.nn in place of nnops.nn"),
    limit: int = typer.Option(4000, help="training digits to use"),
) -> None:
    """Take LeNet through a first lesson, then train it on real digits."""
    nn = torch.nn if use_torch else nnops.nn
    torch.manual_seed(0)
    net = nets.LeNet(nn)
    rich.print(net)
    one_random_step(nn, net)

    training, test = digits.split()
    training = torch.utils.data.Subset(training, range(limit))
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for epoch in range(epochs):
        total = 0.0
        loader = DataLoader(training, batch_size=batch, shuffle=True)
        for images, labels in track(loader, f"epoch {epoch + 1}"):
            optimizer.zero_grad()
            loss = loss_function(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        score = accuracy(net, *test.tensors)
        rich.print(f"loss {total / len(loader):.4f}, test accuracy {score:.1%}")


if __name__ == "__main__":
    typer.run(main)
