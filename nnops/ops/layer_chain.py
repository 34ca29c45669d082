"""A run of layers as one call: for inference with small nets, where calls cost more than sums.

`layer_chain` takes the layers as numbers, which `convolution` and `linear` give, and their
parameters. It has no derivative: to be called where nothing is differentiated, traced or
transformed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnops.ops._operator import function_of

_CONVOLUTION, _LINEAR = 0, 1

# (input, parameters, layers, precision=0) -> output: see csrc/ops/layer_chain.cpp.
layer_chain = function_of(torch.ops.nnops._layer_chain.default)


def convolution(
    has_bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    window: Sequence[Any] | None,
) -> list[int]:
    """The numbers of a convolution; `window` is a pool's kernel_size to ceil_mode, or None."""
    if len(padding) == 2:
        padding = (padding[0], padding[0], padding[1], padding[1])
    numbers = [_CONVOLUTION, has_bias, relu, window is not None]
    numbers += [*stride, *padding, *dilation, groups]
    if window is not None:
        *pairs, ceil_mode = window
        numbers += [number for pair in pairs for number in pair] + [ceil_mode]
    return [*map(int, numbers)]


def linear(has_bias: bool, relu: bool) -> list[int]:
    """The numbers of a linear layer, whose input is flattened to (N, the rest)."""
    return [_LINEAR, int(has_bias), int(relu)]
