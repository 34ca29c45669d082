"""relu: y = max(x, 0). The gradient needs one bit an element: whether x is positive, or NaN.

Two forms of one operator: `relu` saves its output, from which the gradient can be read, and
`relu_with_mask` records the bits. `pass_positive` picks one. The bits are a 32nd of the bytes of
float32, to keep and to read again; the output of a small call is cheaper than a second tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import (
    Formulas,
    batch_first,
    first_output,
    is_plain_eager,
    library_fragment,
    mount,
)

# Elements from which on the mask pays.
LEAST_MASKED = 1 << 19


def pass_positive(input: Tensor) -> Tensor:
    """relu in the form that costs least."""
    result: Tensor
    if (
        input.requires_grad
        and torch.is_grad_enabled()
        # Before the number of elements is asked for: it must not decide what is traced.
        and is_plain_eager()
        and input.numel() >= LEAST_MASKED
    ):
        result = masked_relu(input)
    else:
        result = relu(input)
    return result


class Relu(Formulas):
    """(input) -> output"""

    name = "relu"
    differentiable = (0,)
    in_torch = torch.ops.aten.relu.default

    @staticmethod
    def fake(input: Tensor) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (output,) = ctx.saved_tensors
        return relu_backward(grad_outputs[0], output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (output,) = ctx.saved_tensors
        return relu_backward(tangents[0], output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input: Tensor) -> Any:
        return relu(input), in_dims[0]


class ReluBackward(Formulas):
    """(grad_output, output) -> grad_input, linear in grad_output, constant in output"""

    name = "relu_backward"
    differentiable = (0,)

    @staticmethod
    def in_torch(grad_output: Tensor, output: Tensor) -> Tensor:
        grad_input: Tensor = torch.ops.aten.threshold_backward(grad_output, output, 0)
        return grad_input

    @staticmethod
    def fake(grad_output: Tensor, output: Tensor) -> Tensor:
        return torch.empty_like(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (output,) = ctx.saved_tensors
        return relu_backward(grad_outputs[0], output), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (output,) = ctx.saved_tensors
        return relu_backward(tangents[0], output) if tangents[0] is not None else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output: Tensor, output: Tensor) -> Any:
        batched = (
            batch_first(tensor, dim, info.batch_size)
            for tensor, dim in zip((grad_output, output), in_dims, strict=True)
        )
        return relu_backward(*batched), 0


class ReluWithMask(Formulas):
    """(input) -> (output, mask)"""

    name = "relu_with_mask"
    differentiable = (0,)
    has_records = True

    @staticmethod
    def fake(input: Tensor) -> tuple[Tensor, Tensor]:
        mask = input.new_empty(((input.numel() + 7) // 8,), dtype=torch.uint8)
        return torch.empty_like(input), mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.strides = output[0].stride()
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (mask,) = ctx.saved_tensors
        grad = grad_outputs[0]
        return grad if grad is None else relu_mask_backward(grad, mask, ctx.strides)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return relu_mask_backward(tangents[0], mask, ctx.strides), None


class ReluMaskBackward(Formulas):
    """(grad_output, mask, strides) -> grad_input, linear in grad_output"""

    name = "relu_mask_backward"
    differentiable = (0,)

    @staticmethod
    def fake(grad_output: Tensor, mask: Tensor, strides: Any) -> Tensor:
        return grad_output.new_empty_strided(grad_output.shape, strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, mask, ctx.strides = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return relu_mask_backward(grad_outputs[0], mask, ctx.strides), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return relu_mask_backward(tangents[0], mask, ctx.strides)


relu = mount(Relu)
relu_with_mask = mount(ReluWithMask)
masked_relu = first_output(relu_with_mask, ReluWithMask)
relu_mask_backward = mount(ReluMaskBackward)
relu_backward = mount(ReluBackward)


library_fragment.impl("_relu_", lambda input: input, "Meta")


class ReluInplaceFunction(torch.autograd.Function):
    """relu_ for eager autograd: writes the output over the input."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.mark_dirty(input)
        torch.ops.nnops._relu_(input)
        ctx.save_for_backward(input)
        return input

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return Relu.backward(ctx, *grad_outputs)


def relu_(input: Tensor) -> Tensor:
    """Writes relu(input) over `input` and returns it."""
    result: Tensor
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # A copy would stay one in the graph, and add zeros to the gradient.
        result = torch.relu_(input)
    elif not is_plain_eager():
        # What records or transforms knows how copies differentiate.
        result = input.copy_(relu(input))
    elif torch.is_grad_enabled() and input.requires_grad:
        result = ReluInplaceFunction.apply(input)
    else:
        result = torch.ops.nnops._relu_(input)
    return result
