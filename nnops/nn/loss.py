"""Modules of the pointwise losses: torch's, with nnops's forward."""

from __future__ import annotations

import torch
from torch import Tensor

from nnops.nn import functional as F


class L1Loss(torch.nn.L1Loss):
    """torch.nn.L1Loss on nnops.nn.functional.l1_loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class MSELoss(torch.nn.MSELoss):
    """torch.nn.MSELoss on nnops.nn.functional.mse_loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """torch.nn.SmoothL1Loss on nnops.nn.functional.smooth_l1_loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(torch.nn.HuberLoss):
    """torch.nn.HuberLoss on nnops.nn.functional.huber_loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class KLDivLoss(torch.nn.KLDivLoss):
    """torch.nn.KLDivLoss on nnops.nn.functional.kl_div."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class BCELoss(torch.nn.BCELoss):
    """torch.nn.BCELoss on nnops.nn.functional.binary_cross_entropy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """torch.nn.BCEWithLogitsLoss on nnops.nn.functional.binary_cross_entropy_with_logits.

    `finite`, which torch lacks, makes a number of what infinite logits cost: see the function.
    """

    finite: bool = False

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        finite: bool = False,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        if finite:  # else the attributes are torch's
            self.finite = True

    def extra_repr(self) -> str:
        return "finite=True" if self.finite else ""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            finite=self.finite,
        )
