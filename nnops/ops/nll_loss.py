"""nll_loss: loss_r = -weight[t_r] input[n, t_r, s] for rows r = (n, s) with class t_r.

It is linear in its input, so its tangent is itself, and the derivative of its backward is again its
forward: a row's gather. Only the target, the weight and the total weight are saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import Formulas, first_output, mount

NONE, MEAN, SUM = 0, 1, 2


def row_shape(input_size: torch.Size) -> tuple[int, ...]:
    """The sizes without those of the classes (the second dimension, or the only one)."""
    return (*input_size[:1], *input_size[2:]) if len(input_size) > 1 else ()


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class NllLoss(Formulas):
    """(input, target, weight, reduction, ignore_index) -> (loss, total_weight)"""

    name = "nll_loss"
    differentiable = (0,)
    has_records = True

    @staticmethod
    def fake(
        input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        loss = input.new_empty(row_shape(input.shape) if reduction == NONE else ())
        return loss, input.new_empty((), dtype=accumulate_dtype(input.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, target, weight = inputs[:3]
        ctx.options = inputs[3:]
        ctx.input_size = input.shape
        ctx.save_for_backward(target, weight, output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if grad_outputs[0] is None:
            return (None,) * 5
        target, weight, total_weight = ctx.saved_tensors
        grad_input = nll_loss_backward(
            grad_outputs[0], target, weight, total_weight, ctx.input_size, *ctx.options
        )
        return grad_input, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        target, weight, _ = ctx.saved_tensors
        return nll_loss(tangents[0], target, weight, *ctx.options)[0], None


class NllLossBackward(Formulas):
    """(grad_output, target, weight, total_weight, input_size, reduction, ignore_index)
    -> grad_input, linear in grad_output"""

    name = "nll_loss_backward"
    differentiable = (0,)

    @staticmethod
    def fake(
        grad_output: Tensor,
        target: Tensor,
        weight: Tensor | None,
        total_weight: Tensor,
        input_size: list[int],
        reduction: int,
        ignore_index: int,
    ) -> Tensor:
        return grad_output.new_empty(input_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, target, weight, total_weight, ctx.input_size, *ctx.options = inputs
        ctx.save_for_backward(target, weight, total_weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        target, weight, _ = ctx.saved_tensors
        grad = nll_loss(grad_outputs[0], target, weight, *ctx.options)[0]
        return grad, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        target, weight, total_weight = ctx.saved_tensors
        return nll_loss_backward(
            tangents[0], target, weight, total_weight, ctx.input_size, *ctx.options
        )


nll_loss = mount(NllLoss)
nll_loss_alone = first_output(nll_loss, NllLoss)
nll_loss_backward = mount(NllLossBackward)
