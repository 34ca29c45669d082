"""What nnops says is its own: the names of torch.nn and torch.nn.functional that it replaces."""

from __future__ import annotations

import torch

import nnops.nn
import nnops.nn.functional

FUNCTIONS = (
    "conv2d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "relu",
    "relu_",
    "l1_loss",
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "kl_div",
    "nll_loss",
    "cross_entropy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)

MODULES = (
    "Conv2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "ReLU",
    "L1Loss",
    "MSELoss",
    "SmoothL1Loss",
    "HuberLoss",
    "KLDivLoss",
    "NLLLoss",
    "NLLLoss2d",
    "CrossEntropyLoss",
    "BCELoss",
    "BCEWithLogitsLoss",
)

# Replaced for some calls; the others stay torch's (nnops/ops/linear.py says which).
FUNCTIONS_IN_PART = ("linear",)
MODULES_IN_PART = ("Linear",)


def function_is_ours(name: str) -> bool:
    """False while nnops.nn.functional serves torch's own function under this name."""
    function = getattr(nnops.nn.functional, name)
    return function is not getattr(torch.nn.functional, name) and function.__module__.startswith(
        "nnops."
    )


def module_is_ours(name: str) -> bool:
    """False while nnops.nn serves torch's own class under this name."""
    module = getattr(nnops.nn, name)
    return module is not getattr(torch.nn, name) and module.__module__.startswith("nnops.")
