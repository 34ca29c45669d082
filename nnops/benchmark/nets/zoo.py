"""The nets: plain torch.nn, the usual architectures, weights drawn at random from a fixed seed.

The layers of AlexNet, VGG and ResNet-18 are torchvision's (which is not needed), in-place ReLUs and
initial weights included.

    Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014 (AlexNet)
    Simonyan and Zisserman, Very deep convolutional networks, 2015 (VGG-11 and VGG-16)
    He et al., Deep residual learning for image recognition, 2016 (ResNet-18)
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

CLASSES = 1000


@dataclass(frozen=True)
class Size:
    """Images of [C, H, W] and how many at once, besides one. `name` stands before the batch."""

    image: tuple[int, ...]
    inference: int
    training: int
    name: str = ""

    def sample(self, batch: int) -> str:
        return f"{self.name} b{batch}".lstrip()


@dataclass(frozen=True)
class Net:
    """`build` makes the model, with a classifier's scores of [N, classes, ...] as its output."""

    name: str
    build: Callable[[], Module]
    sizes: tuple[Size, ...]

    def model(self) -> Module:
        """The model in training mode, always with the same weights."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return self.build().train()


def prepared(
    net: Net, size: Size, batch: int, layout: str, training: bool
) -> tuple[Module, Tensor, Tensor | None]:
    """(the model in its mode, images, labels for training), always the same ones.

    BatchNorm has seen images before, so that its statistics are not those of a new layer.
    """
    generator = torch.Generator().manual_seed(0)
    model = net.model()
    images = torch.randn(batch, *size.image, generator=generator)
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            model(torch.randn(2, *size.image, generator=generator))
        if not training:
            return model.eval(), images, None
        scores = model.eval()(images[:1])
    labels = torch.randint(scores.shape[1], (batch, *scores.shape[2:]), generator=generator)
    return model.train(), images, labels


# --- architectures --------------------------------------------------------------------------------


def lenet() -> Module:
    """The shapes of the examples' LeNet: 1x32x32 to 10 scores."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 6, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * 5 * 5, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, 10),
        )
    )


def cifar() -> Module:
    """The examples' CIFAR-10 net: 3x32x32 to 10 scores, without any ReLU."""
    return nn.Sequential(
        OrderedDict(
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
    )


def alexnet() -> Module:
    def conv(before: int, after: int, kernel: int, stride: int = 1, padding: int = 1) -> Module:
        return nn.Conv2d(before, after, kernel, stride, padding)

    features = nn.Sequential(
        *(conv(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(conv(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(conv(192, 384, 3), nn.ReLU(inplace=True)),
        *(conv(384, 256, 3), nn.ReLU(inplace=True)),
        *(conv(256, 256, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True)),
        nn.Linear(4096, CLASSES),
    )
    return _classifier_of(features, nn.AdaptiveAvgPool2d(6), classifier)


# Convolutions between the five max-pools, by the channels that they give.
VGG_CHANNELS = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


def vgg(depth: int) -> Module:
    features: list[Module] = []
    before = 3
    for block in VGG_CHANNELS[depth]:
        for after in block:
            features += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
            before = after
        features.append(nn.MaxPool2d(2, 2))
    classifier = nn.Sequential(
        *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(4096, CLASSES),
    )
    model = _classifier_of(nn.Sequential(*features), nn.AdaptiveAvgPool2d(7), classifier)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def _classifier_of(features: Module, pool: Module, classifier: Module) -> Module:
    return nn.Sequential(
        OrderedDict(features=features, avgpool=pool, flatten=nn.Flatten(), classifier=classifier)
    )


class ResidualBlock(Module):
    """Two 3x3 convolutions with BatchNorm, and the input added before the last ReLU."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        output: Tensor = self.relu(x)
        return output


def resnet18() -> Module:
    layers: list[Module] = []
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers.append(ResidualBlock(before, after, stride))
        layers.append(ResidualBlock(after, after, 1))
        before = after
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, 2, 1),
            layers=nn.Sequential(*layers),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, CLASSES),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


_PHOTO = (3, 224, 224)
_VGG_SIZES = (Size((3, 96, 96), 4, 4, "96"), Size(_PHOTO, 2, 2, "224"))
NETS = {
    net.name: net
    for net in (
        Net("lenet", lenet, (Size((1, 32, 32), 64, 64),)),
        Net("cifar", cifar, (Size((3, 32, 32), 64, 64),)),
        Net("alexnet", alexnet, (Size(_PHOTO, 4, 16),)),
        Net("vgg11", partial(vgg, 11), _VGG_SIZES),
        Net("vgg16", partial(vgg, 16), _VGG_SIZES),
        Net("resnet18", resnet18, (Size(_PHOTO, 4, 4),)),
    )
}


def find(name: str) -> Net:
    """One of NETS, or what "module:function" returns: (model, images [N, C, H, W]).

    Of the images only the shape counts: N is the batch that is timed besides 1. A function that
    returns the model alone is taken to want 16 photographs of 3x224x224.

    Raises:
        ValueError: if there is no such net, module or function.
        TypeError: if the function returns something else.
    """
    if name in NETS:
        return NETS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"must be one of {', '.join(NETS)} or module:function, but got {name}")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
    made = factory()
    _, example = _model_and_example(name, made)
    batch, *image = example.shape
    return Net(
        name,
        lambda: _model_and_example(name, factory())[0],
        (Size(tuple(image), batch, batch),),
    )


def _model_and_example(name: str, made: object) -> tuple[Module, Tensor]:
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if example is None:
        example = torch.empty(16, *_PHOTO)
    if not isinstance(model, Module) or not isinstance(example, Tensor):
        raise TypeError(
            f"{name} must return a torch.nn.Module, or one and a tensor of images, "
            f"but returned {type(made).__name__}"
        )
    if not example.is_floating_point() or example.dim() < 2:
        raise TypeError(
            f"{name} must return floating-point images [N, ...], "
            f"but returned {example.dtype} {list(example.shape)}"
        )
    return model, example
