"""linear for a few rows of input: the layer behind the convolutions of a small batch.

    output = input @ weight.T + bias        (N, I), (O, I), (O) -> (N, O)

With few rows the weight is all that matters: 411 MB of it in VGG's first linear layer. torch reads
it with a matrix product made for many rows, and writes its gradient into memory that the system
clears page by page. Here it is read once, at the speed of memory, and the gradient is written into
huge pages. Where rows are many torch's matrix product is faster: `applies` tells.

The three operators are each other's derivatives. They are on the CPU alone and have private names:
what is traced or transformed gets torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnops.ops._operator import (
    PLAIN_TENSORS,
    _apply_of,
    _old_style_function,
    _one_device,
    dispatch_modes,
    function_of,
    is_plain_eager,
    is_tracing,
)

# With more rows than these torch's product is about as fast, or faster.
MOST_ROWS = 32
# With fewer weights than these the caches hold them, and calls cost more than is to be gained.
LEAST_WEIGHTS = 2**18

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_forward = function_of(torch.ops.nnops._linear.default)
_backward_input = function_of(torch.ops.nnops._linear_backward_input.default)
_backward_weight = function_of(torch.ops.nnops._linear_backward_weight.default)


def applies(input: Any, weight: Any, bias: Any) -> bool:
    """Whether `linear` is for this call; else torch's is, which also says what is wrong."""
    return (
        _is_ordinary_call()
        and not is_tracing()
        and type(weight) in PLAIN_TENSORS
        and weight.numel() >= LEAST_WEIGHTS
        and type(input) in PLAIN_TENSORS
        and _are_alike(input, weight)
        and weight.is_contiguous()  # else a copy of it would cost what is gained
        and input.dim() == 2
        and 0 < input.shape[0] <= MOST_ROWS
        and weight.dim() == 2
        and input.shape[1] == weight.shape[1]
        and (
            bias is None
            or (
                type(bias) in PLAIN_TENSORS
                and bias.shape == weight.shape[:1]
                and _are_alike(input, bias)
            )
        )
    )


def _is_ordinary_call(*operands: Tensor) -> bool:
    """Whether nothing traces, transforms or watches a call made now, on strided operands."""
    return (
        is_plain_eager()
        and not dispatch_modes()
        and all(operand.layout is torch.strided for operand in operands)
    )


def _are_alike(input: Tensor, other: Tensor) -> bool:
    return (
        input.is_cpu
        and other.is_cpu
        and input.dtype is other.dtype
        and input.dtype in _DTYPES
        and input.layout is other.layout is torch.strided
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """output, differentiable; for arguments to which it `applies`."""
    output: Tensor
    if _is_differentiated(input, weight, bias):
        output = _apply(input, weight, bias)
    else:
        output = _forward(input, weight, bias)
    return output


def linear_backward_input(grad_output: Tensor, weight: Tensor) -> Tensor:
    if not _is_ordinary_call(grad_output):
        return grad_output @ weight
    call = _apply_backward_input if _is_differentiated(grad_output, weight) else _backward_input
    grad_input: Tensor = call(grad_output, weight)
    return grad_input


def linear_backward_weight(grad_output: Tensor, input: Tensor) -> Tensor:
    if not _is_ordinary_call(grad_output):
        return grad_output.mT @ input
    call = _apply_backward_weight if _is_differentiated(grad_output, input) else _backward_weight
    grad_weight: Tensor = call(grad_output, input)
    return grad_weight


def _is_differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


class _Linear:
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        _save(ctx, input, weight)
        return _forward(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_output,) = grad_outputs
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            linear_backward_input(grad_output, weight) if needs_input else None,
            linear_backward_weight(grad_output, input) if needs_weight else None,
            grad_output.sum(0) if needs_bias else None,
        )


class _LinearBackwardInput:
    """grad_input = grad_output @ weight"""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor) -> Any:
        _save(ctx, grad_output, weight)
        return _backward_input(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        grad_output, weight = ctx.saved_tensors
        needs_grad_output, needs_weight = ctx.needs_input_grad
        return (
            _linear_alone(gradient, weight) if needs_grad_output else None,
            linear_backward_weight(grad_output, gradient) if needs_weight else None,
        )


class _LinearBackwardWeight:
    """grad_weight = grad_output.T @ input"""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, input: Tensor) -> Any:
        _save(ctx, grad_output, input)
        return _backward_weight(grad_output, input)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        grad_output, input = ctx.saved_tensors
        needs_grad_output, needs_input = ctx.needs_input_grad
        return (
            _linear_alone(input, gradient) if needs_grad_output else None,
            linear_backward_input(grad_output, gradient) if needs_input else None,
        )


def _linear_alone(input: Tensor, weight: Tensor) -> Tensor:
    ours = _is_ordinary_call(input, weight)
    return linear(input, weight, None) if ours else input @ weight.mT


def _save(ctx: Any, left: Tensor, right: Tensor) -> None:
    """Of the operands of a product, those that the gradient of the other needs."""
    needs_left, needs_right, *_ = ctx.needs_input_grad
    ctx.save_for_backward(left if needs_right else None, right if needs_left else None)


def _applied(formulas: Any) -> Any:
    class_name = f"{formulas.__name__[1:]}Function"
    return _apply_of(_old_style_function(class_name, formulas.forward, formulas.backward))


_apply = _applied(_Linear)
_apply_backward_input = _applied(_LinearBackwardInput)
_apply_backward_weight = _applied(_LinearBackwardWeight)


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


def _fake_backward_input(grad_output: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(grad_output.shape[0], weight.shape[1])


def _fake_backward_weight(grad_output: Tensor, input: Tensor) -> Tensor:
    return input.new_empty(grad_output.shape[1], input.shape[1])


for _name, _fake_kernel in (
    ("_linear", _fake),
    ("_linear_backward_input", _fake_backward_input),
    ("_linear_backward_weight", _fake_backward_weight),
):
    torch.library.register_fake(f"nnops::{_name}", _one_device(_name, _fake_kernel))
