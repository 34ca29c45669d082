"""LeNet on real digits in several processes, with DistributedDataParallel.

torchrun --nproc-per-node 2 examples/distributed.py            # with nnops.nn
torchrun --nproc-per-node 2 examples/distributed.py --torch    # the same with torch.nn
"""

from __future__ import annotations

from types import ModuleType

import digits
import nets
import rich
import torch
import torch.distributed as dist
import typer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler

import nnops.nn


def train(nn: ModuleType, epochs: int, batch: int, lr: float, limit: int) -> list[float]:
    """The losses of all steps, averaged over the processes, of which each takes its share."""
    torch.manual_seed(0)  # the same weights in every process
    net = DistributedDataParallel(nets.LeNet(nn))
    training = Subset(digits.split()[0], range(limit))
    sampler = DistributedSampler(training, seed=0)
    loader = DataLoader(training, batch_size=batch // dist.get_world_size(), sampler=sampler)
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_function(net(images), labels)
            loss.backward()
            optimizer.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append(mean.item() / dist.get_world_size())
    return losses


def main(
    epochs: int = 2,
    batch: int = typer.Option(64, help="images of a step, of all processes together"),
    lr: float = 0.01,
    use_torch: bool = typer.Option(False, "--torch", help="torch.nn in place of nnops.nn"),
    limit: int = typer.Option(digits.TRAINING, help="training digits to use"),
) -> None:
    """Train LeNet in all processes that torchrun started."""
    dist.init_process_group("gloo")
    losses = train(torch.nn if use_torch else nnops.nn, epochs, batch, lr, limit)
    if dist.get_rank() == 0:
        rich.print(f"{dist.get_world_size()} processes, {len(losses)} steps")
        rich.print("losses:", " ".join(f"{loss:.5f}" for loss in losses))
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
