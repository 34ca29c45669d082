"""Convolution modules: torch's, with nnops's forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.nn import functional as F


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d on nnops.nn.functional.conv2d; every padding_mode.

    Attributes:
        precision: how exact the sums of this layer must be, "highest" or "high" as for
            `nnops.set_conv_precision`; None, the default, takes what is set there.
    """

    precision: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(*convolution_arguments(self, input), precision=self.precision)


def convolution_arguments(layer: Conv2d, input: Tensor) -> tuple[Any, ...]:
    """What a layer hands to a function of convolution, from `input` to `groups`."""
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        input = torch.nn.functional.pad(
            input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode
        )
        padding = (0, 0)
    # Module looks attributes up in three dictionaries, parameters last: a microsecond each.
    parameters: dict[str, Any] = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        weight, bias = parameters["weight"], parameters["bias"]
    else:  # parametrized
        weight, bias = layer.weight, layer.bias
    return input, weight, bias, layer.stride, padding, layer.dilation, layer.groups
