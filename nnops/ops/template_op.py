"""template_op: y = scale * x^2. A complete small operator to copy: see CONTRIBUTING.md.

Its backward, 2 * scale * x * gy, is symmetric and linear in x and gy: it is its own derivative,
and derivatives of every order follow from the two operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import Formulas, batch_first, mount


class TemplateOp(Formulas):
    """(input, scale) -> output"""

    name = "template_op"
    differentiable = (0,)

    @staticmethod
    def fake(input: Tensor, scale: float) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, ctx.scale = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (input,) = ctx.saved_tensors
        return template_op_backward(grad_outputs[0], input, ctx.scale), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (input,) = ctx.saved_tensors
        return template_op_backward(tangents[0], input, ctx.scale)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input: Tensor, scale: float) -> Any:
        return template_op(input, scale), in_dims[0]


class TemplateOpBackward(Formulas):
    """(grad_output, input, scale) -> grad_input"""

    name = "template_op_backward"
    differentiable = (0, 1)

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, scale: float) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, input, ctx.scale = inputs
        ctx.save_for_backward(grad_output, input)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_output, input = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            template_op_backward(grad_outputs[0], input, ctx.scale) if wanted[0] else None,
            template_op_backward(grad_outputs[0], grad_output, ctx.scale) if wanted[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        grad_output, input = ctx.saved_tensors
        parts = [
            template_op_backward(tangent, other, ctx.scale)
            for tangent, other in ((tangents[0], input), (tangents[1], grad_output))
            if tangent is not None
        ]
        return sum(parts) if parts else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output: Tensor, input: Tensor, scale: float) -> Any:
        batched = (
            batch_first(tensor, dim, info.batch_size)
            for tensor, dim in zip((grad_output, input), in_dims[:2], strict=True)
        )
        return template_op_backward(*batched, scale), 0


template_op = mount(TemplateOp)
template_op_backward = mount(TemplateOpBackward)
