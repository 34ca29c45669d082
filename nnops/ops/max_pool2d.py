"""max_pool2d: y = max of each window. The gradient goes to the first maximum of the window.

Three forms of one operator: the values alone; with uint8 offsets (the place of the maximum inside
its window: the least that backward can do with, and all that it needs); with int64 indices (its
place in the plane: for callers who ask, and for windows that are too large for a byte).
`pool` picks one. With the maxima fixed pooling is linear: max_pool2d_gather reads the input there,
max_pool2d_backward adds gradients up there, and each is the other's adjoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnops.ops._images import call_with_folded_batch, empty_resized
from nnops.ops._operator import Formulas, first_output, may_be_differentiated, mount
from nnops.ops.max_unpool2d import max_pool2d_with_indices_backward, max_unpool2d_backward

Pair = Sequence[int]

# Elements of the largest window whose offsets fit into a byte; 255 itself means "no maximum".
LARGEST_OFFSET_WINDOW = 255


def pool(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> Tensor:
    """max_pool2d in the form that costs least: nothing is recorded if nobody differentiates."""
    result: Tensor
    if not may_be_differentiated(input):
        result = max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    elif has_offsets(kernel_size):
        result = _pool_with_offsets(input, kernel_size, stride, padding, dilation, ceil_mode)
    else:
        result = _pool_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    return result


def has_offsets(kernel_size: Pair) -> bool:
    return kernel_size[0] * kernel_size[1] <= LARGEST_OFFSET_WINDOW


def _output_size(
    size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool
) -> int:
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + pad else count


def pooled_size(
    size: Sequence[Any],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> list[Any]:
    """(height, width) of the output for those of the input, which may be symbolic."""
    sizes = []
    windows = zip(size, kernel_size, stride, padding, dilation, strict=True)
    for extent, kernel, step, pad, gap in windows:
        if kernel < 1 or step < 1 or pad < 0 or gap < 1 or 2 * pad > kernel:
            raise RuntimeError(
                "nnops::max_pool2d: kernel_size, stride and dilation must be positive and padding "
                f"in [0, kernel_size / 2], but got kernel_size={tuple(kernel_size)}, "
                f"stride={tuple(stride)}, padding={tuple(padding)}, dilation={tuple(dilation)}"
            )
        count = _output_size(extent, kernel, step, pad, gap, ceil_mode)
        torch._check(
            count >= 1,
            lambda: (
                "nnops::max_pool2d: the window must fit into the padded input, but got "
                f"kernel_size={tuple(kernel_size)}, dilation={tuple(dilation)}"
            ),
        )
        sizes.append(count)
    return sizes


def _fake_output(dtype: torch.dtype | None, input: Tensor, *window: Any) -> Tensor:
    height, width = pooled_size(input.shape[-2:], *window)
    return empty_resized(input, height, width, dtype)


class MaxPool2d(Formulas):
    """(input, kernel_size, stride, padding, dilation, ceil_mode) -> output

    For callers of torch.ops: saves the input and finds the maxima again in backward.
    """

    name = "max_pool2d"
    differentiable = (0,)

    @staticmethod
    def fake(input: Tensor, *window: Any) -> Tensor:
        return _fake_output(None, input, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, *ctx.window = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (input,) = ctx.saved_tensors
        *window, ceil_mode = ctx.window
        input_size = tuple(input.shape[-2:])
        if has_offsets(window[0]):
            _, offsets = max_pool2d_with_offsets(input.detach(), *window, ceil_mode)
            grad = max_pool2d_backward(grad_outputs[0], offsets, input_size, *window)
        else:
            _, indices = max_pool2d_with_indices(input.detach(), *window, ceil_mode)
            grad = max_pool2d_with_indices_backward(grad_outputs[0], indices, input_size)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (input,) = ctx.saved_tensors
        *window, ceil_mode = ctx.window
        if has_offsets(window[0]):
            _, offsets = max_pool2d_with_offsets(input.detach(), *window, ceil_mode)
            return max_pool2d_gather(tangents[0], offsets, *window)
        _, indices = max_pool2d_with_indices(input.detach(), *window, ceil_mode)
        return max_unpool2d_backward(tangents[0], indices)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_pool2d, 1, info, in_dims, inputs)


class MaxPool2dWithOffsets(Formulas):
    """(input, kernel_size, stride, padding, dilation, ceil_mode) -> (output, offsets)"""

    name = "max_pool2d_with_offsets"
    differentiable = (0,)
    has_records = True

    @staticmethod
    def fake(input: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
        return _fake_output(None, input, *window), _fake_output(torch.uint8, input, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, *ctx.window, _ = inputs
        ctx.input_size = tuple(input.shape[-2:])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (offsets,) = ctx.saved_tensors
        grad = grad_outputs[0]
        if grad is not None:
            grad = max_pool2d_backward(grad, offsets, ctx.input_size, *ctx.window)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (offsets,) = ctx.saved_tensors
        return max_pool2d_gather(tangents[0], offsets, *ctx.window), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_pool2d_with_offsets, 1, info, in_dims, inputs)


class MaxPool2dWithIndices(Formulas):
    """(input, kernel_size, stride, padding, dilation, ceil_mode) -> (output, indices)"""

    name = "max_pool2d_with_indices"
    differentiable = (0,)
    has_records = True

    @staticmethod
    def fake(input: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
        return _fake_output(None, input, *window), _fake_output(torch.int64, input, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.input_size = tuple(inputs[0].shape[-2:])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (indices,) = ctx.saved_tensors
        grad = grad_outputs[0]
        if grad is not None:
            grad = max_pool2d_with_indices_backward(grad, indices, ctx.input_size)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_unpool2d_backward(tangents[0], indices), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_pool2d_with_indices, 1, info, in_dims, inputs)


class MaxPool2dBackward(Formulas):
    """(grad_output, offsets, input_size, kernel_size, stride, padding, dilation) -> grad_input"""

    name = "max_pool2d_backward"
    differentiable = (0,)

    @staticmethod
    def fake(grad_output: Tensor, offsets: Tensor, input_size: Pair, *window: Pair) -> Tensor:
        return empty_resized(offsets, input_size[0], input_size[1], grad_output.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, offsets, ctx.input_size, *ctx.window = inputs
        ctx.save_for_backward(offsets)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (offsets,) = ctx.saved_tensors
        grad = max_pool2d_gather(grad_outputs[0], offsets, *ctx.window)
        return grad, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (offsets,) = ctx.saved_tensors
        return max_pool2d_backward(tangents[0], offsets, ctx.input_size, *ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_pool2d_backward, 2, info, in_dims, inputs)


class MaxPool2dGather(Formulas):
    """(input, offsets, kernel_size, stride, padding, dilation) -> output"""

    name = "max_pool2d_gather"
    differentiable = (0,)

    @staticmethod
    def fake(input: Tensor, offsets: Tensor, *window: Pair) -> Tensor:
        return empty_resized(offsets, offsets.shape[-2], offsets.shape[-1], input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, offsets, *ctx.window = inputs
        ctx.input_size = tuple(input.shape[-2:])
        ctx.save_for_backward(offsets)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (offsets,) = ctx.saved_tensors
        grad = max_pool2d_backward(grad_outputs[0], offsets, ctx.input_size, *ctx.window)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (offsets,) = ctx.saved_tensors
        return max_pool2d_gather(tangents[0], offsets, *ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_pool2d_gather, 2, info, in_dims, inputs)


max_pool2d = mount(MaxPool2d)
max_pool2d_with_offsets = mount(MaxPool2dWithOffsets)
max_pool2d_with_indices = mount(MaxPool2dWithIndices)
_pool_with_offsets = first_output(max_pool2d_with_offsets, MaxPool2dWithOffsets)
_pool_with_indices = first_output(max_pool2d_with_indices, MaxPool2dWithIndices)
max_pool2d_backward = mount(MaxPool2dBackward)
max_pool2d_gather = mount(MaxPool2dGather)
