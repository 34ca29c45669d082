"""Every case of the operator database against torch: values, gradients, layouts, errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.library import opcheck

from nnops import _C
from nnops.ops._operator import FORMULAS
from nnops.ops.pointwise_losses import Loss
from nnops.testing.compare import outputs_of
from nnops.testing.opdb import CASES
from nnops.testing.recorder import OPCHECKS, OperatorCalls, operators, public_operators
from nnops.testing.samples import Maker, OpCase, Sample, detached, map_tensors, tensors_of
from nnops.testing.tolerances import assert_accurate, assert_equal

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a target size",
    "ignore:reduction. 'mean' divides",
    "ignore:Using padding='same' with even kernel",
    "ignore:`torch.jit.script` is deprecated",
)

BY_DTYPE = [
    pytest.param(case, dtype, id=f"{case.name}-{str(dtype)[6:]}")
    for case in CASES
    for dtype in case.dtypes
]
BY_FLOATING_DTYPE = [each for each in BY_DTYPE if each.values[1].is_floating_point]
BY_CASE = [pytest.param(case, id=case.name) for case in CASES]
BY_ERROR = [
    pytest.param(case, sample, id=f"{case.name}-{sample.name}")
    for case in CASES
    for sample in case.error_samples()
]


def compare(
    case: OpCase, actual: Tensor, expected: Tensor, reference: Callable[[], Tensor], what: str
) -> None:
    if case.exact:
        assert_equal(actual, expected, what)
    else:
        assert_accurate(actual, expected, reference(), what)


def compare_outputs(case: OpCase, sample: Sample, what: str = "", device: str = "cpu") -> None:
    """Ours on `device` against torch's on the CPU."""
    # Clones: a sample may ask for the input to be written over.
    ours = outputs_of(case.ours(detached(sample, device=device)))
    torchs = outputs_of(case.torchs(detached(sample)))
    assert len(ours) == len(torchs)
    reference = None
    for index, (actual, expected) in enumerate(zip(ours, torchs, strict=True)):

        def exact_value(index: int = index) -> Tensor:
            nonlocal reference
            if reference is None:
                reference = outputs_of(case.torchs(detached(sample, torch.float64)))
            return reference[index]

        label = f"{case.name}({sample.name}){what} output {index}"
        compare(case, actual.cpu(), expected, exact_value, label)
        assert_same_strides(actual, expected, label)


def assert_same_strides(actual: Tensor, expected: Tensor, what: str) -> None:
    """Where strides mean something: not in empty tensors, nor along dimensions of size 1."""

    def telling(tensor: Tensor) -> list[int]:
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        return [stride for size, stride in pairs if size > 1]

    if expected.numel():
        assert telling(actual) == telling(expected), (
            f"{what}: {actual.stride()=}, torch {expected.stride()}, {actual.shape=}"
        )


def gradients(
    function: Callable[[Sample], Tensor | tuple[Tensor, ...]], sample: Sample
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(inputs that need a gradient, their gradients) for fixed random output gradients."""
    inputs = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    generator = torch.Generator().manual_seed(1)
    outputs = [output for output in outputs_of(function(sample)) if output.requires_grad]
    if not outputs:
        return inputs, [None] * len(inputs)
    seeds = [
        torch.rand(output.shape, generator=generator, dtype=torch.float64).to(output)
        for output in outputs
    ]
    return inputs, list(torch.autograd.grad(outputs, inputs, seeds, allow_unused=True))


def compare_gradients(
    case: OpCase,
    sample: Sample,
    what: str = "",
    plain: Sample | None = None,
    device: str = "cpu",
) -> None:
    """Ours on `device` against torch's on the CPU.

    `plain`: `sample` in row-major order, for torch, whose backwards do not take every layout.
    """
    plain = plain or sample
    _, ours = gradients(case.ours, detached(sample, device=device))
    inputs, torchs = gradients(case.torchs, detached(plain))
    _, reference = gradients(case.torchs, detached(plain, torch.float64))
    for index, (actual, expected) in enumerate(zip(ours, torchs, strict=True)):
        label = f"{case.name}({sample.name}){what} gradient {index} of {inputs[index].shape}"
        assert (actual is None) == (expected is None), f"{label}: {actual=}, torch {expected=}"
        if actual is not None and expected is not None:
            assert_accurate(actual.cpu(), expected, reference[index], label)


def grad_samples(case: OpCase, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in case.samples(Maker(dtype, requires_grad=True)):
        if any(tensor.requires_grad for tensor in tensors_of(sample)):
            yield sample


@pytest.mark.parametrize("case, dtype", BY_DTYPE)
def test_forward(case: OpCase, dtype: torch.dtype, isa: str) -> None:
    for sample in case.samples(Maker(dtype)):
        compare_outputs(case, sample)


@pytest.mark.parametrize("case, dtype", BY_FLOATING_DTYPE)
def test_gradients(case: OpCase, dtype: torch.dtype, isa: str) -> None:
    for sample in grad_samples(case, dtype):
        compare_gradients(case, sample)


def channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def strided(tensor: Tensor) -> Tensor:
    """The same values in a larger tensor, every second element along the last dimension."""
    if tensor.dim() == 0:
        return tensor
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    view = wide[..., 1::2]
    return view.copy_(tensor) if view.shape == tensor.shape else tensor


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the memory of the first two dimensions swapped."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


def offset(tensor: Tensor) -> Tensor:
    """The same values at a storage offset that breaks vector alignment."""
    flat = tensor.new_zeros(tensor.numel() + 3)[3:]
    return flat.view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("layout", [channels_last, strided, transposed, offset])
@pytest.mark.parametrize("case", BY_CASE)
def test_layouts(case: OpCase, layout: Callable[[Tensor], Tensor], isa: str) -> None:
    def change(tensor: Tensor) -> Tensor:
        return layout(tensor.detach()).requires_grad_(tensor.requires_grad)

    for sample in case.samples(Maker(torch.float32)):
        changed = map_tensors(sample, change)
        ours = outputs_of(case.ours(changed_copy(changed)))
        torchs = outputs_of(case.torchs(changed_copy(changed)))
        reference = outputs_of(case.torchs(detached(sample, torch.float64)))
        for actual, expected, exact in zip(ours, torchs, reference, strict=True):
            label = f"{case.name}({sample.name}) {layout.__name__}"
            compare(case, actual, expected, lambda exact=exact: exact, label)
            assert_same_strides(actual, expected, label)
    for sample in grad_samples(case, torch.float32):
        compare_gradients(case, map_tensors(sample, change), f" {layout.__name__}", plain=sample)


def changed_copy(sample: Sample) -> Sample:
    """Copies that keep the strides, for functions that may write over their input."""
    if not sample.name.startswith("inplace"):
        return sample

    def change(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)

    return map_tensors(sample, change)


SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, 3e38)


def special_samples(case: OpCase) -> Iterator[Sample]:
    """NaN, infinities, signed zeros, subnormals and huge values, scattered over the input."""
    for sample in case.samples(Maker(torch.float32)):
        first = sample.args[0]
        if not first.numel():
            continue
        changed = first.clone()
        flat = changed.view(-1)
        for index, value in enumerate(SPECIAL):
            flat[(7 * index) % flat.numel()] = value
        special = Sample(f"{sample.name} special", (changed, *sample.args[1:]), sample.kwargs)
        try:
            case.torchs(detached(special))
        except RuntimeError:  # outside of what the function accepts (BCE needs [0, 1])
            continue
        yield special


@pytest.mark.parametrize("case", BY_CASE)
def test_special_values(case: OpCase, isa: str) -> None:
    for special in special_samples(case):
        compare_outputs(case, special)


@pytest.mark.parametrize("case", BY_CASE)
def test_gradcheck(case: OpCase) -> None:
    for sample in case.gradcheck_samples(Maker(torch.float64, requires_grad=True)):
        function, inputs = positional(case, sample)
        assert gradcheck(function, inputs, check_forward_ad=True), sample.name
        assert gradgradcheck(function, inputs), sample.name


def positional(
    case: OpCase, sample: Sample
) -> tuple[Callable[..., Tensor | tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The case as a function of its differentiable tensors alone."""
    inputs = tuple(tensor for tensor in tensors_of(sample) if tensor.requires_grad)

    def function(*values: Tensor) -> Tensor | tuple[Tensor, ...]:
        replacement = {id(old): new for old, new in zip(inputs, values, strict=True)}
        outputs = outputs_of(
            case.ours(map_tensors(sample, lambda tensor: replacement.get(id(tensor), tensor)))
        )
        return tuple(output for output in outputs if output.dtype.is_floating_point)

    return function, inputs


@pytest.mark.parametrize("case, sample", BY_ERROR)
def test_errors(case: OpCase, sample: Sample) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(sample.error, match=sample.match):
            case.ours(sample)
        if not sample.differs:
            with pytest.raises(sample.error):
                case.torchs(sample)


@pytest.mark.parametrize("case", BY_CASE)
def test_same_bits_on_any_number_of_threads(case: OpCase) -> None:
    before = torch.get_num_threads()
    try:
        for sample in case.samples(Maker(torch.float32)):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(outputs_of(case.ours(detached(sample))))
            for other in results[1:]:
                for actual, expected in zip(other, results[0], strict=True):
                    assert_equal(actual, expected, f"{case.name}({sample.name})")
    finally:
        torch.set_num_threads(before)


def recorded_calls(
    case: OpCase, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> dict[str, list[tuple]]:
    """Operator calls of forward, backward and double backward of the gradcheck samples."""
    calls: dict[str, list[tuple]] = {}
    with OperatorCalls() as recorder:
        for sample in case.gradcheck_samples(Maker(dtype, requires_grad=True)):
            sample = detached(sample, device=device)
            case.ours(map_tensors(sample, Tensor.detach))
            function, inputs = positional(case, sample)
            outputs = [output for output in outputs_of(function(*inputs)) if output.requires_grad]
            seeds = [torch.rand_like(output).requires_grad_() for output in outputs]
            grads = torch.autograd.grad(
                outputs, inputs, seeds, create_graph=True, allow_unused=True
            )
            grads = [grad for grad in grads if grad is not None and grad.requires_grad]
            if grads:
                torch.autograd.grad(
                    [grad.square().sum() for grad in grads], [*inputs, *seeds], allow_unused=True
                )
    for name, args in recorder.recorded:
        calls.setdefault(name, []).append(args)
    return calls


@pytest.mark.parametrize("case", BY_CASE)
def test_opcheck(case: OpCase) -> None:
    """Schema, fake kernel, autograd registration and AOT dispatch of every operator reached."""
    for name, calls in recorded_calls(case).items():
        private = getattr(torch.ops.nnops, f"_{name}").default
        opcheck(private, detached_all(calls[0]), test_utils=OPCHECKS)
        if name not in FORMULAS:  # relu_: mutates, only the private name exists
            continue
        for args in (calls[0], calls[-1]):
            leaves = tuple(
                arg.clone().requires_grad_(arg.dtype.is_floating_point)
                if isinstance(arg, Tensor)
                else arg
                for arg in detached_all(args)
            )
            opcheck(getattr(torch.ops.nnops, name).default, leaves, test_utils=OPCHECKS)


def detached_all(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)


@pytest.mark.parametrize("case", BY_CASE)
def test_transforms_of_operators_called_directly(case: OpCase) -> None:
    """torch.ops.nnops under dual numbers, jvp, vmap(grad) and jvp(grad), against backward."""
    for name, calls in recorded_calls(case).items():
        if name not in FORMULAS:  # relu_: mutates, only the private name exists
            continue
        function, point = first_output_of(name, calls[0])
        tangents = tuple(torch.rand_like(each) for each in point)
        leaves = [each.clone().requires_grad_() for each in point]
        output = function(*leaves)
        seed = torch.rand_like(output).requires_grad_()
        gradients = torch.autograd.grad(output, leaves, seed, create_graph=True)
        expected = inner(gradients, tangents)
        with forward_ad.dual_level():
            duals = (forward_ad.make_dual(*each) for each in zip(point, tangents, strict=True))
            tangent = forward_ad.unpack_dual(function(*duals)).tangent
            assert tangent is not None, f"{name}: the tangent is lost"
            torch.testing.assert_close((tangent * seed).sum(), expected)
        _, tangent = jvp(function, point, tangents)
        torch.testing.assert_close((tangent * seed).sum(), expected)

        seed_value = seed.detach()
        every = tuple(range(len(point)))
        gradient = grad(lambda *each: (function(*each) * seed_value).sum(), argnums=every)  # noqa: B023
        twice = [torch.stack([each, each]) for each in point]
        for one, other in zip(vmap(gradient)(*twice), gradients, strict=True):
            torch.testing.assert_close(one, torch.stack([other, other]))
        _, change = jvp(gradient, point, tangents)
        if expected.requires_grad:  # the same from backward twice: second derivatives commute
            second = torch.autograd.grad(
                expected, leaves, allow_unused=True, materialize_grads=True
            )
            for one, other in zip(change, second, strict=True):
                torch.testing.assert_close(one, other)


def first_output_of(
    name: str, args: tuple[Any, ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A public operator as a function of what it differentiates, and the values of that."""
    operator = getattr(torch.ops.nnops, name)
    places = [
        place
        for place in FORMULAS[name].differentiable
        if isinstance(args[place], Tensor) and args[place].is_floating_point()
    ]
    plain = detached_all(args)

    def function(*values: Tensor) -> Tensor:
        changed = dict(zip(places, values, strict=True))
        output = operator(*(changed.get(place, each) for place, each in enumerate(plain)))
        return output if isinstance(output, Tensor) else output[0]

    return function, tuple(plain[place] for place in places)


def inner(ones: Iterable[Tensor], others: Iterable[Tensor]) -> Tensor:
    return sum((one * other).sum() for one, other in zip(ones, others, strict=True))


def test_every_operator_has_a_case_a_fake_and_autograd() -> None:
    """Law 9: no schema without a case in the database, a fake kernel and an autograd formula.

    So none escapes the tests here, opcheck among them, which start from the cases.
    """
    covered = {name for case in CASES for name in case.operators}
    registered = set(public_operators())
    assert covered == registered
    assert set(FORMULAS) == registered
    for name in registered:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"nnops::{name}", "Autograd")
    # The private names are the same functions, and those that Python alone calls.
    others = {"_relu_", "_layer_chain"}  # the second: tests/test_layer_chain.py
    others |= {"_linear", "_linear_backward_input", "_linear_backward_weight"}  # test_linear.py
    losses = {name for name, formulas in FORMULAS.items() if issubclass(formulas, Loss)}
    others |= {f"_{name}_with_gradient" for name in losses}  # test_pointwise_losses.py
    assert {name for name in operators() if name[0] == "_"} - others == {
        f"_{name}" for name in registered
    }


@pytest.mark.parametrize("case", BY_CASE)
def test_declared_operators_are_reached(case: OpCase) -> None:
    reached = set(recorded_calls(case)) - {"relu_"}
    for sample in case.samples(Maker(torch.float32)):
        with OperatorCalls() as recorder:
            case.ours(detached(sample))
        reached |= {name for name, _ in recorder.recorded} - {"relu_"}
    assert set(case.operators) == reached


def test_the_baseline_isa_is_always_available() -> None:
    emulated = _C.build_info()["cuda"] in ("emulated", "checked")
    assert _C.available_isas()[0] == ("cuda" if emulated else "default")
