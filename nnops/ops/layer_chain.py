"""A run of layers as one call: for inference with small nets, where calls cost more than sums.

`layer_chain` takes the layers as numbers, which `convolution` and `linear` give, and their
parameters. It has no derivative and no rule for vmap: to be called where nothing is differentiated
or transformed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import function_of
from nnops.ops.conv2d import Conv2d
from nnops.ops.fused_conv2d import Conv2dMaxPool2d

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


def _fake(input: Tensor, parameters: list[Tensor], layers: list[int], precision: int = 0) -> Tensor:
    """What csrc/ops/layer_chain.cpp gives: the fake kernels of the layers, in a row."""
    numbers, tensors = iter(layers), iter(parameters)

    def take(count: int) -> list[int]:
        taken = list(islice(numbers, count))
        if len(taken) < count:
            raise RuntimeError("nnops::_layer_chain: layers ends in the middle of a layer")
        return taken

    def parameter() -> Tensor:
        tensor = next(tensors, None)
        if tensor is None:
            raise RuntimeError(f"nnops::_layer_chain: too few parameters, {len(parameters)}")
        if (tensor.dtype, tensor.device) != (input.dtype, input.device):
            raise RuntimeError(
                "nnops::_layer_chain: all tensors must have one dtype and device, but got "
                f"{tensor.dtype} on {tensor.device} and {input.dtype} on {input.device}"
            )
        return tensor

    current = input
    for kind in numbers:
        if kind == _CONVOLUTION:
            has_bias, relu, pools, *convolution = take(12)
            window = take(9) if pools else None
            weight, bias = parameter(), parameter() if has_bias else None
            stride, padding, dilation = convolution[:2], convolution[2:6], convolution[6:8]
            arguments = (current, weight, bias, stride, padding, dilation, convolution[8])
            if window is None:
                current = Conv2d.fake(*arguments)
            else:
                pairs = (window[place : place + 2] for place in (0, 2, 4, 6))
                current = Conv2dMaxPool2d.fake(*arguments, bool(relu), *pairs, bool(window[8]))
        elif kind == _LINEAR:
            has_bias, _ = take(2)
            weight, bias = parameter(), parameter() if has_bias else None
            current = _fake_linear(current, weight, bias)
        else:
            raise RuntimeError(
                f"nnops::_layer_chain: layers names an unknown kind of layer, {kind}"
            )
    return current


def _fake_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    torch._check(
        weight.dim() == 2 and input.numel() == input.shape[0] * weight.shape[1],
        lambda: (
            "nnops::_layer_chain: the weight of a linear layer must be a matrix that fits its "
            f"input, but got sizes {tuple(weight.shape)} behind {tuple(input.shape)}"
        ),
    )
    torch._check(
        bias is None or tuple(bias.shape) == (weight.shape[0],),
        lambda: (
            "nnops::_layer_chain: the bias of a linear layer must have one element per output, "
            f"{weight.shape[0]}"
        ),
    )
    return input.new_empty(input.shape[0], weight.shape[0])


torch.library.register_fake("nnops::_layer_chain", _fake)
