"""Bad arguments: torch's exception class, a message that names the operator, and never a crash."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn.functional as F
from nnops.testing.claims import FUNCTIONS, function_is_ours
from nnops.testing.compare import assert_same_outcome, outcome

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGE = torch.arange(2.0 * 2 * 6 * 6).reshape(2, 2, 6, 6) / 100
WEIGHT = torch.ones(4, 2, 3, 3)
ROWS = torch.linspace(0.1, 0.9, 12).reshape(3, 4)
TARGET = torch.linspace(0.8, 0.2, 12).reshape(3, 4)
CLASSES = torch.tensor([0, 3, 1])
POOLED, INDICES = torch.nn.functional.max_pool2d(IMAGE, 2, return_indices=True)

# A valid call of each claimed function, every argument named.
VALID: dict[str, dict[str, Any]] = {
    "conv2d": {
        "input": IMAGE,
        "weight": WEIGHT,
        "bias": torch.ones(4),
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
    },
    "max_pool2d": {
        "input": IMAGE,
        "kernel_size": 2,
        "stride": 2,
        "padding": 0,
        "dilation": 1,
        "ceil_mode": False,
        "return_indices": False,
    },
    "max_unpool2d": {
        "input": POOLED,
        "indices": INDICES,
        "kernel_size": 2,
        "stride": 2,
        "padding": 0,
        "output_size": [6, 6],
    },
    "relu": {"input": IMAGE, "inplace": False},
    "relu_": {"input": IMAGE.clone()},
    "l1_loss": {"input": ROWS, "target": TARGET, "reduction": "mean", "weight": None},
    "mse_loss": {"input": ROWS, "target": TARGET, "reduction": "mean", "weight": None},
    "smooth_l1_loss": {"input": ROWS, "target": TARGET, "reduction": "mean", "beta": 1.0},
    "huber_loss": {
        "input": ROWS,
        "target": TARGET,
        "reduction": "mean",
        "delta": 1.0,
        "weight": None,
    },
    "kl_div": {"input": ROWS, "target": TARGET, "reduction": "sum", "log_target": False},
    "nll_loss": {
        "input": ROWS,
        "target": CLASSES,
        "weight": torch.ones(4),
        "ignore_index": -100,
        "reduction": "mean",
    },
    "cross_entropy": {
        "input": ROWS,
        "target": CLASSES,
        "weight": torch.ones(4),
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.0,
    },
    "binary_cross_entropy": {
        "input": ROWS,
        "target": TARGET,
        "weight": torch.ones(4),
        "reduction": "mean",
    },
    "binary_cross_entropy_with_logits": {
        "input": ROWS,
        "target": TARGET,
        "weight": torch.ones(4),
        "reduction": "mean",
        "pos_weight": torch.ones(4),
    },
}
VALID["max_pool2d_with_indices"] = VALID["max_pool2d"]


def bad_tensors(good: Tensor) -> Iterator[tuple[str, Any]]:
    """What may stand in place of the tensor `good`."""
    yield "None", None
    yield "list", good.tolist()
    yield "array", numpy.zeros(3, dtype=numpy.float32)
    yield "number", 1.0
    for rank in (0, 1, 2, 3, 4, 5, 6):
        if rank != good.dim():
            yield f"rank {rank}", torch.ones([2] * rank, dtype=good.dtype)
    for dim in range(good.dim()):
        for change in (-1, 1):
            sizes = list(good.shape)
            sizes[dim] += change
            yield f"sizes {sizes}", torch.ones(sizes, dtype=good.dtype)
        sizes = list(good.shape)
        sizes[dim] = 0
        yield f"sizes {sizes}", torch.ones(sizes, dtype=good.dtype)
    for dtype in (torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool):
        if dtype != good.dtype:
            yield f"{dtype}", good.to(dtype)
    yield "complex", good.to(torch.complex64)
    yield "negative", -good.abs() - 1
    yield "huge", good * 0 + 2**40
    if good.dtype.is_floating_point:
        yield "nan", good * float("nan")
    yield "sparse", good.to_sparse()
    yield "quantised", torch.quantize_per_tensor(good.float(), 0.1, 0, torch.qint8)


def bad_numbers(good: Any) -> Iterator[tuple[str, Any]]:
    values: list[Any] = [None, "text", 0, -1, 1.5, 7, 2**31, 2**40, 2**62, 2**63, [], [1], [2, 1]]
    values += [(1, 1, 1), [0, 1], [1, -1], [1.0, 1.0], [None, 1], (2**62, 2**62), torch.ones(2)]
    values += [[[1]], {}, float("nan"), -0.5, 1j]
    for value in values:
        yield f"{value!r}", value


def bad_values(good: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(good, Tensor):
        yield from bad_tensors(good)
    elif isinstance(good, str):
        for value in ("Mean", "", "batchmean", "elementwise_mean", 0, ["mean"]):
            yield f"{value!r}", value
    elif isinstance(good, bool):
        # torch takes any truth value here; what is not one of Python's is not promised.
        return
    elif good is not None:
        yield from bad_numbers(good)


ARGUMENTS = [(name, argument) for name, arguments in VALID.items() for argument in arguments]


def answer(library: Any, name: str, arguments: dict[str, Any]) -> Any:
    """The result or the exception; of copies, since relu_ writes over its input."""
    copies = {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    return outcome(lambda: getattr(library, name)(**copies))


# torch ignores these without a word, where an argument out of range should be refused.
IGNORED_BY_TORCH = {("cross_entropy", "label_smoothing"): ("-1", "-0.5", "nan")}


def accidental(name: str, good: Any, value: Any) -> bool:
    """Whether torch's answer to `value` is none it chose.

    max_unpool2d computes with its arguments in Python before anything checks them: floats pass, and
    the class of the error is that of the expression which fails first. So does a tensor in place of
    a number, anywhere.
    """
    if isinstance(good, Tensor):
        return False
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    whole = all(isinstance(each, int) for each in value) if pair else isinstance(value, int)
    return isinstance(value, Tensor) or (name == "max_unpool2d" and not whole)


def fault(name: str, arguments: dict[str, Any], label: str, what: str) -> str:
    """How ours differs from torch's answer to this call, or an empty string."""
    expected = answer(torch.nn.functional, name, arguments)
    actual = answer(F, name, arguments)
    # Quantised tensors are refused by torch's own helpers, in their words.
    named = function_is_ours(name) and label != "quantised"
    # With a half among its operands, torch rounds on the way.
    rtol = 2e-3 if label == "torch.float16" else None
    try:
        assert_same_outcome(actual, expected, what, named, rtol)
    except AssertionError as error:
        return str(error)
    return ""


def test_every_claimed_function_is_covered() -> None:
    assert set(VALID) == set(FUNCTIONS)
    for name, arguments in VALID.items():
        assert not isinstance(answer(F, name, arguments), Exception), name
    calls = sum(len(list(bad_values(VALID[name][argument]))) for name, argument in ARGUMENTS)
    assert calls > 1000


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_one_bad_argument(name: str, argument: str) -> None:
    """Refused as torch refuses it, or the same result where torch gives one."""
    faults = []
    good = VALID[name][argument]
    for label, value in bad_values(good):
        arguments = {**VALID[name], argument: value}
        what = f"{name}({argument}={label})"
        if label in IGNORED_BY_TORCH.get((name, argument), ()) or accidental(name, good, value):
            actual = answer(F, name, arguments)
            if function_is_ours(name) and isinstance(actual, Exception):
                assert "nnops::" in str(actual), f"{what}: {actual!r}"
            continue
        faults.append(fault(name, arguments, label, what))
    faults = [text for text in faults if text]
    assert not faults, f"{len(faults)} differ:\n" + "\n".join(faults)


# What must be refused, by torch too: (function, what is exchanged, what the message says).
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("conv2d", {"input": torch.ones(2, 3, 6, 6)}, "channels"),
    ("conv2d", {"input": torch.ones(6, 6)}, "dimension|3-D|rank|\\(C, H, W\\)"),
    ("conv2d", {"input": torch.ones(1, 1, 2, 6, 6)}, "dimension|3-D|rank|\\(C, H, W\\)"),
    ("conv2d", {"weight": torch.ones(4, 2, 7, 7)}, "kernel|weight"),
    ("conv2d", {"bias": torch.ones(3)}, "bias"),
    ("conv2d", {"bias": torch.ones(4, 1)}, "bias"),
    ("conv2d", {"stride": 0}, "stride"),
    ("conv2d", {"stride": (1, -1)}, "stride"),
    ("conv2d", {"padding": -1}, "padding"),
    ("conv2d", {"padding": "full"}, "padding"),
    ("conv2d", {"padding": "same", "stride": 2}, "padding"),
    ("conv2d", {"dilation": 0}, "dilation"),
    ("conv2d", {"groups": 0}, "groups"),
    ("conv2d", {"groups": -1}, "groups"),
    ("conv2d", {"groups": 3}, "groups"),
    ("conv2d", {"weight": WEIGHT.double()}, "dtype|type"),
    ("conv2d", {"padding": 2**62}, ""),
    ("conv2d", {"padding": (2**31, 2**31)}, ""),
    ("conv2d", {"dilation": 2**62}, ""),
    ("max_pool2d", {"kernel_size": 0}, "kernel"),
    ("max_pool2d", {"kernel_size": -2}, "kernel"),
    ("max_pool2d", {"stride": 0}, "stride"),
    ("max_pool2d", {"stride": -1}, "stride"),
    ("max_pool2d", {"padding": -1}, "padding|pad"),
    ("max_pool2d", {"padding": 2}, "padding|pad"),
    ("max_pool2d", {"dilation": 0}, "dilation"),
    ("max_pool2d", {"kernel_size": 7}, "small|size|kernel"),
    ("max_pool2d", {"kernel_size": (2, 2, 2)}, "kernel"),
    ("max_pool2d", {"input": torch.ones(6, 6)}, "dimension|3-D|3D|\\(C, H, W\\)"),
    ("max_pool2d", {"input": torch.ones(2, 0, 6, 6)[:, :, :0]}, ""),
    ("max_unpool2d", {"indices": INDICES + 100}, "ind"),
    ("max_unpool2d", {"indices": INDICES - 100}, "ind"),
    ("max_unpool2d", {"indices": INDICES + 2**40}, "ind"),
    ("max_unpool2d", {"indices": INDICES.int()}, "ind.*(int64|dtype|type)"),
    ("max_unpool2d", {"indices": INDICES[:1]}, "ind|shape|size"),
    ("max_unpool2d", {"output_size": [60, 60]}, "output_size"),
    ("max_unpool2d", {"output_size": [6]}, "output_size"),
    ("relu", {"input": IMAGE.bool()}, "bool"),
    ("l1_loss", {"target": torch.ones(3, 3)}, "size|broadcast"),
    ("mse_loss", {"target": torch.ones(5)}, "size|broadcast"),
    ("smooth_l1_loss", {"beta": -1.0}, "beta"),
    ("huber_loss", {"delta": 0.0}, "delta"),
    ("huber_loss", {"delta": -1.0}, "delta"),
    ("nll_loss", {"target": torch.tensor([0, 1])}, "batch|size"),
    ("nll_loss", {"weight": torch.ones(5)}, "weight"),
    ("nll_loss", {"target": CLASSES.float()}, "target"),
    ("cross_entropy", {"weight": torch.ones(5)}, "weight"),
    ("cross_entropy", {"label_smoothing": 1.5}, "label_smoothing"),
    ("cross_entropy", {"target": CLASSES[:2]}, "batch|size"),
    ("binary_cross_entropy", {"input": ROWS + 1}, "between 0 and 1|\\[0, 1\\]"),
    ("binary_cross_entropy", {"target": TARGET[:, :2]}, "size"),
    ("binary_cross_entropy_with_logits", {"target": TARGET[:, :2]}, "size"),
]


@pytest.mark.parametrize(
    "number", range(len(REFUSED)), ids=[f"{name}-{list(each)}" for name, each, _ in REFUSED]
)
def test_is_refused_by_name(number: int) -> None:
    name, exchanged, match = REFUSED[number]
    arguments = {**VALID[name], **exchanged}
    expected = answer(torch.nn.functional, name, arguments)
    actual = answer(F, name, arguments)
    assert isinstance(expected, Exception), "torch accepts this"
    assert isinstance(actual, type(expected)), f"torch {expected!r}, ours {actual!r}"
    if function_is_ours(name):
        assert "nnops::" in str(actual)
        assert re.search(match, str(actual)), actual


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bad", [4, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_targets_out_of_range(name: str, bad: int, reduction: str, dims: int) -> None:
    """Found in every reduction, wherever the target stands, batched or not, in images too."""
    sizes = {0: (4,), 1: (3, 4), 2: (3, 4, 2, 2)}[dims]
    scores = torch.randn(sizes, requires_grad=True)
    target = torch.zeros(sizes[:1] + sizes[2:] if dims else (), dtype=torch.int64)
    target.view(-1)[-1] = bad
    for library in (torch.nn.functional, F):
        with pytest.raises(IndexError, match=f"{bad} is out of bounds|{bad}"):
            getattr(library, name)(scores, target, reduction=reduction)
    ignored = getattr(F, name)(scores, target, reduction=reduction, ignore_index=bad)
    assert ignored.shape == (target.shape if reduction == "none" else ())


def test_non_tensors_are_type_errors() -> None:
    for name, arguments in VALID.items():
        for value in (None, [1.0], 1.0, "text", object()):
            actual = answer(F, name, {**arguments, "input": value})
            assert isinstance(actual, (TypeError, AttributeError)), f"{name}: {actual!r}"
            if function_is_ours(name):
                assert isinstance(actual, TypeError) and "input" in str(actual), f"{name}: {actual}"


MALLOC_DEBUG = "libc_malloc_debug.so.0"


def checked_allocation() -> dict[str, str]:
    """Environment in which glibc checks the ends of every block that is freed, where it can."""
    try:
        ctypes.CDLL(MALLOC_DEBUG)
    except OSError:
        return {}
    return {"LD_PRELOAD": MALLOC_DEBUG, "MALLOC_CHECK_": "3"}


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    root = Path(nnops.__file__).parents[1]
    environment = {**os.environ, **checked_allocation(), "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "nnops.testing.fuzz", *options],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        check=False,
    )


def check_fuzz(result: subprocess.CompletedProcess[str]) -> None:
    last = result.stderr.strip().splitlines()[-1:]
    assert result.returncode in (0, 1), f"died with {result.returncode} in: {last}"
    assert result.returncode == 0, f"{result.stdout[-6000:]}\n{last}"
    assert "0 faults" in result.stdout


def test_hostile_operator_calls_do_not_crash() -> None:
    """In a process of its own: a crash there is a failure here, with the call that did it."""
    check_fuzz(fuzz("--seconds", "12", "--seed", "1"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_hostile_operator_calls_do_not_crash_for_long(seed: int) -> None:
    check_fuzz(fuzz("--seconds", "120", "--seed", str(seed)))


def test_every_operator_is_fuzzed() -> None:
    from nnops.testing.fuzz import operators
    from nnops.testing.recorder import public_operators

    schemas = operators()
    for name in public_operators():
        assert name in schemas and f"_{name}" in schemas
