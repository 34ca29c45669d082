"""Memory layouts in fake kernels: the same rules as csrc/core/tensor.cpp, on symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def suggests_channels_last(tensor: Tensor) -> bool:
    """Whether the strides of a 4-D tensor suggest channels_last, by torch's rule."""
    if tensor.dim() != 4:
        return False
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for index in (1, 3, 2, 0):
        if sizes[index] == 0 or strides[index] < least:
            return False
        if index == 0 and least == strides[1]:
            return False
        least = strides[index] * max(sizes[index], 1)
    return True


def empty_image(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    """(N, C, H, W) of the dtype and device of `like`, channels_last or row-major."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        tuple(sizes), dtype=like.dtype, device=like.device, memory_format=memory_format
    )
