"""cross_entropy: softmax and negative log likelihood in one, for class indices and probabilities.

With p = softmax(x) along the classes, the effective target q (weighted and smoothed, 0 for an
ignored row), Q = sum q, and h the gradient of the row's loss (for mean, over the total weight):

    loss          = -sum_i q_i log p_i
    d loss / d x  = h (p Q - q)                    cross_entropy_backward
    d loss / d t  = -h (1 - e) w log p             cross_entropy_backward_target, t probabilities

Two numbers a row are saved besides the inputs: the maximum, and the logarithm of the sum of the
exponentials of the differences to it. Second derivatives are rare and are written with torch's
softmax and elementwise functions, which differentiate further by themselves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import Formulas, first_output, mount, one_call_per_slice
from nnops.ops.nll_loss import MEAN, NONE, RowsOfSlices, accumulate_dtype, row_shape


def class_dim(input: Tensor) -> int:
    return 1 if input.dim() > 1 else 0


def along_classes(weight: Tensor | None, input: Tensor) -> Tensor | float:
    """`weight` so that it multiplies `input` class by class."""
    if weight is None:
        return 1.0
    return weight.view(-1, *(1,) * max(input.dim() - 2, 0))


def counted_rows(input: Tensor, target: Tensor, ignore_index: int) -> Tensor | None:
    """Which rows are not ignored, with a class dimension of 1; None for probabilities."""
    if input.shape == target.shape:
        return None
    return target.reshape(row_shape(input.shape)).unsqueeze(class_dim(input)) != ignore_index


def effective_target(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> Tensor:
    """q in the input's shape."""
    dim = class_dim(input)
    counted = counted_rows(input, target, ignore_index)
    if input.numel() == 0:
        return target if counted is None else torch.zeros_like(input)
    if counted is None:
        probabilities = target
    else:
        index = target.reshape(row_shape(input.shape)).unsqueeze(dim).long()
        index = torch.where(counted, index, 0)
        probabilities = torch.zeros_like(input).scatter(dim, index, 1.0)
    share = label_smoothing / input.shape[dim]
    q = (probabilities * (1 - label_smoothing) + share) * along_classes(weight, input)
    return q if counted is None else torch.where(counted, q, 0.0)


def per_row(
    grad_output: Tensor, input: Tensor, total_weight: Tensor, counted: Tensor | None, reduction: int
) -> Tensor:
    """h with a class dimension of 1 (or no dimension), 0 for ignored rows."""
    if reduction == NONE:
        h = grad_output.unsqueeze(class_dim(input))
    elif reduction == MEAN:
        h = grad_output / total_weight.to(grad_output.dtype)
    else:
        h = grad_output
    return h if counted is None else torch.where(counted, h, 0.0)


def to_loss(rows: Tensor, input: Tensor, total_weight: Tensor, reduction: int) -> Tensor:
    """The transpose of per_row: from values a row, with a class dimension of 1, to the loss."""
    if reduction == NONE:
        return rows.squeeze(class_dim(input))
    total = rows.sum()
    return total / total_weight.to(total.dtype) if reduction == MEAN else total


def _slices(info: Any, input: Tensor, dim: int | None) -> tuple[RowsOfSlices, torch.Size]:
    """How the slices of a vmapped `input` fold, and the sizes of one."""
    size = input.shape if dim is None else input.movedim(dim, 0).shape[1:]
    return RowsOfSlices(info.batch_size, len(size) == 1), size


class CrossEntropy(Formulas):
    """(input, target, weight, reduction, ignore_index, label_smoothing)
    -> (loss, log_sum_exp, total_weight)"""

    name = "cross_entropy"
    differentiable = (0, 1)
    has_records = True

    @staticmethod
    def fake(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = row_shape(input.shape)
        dtype = accumulate_dtype(input.dtype)
        loss = input.new_empty(rows if reduction == NONE else ())
        return loss, input.new_empty((2, *rows), dtype=dtype), input.new_empty((), dtype=dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, log_sum_exp, total_weight = output
        ctx.options = inputs[3:]
        ctx.save_for_backward(*inputs[:3], log_sum_exp, total_weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_output = grad_outputs[0]
        grad_input = grad_target = None
        if grad_output is not None:
            input, target, weight, log_sum_exp, total_weight = ctx.saved_tensors
            reduction, _, label_smoothing = ctx.options
            if ctx.needs_input_grad[0]:
                grad_input = cross_entropy_backward(
                    grad_output, input, target, weight, log_sum_exp, total_weight, *ctx.options
                )
            if ctx.needs_input_grad[1]:
                grad_target = cross_entropy_backward_target(
                    grad_output, input, weight, log_sum_exp, reduction, label_smoothing
                )
        return grad_input, grad_target, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        input, target, weight, log_sum_exp, total_weight = ctx.saved_tensors
        reduction, _, label_smoothing = ctx.options
        ones = input.new_ones(row_shape(input.shape) if reduction == NONE else ())
        products = []
        if tangents[0] is not None:
            gradient = cross_entropy_backward(
                ones, input, target, weight, log_sum_exp, total_weight, *ctx.options
            )
            products.append(gradient * tangents[0])
        if tangents[1] is not None:
            gradient = cross_entropy_backward_target(
                ones, input, weight, log_sum_exp, reduction, label_smoothing
            )
            products.append(gradient * tangents[1])
        total = sum(products[1:], products[0])
        tangent = total.sum(class_dim(input)) if reduction == NONE else total.sum()
        return tangent, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        input, target, weight, reduction, ignore_index, label_smoothing = inputs
        if in_dims[2] is not None:
            return one_call_per_slice(cross_entropy, info, in_dims, *inputs)
        dtype = input.dtype
        wide = dtype if reduction == NONE else accumulate_dtype(dtype)
        slices, slice_size = _slices(info, input, in_dims[0])
        input, target = (
            slices.fold(tensor, dim) for tensor, dim in zip(inputs[:2], in_dims[:2], strict=True)
        )
        probabilities = input.shape == target.shape
        rows, log_sum_exp, _ = cross_entropy(
            input.to(wide),
            target.to(wide) if probabilities else target,
            None if weight is None else weight.to(wide),
            NONE,
            ignore_index,
            label_smoothing,
        )
        if probabilities:
            count = math.prod(row_shape(slice_size))
            total_weights = input.new_full((slices.size,), count, dtype=torch.float64)
        else:
            total_weights = slices.total_weights(target, weight, ignore_index)
        loss = slices.reduce(rows, total_weights, reduction).to(dtype)
        total_weights = total_weights.to(accumulate_dtype(dtype))
        return (loss, slices.unfold(log_sum_exp, 1), total_weights), (0, 1, 0)


class CrossEntropyBackward(Formulas):
    """(grad_output, input, target, weight, log_sum_exp, total_weight, reduction, ignore_index,
    label_smoothing) -> grad_input. log_sum_exp and total_weight are functions of the others:
    their share is part of the derivatives by input."""

    name = "cross_entropy_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, input, target, weight, _, total_weight, *ctx.options = inputs
        ctx.save_for_backward(grad_output, input, target, weight, total_weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_output, input, target, weight, total_weight = ctx.saved_tensors
        reduction, ignore_index, label_smoothing = ctx.options
        v = grad_outputs[0]
        dim = class_dim(input)
        p = torch.softmax(input, dim)
        q = effective_target(input, target, weight, ignore_index, label_smoothing)
        mass = q.sum(dim, keepdim=True)
        mean_v = (v * p).sum(dim, keepdim=True)
        counted = counted_rows(input, target, ignore_index)
        h = per_row(grad_output, input, total_weight, counted, reduction)
        gradients: list[Tensor | None] = [None] * 9
        if ctx.needs_input_grad[0]:
            rows = mean_v * mass - (v * q).sum(dim, keepdim=True)
            gradients[0] = to_loss(rows, input, total_weight, reduction)
        if ctx.needs_input_grad[1]:
            gradients[1] = h * mass * p * (v - mean_v)
        if ctx.needs_input_grad[2]:
            gradients[2] = h * (mean_v - v) * ((1 - label_smoothing) * along_classes(weight, input))
        return tuple(gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        grad_output, input, target, weight, total_weight = ctx.saved_tensors
        reduction, ignore_index, label_smoothing = ctx.options
        dim = class_dim(input)
        p = torch.softmax(input, dim)
        q = effective_target(input, target, weight, ignore_index, label_smoothing)
        mass = q.sum(dim, keepdim=True)
        counted = counted_rows(input, target, ignore_index)
        h = per_row(grad_output, input, total_weight, counted, reduction)
        result = torch.zeros_like(input)
        if tangents[0] is not None:
            dh = per_row(tangents[0], input, total_weight, counted, reduction)
            result = result + dh * (p * mass - q)
        if tangents[1] is not None:
            mean_dx = (p * tangents[1]).sum(dim, keepdim=True)
            result = result + h * mass * p * (tangents[1] - mean_dx)
        if tangents[2] is not None:
            dq = tangents[2] * ((1 - label_smoothing) * along_classes(weight, input))
            result = result + h * (p * dq.sum(dim, keepdim=True) - dq)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        grad_output, input, target, weight, log_sum_exp, total_weight, *options = inputs
        reduction, ignore_index, label_smoothing = options
        if in_dims[3] is not None:
            return one_call_per_slice(cross_entropy_backward, info, in_dims, *inputs)
        dtype, wide = input.dtype, accumulate_dtype(input.dtype)
        slices, slice_size = _slices(info, input, in_dims[1])
        gradients = slices.row_gradients(
            grad_output.to(wide),
            in_dims[0],
            total_weight,
            in_dims[5],
            reduction,
            row_shape(slice_size),
        )
        input, target = (
            slices.fold(tensor, dim)
            for tensor, dim in zip((input, target), in_dims[1:3], strict=True)
        )
        grad_input = cross_entropy_backward(
            gradients,
            input.to(wide),
            target.to(wide) if input.shape == target.shape else target,
            None if weight is None else weight.to(wide),
            slices.fold(log_sum_exp, in_dims[4], 1).contiguous(),
            gradients.new_zeros(()),  # read for the mean alone
            NONE,
            ignore_index,
            label_smoothing,
        )
        return slices.unfold(grad_input).to(dtype), 0


class CrossEntropyBackwardTarget(Formulas):
    """(grad_output, input, weight, log_sum_exp, reduction, label_smoothing) -> gradient of the
    probabilities, linear in grad_output; log_sum_exp is a function of input."""

    name = "cross_entropy_backward_target"
    differentiable = (0, 1)

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, input, weight, log_sum_exp, *ctx.options = inputs
        ctx.save_for_backward(grad_output, input, weight, log_sum_exp)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        # sum u_i (-h (1 - e) w_i log p_i) is (1 - e) h times the unsmoothed loss of the target u.
        grad_output, input, weight, log_sum_exp = ctx.saved_tensors
        reduction, label_smoothing = ctx.options
        u = grad_outputs[0]
        keep = 1 - label_smoothing
        by_grad_output = by_input = None
        if ctx.needs_input_grad[0]:
            by_grad_output = keep * cross_entropy(input, u, weight, reduction, -1, 0.0)[0]
        if ctx.needs_input_grad[1]:
            row_count = log_sum_exp.new_full((), log_sum_exp[0].numel())
            by_input = keep * cross_entropy_backward(
                grad_output, input, u, weight, log_sum_exp, row_count, reduction, -1, 0.0
            )
        return by_grad_output, by_input, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        grad_output, input, weight, log_sum_exp = ctx.saved_tensors
        reduction, label_smoothing = ctx.options
        result = torch.zeros_like(input)
        if tangents[0] is not None:
            result = result + cross_entropy_backward_target(
                tangents[0], input, weight, log_sum_exp, *ctx.options
            )
        if tangents[1] is not None:
            dim = class_dim(input)
            row_count = log_sum_exp.new_full((), log_sum_exp[0].numel())
            h = per_row(grad_output, input, row_count, None, reduction)
            mean_dx = (torch.softmax(input, dim) * tangents[1]).sum(dim, keepdim=True)
            factor = (1 - label_smoothing) * along_classes(weight, input)
            result = result + h * factor * (mean_dx - tangents[1])
        return result

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        grad_output, input, weight, log_sum_exp, reduction, label_smoothing = inputs
        if in_dims[2] is not None:
            return one_call_per_slice(cross_entropy_backward_target, info, in_dims, *inputs)
        dtype, wide = input.dtype, accumulate_dtype(input.dtype)
        slices, slice_size = _slices(info, input, in_dims[1])
        rows = row_shape(slice_size)
        gradients = slices.row_gradients(
            grad_output.to(wide), in_dims[0], float(math.prod(rows)), None, reduction, rows
        )
        grad_target = cross_entropy_backward_target(
            gradients,
            slices.fold(input, in_dims[1]).to(wide),
            None if weight is None else weight.to(wide),
            slices.fold(log_sum_exp, in_dims[3], 1).contiguous(),
            NONE,
            label_smoothing,
        )
        return slices.unfold(grad_target).to(dtype), 0


cross_entropy = mount(CrossEntropy)
cross_entropy_alone = first_output(cross_entropy, CrossEntropy)
cross_entropy_backward = mount(CrossEntropyBackward)
cross_entropy_backward_target = mount(CrossEntropyBackwardTarget)
