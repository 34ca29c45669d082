"""Convolution modules: torch's, with nnops's forward."""

from __future__ import annotations

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
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = (0, 0)
        return F.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            precision=self.precision,
        )
