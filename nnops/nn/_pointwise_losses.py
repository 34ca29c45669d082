"""The pointwise losses of nnops.nn.functional: torch's signatures, promotion and warnings."""

from __future__ import annotations

import functools
import numbers
from typing import Any

import torch
from torch import Tensor

from nnops.nn import _arguments, _autocast
from nnops.ops import pointwise_losses as _losses

_NONE, _MEAN, _SUM = 0, 1, 2
_REDUCTION_NAMES = ("none", "mean", "sum")


def _check_tensors(op: str, input: object, target: object) -> None:
    _arguments.check_tensor(op, "input", input)
    _arguments.check_tensor(op, "target", target)


def _number(op: str, name: str, value: Any) -> Any:
    """A Python, NumPy or symbolic number, or a tensor of one element, as torch accepts."""
    if isinstance(value, (float, torch.SymFloat)):
        return value
    if isinstance(value, (numbers.Real, torch.SymInt)):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        return float(value)
    raise TypeError(f"nnops::{op}: {name} must be a number, but got {type(value).__name__}")


def _refuse_complex(op: str, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.dtype.is_complex:
            raise NotImplementedError(f"nnops::{op}: not implemented for dtype {tensor.dtype}")


def _broadcast(op: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    try:
        expanded_input, expanded_target = torch.broadcast_tensors(input, target)
    except RuntimeError:
        raise RuntimeError(
            f"nnops::{op}: input and target must broadcast to one size, but got "
            f"{tuple(input.shape)} and {tuple(target.shape)}"
        ) from None
    return expanded_input, expanded_target


def _difference_operands(op: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both of one size (with torch's warning where they were not) and of one dtype."""
    if (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype is target.dtype
        and input.shape == target.shape
        and not input.dtype.is_complex
    ):
        return input, target  # the usual case, at the price of a glance
    _check_tensors(op, input, target)
    if input.shape != target.shape:
        _arguments.warn(
            f"Using a target size ({target.shape}) that is different to the input size "
            f"({input.shape}): they are broadcast, which is seldom what a loss should do. "
            "Give both the same size.",
            stacklevel=3,
        )
        input, target = _broadcast(op, input, target)
    _refuse_complex(op, input, target)
    if input.dtype is not target.dtype:
        dtype = torch.result_type(input, target)
        input, target = input.to(dtype), target.to(dtype)
    return input, target


def _check_weight_size(op: str, weight: Tensor, input: Tensor) -> None:
    _arguments.check_tensor(op, "weight", weight)
    if weight.shape != input.shape:
        raise ValueError(
            f"nnops::{op}: weight and input must have the same size, but got "
            f"{tuple(weight.shape)} and {tuple(input.shape)}"
        )


def _reduce_weighted(errors: Tensor, weight: Tensor, reduction: int) -> Tensor:
    weighted = errors * weight
    if reduction == _NONE:
        return weighted
    return weighted.sum() / weight.sum() if reduction == _MEAN else weighted.sum()


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|input - target|, reduced.

    Args:
        input (Tensor[*]): floating, or integer where reduction is 'none' or 'sum'.
        target (Tensor[*]): sizes and dtype may differ from `input`: both are broadcast, with a
            warning, and promoted.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: 'none', 'mean' or 'sum'.
        weight (Tensor[*]): multiplies the errors; the mean divides by its sum.

    Returns:
        Tensor[*] or Tensor[]: of the promoted dtype; int64 for a sum of integers.

    Raises:
        RuntimeError: sizes that do not broadcast, the mean of integers, bool tensors.
        ValueError: an unknown reduction, a weight of other sizes than `input`.
        NotImplementedError: complex tensors.

    Differences from torch: complex tensors are not implemented. bfloat16 and float16 compute in
    float32 and round once.

    Source: torch.nn.functional.l1_loss.
    """
    op = "l1_loss"
    if _autocast.is_on():
        input, target = _autocast.in_float32(input, target)
    x, t = _difference_operands(op, input, target)
    if input.dtype is torch.bool or target.dtype is torch.bool:
        raise RuntimeError(f"nnops::{op}: bool tensors cannot be subtracted")
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    if weight is not None:
        _check_weight_size(op, weight, input)
        return _reduce_weighted(_losses.l1_loss(x, t, _NONE), weight, code)
    result: Tensor = _losses.l1_loss(x, t, code)
    return result


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input - target)^2, reduced.

    Args:
        input (Tensor[*]): with `target`, of a floating promoted dtype.
        target (Tensor[*]): sizes and dtype may differ from `input`: both are broadcast, with a
            warning, and promoted.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: 'none', 'mean' or 'sum'.
        weight (Tensor[*]): multiplies the errors; the mean divides by its sum.

    Returns:
        Tensor[*] or Tensor[]: of the promoted dtype.

    Raises:
        RuntimeError: sizes that do not broadcast.
        ValueError: an unknown reduction, a weight of other sizes than `input`.
        NotImplementedError: complex tensors, integers on both sides.

    Differences from torch: none known in float32 and float64; bfloat16 and float16 compute in
    float32 and round once, so that a mean overflows only if it is too large itself. With `weight`,
    torch takes integers and complex tensors too.

    Source: torch.nn.functional.mse_loss.
    """
    op = "mse_loss"
    if _autocast.is_on():
        input, target = _autocast.in_float32(input, target)
    x, t = _difference_operands(op, input, target)
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    if weight is not None:
        _check_weight_size(op, weight, input)
        return _reduce_weighted(_losses.mse_loss(x, t, _NONE), weight, code)
    result: Tensor = _losses.mse_loss(x, t, code)
    return result


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere, reduced; d = input - target.

    Args:
        input (Tensor[*]): with `target`, of a floating promoted dtype.
        target (Tensor[*]): sizes and dtype may differ from `input`: both are broadcast, with a
            warning, and promoted.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: 'none', 'mean' or 'sum'.
        beta: at least 0; 0 gives l1_loss.

    Returns:
        Tensor[*] or Tensor[]: of the promoted dtype.

    Raises:
        RuntimeError: sizes that do not broadcast, a negative beta.
        ValueError: an unknown reduction.
        TypeError: a beta that is no number.
        NotImplementedError: complex tensors, integers on both sides.

    Differences from torch: bfloat16 and float16 compute in float32 and round once.

    Source: torch.nn.functional.smooth_l1_loss; Girshick, Fast R-CNN, 2015.
    """
    op = "smooth_l1_loss"
    if _autocast.is_on():
        input, target = _autocast.in_float32(input, target)
    x, t = _difference_operands(op, input, target)
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    beta = _number(op, "beta", beta)
    result: Tensor
    if beta == 0:
        # Not left to the operator: torch takes integers and refuses bool here, as l1_loss does.
        result = l1_loss(x, t, reduction=_REDUCTION_NAMES[code])
    else:
        result = _losses.smooth_l1_loss(x, t, beta, code)
    return result


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """d^2 / 2 where |d| < delta, delta (|d| - delta / 2) elsewhere, reduced; d = input - target.

    Args:
        input (Tensor[*]): floating.
        target (Tensor[*]): sizes and dtype may differ from `input`: both are broadcast, with a
            warning, and promoted.
        reduction: 'none', 'mean' or 'sum'.
        delta: positive.
        weight (Tensor[*]): multiplies the errors; the mean divides by their number.

    Returns:
        Tensor[*] or Tensor[]: of the dtype of `input`.

    Raises:
        RuntimeError: sizes that do not broadcast, a delta that is not positive, an integer input
            with a floating target.
        ValueError: an unknown reduction, a weight of other sizes than `input`.
        TypeError: a delta that is no number.
        NotImplementedError: complex tensors, integers on both sides.

    Differences from torch: bfloat16 and float16 compute in float32 and round once.

    Source: torch.nn.functional.huber_loss; Huber, Robust Estimation of a Location Parameter, 1964.
    """
    op = "huber_loss"
    if _autocast.is_on():
        input, target = _autocast.in_float32(input, target)
    x, t = _difference_operands(op, input, target)
    code = _arguments.reduction_code(op, reduction)
    delta = _number(op, "delta", delta)
    dtype = input.dtype
    if target.dtype.is_floating_point and not dtype.is_floating_point:
        raise RuntimeError(
            f"nnops::{op}: the result has the dtype of input, which cannot be {dtype} "
            f"where target is {target.dtype}"
        )
    result: Tensor
    if weight is None:
        result = _losses.huber_loss(x, t, delta, code)
        return result if result.dtype is dtype else result.to(dtype)
    _check_weight_size(op, weight, input)
    weighted: Tensor = _losses.huber_loss(x, t, delta, _NONE).to(dtype) * weight
    if code == _NONE:
        return weighted
    return weighted.mean() if code == _MEAN else weighted.sum()


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """p (log p - input), reduced, with p = target, or exp(target) if log_target.

    Args:
        input (Tensor[*]): log-probabilities, floating.
        target (Tensor[*]): probabilities, or log-probabilities if `log_target`; floating. Sizes
            and dtype may differ from `input`: both are broadcast and promoted.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: 'none', 'mean' (with a warning: it divides by the number of elements), 'sum', or
            'batchmean', the sum divided by the first size of `input`.
        log_target: whether `target` is in the log space.

    Returns:
        Tensor[*] or Tensor[]: of the promoted dtype.

    Raises:
        RuntimeError: sizes that do not broadcast, integer or bool tensors.
        ValueError: an unknown reduction.
        NotImplementedError: complex tensors.

    Differences from torch: bfloat16 and float16 compute in float32 and round once.

    Source: torch.nn.functional.kl_div; Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    op = "kl_div"
    if _autocast.is_on():
        input, target = _autocast.in_float32(input, target)
    _check_tensors(op, input, target)
    if size_average is not None or reduce is not None:
        code = _arguments.reduction_code(op, reduction, size_average, reduce)
    elif reduction == "batchmean":
        code = _SUM
    else:
        code = _arguments.reduction_code(op, reduction)
        if code == _MEAN:
            _arguments.warn(
                "reduction: 'mean' divides the sum by the number of elements; 'batchmean' divides "
                "it by the batch size, which is the mathematical KL divergence and what 'mean' "
                "will do in a later major release of torch.",
                stacklevel=2,
            )
    _refuse_complex(op, input, target)
    if not (input.dtype.is_floating_point and target.dtype.is_floating_point):
        raise RuntimeError(
            f"nnops::{op}: input and target must be floating, but got {input.dtype} and "
            f"{target.dtype}"
        )
    x, t = input, target
    if x.dtype is not t.dtype:
        dtype = torch.result_type(x, t)
        x, t = x.to(dtype), t.to(dtype)
    if x.shape != t.shape:
        x, t = _broadcast(op, x, t)
    result: Tensor = _losses.kl_div(x, t, bool(log_target), code)
    if reduction == "batchmean" and input.dim() != 0:
        result = result / input.shape[0]
    return result


def _check_probability_arguments(
    op: str, input: Tensor, target: Tensor, weights: dict[str, Tensor | None]
) -> None:
    _check_tensors(op, input, target)
    if input.shape != target.shape:
        raise ValueError(
            f"nnops::{op}: target and input must have the same size, but got "
            f"{tuple(target.shape)} and {tuple(input.shape)}"
        )
    for name, weight in weights.items():
        if weight is None:
            continue
        _arguments.check_tensor(op, name, weight)
        if weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"nnops::{op}: not differentiable with respect to {name}, which must not require "
                "a gradient"
            )
    _refuse_complex(op, input, target, *weights.values())


def _promoted(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    present = [tensor.dtype for tensor in tensors if tensor is not None]
    if present.count(present[0]) == len(present):
        return list(tensors)
    dtype = functools.reduce(torch.promote_types, present)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight (target log(input) + (1 - target) log(1 - input)), reduced.

    Logarithms are at least -100; the denominator of the gradient is at least 1e-12.

    Args:
        input (Tensor[*]): probabilities, floating, every element in [0, 1].
        target (Tensor[*]): same sizes and dtype, every element in [0, 1].
        weight (Tensor): must broadcast to the sizes of `input`; any real dtype.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        Tensor[*] or Tensor[]: of the dtype of `input`.

    Raises:
        RuntimeError: a value outside [0, 1] or NaN, different dtypes, a weight that does not
            broadcast or that requires a gradient.
        ValueError: an unknown reduction, different sizes.
        NotImplementedError: complex tensors, integers on both sides.

    Differences from torch: bfloat16 and float16 compute in float32 and round once, gradients in
    float16 included, where torch's 1e-12 is 0 and its gradient at 0 and 1 NaN.

    Source: torch.nn.functional.binary_cross_entropy.
    """
    op = "binary_cross_entropy"
    if _autocast.is_on():
        input, target, weight = _autocast.in_float32(input, target, weight)
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    _check_probability_arguments(op, input, target, {"weight": weight})
    x: Tensor | None = input
    t: Tensor | None = target
    # The operator refuses input and target of different or integer dtypes.
    if weight is not None and input.dtype is target.dtype and input.dtype.is_floating_point:
        x, t, weight = _promoted((x, t, weight))
    result: Tensor = _losses.binary_cross_entropy(x, t, weight, code)
    return result if result.dtype is input.dtype else result.to(input.dtype)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    finite: bool = False,
) -> Tensor:
    """-weight (pos_weight target log(s) + (1 - target) log(1 - s)), s = sigmoid(input), reduced.

    Args:
        input (Tensor[*]): logits, floating.
        target (Tensor[*]): same sizes, floating.
        weight (Tensor): must broadcast to the sizes of `input`; any real dtype.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: 'none', 'mean' or 'sum'.
        pos_weight (Tensor): must broadcast to the sizes of `input`; any real dtype but bool.
        finite: no infinity or NaN comes of infinite logits. Logits beyond +-2^64 (float16: beyond
            +-65504) count as that number: the loss is 0 where the target agrees, |target - s| times
            that number (and the weights) elsewhere, and its sums and means are finite too, unless
            the dtype is too narrow for them. Nothing else changes, no bit of it.

    Returns:
        Tensor[*] or Tensor[]: of the dtype of `target`.

    Raises:
        RuntimeError: integer targets, weights that do not broadcast or that require a gradient.
        ValueError: an unknown reduction, different sizes.
        NotImplementedError: complex tensors, integer inputs.

    Differences from torch: losses near 0 keep their relative accuracy (torch returns 0 from an
    input of about -17 down where the target is 0). bfloat16 and float16 compute in float32 and
    round once, also where only some operands have them. A uint8 pos_weight of 0 is 0, where torch's
    pos_weight - 1 wraps. Unless `finite`, which torch lacks, losses of
    infinite logits are torch's: NaN at infinity if the target is 1, at -infinity always.
    Gradients by input are finite and alike in both: the sigmoid is 0 or 1 there.

    Source: torch.nn.functional.binary_cross_entropy_with_logits.
    """
    op = "binary_cross_entropy_with_logits"
    if _autocast.is_on():
        input, target, weight, pos_weight = _autocast.in_float32(input, target, weight, pos_weight)
    code = _arguments.reduction_code(op, reduction, size_average, reduce)
    weights = {"weight": weight, "pos_weight": pos_weight}
    _check_probability_arguments(op, input, target, weights)
    if not input.dtype.is_floating_point:
        raise NotImplementedError(f"nnops::{op}: not implemented for dtype {input.dtype}")
    if not target.dtype.is_floating_point:
        raise RuntimeError(
            f"nnops::{op}: the result has the dtype of target, which must be floating, but got "
            f"{target.dtype}"
        )
    if pos_weight is not None and pos_weight.dtype is torch.bool:
        raise RuntimeError(f"nnops::{op}: pos_weight must not be bool")
    operands = _promoted((input, target, weight, pos_weight))
    result: Tensor = _losses.binary_cross_entropy_with_logits(*operands, bool(finite), code)
    return result if result.dtype is target.dtype else result.to(target.dtype)
