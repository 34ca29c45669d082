"""conv2d: every distinct convolution of known networks, at the size at which it runs there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from nnops.testing.opdb.conv2d_layers import Layer

# What a residual network has after its first convolution and pooling.
STEM_CHANNELS, STEM_SIZE = 64, 56
STAGE_CHANNELS = (256, 512, 1024, 2048)
# MobileNet-V2: expansion, channels, blocks, stride of the first one.
INVERTED_RESIDUALS = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
MOBILENET_STEM, MOBILENET_HEAD = 32, 1280


# A layer that _net names, and gives its batch.
Convolution = partial(Layer, "", 1)


def _net(net: str, batch: int, layers: Iterable[Layer], bias: bool = True) -> tuple[Layer, ...]:
    distinct = dict.fromkeys(layers)
    return tuple(replace(each, name=_name(net, each), batch=batch, bias=bias) for each in distinct)


def _name(net: str, layer: Layer) -> str:
    strided = f"s{layer.stride}" if layer.stride != 1 else ""
    grouped = f" g{layer.groups}" if layer.groups > 1 else ""
    kernel = f"{layer.kernel}x{layer.kernel}{strided}{grouped}"
    return f"{net} {layer.channels}->{layer.filters} {layer.size} {kernel}"


def _residual(width: int, groups: int) -> Iterator[Layer]:
    """Bottlenecks as torchvision has them: the 3x3 of a stage's first block strides."""
    yield Convolution(3, STEM_CHANNELS, 224, 7, 2)
    channels, size = STEM_CHANNELS, STEM_SIZE
    for stage, filters in enumerate(STAGE_CHANNELS):
        stride = 2 if stage else 1
        after = size // stride
        yield Convolution(channels, width, size, 1)
        yield Convolution(width, width, size, 3, stride, groups=groups)
        yield Convolution(width, filters, after, 1)
        yield Convolution(channels, filters, size, 1, stride)
        yield Convolution(filters, width, after, 1)
        yield Convolution(width, width, after, 3, groups=groups)
        channels, size, width = filters, after, 2 * width


def _mobilenet_v2() -> Iterator[Layer]:
    yield Convolution(3, MOBILENET_STEM, 224, 3, 2)
    channels, size = MOBILENET_STEM, 112
    for expansion, filters, blocks, first_stride in INVERTED_RESIDUALS:
        for stride in (first_stride, *(1,) * (blocks - 1)):
            width = expansion * channels
            if expansion > 1:
                yield Convolution(channels, width, size, 1)
            yield Convolution(width, width, size, 3, stride, groups=width)
            size //= stride
            yield Convolution(width, filters, size, 1)
            channels = filters
    yield Convolution(channels, MOBILENET_HEAD, size, 1)


LENET = (Convolution(1, 6, 32, 5, padding=0), Convolution(6, 16, 14, 5, padding=0))
CIFAR = (Convolution(3, 32, 32, 5), Convolution(32, 32, 16, 5), Convolution(32, 64, 8, 5))
ALEXNET = (
    Convolution(3, 64, 224, 11, 4, 2),
    Convolution(64, 192, 27, 5),
    Convolution(192, 384, 13, 3),
    Convolution(384, 256, 13, 3),
    Convolution(256, 256, 13, 3),
)
VGG16 = tuple(
    Convolution(channels, filters, size, 3)
    for channels, filters, size in (
        *((3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56)),
        *((256, 256, 56), (256, 512, 28), (512, 512, 28), (512, 512, 14)),
    )
)

# Batches such that most calls take a millisecond or more.
NETS: dict[str, tuple[Layer, ...]] = {
    "lenet": _net("lenet", 512, LENET),
    "cifar": _net("cifar", 64, CIFAR),
    "alexnet": _net("alexnet", 16, ALEXNET),
    "vgg16": _net("vgg16", 2, VGG16),
    "resnet50": _net("resnet50", 8, _residual(64, 1), bias=False),
    "resnext50": _net("resnext50", 8, _residual(128, 32), bias=False),
    "mobilenet_v2": _net("mobilenet_v2", 16, _mobilenet_v2(), bias=False),
}
