"""nll_loss: loss_r = -weight[t_r] input[n, t_r, s] for rows r = (n, s) with class t_r.

It is linear in its input, so its tangent is itself, and the derivative of its backward is again its
forward: a row's gather. Only the target, the weight and the total weight are saved.

Under vmap the rows of all slices are the rows of one call without reduction, and are reduced slice
by slice behind it; the same for cross_entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import (
    Formulas,
    batch_first,
    first_output,
    mount,
    one_call_per_slice,
)

NONE, MEAN, SUM = 0, 1, 2


def row_shape(input_size: Sequence[int]) -> tuple[int, ...]:
    """The sizes without those of the classes (the second dimension, or the only one)."""
    return (*input_size[:1], *input_size[2:]) if len(input_size) > 1 else ()


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class RowsOfSlices:
    """For vmap rules: tensors a slice (N, ..), or a single row, as one tensor of all rows."""

    def __init__(self, size: int, single: bool) -> None:
        self.size = size
        self.single = single

    def fold(self, tensor: Tensor, dim: int | None, at: int = 0) -> Tensor:
        """The slices join dimension `at`, which holds the rows."""
        first = batch_first(tensor, dim, self.size).movedim(0, at)
        return first if self.single else torch.flatten(first, at, at + 1)

    def unfold(self, tensor: Tensor, at: int = 0) -> Tensor:
        if self.single:
            return tensor
        unfolded: Tensor = tensor.unflatten(at, (self.size, tensor.shape[at] // self.size))
        return unfolded

    def total_weights(self, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
        """The sum of the weights of each slice's rows, from the classes of all rows."""
        counted = target != ignore_index
        if weight is None:
            weights = counted.to(torch.float64)
        else:
            classes = torch.where(counted, target.long(), 0)
            weights = torch.where(counted, weight.double()[classes], 0.0)
        return self.unfold(weights).reshape(self.size, -1).sum(1)

    def reduce(self, rows: Tensor, total_weights: Tensor, reduction: int) -> Tensor:
        """From the losses of all rows to the loss of each slice."""
        losses = self.unfold(rows)
        if reduction == NONE:
            return losses
        totals = losses.unsqueeze(-1).flatten(1).sum(1, dtype=torch.float64)
        return totals / total_weights if reduction == MEAN else totals

    def row_gradients(
        self,
        grad_output: Tensor,
        grad_dim: int | None,
        total_weight: Tensor | float,
        total_dim: int | None,
        reduction: int,
        rows: tuple[int, ...],
    ) -> Tensor:
        """The gradient that arrives at each of the rows, whose sizes a slice are `rows`."""
        if reduction == NONE:
            return self.fold(grad_output, grad_dim)
        gradient = batch_first(grad_output, grad_dim, self.size)
        if reduction == MEAN:
            if isinstance(total_weight, Tensor):
                total_weight = batch_first(total_weight, total_dim, self.size)
            gradient = gradient / total_weight
        spread = gradient.view(-1, *(1,) * len(rows)).expand(self.size, *rows)
        return spread if self.single else spread.flatten(0, 1)


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

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        input, target, weight, reduction, ignore_index = inputs
        if in_dims[2] is not None:
            return one_call_per_slice(nll_loss, info, in_dims, *inputs)
        dtype = input.dtype
        wide = dtype if reduction == NONE else accumulate_dtype(dtype)
        slices = RowsOfSlices(info.batch_size, input.dim() - (in_dims[0] is not None) == 1)
        target = slices.fold(target, in_dims[1])
        rows, _ = nll_loss(
            slices.fold(input, in_dims[0]).to(wide),
            target,
            None if weight is None else weight.to(wide),
            NONE,
            ignore_index,
        )
        total_weights = slices.total_weights(target, weight, ignore_index)
        loss = slices.reduce(rows, total_weights, reduction).to(dtype)
        return (loss, total_weights.to(accumulate_dtype(dtype))), (0, 0)


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

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        grad_output, target, weight, total_weight, input_size, reduction, ignore_index = inputs
        if in_dims[2] is not None:
            return one_call_per_slice(nll_loss_backward, info, in_dims, *inputs)
        dtype = grad_output.dtype
        wide = accumulate_dtype(dtype)
        slices = RowsOfSlices(info.batch_size, len(input_size) == 1)
        rows = row_shape(input_size)
        gradients = slices.row_gradients(
            grad_output.to(wide), in_dims[0], total_weight, in_dims[3], reduction, rows
        )
        first = (slices.size,) if slices.single else (slices.size * input_size[0],)
        grad_input = nll_loss_backward(
            gradients,
            slices.fold(target, in_dims[1]),
            None if weight is None else weight.to(wide),
            gradients.new_zeros(()),  # read for the mean alone
            (*first, *input_size[0 if slices.single else 1 :]),
            NONE,
            ignore_index,
        )
        return slices.unfold(grad_input).to(dtype), 0


nll_loss = mount(NllLoss)
nll_loss_alone = first_output(nll_loss, NllLoss)
nll_loss_backward = mount(NllLossBackward)
