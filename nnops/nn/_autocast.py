"""torch.autocast for the functions: which dtype each computes in, by torch's policy.

conv2d and what is fused with it run in autocast's dtype, the losses in float32 (on the CPU
max_unpool2d too), all others in the dtype they are given. float64 stays, as it does in torch. The
casts are ordinary differentiable ones; unlike torch's, they are not kept for a second call.

A function asks `is_on()` first, which is all that it costs where nobody uses autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Private, but half the price of asking for one device.
is_on: Callable[[], bool] = torch._C._is_any_autocast_enabled


def lowered(*tensors: Tensor | None) -> Any:
    """A tuple of the tensors in autocast's dtype."""
    device = _device(tensors)
    return _cast(device, torch.get_autocast_dtype(device) if device else None, tensors)


def in_float32(*tensors: Tensor | None) -> Any:
    """A tuple of the tensors in float32."""
    return _cast(_device(tensors), torch.float32, tensors)


def _device(tensors: tuple[Tensor | None, ...]) -> str | None:
    """The type of the device on which autocast is on, None if it is on for others alone."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and torch.is_autocast_enabled(tensor.device.type):
            return tensor.device.type
    return None


def _cast(
    device: str | None, dtype: torch.dtype | None, tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    if device is None:
        return tensors
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, Tensor)
        and tensor.dtype.is_floating_point
        and tensor.dtype is not torch.float64
        and tensor.device.type == device
        else tensor
        for tensor in tensors
    )
