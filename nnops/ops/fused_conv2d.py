"""conv2d with a ReLU and a max-pool behind it, as one operator.

    y = relu(conv2d(x, w, b))                       conv2d_relu
    y = max_pool2d([relu](conv2d(x, w, b)))         conv2d_max_pool2d

The convolution's output is not kept. Of y the first saves itself, from which the ReLU's gradient
can be read; the second saves one byte an element, the place of the maximum in its window, or that
the ReLU let nothing pass. With these the gradient of the convolution's output is that of
max_pool2d, and the rest is conv2d's (nnops/ops/conv2d.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.ops._images import empty_image, suggests_channels_last
from nnops.ops._operator import Formulas, first_output, may_be_differentiated, mount
from nnops.ops.conv2d import (
    Conv2d,
    check_bias,
    checked_output_sizes,
    conv2d,
    convolution_flops,
    convolution_gradients,
    convolution_tangent,
    convolve_slices,
    keep_convolution,
    output_sizes,
    save_convolution,
)
from nnops.ops.max_pool2d import (
    has_offsets,
    max_pool2d_backward,
    max_pool2d_gather,
    pool,
    pooled_size,
)
from nnops.ops.relu import relu_backward

Pair = tuple[int, int]


class Conv2dRelu(Formulas):
    """(input, weight, bias, stride, padding, dilation, groups, precision) -> output"""

    name = "conv2d_relu"
    differentiable = (0, 1, 2)
    flops = staticmethod(convolution_flops)
    fake = Conv2d.fake

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep_convolution(ctx, inputs, inputs[3:], output.shape)
        save_convolution(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        output, input, weight = ctx.saved_tensors
        grad = relu_backward(grad_outputs[0], output)
        return *convolution_gradients(ctx, grad, input, weight), *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        output, input, weight = ctx.saved_tensors
        tangent: Tensor = relu_backward(convolution_tangent(ctx, tangents, input, weight), output)
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return convolve_slices(conv2d_relu, info, in_dims, inputs)


def _fake_pooled(
    dtype: torch.dtype | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    relu: bool,
    *pool_and_precision: Any,
) -> Tensor:
    op = "conv2d_max_pool2d"
    numbers = (stride, padding, dilation, groups)
    sizes = checked_output_sizes(op, input.shape, weight.shape, *numbers)
    check_bias(op, bias, sizes[1])
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    pooled = (*sizes[:2], *pooled_size(sizes[2:], *pool_and_precision[:5]))
    return empty_image(input, pooled, channels_last, dtype)


# What stands behind `groups` among the inputs of the pooling operators.
_RELU, _WINDOW, _CEIL_MODE, _PRECISION = 7, slice(8, 12), 12, slice(13, None)
# Inputs without a gradient, of which the last may be left out.
_NO_GRADIENTS = (None,) * 11


def _keep_numbers(ctx: Any, inputs: tuple[Any, ...]) -> None:
    numbers = (*inputs[3:_RELU], *inputs[_PRECISION])
    keep_convolution(ctx, inputs, numbers, output_sizes(*inputs[:2], *numbers[:3]))
    ctx.window = inputs[_WINDOW]


class Conv2dMaxPool2d(Formulas):
    """(input, weight, bias, stride, padding, dilation, groups, relu, pool_kernel_size,
    pool_stride, pool_padding, pool_dilation, ceil_mode, precision) -> output

    For callers of torch.ops: saves the inputs and finds the maxima again in backward.
    """

    name = "conv2d_max_pool2d"
    differentiable = (0, 1, 2)
    flops = staticmethod(convolution_flops)

    @staticmethod
    def fake(*inputs: Any) -> Tensor:
        return _fake_pooled(None, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep_numbers(ctx, inputs)
        ctx.numbers = inputs[3:]
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def _offsets(ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
        input, weight, bias = ctx.saved_tensors
        detached = None if bias is None else bias.detach()
        if not has_offsets(ctx.window[0]):
            raise NotImplementedError(
                "nnops::conv2d_max_pool2d: derivatives need windows of at most 255 elements, but "
                f"got pool_kernel_size={tuple(ctx.window[0])}"
            )
        _, offsets = conv2d_max_pool2d_with_offsets(
            input.detach(), weight.detach(), detached, *ctx.numbers
        )
        return offsets, input, weight

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        offsets, input, weight = cls._offsets(ctx)
        grad = max_pool2d_backward(grad_outputs[0], offsets, ctx.convolved_sizes[2:], *ctx.window)
        return *convolution_gradients(ctx, grad, input, weight), *_NO_GRADIENTS

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        offsets, input, weight = cls._offsets(ctx)
        tangent = convolution_tangent(ctx, tangents, input, weight)
        return max_pool2d_gather(tangent, offsets, *ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return convolve_slices(conv2d_max_pool2d, info, in_dims, inputs)


class Conv2dMaxPool2dWithOffsets(Formulas):
    """As Conv2dMaxPool2d, but -> (output, offsets), and saves the offsets."""

    name = "conv2d_max_pool2d_with_offsets"
    differentiable = (0, 1, 2)
    flops = staticmethod(convolution_flops)
    has_records = True

    @staticmethod
    def fake(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _fake_pooled(None, *inputs), _fake_pooled(torch.uint8, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep_numbers(ctx, inputs)
        save_convolution(ctx, inputs, output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        offsets, input, weight = ctx.saved_tensors
        grad = grad_outputs[0]
        if grad is None:
            return *(None,) * 3, *_NO_GRADIENTS
        grad = max_pool2d_backward(grad, offsets, ctx.convolved_sizes[2:], *ctx.window)
        return *convolution_gradients(ctx, grad, input, weight), *_NO_GRADIENTS

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        offsets, input, weight = ctx.saved_tensors
        tangent = convolution_tangent(ctx, tangents, input, weight)
        return max_pool2d_gather(tangent, offsets, *ctx.window), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return convolve_slices(conv2d_max_pool2d_with_offsets, info, in_dims, inputs)


conv2d_relu = mount(Conv2dRelu)
conv2d_max_pool2d = mount(Conv2dMaxPool2d)
conv2d_max_pool2d_with_offsets = mount(Conv2dMaxPool2dWithOffsets)
_pool_with_offsets = first_output(conv2d_max_pool2d_with_offsets, Conv2dMaxPool2dWithOffsets)


def convolve_and_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: tuple[int, ...],
    dilation: Pair,
    groups: int,
    relu: bool,
    pool_kernel_size: Pair,
    pool_stride: Pair,
    pool_padding: Pair,
    pool_dilation: Pair,
    ceil_mode: bool,
    *precision: int,
) -> Tensor:
    """conv2d_max_pool2d in the form that costs least: offsets only if somebody differentiates."""
    window = (pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    result: Tensor
    if not may_be_differentiated(input, weight, bias):
        result = conv2d_max_pool2d(
            input, weight, bias, stride, padding, dilation, groups, relu, *window, *precision
        )
    elif has_offsets(pool_kernel_size):
        result = _pool_with_offsets(
            input, weight, bias, stride, padding, dilation, groups, relu, *window, *precision
        )
    else:
        convolve = conv2d_relu if relu else conv2d
        image = convolve(input, weight, bias, stride, padding, dilation, groups, *precision)
        result = pool(image, *window)
    return result
