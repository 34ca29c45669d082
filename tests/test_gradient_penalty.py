"""A critic's step with a gradient penalty (WGAN-GP): backward through backward, against torch.

python tests/test_gradient_penalty.py [threads]    how long it takes, beside torch
"""

from __future__ import annotations

import sys
import time
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

import nnops.nn


def critic(nn: ModuleType, kernels: tuple[int, ...], widths: tuple[int, ...], size: int) -> Module:
    """Of images of 3 channels: convolution, ReLU and pool for each width, and a score."""
    torch.manual_seed(0)
    layers: list[Module] = []
    channels = 3
    for kernel, width in zip(kernels, widths, strict=True):
        layers += (
            nn.Conv2d(channels, width, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        channels, size = width, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 1))


def backward(critic: Module, real: Tensor, generated: Tensor, mix: Tensor) -> None:
    between = (mix * real + (1 - mix) * generated).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    (critic(generated).mean() - critic(real).mean() + 10 * penalty).backward()


def batch_of(*sizes: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    real, generated = torch.randn(2, *sizes, dtype=dtype)
    return real, generated, torch.rand(sizes[0], 1, 1, 1, dtype=dtype)


def test_gradient_penalty() -> None:
    batch = batch_of(4, 3, 16, 16, dtype=torch.float64)
    ours, theirs = (critic(nn, (3, 5), (8, 8), 16).double() for nn in (nnops.nn, torch.nn))
    for net in (ours, theirs):
        backward(net, *batch)
    *parameters, last_bias = zip(ours.parameters(), theirs.parameters(), strict=True)
    for one, other in parameters:
        torch.testing.assert_close(one.grad, other.grad)
        assert other.grad.abs().sum() > 0
    # It moves all scores alike.
    assert all(each.grad.abs() < 1e-12 for each in last_bias)


def milliseconds(batch: tuple[Tensor, Tensor, Tensor], *nets: Module) -> list[float]:
    """The shortest of some calls of each, in turn."""
    least = [float("inf")] * len(nets)
    for round in range(22):
        for index, net in enumerate(nets):
            net.zero_grad()
            start = time.perf_counter()
            backward(net, *batch)
            if round > 1:
                least[index] = min(least[index], 1e3 * (time.perf_counter() - start))
    return least


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for kernel, widths, size, count in (
        (3, (8, 8), 16, 4),
        (3, (32, 64, 128), 32, 16),
        (5, (32, 64, 128), 32, 16),
        (3, (64, 128), 64, 4),
    ):
        kernels = (kernel,) * len(widths)
        nets = (critic(nn, kernels, widths, size) for nn in (nnops.nn, torch.nn))
        ours, theirs = milliseconds(batch_of(count, 3, size, size), *nets)
        print(
            f"{count} images of {size}x{size}, {kernel}x{kernel} to {widths} channels: "
            f"{ours:.2f} ms, torch {theirs:.2f} ms, {theirs / ours:.2f} times"
        )


if __name__ == "__main__":
    main()
