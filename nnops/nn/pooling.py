"""Pooling modules: torch's, with nnops's forward."""

from __future__ import annotations

import torch
from torch import Tensor

from nnops.nn import functional as F


class MaxPool2d(torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on nnops.nn.functional.max_pool2d."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """torch.nn.MaxUnpool2d on nnops.nn.functional.max_unpool2d."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        return F.max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
