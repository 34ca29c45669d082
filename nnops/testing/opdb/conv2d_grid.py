"""conv2d: the grid, random shapes that no network asked for. The same ones on every machine.

Each number is drawn from a list. A third of the shapes have groups, half of those as many as
channels; a third have no padding, a third what keeps the size, a third any, on each axis. What does
not fit, or would take too short or too long to time, is drawn again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from nnops.testing.opdb.conv2d_layers import Layer, Pair

T = TypeVar("T")

SEED = 1
SHAPES = 200
CHANNELS = (
    *(1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 17, 24, 32, 33, 48, 64, 65, 96, 100),
    *(128, 129, 192, 256, 384, 512),
)
SIZES = (1, 2, 3, 4, 5, 7, 8, 10, 13, 14, 16, 17, 20, 24, 28, 31, 32, 40, 48, 56, 63, 64)
BATCHES = (1, 2, 3, 4, 8, 16)
GROUPS = (2, 3, 4, 5, 8, 16, 32)
MULTIPLIERS = (1, 1, 1, 2)
# Small ones are more frequent, as in networks.
KERNELS = (1, 1, 2, 3, 3, 3, 3, 5, 5, 7, 11)
STRIDES = (1, 1, 1, 2, 2, 3, 4)
DILATIONS = (1, 1, 1, 1, 2, 3)
# Seconds, for a machine of this many operations and bytes a second.
SHORTEST, LONGEST = 20e-6, 4e-3
FLOPS, BYTES = 200e9, 20e9
FLOAT_BYTES = 4


def seconds_expected(layer: Layer) -> float:
    """The work of a float32 forward pass over the speed of such a machine."""
    images = (layer.channels, layer.filters)
    areas = (math.prod(layer.size_pair), math.prod(layer.output_size))
    elements = layer.batch * sum(c * area for c, area in zip(images, areas, strict=True))
    weights = layer.filters * layer.channels // layer.groups * math.prod(layer.kernel_pair)
    flops = 2 * layer.batch * areas[1] * weights
    return max(flops / FLOPS, (elements + weights) * FLOAT_BYTES / BYTES)


def _shape(uniform: Callable[[], float]) -> Layer:
    """Any, whether it is possible or not."""

    def one_of(values: Sequence[T]) -> T:
        return values[int(uniform() * len(values))]

    def two_of(values: Sequence[int], different: float) -> tuple[int, int]:
        first = one_of(values)
        return first, one_of(values) if uniform() < different else first

    channels, filters, groups = one_of(CHANNELS), one_of(CHANNELS), 1
    grouped = uniform()
    if grouped < 1 / 6:
        groups, filters = channels, channels * one_of(MULTIPLIERS)
    elif grouped < 1 / 3:
        groups = one_of(GROUPS)
        channels, filters = (math.ceil(each / groups) * groups for each in (channels, filters))
    kernel = two_of(KERNELS, different=0.3)
    dilation = two_of(DILATIONS, different=0.2)
    extents = [step * (taps - 1) + 1 for step, taps in zip(dilation, kernel, strict=True)]
    padded = uniform()
    if padded < 1 / 3:
        padding: tuple[int, int] | None = (0, 0)
    elif padded < 2 / 3:
        padding = None
    else:
        padding = one_of(range(extents[0])), one_of(range(extents[1]))
    return Layer(
        "",
        one_of(BATCHES),
        channels,
        filters,
        two_of(SIZES, different=0.5),
        kernel,
        two_of(STRIDES, different=0.2),
        padding,
        groups=groups,
        dilation=dilation,
        bias=uniform() < 0.5,
        inner=True,
    )


def _timeable(layer: Layer) -> bool:
    possible = min(layer.output_size) > 0 and max(layer.channels, layer.filters) <= CHANNELS[-1]
    return possible and SHORTEST <= seconds_expected(layer) <= LONGEST


def _name(layer: Layer) -> str:
    """What differs from a plain convolution; one number stands for two that are equal."""

    def short(pair: Pair) -> str:
        height, width = (pair, pair) if isinstance(pair, int) else pair
        return f"{height}" if height == width else f"{height}x{width}"

    height, width = layer.kernel_pair
    words = [
        *("grid", f"{layer.channels}->{layer.filters}", short(layer.size), f"{height}x{width}"),
        *(
            f"{letter}{short(pair)}"
            for letter, pair, plain in (
                ("s", layer.stride, "1"),
                ("p", layer.padding_pair, "0"),
                ("d", layer.dilation, "1"),
                ("g", layer.groups, "1"),
            )
            if short(pair) != plain
        ),
        f"b{layer.batch}",
    ]
    return " ".join(words)


def _grid() -> tuple[Layer, ...]:
    # Of the whole module, only random() is promised to stay the same from version to version.
    uniform = random.Random(SEED).random
    by_name: dict[str, Layer] = {}
    while len(by_name) < SHAPES:
        layer = _shape(uniform)
        if _timeable(layer):
            by_name[_name(layer)] = replace(layer, name=_name(layer))
    return tuple(by_name.values())


GRID = _grid()
