"""Holds a call of nnops against the same call of torch: results, gradients and refusals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnops.testing.samples import Sample, detached, map_tensors, tensors_of
from nnops.testing.tolerances import assert_equal, assert_within_operands

Function = Callable[..., Any]

# Functions that select: their results must equal torch's bit for bit.
EXACT = frozenset(
    (
        *("relu", "relu_", "max_pool2d", "max_pool2d_with_indices", "max_unpool2d"),
        *("ReLU", "MaxPool2d", "MaxUnpool2d"),
    )
)


def outputs_of(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def call(function: Function, sample: Sample) -> tuple[Tensor, ...]:
    """The outputs, computed from copies: the function may write over its input."""
    copies = map_tensors(detached(sample), Tensor.clone)
    return outputs_of(function(*copies.args, **copies.kwargs))


def gradients(function: Function, sample: Sample) -> list[Tensor | None]:
    """Per input that needs one, its gradient, for fixed random gradients of the outputs."""
    leaves = detached(sample)
    inputs = [tensor for tensor in tensors_of(leaves) if tensor.requires_grad]
    copies = map_tensors(leaves, Tensor.clone)
    outputs = outputs_of(function(*copies.args, **copies.kwargs))
    outputs = tuple(output for output in outputs if output.requires_grad)
    if not outputs:
        return [None] * len(inputs)
    generator = torch.Generator().manual_seed(1)
    seeds = [
        torch.rand(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
        for output in outputs
    ]
    return list(torch.autograd.grad(outputs, inputs, seeds, allow_unused=True))


def assert_same_call(
    ours: Function, theirs: Function, sample: Sample, what: str, exact: bool = False
) -> None:
    """Same values, dtypes and shapes, same gradients, by the policy in tolerances.py."""
    exactly = detached(sample, torch.float64)
    actuals, expecteds = call(ours, sample), call(theirs, sample)
    assert len(actuals) == len(expecteds), f"{what}: {len(actuals)} outputs"
    references = expecteds if exact else call(theirs, exactly)
    for index, (actual, expected) in enumerate(zip(actuals, expecteds, strict=True)):
        label = f"{what} output {index}"
        if exact:
            assert_equal(actual, expected, label)
        else:
            assert_within_operands(actual, expected, references[index], tensors_of(sample), label)
        assert actual.requires_grad == expected.requires_grad, f"{label}: {actual.requires_grad=}"
    if not any(tensor.requires_grad for tensor in tensors_of(sample)):
        return
    ours_grads, their_grads = gradients(ours, sample), gradients(theirs, sample)
    reference_grads = gradients(theirs, exactly)
    for index, gradient in enumerate(their_grads):
        label = f"{what} gradient {index}"
        actual_grad, reference = ours_grads[index], reference_grads[index]
        assert (actual_grad is None) == (gradient is None), f"{label}: {actual_grad=}"
        if gradient is not None and actual_grad is not None and reference is not None:
            assert_within_operands(actual_grad, gradient, reference, tensors_of(sample), label)


def outcome(action: Callable[[], Any]) -> Any:
    """What `action` returns, or the exception that it raises; warnings are not the matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return action()
        except Exception as error:
            return error


def assert_same_refusal(actual: object, expected: Exception, what: str, named: bool = True) -> None:
    """`actual` is an exception that every `except` clause written for torch's catches.

    Two classes of torch's are accidents: NotImplementedError where the dispatcher is asked before
    the operator's own checks are, for its base class; and AttributeError from Python code that
    took the argument for a tensor, for which ours is a TypeError.
    With `named`, the message must name one of our operators, unless Python itself refused the call.
    """
    kind = type(expected).__name__
    caught: tuple[type[Exception], ...] = (type(expected),)
    if isinstance(expected, NotImplementedError):
        caught = (RuntimeError,)
    elif isinstance(expected, AttributeError):
        caught = (AttributeError, TypeError)
    assert isinstance(actual, Exception), f"{what}: torch raises {kind}: {expected}\nbut we return"
    assert isinstance(actual, caught), (
        f"{what}: torch raises {kind}: {expected}\nbut we {type(actual).__name__}: {actual}"
    )
    text = str(actual)
    by_python = isinstance(actual, TypeError) and "argument" in text
    assert not named or "nnops::" in text or by_python, f"{what}: no operator named in: {text}"


def assert_same_outcome(
    actual: Any, expected: Any, what: str, named: bool = True, rtol: float | None = None
) -> None:
    """Both refuse with the same class, or both give the same; we may also be NotImplemented."""
    if isinstance(expected, Exception):
        assert_same_refusal(actual, expected, what, named)
    elif isinstance(actual, NotImplementedError):
        assert not named or "nnops::" in str(actual), f"{what}: no operator named in: {actual}"
    else:
        assert not isinstance(actual, Exception), (
            f"{what}: torch accepts it, but we raise {type(actual).__name__}: {actual}"
        )
        for ours, theirs in zip(outputs_of(actual), outputs_of(expected), strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (
                f"{what}: {ours.dtype} {tuple(ours.shape)}, torch {theirs.dtype} "
                f"{tuple(theirs.shape)}"
            )
            torch.testing.assert_close(
                ours,
                theirs,
                rtol=rtol,
                atol=rtol,
                equal_nan=True,
                msg=lambda text: f"{what}: {text}",
            )
