"""conv2d: the layers that the benchmarks time by default. One line adds one."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from nnops.testing.samples import Maker, Sample

# Images of up to this many channels come from outside: they need no gradient.
FIRST_LAYER_CHANNELS = 4
WINOGRAD_CHANNELS = 64
WIDE_CHANNELS = 32
WIDE_CHANNELS_5X5 = 16

# One number for both, or height and width.
Pair = int | tuple[int, int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Layer:
    """A convolution of images of `size`; padding None keeps the size where stride is 1."""

    name: str
    batch: int
    channels: int
    filters: int
    size: Pair
    kernel: Pair
    stride: Pair = 1
    padding: Pair | None = None
    _: KW_ONLY
    groups: int = 1
    dilation: Pair = 1
    bias: bool = True
    # Whether a layer before it makes its images, however few their channels.
    inner: bool = False

    @property
    def first(self) -> bool:
        return self.channels <= FIRST_LAYER_CHANNELS and not self.inner

    @property
    def size_pair(self) -> tuple[int, int]:
        return _pair(self.size)

    @property
    def kernel_pair(self) -> tuple[int, int]:
        return _pair(self.kernel)

    @property
    def padding_pair(self) -> tuple[int, int]:
        if self.padding is not None:
            return _pair(self.padding)
        (height, width), (down, right) = self.kernel_pair, _pair(self.dilation)
        return down * (height // 2), right * (width // 2)

    @property
    def output_size(self) -> tuple[int, int]:
        """Not positive where the kernel does not fit."""
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                self.size_pair,
                self.kernel_pair,
                _pair(self.stride),
                self.padding_pair,
                _pair(self.dilation),
                strict=True,
            )
        )
        return height, width

    @property
    def kernel_class(self) -> str:
        """The class of the table of goals."""
        dense = _pair(self.stride) == _pair(self.dilation) == (1, 1) and self.groups == 1
        narrowest = min(self.channels, self.filters)
        if self.first:
            return "first layer"
        if self.groups == self.channels > 1:
            return "depthwise"
        if dense and self.kernel_pair == (3, 3) and narrowest >= WINOGRAD_CHANNELS:
            return "3x3s1"
        if dense and self.kernel_pair == (5, 5) and narrowest >= WIDE_CHANNELS_5X5:
            return "5x5s1"
        return "direct" if narrowest >= WIDE_CHANNELS else "narrow"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding_pair,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, *self.size_pair

    @property
    def filter_shape(self) -> tuple[int, ...]:
        return self.channels // self.groups, *self.kernel_pair

    def fake(self, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor]:
        """Input and weight as `build` lays them out, on the meta device."""
        image = torch.empty(self.input_shape, dtype=dtype, device="meta")
        if layout == "channels_last":
            image = image.contiguous(memory_format=torch.channels_last)
        weight = torch.empty((self.filters, *self.filter_shape), dtype=dtype, device="meta")
        return image, weight

    def build(self, make: Maker, layout: str) -> Sample:
        bound = math.sqrt(3 / math.prod(self.filter_shape))
        tensors = (
            make.image(*self.input_shape, layout=layout, grad=not self.first),
            make.tensor(self.filters, *self.filter_shape, low=-bound, high=bound),
            make.tensor(self.filters) if self.bias else None,
        )
        return Sample(self.name, tensors, self.parameters)


# Name, batch, channels, filters, size, kernel, stride, padding. Batch normalisation follows the
# layers without bias.
LAYERS = (
    Layer("lenet1 b64", 64, 1, 6, 32, 5, padding=0),
    Layer("lenet1 b1", 1, 1, 6, 32, 5, padding=0),
    Layer("lenet2 b64", 64, 6, 16, 14, 5, padding=0),
    Layer("lenet2 b1", 1, 6, 16, 14, 5, padding=0),
    Layer("cifar1 b64", 64, 3, 32, 32, 5),
    Layer("cifar1 b1", 1, 3, 32, 32, 5),
    Layer("cifar2 b64", 64, 32, 32, 16, 5),
    Layer("cifar3 b64", 64, 32, 64, 8, 5),
    Layer("alex1 11x11s4 b16", 16, 3, 64, 224, 11, 4, 2),
    Layer("alex2 5x5 b16", 16, 64, 192, 27, 5),
    Layer("alex3 3x3 b16", 16, 192, 384, 13, 3),
    Layer("vgg1_1 b4", 4, 3, 64, 224, 3),
    Layer("vgg1_1 b1", 1, 3, 64, 224, 3),
    Layer("vgg1_2 b2", 2, 64, 64, 224, 3),
    Layer("vgg2_2 b2", 2, 128, 128, 112, 3),
    Layer("vgg3_2 b2", 2, 256, 256, 56, 3),
    Layer("vgg4_2 b4", 4, 512, 512, 28, 3),
    Layer("vgg5 b8", 8, 512, 512, 14, 3),
    Layer("resnet conv1 7x7s2 b8", 8, 3, 64, 224, 7, 2, 3, bias=False),
    Layer("resnet conv1 7x7s2 b1", 1, 3, 64, 224, 7, 2, 3, bias=False),
    Layer("resnet 64x56 b8", 8, 64, 64, 56, 3, bias=False),
    Layer("resnet 512x7 b8", 8, 512, 512, 7, 3, bias=False),
    Layer("resnet 3x3s2 128x56 b8", 8, 128, 128, 56, 3, 2, bias=False),
    Layer("resnet 1x1 64->256 b8", 8, 64, 256, 56, 1, bias=False),
    Layer("resnet 1x1 256->64 b8", 8, 256, 64, 56, 1, bias=False),
    Layer("resnext 128x56 g32 b8", 8, 128, 128, 56, 3, groups=32, bias=False),
    Layer("mobilenet conv1 3x3s2 b8", 8, 3, 32, 224, 3, 2, 1, bias=False),
    Layer("mobilenet dw 144x56 b8", 8, 144, 144, 56, 3, groups=144, bias=False),
    Layer("mobilenet dw 3x3s2 96x112 b8", 8, 96, 96, 112, 3, 2, 1, groups=96, bias=False),
)
# For the price of a call.
TINY = Layer("tiny 1x8x8", 1, 8, 8, 8, 3)
