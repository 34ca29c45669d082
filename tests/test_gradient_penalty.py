"""A critic's step with a gradient penalty (WGAN-GP): backward through backward, against torch."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

import nnops.nn


def gradients(nn: ModuleType, images: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    critic = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, 1)),
    ).double()
    between = images.clone().requires_grad_()
    scores = critic(between)
    (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    (scores.mean() + 10 * penalty).backward()
    # The last bias is not in the penalty, but has a gradient from the mean of the scores.
    return [parameter.grad for parameter in critic.parameters()]


def test_gradient_penalty() -> None:
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for ours, theirs in zip(gradients(nnops.nn, images), gradients(torch.nn, images), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.abs().sum() > 0
