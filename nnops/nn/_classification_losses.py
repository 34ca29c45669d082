"""nll_loss and cross_entropy of nnops.nn.functional."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from nnops.nn import _arguments, _autocast
from nnops.ops import cross_entropy as _cross_entropy, nll_loss as _nll_loss


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight[t] input[n, t, ...] for each row's class t: negative log likelihood.

    Args:
        input (Tensor[N, C] | Tensor[N, C, d1, ...] | Tensor[C]): log-probabilities of C classes,
            any strides; float32, float64, bfloat16 or float16.
        target (Tensor[N] | Tensor[N, d1, ...] | Tensor[]): the classes, int64 or uint8.
        weight (Tensor[C]): factor of each class, dtype of `input`; not differentiable.
        size_average, reduce: deprecated, they override `reduction`.
        ignore_index: rows of this class, which may lie outside [0, C), count nothing.
        reduction: 'none', 'mean' (divides by the sum of the rows' weights) or 'sum'.

    Returns:
        Tensor[N, d1, ...]: the loss of each row, or Tensor[] if reduced.

    Raises:
        IndexError: a target outside [0, C), in every reduction.
        ValueError: sizes of the batches differ; `reduction` is none of the three.
        RuntimeError: other sizes or dtypes do not fit.
        NotImplementedError: `weight` requires a gradient; integer or complex `input`.

    Differences from torch:
        uint8 targets may have spatial dimensions. The gradient exists for channels-last input.

    Source: torch.nn.functional.nll_loss.
    """
    op = "nll_loss"
    if _autocast.is_on():
        input, weight = _autocast.in_float32(input, weight)
    _check_tensors(op, input, target, weight)
    ignore_index = _arguments.whole_number(op, "ignore_index", ignore_index)
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    loss: Tensor = _nll_loss.nll_loss_alone(input, target, weight, code, ignore_index)
    return loss


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum_i q_i log softmax(input)_i, q the target: one class, or a probability for each.

    Args:
        input (Tensor[N, C] | Tensor[N, C, d1, ...] | Tensor[C]): logits of C classes, any strides;
            float32, float64, bfloat16 or float16.
        target (Tensor[N] | Tensor[N, d1, ...] | Tensor[]): the classes, int64 or uint8; or, in the
            sizes of `input` and floating, probabilities, which are differentiable.
        weight (Tensor[C]): factor of each class, not differentiable.
        size_average, reduce: deprecated, they override `reduction`.
        ignore_index: rows of this class, which may lie outside [0, C), count nothing; for
            probabilities it must be negative and means nothing.
        reduction: 'none', 'mean' or 'sum'. 'mean' divides by the sum of the rows' weights, for
            probabilities by the number of rows.
        label_smoothing: e in [0, 1]; q becomes (1 - e) q + e / C.

    Returns:
        Tensor[N, d1, ...]: the loss of each row, or Tensor[] if reduced. `input`, `target` and
        `weight` may have different floating dtypes if target holds probabilities; the result has
        the wider one.

    Raises:
        IndexError: a target outside [0, C), in every reduction.
        ValueError: sizes of the batches differ; `reduction` is none of the three.
        RuntimeError: other sizes or dtypes do not fit; `label_smoothing` outside [0, 1];
            `ignore_index` >= 0 with probabilities.
        NotImplementedError: `weight` requires a gradient; integer or complex `input`.

    Differences from torch:
        uint8 targets may have spatial dimensions. A negative label_smoothing, or NaN, raises;
        torch takes it for 0. `weight` has no gradient for probabilities either. A loss near 0 keeps
        its digits; torch rounds it to a multiple of the dtype's epsilon.

    Source: torch.nn.functional.cross_entropy.
    """
    op = "cross_entropy"
    if _autocast.is_on():
        input, target, weight = _autocast.in_float32(input, target, weight)
    _check_tensors(op, input, target, weight)
    ignore_index = _arguments.whole_number(op, "ignore_index", ignore_index)
    if not isinstance(label_smoothing, (float, numbers.Real, torch.SymFloat)):
        raise TypeError(
            f"nnops::{op}: label_smoothing must be a float, but got label_smoothing="
            f"{label_smoothing!r}"
        )
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    if target.is_floating_point() and target.shape == input.shape:
        input, target, weight = _common_dtype(input, target, weight)
    loss: Tensor = _cross_entropy.cross_entropy_alone(
        input, target, weight, code, ignore_index, label_smoothing
    )
    return loss


def _check_tensors(op: str, input: object, target: object, weight: Tensor | None) -> None:
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        _arguments.check_tensor(op, "input", input)
        _arguments.check_tensor(op, "target", target)
    if weight is None:
        return
    _arguments.check_tensor(op, "weight", weight)
    if weight.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"nnops::{op}: weight must not require a gradient, it has none, but got a weight of "
            f"sizes {tuple(weight.shape)} with requires_grad=True"
        )


def _common_dtype(
    input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """torch's promotion among logits, probabilities and weight, where the logits are floating."""
    if not input.is_floating_point():
        return input, target, weight
    dtype = torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
        weight = weight.to(dtype)
    return input.to(dtype), target.to(dtype), weight
