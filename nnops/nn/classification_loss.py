"""Classification loss modules: torch's, with nnops's forward."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from typing_extensions import deprecated

from nnops.nn import functional as F


class NLLLoss(torch.nn.NLLLoss):
    """torch.nn.NLLLoss on nnops.nn.functional.nll_loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


# Deriving from a deprecated class warns, at import, nobody who uses the derived one.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)

    @deprecated(
        "`NLLLoss2d` has been deprecated. Please use `NLLLoss` instead, it takes the same input.",
        category=FutureWarning,
    )
    class NLLLoss2d(torch.nn.NLLLoss2d):
        """torch.nn.NLLLoss2d, deprecated as there: NLLLoss by another name."""

        forward = NLLLoss.forward


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on nnops.nn.functional.cross_entropy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
