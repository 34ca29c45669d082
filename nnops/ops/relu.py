"""relu: y = max(x, 0). The gradient is read off the output, so nothing else is saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import Formulas, batch_first, mount


class Relu(Formulas):
    """(input) -> output"""

    name = "relu"
    differentiable = (0,)

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


relu = mount(Relu)
relu_backward = mount(ReluBackward)


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
    if torch.is_grad_enabled() and input.requires_grad:
        result = ReluInplaceFunction.apply(input)
    else:
        result = torch.ops.nnops._relu_(input)
    return result
