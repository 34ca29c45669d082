"""`import nnops.nn as nn` in place of torch's: the same names, signatures, warnings, defaults."""

from __future__ import annotations

import importlib
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops.testing.claims import (
    FUNCTIONS,
    FUNCTIONS_IN_PART,
    MODULES,
    MODULES_IN_PART,
    function_is_ours,
    module_is_ours,
)
from nnops.testing.compare import outcome

# torch gives these no Python signature: they are built in, or hidden behind (*args, **kwargs).
SIGNATURES = {
    "conv2d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
    "relu_": "(input)",
    "max_pool2d": (
        "(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
        "return_indices=False)"
    ),
}

# Keyword-only options that torch does not have, off by default.
OWN_OPTIONS = {
    "binary_cross_entropy_with_logits": ("finite",),
    "BCEWithLogitsLoss": ("finite",),
    "conv2d": ("precision",),
}


def without_own_options(name: str, signature: inspect.Signature) -> inspect.Signature:
    own = [signature.parameters[option] for option in OWN_OPTIONS.get(name, ())]
    assert all(each.kind is each.KEYWORD_ONLY and not each.default for each in own)
    others = [each for each in signature.parameters.values() if each not in own]
    return signature.replace(parameters=others)


def parameters(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in signature.parameters.values()
    ]


def signature_from(text: str) -> inspect.Signature:
    """The signature that `text` writes down, read by defining such a function."""
    scope: dict[str, Any] = {}
    exec(f"def function{text}: pass", scope)
    return inspect.signature(scope["function"])


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if function_is_ours(name)])
def test_function_signatures(name: str) -> None:
    ours = without_own_options(name, inspect.signature(getattr(F, name)))
    if name in SIGNATURES:
        theirs = signature_from(SIGNATURES[name])
    else:
        theirs = inspect.signature(getattr(torch.nn.functional, name))
    assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize("name", FUNCTIONS + FUNCTIONS_IN_PART)
def test_functions_are_documented(name: str) -> None:
    function = getattr(F, name)
    assert function.__name__ == name or not function_is_ours(name)
    assert len(inspect.getdoc(function) or "") > 10


@pytest.mark.parametrize("name", MODULES + MODULES_IN_PART)
def test_constructor_signatures(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(library, name)) for library in (nn, torch.nn))
    if name in OWN_OPTIONS:
        assert parameters(without_own_options(name, ours)) == parameters(theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", MODULES + MODULES_IN_PART)
def test_modules_override_forward_only(name: str) -> None:
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, theirs) and ours.__name__ == theirs.__name__ == name
    if not module_is_ours(name):
        return
    own = {
        key
        for kind in ours.__mro__
        if kind.__module__.startswith("nnops.")
        for key, value in vars(kind).items()
        if isinstance(value, (types.FunctionType, property, classmethod, staticmethod))
    }
    if "__deprecated__" in vars(ours):  # what typing_extensions.deprecated puts on a class
        own -= {"__new__", "__init_subclass__"}
    # An option of our own has to be taken by the constructor and shown.
    assert own == {"forward", *(("__init__", "extra_repr") if name in OWN_OPTIONS else ())}
    assert parameters(inspect.signature(ours.forward)) == parameters(
        inspect.signature(theirs.forward)
    )


def test_functional_serves_every_name() -> None:
    theirs = {name for name in dir(torch.nn.functional) if not name.startswith("__")}
    assert theirs <= set(dir(F))
    for name in theirs - set(vars(F)):
        assert getattr(F, name) is getattr(torch.nn.functional, name)


def test_functional_replaces_what_it_claims_and_nothing_else() -> None:
    theirs = set(dir(torch.nn.functional))
    functions = {
        name
        for name, value in vars(F).items()
        if isinstance(value, types.FunctionType) and name in theirs and name[0] != "_"
    }
    assert functions <= {*FUNCTIONS, *FUNCTIONS_IN_PART}


def test_nn_serves_every_name() -> None:
    theirs = {name for name in dir(torch.nn) if not name.startswith("__")}
    assert theirs <= set(dir(nn))
    for name in theirs:
        value = getattr(nn, name)
        if name not in (*MODULES, *MODULES_IN_PART, "functional"):
            assert value is getattr(torch.nn, name), name
    for module in torch.nn.modules.__all__:
        assert issubclass(getattr(nn, module), getattr(torch.nn, module))


def test_nn_replaces_what_it_claims_and_nothing_else() -> None:
    classes = {
        name
        for name, value in vars(nn).items()
        if isinstance(value, type) and hasattr(torch.nn, name)
    }
    assert classes <= {*MODULES, *MODULES_IN_PART}


def test_names_import_from_us() -> None:
    for library, name in ((torch.nn, "nnops.nn"), (torch.nn.functional, "nnops.nn.functional")):
        ours = importlib.import_module(name)
        for wanted in dir(library):
            if not wanted.startswith("__"):
                scope: dict[str, Any] = {}
                exec(f"from {name} import {wanted}", scope)
                assert scope[wanted] is getattr(ours, wanted)


@pytest.mark.parametrize("library", ["nn", "nn.functional"])
def test_star_import_gives_what_torchs_gives(library: str) -> None:
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    exec(f"from torch.{library} import *", theirs)
    exec(f"from nnops.{library} import *", ours)
    del theirs["__builtins__"], ours["__builtins__"]
    assert set(theirs) == set(ours)
    module = importlib.import_module(f"nnops.{library}")
    assert all(value is getattr(module, name) for name, value in ours.items())


def test_unknown_names_are_attribute_errors() -> None:
    for library in (nn, F):
        with pytest.raises(AttributeError, match="no_such_layer"):
            library.no_such_layer  # noqa: B018
    with pytest.raises(ImportError):
        exec("from nnops.nn import no_such_layer")


def test_instances_pass_for_torchs() -> None:
    layer = nn.Conv2d(1, 2, 3)
    assert isinstance(layer, torch.nn.Conv2d) and isinstance(layer, torch.nn.Module)
    assert isinstance(nn.ReLU(), torch.nn.ReLU)
    assert nn.Module is torch.nn.Module and nn.Parameter is torch.nn.Parameter


def test_package_exports() -> None:
    for name in nnops.__all__:
        assert hasattr(nnops, name)
    assert nnops.__version__


Call = Callable[[Any], Tensor]
INPUT = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]])
TARGET = torch.tensor([[0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])
CLASSES = torch.tensor([2, 0])
LOSSES = {
    "l1_loss": (INPUT, TARGET),
    "mse_loss": (INPUT, TARGET),
    "smooth_l1_loss": (INPUT, TARGET),
    "kl_div": (INPUT.log(), TARGET),
    "nll_loss": (INPUT, CLASSES),
    "cross_entropy": (INPUT, CLASSES),
    "binary_cross_entropy": (INPUT, TARGET),
    "binary_cross_entropy_with_logits": (INPUT, TARGET),
}
LOSS_MODULES = [name for name in MODULES if name.endswith("Loss") and name != "HuberLoss"]


def warned(action: Callable[[], Any]) -> tuple[Any, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return action(), list(caught)


def assert_same_warnings(
    action: Call, ours: Any, theirs: Any, same_text: bool = False
) -> list[warnings.WarningMessage]:
    """The same value, and warnings of the same categories in the same number."""
    actual, our_warnings = warned(lambda: action(ours))
    expected, their_warnings = warned(lambda: action(theirs))
    if isinstance(expected, Tensor):
        torch.testing.assert_close(actual, expected)
    assert [warning.category for warning in our_warnings] == [
        warning.category for warning in their_warnings
    ]
    if same_text:
        texts = [
            [str(warning.message) for warning in each] for each in (our_warnings, their_warnings)
        ]
        assert texts[0] == texts[1]
    return our_warnings


@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_deprecated_flags(name: str, size_average: bool | None, reduce: bool | None) -> None:
    arguments = LOSSES[name]
    flags = {"size_average": size_average, "reduce": reduce}
    for reduction in ("none", "mean", "sum"):

        def action(library: Any, reduction: str = reduction) -> Tensor:
            return getattr(library, name)(*arguments, **flags, reduction=reduction)

        assert_same_warnings(action, F, torch.nn.functional)


@pytest.mark.parametrize("name", LOSS_MODULES)
def test_deprecated_flags_of_modules(name: str) -> None:
    def action(library: Any) -> Any:
        return getattr(library, name)(size_average=False).reduction

    caught = assert_same_warnings(action, nn, torch.nn, same_text=True)
    assert caught
    assert outcome(lambda: action(nn)) == "sum"


@pytest.mark.parametrize("name", ["l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss"])
def test_broadcasting_warns(name: str) -> None:
    caught = assert_same_warnings(
        lambda library: getattr(library, name)(INPUT, TARGET[:, :1]), F, torch.nn.functional
    )
    assert [warning.category for warning in caught] == [UserWarning]
    assert "(torch.Size([2, 1]))" in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the caller"


def test_kl_div_warns_of_its_mean() -> None:
    for reduction in ("mean", "batchmean", "sum"):
        assert_same_warnings(
            lambda library: library.kl_div(INPUT.log(), TARGET, reduction=reduction),  # noqa: B023
            F,
            torch.nn.functional,
        )


def test_uneven_same_padding_warns_once_as_torch() -> None:
    image, weight = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 2, 2)
    # torch shows this warning once per process; ours may show it, with the same category.
    caught = warned(lambda: F.conv2d(image, weight, padding="same"))[1]
    assert {warning.category for warning in caught} <= {UserWarning}


@pytest.mark.parametrize("reduction", ["Mean", "", "average", None, 1])
@pytest.mark.parametrize("name", [*LOSSES, "huber_loss"])
def test_unknown_reductions(name: str, reduction: Any) -> None:
    arguments = LOSSES.get(name, (INPUT, TARGET))
    expected = outcome(lambda: getattr(torch.nn.functional, name)(*arguments, reduction=reduction))
    actual = outcome(lambda: getattr(F, name)(*arguments, reduction=reduction))
    assert isinstance(expected, ValueError)
    assert isinstance(actual, ValueError)
