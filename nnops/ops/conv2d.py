"""conv2d: cross-correlation of images with a bank of filters.

Every gradient is a bilinear operator of the same family, so the derivatives of each are written
with the others and close under differentiation:

    y  = conv2d(x, w, b)
    gx = conv2d_backward_input(gy, w)      linear in gy and in w
    gw = conv2d_backward_weight(gy, x)     linear in gy and in x
    gb = conv2d_backward_bias(gy)          linear in gy

`precision` says how exact the sums must be (nnops/precision.py); gradients have their operator's.

Under vmap a call stays one call: images of different slices are more images of one batch, where the
filters are the same; where each slice has its own filters, or its own gradient of them, the slices
are groups of one convolution, which do not see each other. So per-sample gradients of the weight
are a single grouped conv2d_backward_weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnops.ops._images import empty_image, suggests_channels_last
from nnops.ops._operator import Formulas, batch_first, mount, needed_inputs


def output_sizes(
    input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...]:
    """(N, OC, OH, OW), which may be symbolic."""
    return sizes_behind(input.shape, weight.shape, stride, padding, dilation)


def sizes_behind(
    input: Sequence[Any], weight: Sequence[Any], stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...]:
    """`output_sizes` from the sizes of input and weight."""
    if len(padding) == 2:
        padding = (padding[0], padding[0], padding[1], padding[1])
    padded = input[2] + padding[0] + padding[1], input[3] + padding[2] + padding[3]
    height, width = (
        (padded[i] - dilation[i] * (weight[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return input[0], weight[0], height, width


def checked_output_sizes(
    op: str,
    input: Sequence[Any],
    weight: Sequence[Any],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> tuple[Any, ...]:
    """`output_sizes` for fake kernels, with the checks of csrc/ops/conv2d_call.cpp."""
    sizes = f"input of sizes {tuple(input)}, weight of sizes {tuple(weight)}, {groups=}"
    numbers = f"{stride=}, {padding=}, {dilation=}"
    if len(input) != 4 or len(weight) != 4:
        raise RuntimeError(f"nnops::{op}: tensors must have 4 dimensions, but got {sizes}")
    lists_fit = len(stride) == len(dilation) == 2 and len(padding) in (2, 4)
    if not lists_fit or min(*stride, *dilation) < 1 or min(padding) < 0 or groups < 1:
        raise RuntimeError(
            f"nnops::{op}: stride, dilation and groups must be positive and padding not negative, "
            f"but got {numbers}, {groups=}"
        )
    # Of sizes that are symbols a check is a guard.
    fits = (
        all(size > 0 for size in weight)
        and weight[0] % groups == 0
        and input[1] == weight[1] * groups
        and input[2] > 0
        and input[3] > 0
    )
    torch._check(
        fits, lambda: f"nnops::{op}: the channels must match, and not be empty, but got {sizes}"
    )
    output = sizes_behind(input, weight, stride, padding, dilation)
    torch._check(
        output[2] > 0 and output[3] > 0,
        lambda: (
            f"nnops::{op}: the dilated kernel must fit into the padded input, but got {sizes}, "
            f"{numbers}"
        ),
    )
    return output


def check_bias(op: str, bias: Tensor | None, channels: Any) -> None:
    if bias is not None:
        torch._check(
            bias.dim() == 1 and bias.shape[0] == channels,
            lambda: (
                f"nnops::{op}: bias must have one element per output channel, {channels}, but got "
                f"sizes {tuple(bias.shape)}"
            ),
        )


def check_grad_output(
    op: str, grad_output: Tensor, input: Sequence[Any], weight: Sequence[Any], *numbers: Any
) -> None:
    sizes = checked_output_sizes(op, input, weight, *numbers)
    torch._check(
        grad_output.dim() == 4
        and all(one == other for one, other in zip(grad_output.shape, sizes, strict=True)),
        lambda: (
            f"nnops::{op}: grad_output must have the sizes of the convolution's output, {sizes}, "
            f"but got {tuple(grad_output.shape)}"
        ),
    )


def convolution_flops(input: Tensor, weight: Tensor, bias: Any, *sizes: Any) -> int:
    """Two for each product of the sums; the bias does not count, as in torch's counter."""
    products = math.prod(output_sizes(input, weight, *sizes[:3])) * math.prod(weight.shape[1:])
    return 2 * int(products)


def sum_of_tangents(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def images_of_slices(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(N, C, H, W) a slice as (size * N, C, H, W)."""
    return batch_first(tensor, dim, size).flatten(0, 1)


def channels_of_slices(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(N, C, H, W) a slice as (N, size * C, H, W)."""
    return batch_first(tensor, dim, size).movedim(0, 1).flatten(1, 2)


def filters_of_slices(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(OC, ..) a slice as (size * OC, ..): weight or bias."""
    return None if tensor is None else batch_first(tensor, dim, size).flatten(0, 1)


def unfolded(results: Any, dim: int, size: int) -> tuple[Any, Any]:
    """What a vmap rule returns, for results whose dimension `dim` holds the slices too."""
    if isinstance(results, tuple):
        return tuple(unfolded(result, dim, size)[0] for result in results), (dim,) * len(results)
    return results.unflatten(dim, (size, results.shape[dim] // size)), dim


def convolve_slices(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> Any:
    """vmap rule of (input, weight, bias, stride, padding, dilation, groups, ..) -> image(s)."""
    input, weight, bias, stride, padding, dilation, groups, *others = inputs
    input_dim, *filter_dims = in_dims[:3]
    size = info.batch_size
    if filter_dims == [None, None]:
        folded = images_of_slices(input, input_dim, size)
        return unfolded(function(folded, *inputs[1:]), 0, size)
    weight, bias = (
        filters_of_slices(tensor, dim, size)
        for tensor, dim in zip((weight, bias), filter_dims, strict=True)
    )
    if input_dim is not None or groups > 1:
        # Slices that see different channels.
        input, groups = channels_of_slices(input, input_dim, size), groups * size
    results = function(input, weight, bias, stride, padding, dilation, groups, *others)
    return unfolded(results, 1, size)


def keep_convolution(
    ctx: Any, inputs: tuple[Any, ...], numbers: tuple[Any, ...], sizes: Any
) -> None:
    """Keeps what is no tensor: `numbers` are stride to precision, `sizes` the output's."""
    input, weight = inputs[:2]
    ctx.convolution, ctx.convolved_sizes = numbers, sizes
    ctx.input_size, ctx.kernel_size = input.shape[2:], weight.shape[2:]


def save_convolution(ctx: Any, inputs: tuple[Any, ...], *records: Tensor) -> None:
    """Saves `records`, and then the input and weight that the gradients need."""
    input, weight = inputs[:2]
    input_needs, weight_needs = needed_inputs(ctx)[:2]
    ctx.save_for_backward(
        *records, input if weight_needs else None, weight if input_needs else None
    )


def convolution_gradients(ctx: Any, grad: Tensor, input: Any, weight: Any) -> tuple[Any, ...]:
    """The gradients of input, weight and bias, from that of the convolution's output."""
    needs = ctx.needs_input_grad
    numbers = ctx.convolution
    return (
        conv2d_backward_input(grad, weight, ctx.input_size, *numbers) if needs[0] else None,
        conv2d_backward_weight(grad, input, ctx.kernel_size, *numbers) if needs[1] else None,
        conv2d_backward_bias(grad) if needs[2] else None,
    )


def convolution_tangent(
    ctx: Any, tangents: tuple[Any, ...], input: Any, weight: Any
) -> Tensor | None:
    """The tangent of the convolution's output, from those of input, weight and bias."""
    input_tangent, weight_tangent, bias_tangent = tangents[:3]
    tangent: Tensor | None = None
    if input_tangent is not None:
        tangent = conv2d(input_tangent, weight, bias_tangent, *ctx.convolution)
        bias_tangent = None
    if weight_tangent is not None:
        partial = conv2d(input, weight_tangent, bias_tangent, *ctx.convolution)
        tangent = sum_of_tangents(tangent, partial)
        bias_tangent = None
    if bias_tangent is not None:
        tangent = bias_tangent.view(1, -1, 1, 1).expand(ctx.convolved_sizes).clone()
    return tangent


class Conv2d(Formulas):
    """(input, weight, bias, stride, padding, dilation, groups, precision) -> output"""

    name = "conv2d"
    differentiable = (0, 1, 2)
    flops = staticmethod(convolution_flops)

    @staticmethod
    def fake(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        precision: int = 0,
    ) -> Tensor:
        numbers = (stride, padding, dilation, groups)
        sizes = checked_output_sizes("conv2d", input.shape, weight.shape, *numbers)
        check_bias("conv2d", bias, sizes[1])
        channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
        return empty_image(input, sizes, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep_convolution(ctx, inputs, inputs[3:], output.shape)
        save_convolution(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        gradients = convolution_gradients(ctx, grad_outputs[0], *ctx.saved_tensors)
        return *gradients, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return convolution_tangent(ctx, tangents, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return convolve_slices(conv2d, info, in_dims, inputs)


class _Gradient(Formulas):
    """(a, b, size, stride, .., precision) -> gradient, linear in a and in b"""

    differentiable = (0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        a, b, ctx.size, *ctx.parameters = inputs
        ctx.size_of_b = b.shape[2:]
        a_needs, b_needs = needed_inputs(ctx)[:2]
        ctx.save_for_backward(a if b_needs else None, b if a_needs else None)

    @classmethod
    def partials(cls, ctx: Any, grad: Tensor, a: Tensor, b: Tensor) -> tuple[Any, Any]:
        """The gradients of a and b, None where not needed; `grad` is shaped like the result."""
        raise NotImplementedError

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        partials = cls.partials(ctx, grad_outputs[0], *ctx.saved_tensors)
        return (*partials, None, None, None, None, None, None)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        a_tangent, b_tangent = tangents[:2]
        a, b = ctx.saved_tensors
        operator = _GRADIENTS[cls.name]
        tangent = None
        if a_tangent is not None:
            tangent = operator(a_tangent, b, ctx.size, *ctx.parameters)
        if b_tangent is not None:
            tangent = sum_of_tangents(tangent, operator(a, b_tangent, ctx.size, *ctx.parameters))
        return tangent


class Conv2dBackwardInput(_Gradient):
    """(grad_output, weight, input_size, stride, .., precision) -> grad_input"""

    name = "conv2d_backward_input"

    @staticmethod
    def fake(
        grad_output: Tensor,
        weight: Tensor,
        input_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        precision: int = 0,
    ) -> Tensor:
        sizes = (grad_output.shape[0], weight.shape[1] * groups, *input_size)
        numbers = (stride, padding, dilation, groups)
        check_grad_output("conv2d_backward_input", grad_output, sizes, weight.shape, *numbers)
        channels_last = suggests_channels_last(grad_output) or suggests_channels_last(weight)
        return empty_image(grad_output, sizes, channels_last)

    @staticmethod
    def flops(grad_output: Tensor, weight: Tensor, *others: Any) -> int:
        return 2 * grad_output.numel() * math.prod(weight.shape[1:])

    @classmethod
    def partials(cls, ctx: Any, grad: Tensor, a: Tensor, b: Tensor) -> tuple[Any, Any]:
        needs = ctx.needs_input_grad
        return (
            conv2d(grad, b, None, *ctx.parameters) if needs[0] else None,
            conv2d_backward_weight(a, grad, ctx.size_of_b, *ctx.parameters) if needs[1] else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        grad_output, weight, input_size, stride, padding, dilation, groups, *others = inputs
        grad_dim, weight_dim = in_dims[:2]
        size = info.batch_size
        if weight_dim is None:
            folded = images_of_slices(grad_output, grad_dim, size)
            return unfolded(conv2d_backward_input(folded, *inputs[1:]), 0, size)
        grad_input = conv2d_backward_input(
            channels_of_slices(grad_output, grad_dim, size),
            filters_of_slices(weight, weight_dim, size),
            input_size,
            stride,
            padding,
            dilation,
            groups * size,
            *others,
        )
        return unfolded(grad_input, 1, size)


class Conv2dBackwardWeight(_Gradient):
    """(grad_output, input, kernel_size, stride, .., precision) -> grad_weight"""

    name = "conv2d_backward_weight"

    @staticmethod
    def fake(
        grad_output: Tensor,
        input: Tensor,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        precision: int = 0,
    ) -> Tensor:
        if groups < 1 or input.shape[1] % groups:
            raise RuntimeError(
                "nnops::conv2d_backward_weight: groups must be positive and divide the channels, "
                f"but got {groups=}, input of sizes {tuple(input.shape)}"
            )
        sizes = (grad_output.shape[1], input.shape[1] // groups, *kernel_size)
        numbers = (stride, padding, dilation, groups)
        check_grad_output("conv2d_backward_weight", grad_output, input.shape, sizes, *numbers)
        channels_last = suggests_channels_last(grad_output) or suggests_channels_last(input)
        return empty_image(grad_output, sizes, channels_last)

    @staticmethod
    def flops(grad_output: Tensor, input: Tensor, kernel_size: Any, *sizes: Any) -> int:
        channels = input.shape[1] // sizes[3]
        return 2 * grad_output.numel() * int(channels * math.prod(kernel_size))

    @classmethod
    def partials(cls, ctx: Any, grad: Tensor, a: Tensor, b: Tensor) -> tuple[Any, Any]:
        needs = ctx.needs_input_grad
        return (
            conv2d(b, grad, None, *ctx.parameters) if needs[0] else None,
            conv2d_backward_input(a, grad, ctx.size_of_b, *ctx.parameters) if needs[1] else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        grad_output, input, kernel_size, stride, padding, dilation, groups, *others = inputs
        grad_dim, input_dim = in_dims[:2]
        size = info.batch_size
        # With one group every filter sees every channel: slices of one of the two are more of them.
        grad_alone = groups == 1 and input_dim is None
        input_alone = groups == 1 and grad_dim is None
        if not input_alone:
            grad_output = channels_of_slices(grad_output, grad_dim, size)
        if not grad_alone:
            input = channels_of_slices(input, input_dim, size)
        if not (grad_alone or input_alone):
            groups *= size
        grad_weight = conv2d_backward_weight(
            grad_output, input, kernel_size, stride, padding, dilation, groups, *others
        )
        return unfolded(grad_weight, 1 if input_alone else 0, size)


class Conv2dBackwardBias(Formulas):
    """(grad_output) -> grad_bias: the sum over images and pixels"""

    name = "conv2d_backward_bias"
    differentiable = (0,)

    @staticmethod
    def fake(grad_output: Tensor) -> Tensor:
        return grad_output.new_empty(grad_output.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sizes = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0].view(1, -1, 1, 1).expand(ctx.sizes)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return conv2d_backward_bias(tangents[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output: Tensor) -> Any:
        # The vmapped dimension joins the channels, which are summed apart.
        flat = grad_output.movedim(in_dims[0], 1).flatten(1, 2)
        return conv2d_backward_bias(flat).unflatten(0, (info.batch_size, -1)), 0


conv2d = mount(Conv2d)
conv2d_backward_input = mount(Conv2dBackwardInput)
conv2d_backward_weight = mount(Conv2dBackwardWeight)
conv2d_backward_bias = mount(Conv2dBackwardBias)

_GRADIENTS = {
    "conv2d_backward_input": conv2d_backward_input,
    "conv2d_backward_weight": conv2d_backward_weight,
}
