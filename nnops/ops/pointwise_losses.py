"""The pointwise losses: l1, mse, smooth_l1, huber, kl_div, binary_cross_entropy (with logits too).

Every loss is `reduce(f(input, target))` for one function f of two numbers. Its formulas are two
operators, the derivatives of f by input and by target (`Derivative`), and the derivatives of those
(`partials`, in torch's elementwise arithmetic, which differentiates itself further). All the rest
is the same for every loss and stands here once, in `Loss` and `Derivative`.

In `reduction`, 0 is none, 1 mean, 2 sum.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from nnops.ops._operator import Formulas, Router, mount, needed_inputs

_NONE, _MEAN = 0, 1


def _reduce(values: Tensor, reduction: int) -> Tensor:
    if reduction == _NONE:
        return values
    return values.mean() if reduction == _MEAN else values.sum()


def _save(ctx: Any, tensors: tuple[Any, ...], extra: tuple[Any, ...], reduction: int) -> None:
    """Saves operands and the arguments behind them: weights (tensors or None) or one number."""
    numbers = tuple(value for value in extra if not isinstance(value, (Tensor, type(None))))
    ctx.save_for_backward(*tensors, *(extra if not numbers else ()))
    ctx.numbers = numbers
    ctx.reduction = reduction


def _saved(ctx: Any, count: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(the `count` operands, the extra arguments)"""
    saved = ctx.saved_tensors
    return saved[:count], (*saved[count:], *ctx.numbers)


class Derivative(Formulas):
    """(grad_output, *operands, *extra, reduction) -> grad_output times the derivative of f

    A loss that is reduced has a grad_output without dimensions.
    """

    # Which of (input, target) the derivative depends on: those are its operands.
    operands: ClassVar[tuple[int, ...]] = (0, 1)
    route: ClassVar[Router]

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        """Derivative of the derivative by each operand, elementwise."""
        raise NotImplementedError

    @classmethod
    def fake(cls, *inputs: Any) -> Any:
        return torch.empty_like(inputs[1])

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        count = 1 + len(cls.operands)
        _save(ctx, inputs[:count], inputs[count:-1], inputs[-1])

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        (grad_output, *operands), extra = _saved(ctx, 1 + len(cls.operands))
        (tangent,) = grad_outputs
        gradients: list[Tensor | None] = [None] * (1 + len(operands))
        if ctx.needs_input_grad[0]:
            elementwise = cls.route(tangent, *operands, *extra, _NONE)
            gradients[0] = _reduce(elementwise, ctx.reduction)
        if any(ctx.needs_input_grad[1 : 1 + len(operands)]):
            factor = tangent * _per_element(grad_output, operands[0], ctx.reduction)
            partials = cls.partials(*operands, *extra)
            for index, partial in enumerate(partials, start=1):
                if ctx.needs_input_grad[index]:
                    gradients[index] = factor * partial
        return (*gradients, *(None for _ in extra), None)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        (grad_output, *operands), extra = _saved(ctx, 1 + len(cls.operands))
        result: Tensor | None = None
        if tangents[0] is not None:
            result = cls.route(tangents[0], *operands, *extra, ctx.reduction)
        factor = _per_element(grad_output, operands[0], ctx.reduction)
        for tangent, partial in zip(tangents[1:], cls.partials(*operands, *extra), strict=False):
            if tangent is not None:
                term = factor * tangent * partial
                result = term if result is None else result + term
        return result


def _per_element(grad_output: Tensor, operand: Tensor, reduction: int) -> Tensor:
    """The gradient that arrives at each element of the unreduced loss."""
    return grad_output / operand.numel() if reduction == _MEAN else grad_output


class Loss(Formulas):
    """(input, target, *extra, reduction) -> loss"""

    differentiable = (0, 1)
    by_input: ClassVar[type[Derivative]]
    # None for functions of input - target: minus the derivative by input.
    by_target: ClassVar[type[Derivative] | None] = None

    @staticmethod
    def empty_unreduced(input: Tensor, target: Tensor) -> Tensor:
        """Uninitialised, with the strides that torch's unreduced loss has."""
        return torch.empty_like(input - target)

    @classmethod
    def fake(cls, *inputs: Any) -> Any:
        input, target, reduction = inputs[0], inputs[1], inputs[-1]
        if reduction == _NONE:
            return cls.empty_unreduced(input, target)
        return input.new_empty((), dtype=None if input.is_floating_point() else torch.int64)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        needs_input, needs_target = needed_inputs(ctx)[:2]
        wanted: set[int] = set()
        if needs_input or cls.by_target is None:
            wanted.update(cls.by_input.operands)
        if needs_target and cls.by_target is not None:
            wanted.update(cls.by_target.operands)
        operands = tuple(
            value if index in wanted else None for index, value in enumerate(inputs[:2])
        )
        _save(ctx, operands, inputs[2:-1], inputs[-1])

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        operands, extra = _saved(ctx, 2)
        (grad_output,) = grad_outputs
        needs_input, needs_target = ctx.needs_input_grad[:2]
        grad_input = grad_target = None
        if needs_input or cls.by_target is None:
            grad_input = _derivative(cls.by_input, grad_output, operands, extra, ctx.reduction)
        if needs_target and cls.by_target is not None:
            grad_target = _derivative(cls.by_target, grad_output, operands, extra, ctx.reduction)
        elif needs_target and grad_input is not None:
            grad_target = -grad_input
        return (grad_input if needs_input else None, grad_target, *(None for _ in extra), None)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        operands, extra = _saved(ctx, 2)
        by_input, by_target = tangents[:2]
        terms = []
        if by_input is not None:
            terms.append(_derivative(cls.by_input, by_input, operands, extra, _NONE))
        if by_target is not None and cls.by_target is not None:
            terms.append(_derivative(cls.by_target, by_target, operands, extra, _NONE))
        elif by_target is not None:
            terms.append(-_derivative(cls.by_input, by_target, operands, extra, _NONE))
        elementwise = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return _reduce(elementwise, ctx.reduction)


def _derivative(
    derivative: type[Derivative],
    grad_output: Tensor,
    operands: tuple[Any, ...],
    extra: tuple[Any, ...],
    reduction: int,
) -> Tensor:
    chosen = (operands[index] for index in derivative.operands)
    result: Tensor = derivative.route(grad_output, *chosen, *extra, reduction)
    return result


# --- functions of input - target ------------------------------------------------------------------


class L1LossBackward(Derivative):
    """grad_output * sign(input - target)"""

    name = "l1_loss_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        zero = torch.zeros_like(operands_and_extra[0])
        return zero, zero


class L1Loss(Loss):
    name = "l1_loss"
    by_input = L1LossBackward


class MseLossBackward(Derivative):
    """grad_output * 2 (input - target)"""

    name = "mse_loss_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        return 2.0, -2.0


class MseLoss(Loss):
    name = "mse_loss"
    by_input = MseLossBackward


class SmoothL1LossBackward(Derivative):
    """grad_output * (input - target) / beta, clamped to sign(input - target)"""

    name = "smooth_l1_loss_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, target, beta = operands_and_extra
        if beta == 0:
            return L1LossBackward.partials(input, target)
        curvature = ((input - target).abs() < beta).to(input.dtype) / beta
        return curvature, -curvature


class SmoothL1Loss(Loss):
    name = "smooth_l1_loss"
    by_input = SmoothL1LossBackward


class HuberLossBackward(Derivative):
    """grad_output * (input - target), clamped to [-delta, delta]"""

    name = "huber_loss_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, target, delta = operands_and_extra
        curvature = ((input - target).abs() < delta).to(input.dtype)
        return curvature, -curvature


class HuberLoss(Loss):
    name = "huber_loss"
    by_input = HuberLossBackward

    @staticmethod
    def empty_unreduced(input: Tensor, target: Tensor) -> Tensor:
        return torch.empty_like(input)


# --- kl_div ---------------------------------------------------------------------------------------


class KlDivBackward(Derivative):
    """-grad_output * p, where p is target, or exp(target) if log_target"""

    name = "kl_div_backward"
    differentiable = (0, 1)
    operands = (1,)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        target, log_target = operands_and_extra
        return (-target.exp() if log_target else -1.0,)


class KlDivBackwardTarget(Derivative):
    """grad_output * (log p + 1 - input), times p if log_target"""

    name = "kl_div_backward_target"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, target, log_target = operands_and_extra
        if not log_target:
            return -1.0, 1.0 / target
        probability = target.exp()
        return -probability, probability * (target - input + 2.0)


class KlDiv(Loss):
    name = "kl_div"
    by_input = KlDivBackward
    by_target = KlDivBackwardTarget

    @staticmethod
    def empty_unreduced(input: Tensor, target: Tensor) -> Tensor:
        return torch.empty_like(target - input)


# --- binary cross entropy -------------------------------------------------------------------------


def _weighted(weight: Tensor | None, factor: Tensor | float) -> Tensor | float:
    return factor if weight is None else weight * factor


def _variance(input: Tensor) -> Tensor:
    return ((1.0 - input) * input).clamp(min=1e-12)


class BinaryCrossEntropyBackward(Derivative):
    """grad_output * weight * (input - target) / (input (1 - input))"""

    name = "binary_cross_entropy_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, target, weight = operands_and_extra
        variance = _variance(input)
        curvature = (input * input - 2.0 * input * target + target) / (variance * variance)
        return _weighted(weight, curvature), _weighted(weight, -1.0 / variance)


class BinaryCrossEntropyBackwardTarget(Derivative):
    """grad_output * weight * (log(1 - input) - log input)"""

    name = "binary_cross_entropy_backward_target"
    differentiable = (0, 1)
    operands = (0,)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, weight = operands_and_extra
        return (_weighted(weight, -1.0 / _variance(input)),)


class BinaryCrossEntropy(Loss):
    name = "binary_cross_entropy"
    by_input = BinaryCrossEntropyBackward
    by_target = BinaryCrossEntropyBackwardTarget

    @staticmethod
    def empty_unreduced(input: Tensor, target: Tensor) -> Tensor:
        return torch.empty_like(input)


def _mixed_partial(
    input: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor | float:
    """Derivative of the loss with logits by input and target."""
    if pos_weight is None:
        return _weighted(weight, -1.0)
    return _weighted(weight, (pos_weight - 1.0) * input.sigmoid() - pos_weight)


class BinaryCrossEntropyWithLogitsBackward(Derivative):
    """grad_output * weight * ((1 + (pos_weight - 1) target) sigmoid(input) - pos_weight target)"""

    name = "binary_cross_entropy_with_logits_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, target, weight, pos_weight = operands_and_extra
        probability = input.sigmoid()
        curvature = probability * (1.0 - probability)
        if pos_weight is not None:
            curvature = curvature * ((pos_weight - 1.0) * target + 1.0)
        return _weighted(weight, curvature), _mixed_partial(input, weight, pos_weight)


class BinaryCrossEntropyWithLogitsBackwardTarget(Derivative):
    """grad_output * weight * (log sigmoid(-input) - pos_weight log sigmoid(input))"""

    name = "binary_cross_entropy_with_logits_backward_target"
    differentiable = (0, 1)
    operands = (0,)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        return (_mixed_partial(*operands_and_extra),)


class BinaryCrossEntropyWithLogits(Loss):
    name = "binary_cross_entropy_with_logits"
    by_input = BinaryCrossEntropyWithLogitsBackward
    by_target = BinaryCrossEntropyWithLogitsBackwardTarget

    @staticmethod
    def empty_unreduced(input: Tensor, target: Tensor) -> Tensor:
        return torch.empty_like(target)


def _mount(loss: type[Loss]) -> Router:
    for derivative in (loss.by_input, loss.by_target):
        if derivative is not None:
            derivative.route = staticmethod(mount(derivative))
    return mount(loss)


l1_loss = _mount(L1Loss)
mse_loss = _mount(MseLoss)
smooth_l1_loss = _mount(SmoothL1Loss)
huber_loss = _mount(HuberLoss)
kl_div = _mount(KlDiv)
binary_cross_entropy = _mount(BinaryCrossEntropy)
binary_cross_entropy_with_logits = _mount(BinaryCrossEntropyWithLogits)
