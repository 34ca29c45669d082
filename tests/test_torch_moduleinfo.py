"""torch's own module samples: every ModuleInfo input and error input of the modules we claim."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import nnops.nn
from nnops.testing.claims import MODULES, module_is_ours
from nnops.testing.compare import (
    EXACT,
    assert_same_call,
    assert_same_refusal,
    call,
    outcome,
    outputs_of,
)
from nnops.testing.samples import Sample, detached
from nnops.testing.tolerances import assert_accurate, assert_equal

pytest.importorskip("expecttest")
common = pytest.importorskip("torch.testing._internal.common_modules")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a target size",
    "ignore:reduction. 'mean' divides",
    "ignore:Using padding='same'",
    "ignore:`NLLLoss2d` has been deprecated",
    "ignore:size_average and reduce",
    # torch reads .grad of a non-leaf while it copies a module.
    "ignore:The .grad attribute",
)


class Case(NamedTuple):
    """A module's constructor arguments and one input of its forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forward: Sample


def pooled() -> tuple[Tensor, Tensor]:
    """Values and indices as max_pool2d gives them, with a gradient needed for the values."""
    values, indices = torch.nn.functional.max_pool2d(
        torch.randn(2, 3, 6, 8), 2, return_indices=True
    )
    return values.requires_grad_(), indices


def conv2d_cases() -> Iterator[Case]:
    """Every constructor argument; torch's own list has four."""
    options: dict[str, tuple[Any, ...]] = {
        "kernel_size": (1, 3, (2, 3)),
        "stride": (1, 2, (2, 1)),
        "padding": (0, 1, (2, 1), "same", "valid"),
        "padding_mode": ("zeros", "reflect", "replicate", "circular"),
        "dilation": (1, (1, 2)),
        "groups": (1, 2),
        "bias": (True, False),
    }
    for index, values in enumerate(itertools.product(*options.values())):
        kwargs = dict(zip(options, values, strict=True))
        if (kwargs["padding"] == "same" and kwargs["stride"] != 1) or index % 31:
            continue
        image = torch.randn(2, 4, 7, 8, requires_grad=True)
        yield Case((4, 6), kwargs, Sample(f"{kwargs}", (image,)))


def own_cases(name: str) -> list[Case]:
    """For arguments and modules that torch's ModuleInfo leaves out."""
    torch.manual_seed(0)
    if name == "Conv2d":
        return list(conv2d_cases())
    if name == "MaxUnpool2d":
        values, indices = pooled()
        return [
            Case((2,), {}, Sample("batched", (values, indices))),
            Case((2, 2), {}, Sample("sized", (values, indices), {"output_size": (2, 3, 6, 8)})),
            Case(((2, 2), None, 0), {}, Sample("unbatched", (values[0], indices[0]))),
        ]
    if name == "NLLLoss2d":
        scores = torch.randn(2, 3, 4, 4, requires_grad=True)
        target = torch.randint(3, (2, 4, 4))
        return [
            Case((), {"reduction": reduction}, Sample(reduction, (scores, target)))
            for reduction in ("none", "mean", "sum")
        ]
    if name == "MaxPool2d":
        image = torch.randn(2, 3, 7, 9, requires_grad=True)
        kwargs = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "ceil_mode": True}
        return [Case(((3, 2),), kwargs, Sample("every argument", (image,)))]
    return []


def info_of(name: str) -> Any:
    return next((info for info in common.module_db if info.name == f"nn.{name}"), None)


def cases(name: str, dtype: torch.dtype = torch.float32) -> list[Case]:
    found = [
        Case(case.args, case.kwargs, detached(case.forward, dtype)) for case in own_cases(name)
    ]
    info = info_of(name)
    if info is not None:
        torch.manual_seed(0)
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=True, training=True
        )
        for number, module_input in enumerate(inputs):
            built, forward = module_input.constructor_input, module_input.forward_input
            label = f"{number} {module_input.desc} {built.kwargs}"
            sample = Sample(label, tuple(forward.args), dict(forward.kwargs))
            found.append(Case(tuple(built.args), dict(built.kwargs), sample))
    return found


def built(name: str, case: Case, dtype: torch.dtype) -> tuple[Any, Any]:
    """Our module and torch's, each made from the same seed."""
    pair = []
    for library in (nnops.nn, torch.nn):
        torch.manual_seed(3)
        pair.append(getattr(library, name)(*case.args, **case.kwargs).to(dtype))
    return pair[0], pair[1]


BY_DTYPE = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}")
    for name in MODULES
    for dtype in (torch.float32, torch.float64)
]


@pytest.mark.parametrize("name", MODULES)
def test_the_module_is_ours(name: str) -> None:
    assert module_is_ours(name), f"nnops.nn.{name} is torch's"


@pytest.mark.parametrize("name, dtype", BY_DTYPE)
def test_same_output_and_gradients(name: str, dtype: torch.dtype) -> None:
    compared = 0
    for case in cases(name, dtype):
        ours, theirs = built(name, case, dtype)
        what = f"{name}({case.forward.name})"

        def reference(*args: Any, theirs: Any = theirs, **kwargs: Any) -> Any:
            exactly = any(
                isinstance(value, Tensor) and value.dtype == torch.float64 for value in args
            )
            return (copy.deepcopy(theirs).double() if exactly else theirs)(*args, **kwargs)

        assert_same_call(ours, reference, case.forward, what, name in EXACT)
        compare_parameter_gradients(ours, theirs, case.forward, what)
        compared += 1
    assert compared > 0


def compare_parameter_gradients(ours: Any, theirs: Any, sample: Sample, what: str) -> None:
    if not list(theirs.parameters()):
        return
    modules = (ours, theirs, copy.deepcopy(theirs).double())
    inputs = (sample, sample, detached(sample, torch.float64))
    grads = []
    for module, values in zip(modules, inputs, strict=True):
        outputs = [output for output in call(module, values) if output.requires_grad]
        total = sum(output.sum() for output in outputs)
        names, parameters = zip(*module.named_parameters(), strict=True)
        grads.append(dict(zip(names, torch.autograd.grad(total, parameters), strict=True)))
    assert list(grads[0]) == list(grads[1])
    for name, expected in grads[1].items():
        assert_accurate(grads[0][name], expected, grads[2][name], f"{what} gradient of {name}")


@pytest.mark.parametrize("name", MODULES)
def test_same_face(name: str) -> None:
    """repr, parameters, buffers, state_dict, pickle, deepcopy, train and eval."""
    for case in cases(name):
        ours, theirs = built(name, case, torch.float32)
        assert repr(ours) == repr(theirs)
        assert ours.extra_repr() == theirs.extra_repr()
        assert [key for key, _ in ours.named_parameters()] == [
            key for key, _ in theirs.named_parameters()
        ]
        ours_state, their_state = ours.state_dict(), theirs.state_dict()
        assert list(ours_state) == list(their_state)
        for key, value in their_state.items():
            assert torch.equal(ours_state[key], value), f"{name}.{key} drawn from the same seed"
        assert str(ours.load_state_dict(their_state)) == "<All keys matched successfully>"
        assert str(theirs.load_state_dict(ours_state)) == "<All keys matched successfully>"
        assert set(vars(ours)) == set(vars(theirs))
        ours.eval()
        assert not ours.training
        ours.train()
        expected = outputs_of(call(ours, case.forward))
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), saved(ours)):
            assert type(other) is type(ours)
            assert repr(other) == repr(theirs)
            for actual, value in zip(call(other, case.forward), expected, strict=True):
                assert_equal(actual, value, f"{name} copied")


def saved(module: torch.nn.Module) -> torch.nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def error_inputs(name: str) -> list[Any]:
    info = info_of(name)
    if info is None or info.module_error_inputs_func is None:
        return []
    return info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    )


@pytest.mark.parametrize("name", [name for name in MODULES if error_inputs(name)])
def test_error_inputs(name: str) -> None:
    for error in error_inputs(name):
        built_with = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input

        def run(library: Any, built_with: Any = built_with, forward: Any = forward) -> Any:
            module = getattr(library, name)(*built_with.args, **built_with.kwargs)
            return module(*forward.args, **forward.kwargs) if forward else module

        expected = outcome(lambda: run(torch.nn))
        actual = outcome(lambda: run(nnops.nn))
        assert isinstance(expected, error.error_type)
        named = module_is_ours(name) and error.error_on == common.ModuleErrorEnum.FORWARD_ERROR
        assert_same_refusal(actual, expected, f"{name}: {error.error_regex}", named)


def test_every_claimed_module_has_inputs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = {name: len(cases(name)) for name in MODULES}
    print(counts)
    assert min(counts.values()) > 0
    from_torch = {name for name in MODULES if info_of(name) is not None}
    assert set(MODULES) - from_torch == {"MaxUnpool2d", "NLLLoss2d"}
    # torch 2.13 ships 187 inputs for the other twelve, and 12 error inputs.
    assert sum(counts[name] for name in from_torch) > 150
    assert sum(len(error_inputs(name)) for name in MODULES) >= 10
