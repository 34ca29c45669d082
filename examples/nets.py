"""The networks of the examples, made of torch.nn or of nnops.nn: `nn` says which."""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType

import torch
from torch import Tensor


class LeNet(torch.nn.Module):
    """1x32x32 to 10 scores: two 5x5 convolutions with pooling, three linear layers."""

    def __init__(self, nn: ModuleType) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool1 = nn.MaxPool2d((2, 2))
        self.pool2 = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu(self.conv1(x)))
        x = self.pool2(self.relu(self.conv2(x)))
        x = x.flatten(1)
        x = self.relu(self.fc1(x))
        x = self.relu(self.fc2(x))
        return self.fc3(x)


def cifar_layers(nn: ModuleType) -> OrderedDict[str, torch.nn.Module]:
    """3x32x32 to 10 scores: three 5x5 convolutions with pooling, two linear layers."""
    return OrderedDict(
        conv1=nn.Conv2d(3, 32, 5, padding=2),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 32, 5, padding=2),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(32, 64, 5, padding=2),
        pool3=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        linear1=nn.Linear(1024, 64),
        linear2=nn.Linear(64, 10),
    )


def cifar_net(nn: ModuleType, named: bool = True) -> torch.nn.Module:
    """The layers as a Sequential, with their names or numbered."""
    layers = cifar_layers(nn)
    return nn.Sequential(layers) if named else nn.Sequential(*layers.values())


def vgg_like(nn: ModuleType, width: int = 32) -> torch.nn.Module:
    """1x32x32 to 10 scores in the manner of VGG: pairs of 3x3 convolutions with pooling."""

    def block(before: int, after: int) -> list[torch.nn.Module]:
        first = nn.Conv2d(before, after, 3, padding=1)
        second = nn.Conv2d(after, after, 3, padding=1)
        return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(1, width),
        *block(width, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width * 8 * 8, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
