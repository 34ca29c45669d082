"""The pointwise losses: l1, mse, smooth_l1, huber, kl_div, binary_cross_entropy (with logits too).

Every loss is `reduce(f(input, target))` for one function f of two numbers. Its formulas are two
operators, the derivatives of f by input and by target (`Derivative`), and the derivatives of those
(`partials`, in torch's elementwise arithmetic, which differentiates itself further). All the rest
is the same for every loss and stands here once, in `Loss` and `Derivative`. Under vmap all slices
are one call without reduction, which is reduced slice by slice behind it.

Where a reduced loss will be differentiated by its input alone, the pass that computes it computes
the gradient too (`_with_gradient`).

In `reduction`, 0 is none, 1 mean, 2 sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnops import _C
from nnops.ops._operator import (
    PLAIN_TENSORS,
    Formulas,
    Router,
    are_saved_tensors_hooked,
    batch_first,
    dispatch_modes,
    function_of,
    is_legacy_batched,
    is_plain_eager,
    light_apply,
    mount,
    needed_inputs,
)
from nnops.ops.nll_loss import accumulate_dtype

_NONE, _MEAN, _SUM = 0, 1, 2


def _reduce(values: Tensor, reduction: int) -> Tensor:
    if reduction == _NONE:
        return values
    return values.mean() if reduction == _MEAN else values.sum()


def _weights_of_slices(
    weights: Sequence[Tensor | None], dims: Sequence[int | None], rank: int
) -> list[Tensor | None]:
    """Weights that broadcast to (slices, *sizes of a slice, of which there are `rank`)."""

    def spread(weight: Tensor | None, dim: int | None) -> Tensor | None:
        if weight is None or dim is None:
            return weight
        first = weight.movedim(dim, 0)
        return first.reshape(len(first), *(1,) * (rank + 1 - first.dim()), *first.shape[1:])

    return [spread(weight, dim) for weight, dim in zip(weights, dims, strict=True)]


def _widened(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


class Derivative(Formulas):
    """(grad_output, *operands, *weights, *numbers, reduction) -> grad_output times the derivative
    of f

    A loss that is reduced has a grad_output without dimensions.
    """

    # Which of (input, target) the derivative depends on: those are its operands.
    operands: ClassVar[tuple[int, ...]] = (0, 1)
    # The number of weights, which are tensors or None; numbers are behind them.
    weights: ClassVar[int] = 0
    route: ClassVar[Router]
    loss: ClassVar[type[Loss]]

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        """Derivative of the derivative by each operand, elementwise."""
        raise NotImplementedError

    @classmethod
    def fake(cls, *inputs: Any) -> Any:
        return torch.empty_like(inputs[1])

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = 1 + len(cls.operands) + cls.weights
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    @classmethod
    def _saved(cls, ctx: Any) -> tuple[Tensor, tuple[Any, ...], tuple[Any, ...], int]:
        """(grad_output, operands, weights and numbers, reduction)"""
        count = 1 + len(cls.operands)
        saved = ctx.saved_tensors
        *numbers, reduction = ctx.numbers
        return saved[0], saved[1:count], (*saved[count:], *numbers), reduction

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        grad_output, operands, extra, reduction = cls._saved(ctx)
        (tangent,) = grad_outputs
        gradients: list[Tensor | None] = [None] * (1 + len(operands))
        if ctx.needs_input_grad[0]:
            elementwise = cls.route(tangent, *operands, *extra, _NONE)
            gradients[0] = _reduce(elementwise, reduction)
        if any(ctx.needs_input_grad[1 : 1 + len(operands)]):
            factor = tangent * _per_element(grad_output, operands[0], reduction)
            partials = cls.partials(*operands, *extra)
            for index, partial in enumerate(partials, start=1):
                if ctx.needs_input_grad[index]:
                    gradients[index] = factor * partial
        return (*gradients, *(None for _ in extra), None)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        grad_output, operands, extra, reduction = cls._saved(ctx)
        result: Tensor | None = None
        if tangents[0] is not None:
            result = cls.route(tangents[0], *operands, *extra, reduction)
        factor = _per_element(grad_output, operands[0], reduction)
        for tangent, partial in zip(tangents[1:], cls.partials(*operands, *extra), strict=False):
            if tangent is not None:
                term = factor * tangent * partial
                result = term if result is None else result + term
        return result

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> Any:
        count = 1 + len(cls.operands)
        tensors = count + cls.weights
        *numbers, reduction = inputs[tensors:]
        operands = [
            batch_first(tensor, dim, info.batch_size)
            for tensor, dim in zip(inputs[1:count], in_dims[1:count], strict=True)
        ]
        rank = operands[0].dim() - 1
        weights = _weights_of_slices(inputs[count:tensors], in_dims[count:tensors], rank)
        grad_output = batch_first(inputs[0], in_dims[0], info.batch_size)
        dtype = operands[0].dtype
        if reduction == _NONE:
            return cls.route(grad_output, *operands, *weights, *numbers, _NONE), 0
        wide = cls.loss.dtype_of_values(dtype, *numbers)
        grad_output = grad_output.to(wide).view(-1, *(1,) * rank)
        grad_output = _per_element(grad_output, operands[0][0], reduction)
        gradient = cls.route(
            grad_output.expand_as(operands[0]),
            *_widened(operands, wide),
            *_widened(weights, wide),
            *numbers,
            _NONE,
        )
        return gradient.to(dtype), 0


def _per_element(grad_output: Tensor, operand: Tensor, reduction: int) -> Tensor:
    """The gradient that arrives at each element of the unreduced loss."""
    return grad_output / operand.numel() if reduction == _MEAN else grad_output


class Loss(Formulas):
    """(input, target, *weights, *numbers, reduction) -> loss"""

    differentiable = (0, 1)
    by_input: ClassVar[type[Derivative]]
    by_target: ClassVar[type[Derivative] | None]
    # As in Derivative.
    weights: ClassVar[int] = 0
    route: ClassVar[Router]

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
    def gradient_of_target(
        cls, grad: Tensor, input: Tensor, target: Tensor, extra: tuple[Any, ...]
    ) -> Tensor:
        assert cls.by_target is not None
        return _derivative(cls.by_target, grad, input, target, extra)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        input, target, *weights = ctx.saved_tensors
        *numbers, reduction = ctx.numbers
        extra = (*weights, *numbers, _NONE)
        by_input, by_target = tangents[:2]
        terms = []
        if by_input is not None:
            terms.append(_derivative(cls.by_input, by_input, input, target, extra))
        if by_target is not None:
            terms.append(cls.gradient_of_target(by_target, input, target, extra))
        elementwise = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return _reduce(elementwise, reduction)

    @staticmethod
    def dtype_of_values(dtype: torch.dtype, *numbers: Any) -> torch.dtype:
        """For vmap: of the values that are reduced behind the call, so that they round once."""
        return accumulate_dtype(dtype) if dtype.is_floating_point else dtype

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> Any:
        tensors = 2 + cls.weights
        *numbers, reduction = inputs[tensors:]
        operands = [
            batch_first(tensor, dim, info.batch_size)
            for tensor, dim in zip(inputs[:2], in_dims[:2], strict=True)
        ]
        weights = _weights_of_slices(inputs[2:tensors], in_dims[2:tensors], operands[0].dim() - 1)
        dtype = operands[0].dtype
        if reduction == _NONE:
            return cls.route(*operands, *weights, *numbers, _NONE), 0
        wide = cls.dtype_of_values(dtype, *numbers)
        values = cls.route(*_widened(operands, wide), *_widened(weights, wide), *numbers, _NONE)
        values = values.unsqueeze(-1).flatten(1)
        totals = values.mean(1) if reduction == _MEAN else values.sum(1)
        return totals.to(dtype if dtype.is_floating_point else torch.int64), 0


class DifferenceLoss(Loss):
    """(input, target, *numbers, reduction) -> loss of input - target: the target's derivative is
    minus the input's."""

    by_target = None

    @classmethod
    def gradient_of_target(
        cls, grad: Tensor, input: Tensor, target: Tensor, extra: tuple[Any, ...]
    ) -> Tensor:
        return -_derivative(cls.by_input, grad, input, target, extra)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.numbers = inputs[2:]

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        input, target = ctx.saved_tensors[:2]
        numbers = ctx.numbers
        gradient = cls.by_input.route(grad_outputs[0], input, target, *numbers)
        needs = ctx.needs_input_grad
        return (
            gradient if needs[0] else None,
            -gradient if needs[1] else None,
            *(None,) * len(numbers),
        )


class TwoDerivativesLoss(Loss):
    """A loss whose derivatives by input and by target are two operators."""

    by_target: ClassVar[type[Derivative]]

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        needs = needed_inputs(ctx)
        reads: tuple[int, ...] = cls.by_input.operands if needs[0] else ()
        if needs[1]:
            reads += cls.by_target.operands
        tensors = 2 + cls.weights
        ctx.save_for_backward(
            inputs[0] if 0 in reads else None,
            inputs[1] if 1 in reads else None,
            *inputs[2:tensors],
        )
        ctx.numbers = inputs[tensors:]

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        input, target, *weights = ctx.saved_tensors[: 2 + cls.weights]
        extra = (*weights, *ctx.numbers)
        (grad,) = grad_outputs
        needs = ctx.needs_input_grad
        return (
            _derivative(cls.by_input, grad, input, target, extra) if needs[0] else None,
            _derivative(cls.by_target, grad, input, target, extra) if needs[1] else None,
            *(None,) * len(extra),
        )


def _derivative(
    derivative: type[Derivative],
    grad_output: Tensor,
    input: Tensor | None,
    target: Tensor | None,
    extra: tuple[Any, ...],
) -> Tensor:
    """`extra`: weights, numbers, reduction."""
    both = (input, target)
    chosen = (both[index] for index in derivative.operands)
    result: Tensor = derivative.route(grad_output, *chosen, *extra)
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


class L1Loss(DifferenceLoss):
    name = "l1_loss"
    by_input = L1LossBackward


class MseLossBackward(Derivative):
    """grad_output * 2 (input - target)"""

    name = "mse_loss_backward"
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        return 2.0, -2.0


class MseLoss(DifferenceLoss):
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


class SmoothL1Loss(DifferenceLoss):
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


class HuberLoss(DifferenceLoss):
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


class KlDiv(TwoDerivativesLoss):
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
    weights = 1
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
    weights = 1
    differentiable = (0, 1)
    operands = (0,)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, weight = operands_and_extra
        return (_weighted(weight, -1.0 / _variance(input)),)


class BinaryCrossEntropy(TwoDerivativesLoss):
    name = "binary_cross_entropy"
    weights = 1
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
    """grad_output * weight * ((1 + (pos_weight - 1) target) sigmoid(input) - pos_weight target)

    Infinite logits saturate the sigmoid, whether `finite` or not.
    """

    name = "binary_cross_entropy_with_logits_backward"
    weights = 2
    differentiable = (0, 1, 2)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, target, weight, pos_weight, _ = operands_and_extra
        probability = input.sigmoid()
        curvature = probability * (1.0 - probability)
        if pos_weight is not None:
            curvature = curvature * ((pos_weight - 1.0) * target + 1.0)
        return _weighted(weight, curvature), _mixed_partial(input, weight, pos_weight)


class BinaryCrossEntropyWithLogitsBackwardTarget(Derivative):
    """grad_output * weight * (log sigmoid(-input) - pos_weight log sigmoid(input))"""

    name = "binary_cross_entropy_with_logits_backward_target"
    weights = 2
    differentiable = (0, 1)
    operands = (0,)

    @staticmethod
    def partials(*operands_and_extra: Any) -> tuple[Tensor | float, ...]:
        input, weight, pos_weight, _ = operands_and_extra
        return (_mixed_partial(input, weight, pos_weight),)


class BinaryCrossEntropyWithLogits(TwoDerivativesLoss):
    name = "binary_cross_entropy_with_logits"
    weights = 2
    by_input = BinaryCrossEntropyWithLogitsBackward
    by_target = BinaryCrossEntropyWithLogitsBackwardTarget

    @staticmethod
    def dtype_of_values(dtype: torch.dtype, *numbers: Any) -> torch.dtype:
        # What `finite` makes of infinite logits depends on the dtype.
        return dtype if numbers[0] else accumulate_dtype(dtype)

    @staticmethod
    def empty_unreduced(input: Tensor, target: Tensor) -> Tensor:
        return torch.empty_like(target)


# --- routers --------------------------------------------------------------------------------------

# Of other dtypes small gradients must be scaled before they are rounded.
_PREPARED_DTYPES = frozenset((torch.float32, torch.float64))


def _with_gradient(loss: type[Loss]) -> Router:
    """The loss's router; on the CPU it prepares the input's gradient where one will be asked for.

    An eager call that differentiates a reduced loss by its input alone computes both in one pass.
    Backward hands the gradient out, once, if that of the loss is 1, or, of a sum, times what it is.
    In other cases (a scaled mean, a second backward, a gradient that is differentiated) it was
    computed in vain, and the formulas compute as ever. Until backward it takes as much memory as
    the input. It is not prepared where hooks handle what is saved, as those of checkpoints do.
    """
    forward_with_gradient = function_of(
        getattr(torch.ops.nnops, f"_{loss.name}_with_gradient").default
    )
    route = loss.route

    def forward(ctx: Any, *inputs: Any) -> Any:
        output, gradient = forward_with_gradient(*inputs)
        loss.setup_context(ctx, inputs, output)
        # Behind what the formulas look for.
        ctx.save_for_backward(*ctx.to_save, gradient)
        ctx.no_others = (None,) * (len(inputs) - 1)
        return output

    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if _is_plain_number(grad_output):
            is_one = grad_output.item() == 1
            # Two backwards of one graph may be here at a time: one of them gets it.
            if is_one or ctx.numbers[-1] == _SUM:
                no_others = ctx.__dict__.pop("no_others", None)
                if no_others is not None:
                    # Who gets it may write to it: to `data`, whose version is not the saved one's.
                    gradient = ctx.saved_tensors[-1].data
                    return gradient if is_one else gradient.mul_(grad_output), *no_others
        return loss.backward(ctx, grad_output)

    apply = light_apply(f"{loss.__name__}Function", forward, backward)

    def route_with_gradient(*inputs: Any) -> Any:
        input, target, reduction = inputs[0], inputs[1], inputs[-1]
        if (
            reduction != _NONE
            and input.requires_grad
            and not target.requires_grad
            and torch.is_grad_enabled()
            and is_plain_eager()
            and not dispatch_modes()
            and not are_saved_tensors_hooked()
            and not torch.is_inference_mode_enabled()
            and input.is_cpu
            and input.dtype in _PREPARED_DTYPES
            and type(input) in PLAIN_TENSORS
            and type(target) in PLAIN_TENSORS
        ):
            return apply(*inputs)
        return route(*inputs)

    route_with_gradient.__name__ = route_with_gradient.__qualname__ = loss.name
    route_with_gradient.__doc__ = route.__doc__
    return route_with_gradient


def _is_plain_number(grad_output: Tensor) -> bool:
    """Whether it has a value, and nothing differentiates what is made of it."""
    return (
        type(grad_output) is Tensor
        and not torch.is_grad_enabled()
        and is_plain_eager()
        and not dispatch_modes()
        and not is_legacy_batched(grad_output)
    )


def _mount(loss: type[Loss]) -> Router:
    for derivative in (loss.by_input, loss.by_target):
        if derivative is not None:
            derivative.loss = loss
            derivative.route = staticmethod(mount(derivative))
    loss.route = staticmethod(mount(loss))
    # Emulated CUDA computes with the CPU's tensors, and has no such kernels.
    emulated = _C.build_info()["cuda"] in ("emulated", "checked")
    return loss.route if emulated else _with_gradient(loss)


l1_loss = _mount(L1Loss)
mse_loss = _mount(MseLoss)
smooth_l1_loss = _mount(SmoothL1Loss)
huber_loss = _mount(HuberLoss)
kl_div = _mount(KlDiv)
binary_cross_entropy = _mount(BinaryCrossEntropy)
binary_cross_entropy_with_logits = _mount(BinaryCrossEntropyWithLogits)
