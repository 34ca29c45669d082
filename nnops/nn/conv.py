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
        return F.conv2d(*self.call_arguments(input), precision=self.precision)

    def call_arguments(self, input: Tensor) -> tuple[Any, ...]:
        """What this layer hands to a function of convolution, from `input` to `groups`."""
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = (0, 0)
        return input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
