"""What operators on (N, C, H, W) and (C, H, W) tensors share: fake outputs and vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import batch_first


def suggests_channels_last(tensor: Tensor) -> bool:
    """Whether the strides of a 4-D tensor suggest channels_last, by torch's rule.

    The same rule as in csrc/core/tensor.cpp, on sizes that may be symbolic.
    """
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


def empty_image(
    like: Tensor, sizes: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """A fake output on the device of `like`, channels_last or row-major."""
    return torch.empty(
        tuple(sizes),
        dtype=like.dtype if dtype is None else dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def empty_resized(
    like: Tensor, height: int, width: int, dtype: torch.dtype | None = None
) -> Tensor:
    """A fake output: sizes of `like` with another height and width, channels_last if `like` is."""
    sizes = (*like.shape[:-2], height, width)
    return empty_image(like, sizes, suggests_channels_last(like), dtype)


def call_with_folded_batch(
    function: Callable[..., Any],
    tensor_count: int,
    info: Any,
    in_dims: Sequence[Any],
    inputs: Sequence[Any],
) -> Any:
    """vmap rule: the vmapped dimension becomes, or joins, the batch dimension.

    The first `tensor_count` inputs are images of one rank; the others are no tensors.
    """
    size = info.batch_size
    folded = []
    for tensor, dim in zip(inputs[:tensor_count], in_dims[:tensor_count], strict=True):
        rank = tensor.dim() - (dim is not None)
        if rank not in (3, 4):
            raise RuntimeError(
                f"nnops::{function.__name__}: tensors must be (C, H, W) or (N, C, H, W), but got "
                f"one of {rank} dimensions under vmap"
            )
        image = batch_first(tensor, dim, size)
        folded.append(image.flatten(0, 1) if rank == 4 else image)
    results = function(*folded, *inputs[tensor_count:])

    def unfold(result: Tensor) -> Tensor:
        return result.unflatten(0, (size, result.shape[0] // size)) if rank == 4 else result

    if isinstance(results, tuple):
        return tuple(unfold(result) for result in results), (0,) * len(results)
    return unfold(results), 0
