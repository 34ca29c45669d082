"""Activation modules: torch's, with nnops's forward."""

from __future__ import annotations

import torch
from torch import Tensor

from nnops.nn import functional as F


class ReLU(torch.nn.ReLU):
    """torch.nn.ReLU on nnops.nn.functional.relu."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, inplace=self.inplace)
