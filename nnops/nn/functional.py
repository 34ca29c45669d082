"""torch.nn.functional with nnops's operators in place of torch's.

`import nnops.nn.functional as F` serves every name of torch.nn.functional: the functions below are
nnops's, with torch's signatures, defaults and warnings; every other name is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as _torch_functional
from torch import Tensor

from nnops.nn import _arguments
from nnops.nn._pointwise_losses import (
    binary_cross_entropy as binary_cross_entropy,
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    huber_loss as huber_loss,
    kl_div as kl_div,
    l1_loss as l1_loss,
    mse_loss as mse_loss,
    smooth_l1_loss as smooth_l1_loss,
)
from nnops.ops import relu as _relu


def __getattr__(name: str) -> Any:
    return getattr(_torch_functional, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), element by element; NaN stays NaN.

    Args:
        input (Tensor[*]): any shape and strides; floating or integer dtype.
        inplace: write the result over `input` and return it.

    Returns:
        Tensor[*]: same shape, dtype and dimension order as `input`.

    Raises:
        NotImplementedError: for bool and complex dtypes.

    Source: torch.nn.functional.relu.
    """
    _arguments.check_tensor("relu", "input", input)
    result: Tensor = _relu.relu_(input) if inplace else _relu.relu(input)
    return result


def relu_(input: Tensor) -> Tensor:
    """relu(input, inplace=True)."""
    return relu(input, inplace=True)
