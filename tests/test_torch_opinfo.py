"""torch's own samples: every OpInfo sample and error input of the functions we claim.

The default suite takes a fixed random part of the long sample lists; `-m slow` takes them all.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nnops.nn.functional as F
from nnops.testing.claims import FUNCTIONS, function_is_ours
from nnops.testing.compare import EXACT, assert_same_call, assert_same_refusal, outcome
from nnops.testing.samples import Sample, detached, tensors_of

pytest.importorskip("expecttest")
common = pytest.importorskip("torch.testing._internal.common_methods_invocations")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a target size",
    "ignore:reduction. 'mean' divides",
    "ignore:size_average and reduce",
    "ignore:Using padding='same'",
)

# Functions without an OpInfo of their own take the samples of the function they vary.
VARIES = {"relu_": "relu", "max_pool2d_with_indices": "max_pool2d"}
DEFAULT_SAMPLES = 32
GRADCHECK_SAMPLES = 4
GRADCHECK_ELEMENTS = 600


@functools.cache
def infos(name: str) -> tuple[Any, ...]:
    wanted = f"nn.functional.{VARIES.get(name, name)}"
    return tuple(info for info in common.op_db if info.name == wanted)


@functools.cache
def all_samples(name: str, dtype: torch.dtype) -> tuple[Sample, ...]:
    """torch's samples for `name`, those of all variants, made from a fixed seed."""
    if name in VARIES:
        shared = all_samples(VARIES[name], dtype)
        if name == "max_pool2d_with_indices":
            return shared
        return tuple(Sample(sample.name, sample.args) for sample in shared)
    torch.manual_seed(0)
    requires_grad = dtype.is_floating_point or dtype.is_complex
    samples = []
    for info in infos(name):
        if dtype not in info.dtypes:
            continue
        for sample in info.sample_inputs("cpu", dtype, requires_grad=requires_grad):
            label = f"{info.variant_test_name}{len(samples)} {sample.kwargs}"
            samples.append(Sample(label, (sample.input, *sample.args), sample.kwargs))
    return tuple(samples)


def part_of(samples: tuple[Sample, ...], count: int) -> list[Sample]:
    """`count` of the samples, always the same ones, spread at random over torch's grid."""
    if len(samples) <= count:
        return list(samples)
    return random.Random(1).sample(samples, count)


def dtypes_of(name: str) -> list[torch.dtype]:
    return sorted({dtype for info in infos(name) for dtype in info.dtypes}, key=str)


def error_inputs(name: str) -> list[Any]:
    return [
        error
        for info in infos(name)
        if info.error_inputs_func is not None
        for error in info.error_inputs("cpu")
    ]


BY_DTYPE = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}")
    for name in FUNCTIONS
    for dtype in dtypes_of(name)
]
REAL = [param for param in BY_DTYPE if not param.values[1].is_complex]
COMPLEX = [param for param in BY_DTYPE if param.values[1].is_complex]
WITH_ERRORS = [
    name for name in FUNCTIONS if any(info.error_inputs_func is not None for info in infos(name))
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_is_ours(name: str) -> None:
    assert function_is_ours(name), f"nnops.nn.functional.{name} is torch's"


def compare_samples(name: str, samples: list[Sample]) -> int:
    ours, theirs = getattr(F, name), getattr(torch.nn.functional, name)
    compared = 0
    for sample in samples:
        assert_same_call(ours, theirs, sample, f"{name}({sample.name})", name in EXACT)
        compared += 1
    return compared


@pytest.mark.parametrize("name, dtype", REAL)
def test_samples(name: str, dtype: torch.dtype) -> None:
    samples = part_of(all_samples(name, dtype), DEFAULT_SAMPLES)
    compared = compare_samples(name, samples)
    assert compared == len(samples) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", REAL)
def test_all_samples(name: str, dtype: torch.dtype) -> None:
    samples = all_samples(name, dtype)
    compared = compare_samples(name, list(samples))
    assert compared == len(samples) > 0


@pytest.mark.parametrize("name, dtype", COMPLEX)
def test_complex_numbers_are_not_implemented(name: str, dtype: torch.dtype) -> None:
    samples = all_samples(name, dtype)
    assert samples
    for sample in samples:
        plain = detached(sample)
        with pytest.raises(NotImplementedError, match=rf"nnops::{name}.*complex"):
            getattr(F, name)(*plain.args, **plain.kwargs)


@pytest.mark.parametrize("name", WITH_ERRORS)
def test_error_inputs(name: str) -> None:
    ours, theirs = getattr(F, name), getattr(torch.nn.functional, name)
    errors = error_inputs(name)
    assert errors
    for error in errors:
        args = (error.sample_input.input, *error.sample_input.args)
        kwargs = error.sample_input.kwargs
        expected = outcome(lambda: theirs(*args, **kwargs))  # noqa: B023
        assert isinstance(expected, error.error_type)
        actual = outcome(lambda: ours(*args, **kwargs))  # noqa: B023
        what = f"{name}: {error.error_regex}"
        assert_same_refusal(actual, expected, what, named=function_is_ours(name))


@functools.cache
def small_samples(name: str) -> tuple[Sample, ...]:
    """The float64 samples of a few elements, with the inputs that need a gradient."""
    samples = all_samples(name, torch.float64)
    # max_unpool2d has a variant for this, without repeated indices.
    for_gradients = [sample for sample in samples if sample.name.startswith("grad")]
    found = []
    for sample in for_gradients or samples:
        tensors = tensors_of(sample)
        elements = sum(tensor.numel() for tensor in tensors)
        if 0 < elements <= GRADCHECK_ELEMENTS and any(each.requires_grad for each in tensors):
            found.append(sample)
    return tuple(found)


def as_function(name: str, sample: Sample) -> tuple[Callable[..., Any], list[Tensor]]:
    """The sample as a function of its inputs that need a gradient, and these."""
    sample = detached(sample)
    inputs = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    places = {id(tensor): index for index, tensor in enumerate(inputs)}

    def function(*values: Tensor) -> Any:
        def replace(value: Any) -> Any:
            # Clones: relu_ may not write over a leaf.
            return values[places[id(value)]].clone() if id(value) in places else value

        args = [replace(value) for value in sample.args]
        kwargs = {key: replace(value) for key, value in sample.kwargs.items()}
        result = getattr(F, name)(*args, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    return function, inputs


def check_gradients(name: str, sample: Sample) -> None:
    function, inputs = as_function(name, sample)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)


def check_second_gradients(name: str, sample: Sample) -> None:
    function, inputs = as_function(name, sample)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def check_vmap(name: str, sample: Sample) -> None:
    """All inputs in slices, and each alone."""
    function, inputs = as_function(name, sample)
    inputs = [each.detach() for each in inputs]
    slices = [[each, each.flip(0) if each.dim() else each * 0.5] for each in inputs]
    batches: list[tuple[int | None, ...]] = [(0,) * len(inputs)]
    if len(inputs) > 1:
        batches += [
            tuple(0 if index == alone else None for index in range(len(inputs)))
            for alone in range(len(inputs))
        ]
    for in_dims in batches:
        pairs = list(zip(slices, in_dims, strict=True))
        expected = [
            function(*(one[index if dim == 0 else 0] for one, dim in pairs)) for index in (0, 1)
        ]
        stacked = [torch.stack(one) if dim == 0 else one[0] for one, dim in pairs]
        actual = torch.func.vmap(function, in_dims=in_dims)(*stacked)
        torch.testing.assert_close(actual, torch.stack(expected), equal_nan=True)


TRANSFORMS = (check_gradients, check_second_gradients, check_vmap)


def check_transform(check: Callable[[str, Sample], None], name: str, samples: Any) -> None:
    assert samples
    for sample in samples:
        try:
            check(name, sample)
        except Exception as error:
            raise AssertionError(f"{name}({sample.name})") from error


BY_TRANSFORM = [pytest.param(check, id=check.__name__) for check in TRANSFORMS]


@pytest.mark.parametrize("check", BY_TRANSFORM)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(name: str, check: Callable[[str, Sample], None]) -> None:
    check_transform(check, name, part_of(small_samples(name), GRADCHECK_SAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize("check", BY_TRANSFORM)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_of_all_small_samples(name: str, check: Callable[[str, Sample], None]) -> None:
    check_transform(check, name, small_samples(name))


def test_every_claimed_function_has_samples() -> None:
    """Counted, so that an OpInfo that torch renames or empties does not pass unseen."""
    counts = {
        (name, dtype): len(all_samples(name, dtype))
        for name in FUNCTIONS
        for dtype in dtypes_of(name)
    }
    assert {name for name, _ in counts} == set(FUNCTIONS)
    assert min(counts.values()) > 0
    for name in FUNCTIONS:
        by_dtype = {str(dtype)[6:]: count for (key, dtype), count in counts.items() if key == name}
        print(f"{name}: {sum(by_dtype.values())} samples {by_dtype}")
        assert {"float32", "float64", "bfloat16", "float16"} <= set(by_dtype)
    # torch 2.13 ships 13,000 samples for the real dtypes of these functions, and 23 error inputs.
    assert sum(counts.values()) > 10_000
    assert sum(len(error_inputs(name)) for name in WITH_ERRORS) >= 20


@pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="the page counts the samples of torch 2.13"
)
def test_the_page_counts_these_samples() -> None:
    from test_features import SMALL_SAMPLES

    assert {name: len(small_samples(name)) for name in FUNCTIONS} == SMALL_SAMPLES
