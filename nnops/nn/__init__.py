"""torch.nn with nnops's modules in place of torch's; every other name is torch's own.

Each module is a subclass of torch's of the same name that overrides `forward` only: constructor,
parameters, state_dict, repr and pickling are torch's. The fused modules (`nnops.nn.fused`) have no
namesake; `from nnops.nn import *` gives torch's names alone.
"""

from __future__ import annotations

from typing import Any

import torch.nn as _torch_nn

from nnops.nn import functional
from nnops.nn.activation import ReLU
from nnops.nn.classification_loss import CrossEntropyLoss, NLLLoss, NLLLoss2d
from nnops.nn.conv import Conv2d
from nnops.nn.fused import (
    ConvMaxPool2d as ConvMaxPool2d,
    ConvReLU2d as ConvReLU2d,
    ConvReLUMaxPool2d as ConvReLUMaxPool2d,
)
from nnops.nn.linear import Linear
from nnops.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
)
from nnops.nn.pooling import MaxPool2d, MaxUnpool2d

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "Conv2d",
    "CrossEntropyLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "MaxUnpool2d",
    "NLLLoss",
    "NLLLoss2d",
    "ReLU",
    "SmoothL1Loss",
    "functional",
]


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})


# `from nnops.nn import *` gives every name that torch's gives.
__all__ += sorted({name for name in dir(_torch_nn) if name[0] != "_"}.difference(__all__))
