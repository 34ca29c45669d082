"""linear for a few rows: against float64, twice differentiated, and torch's where it is not meant.

The kernels serve any number of rows and weights; LEAST_WEIGHTS is lowered here, where small
matrices are to reach them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops import _C
from nnops.ops import linear as _linear

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Rows, inputs, outputs: around the kernels' groups of rows, chains and columns.
SIZES = [
    *((1, 1, 1), (2, 3, 5), (3, 17, 4), (4, 64, 7), (5, 130, 129), (8, 511, 66), (9, 513, 131)),
    *((16, 1040, 257), (17, 300, 70), (32, 2100, 3), (3, 2049, 260), (1, 2065, 130)),
]
TOLERANCES = {torch.float32: 3e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}

pytestmark = pytest.mark.skipif(
    _C.build_info()["cuda"] in ("emulated", "checked"), reason="linear has no kernels for CUDA"
)


@pytest.fixture(autouse=True)
def small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear, "LEAST_WEIGHTS", 1)


def operands(
    sizes: tuple[int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rows, inputs, outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, w, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x.to(dtype), w.to(dtype), b.to(dtype)


def with_gradients(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
    output = function(*leaves)
    generator = torch.Generator().manual_seed(9)
    gradient = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return output.detach(), *torch.autograd.grad(output, leaves, gradient.to(output.dtype))


def is_ours(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ == "LinearFunctionBackward"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_output_and_gradients_are_those_of_float64(
    sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tensors = operands(sizes, dtype)
    actual = with_gradients(F.linear, tensors)
    expected = with_gradients(
        torch.nn.functional.linear, tuple(tensor.double() for tensor in tensors)
    )
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        error = (ours.double() - exact).abs().max()
        assert error <= TOLERANCES[dtype] * exact.abs().max().clamp_min(1), error


def test_without_a_bias_and_for_each_needed_gradient_alone() -> None:
    x, w, _ = operands((4, 40, 30))
    output, grad_x, grad_w = with_gradients(F.linear, (x, w))
    torch.testing.assert_close(output, x @ w.T)
    for_x = with_gradients(lambda each: F.linear(each, w), (x,))
    for_w = with_gradients(lambda each: F.linear(x, each), (w,))
    assert torch.equal(for_x[1], grad_x) and torch.equal(for_w[1], grad_w)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 2), (4, 6, 5)], ids=str)
def test_gradcheck_twice(sizes: tuple[int, int, int]) -> None:
    leaves = tuple(each.requires_grad_() for each in operands(sizes, torch.float64))
    assert is_ours(F.linear(*leaves))
    assert torch.autograd.gradcheck(F.linear, leaves)
    assert torch.autograd.gradgradcheck(F.linear, leaves)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bits_are_the_same_for_any_isa_and_threads(sizes: tuple[int, int, int]) -> None:
    tensors = operands(sizes)
    results = []
    threads, isa = torch.get_num_threads(), _C.active_isa()
    try:
        # The default level has no fused multiply-adds.
        for count, level in itertools.product((1, 2, 3), _C.available_isas()[1:]):
            torch.set_num_threads(count)
            _C.set_active_isa(level)
            results.append(with_gradients(F.linear, tensors))
    finally:
        torch.set_num_threads(threads)
        _C.set_active_isa(isa)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_row_alone_has_the_bits_that_it_has_among_others() -> None:
    tensors = operands((32, 1100, 140))
    x, w, b = tensors
    output, grad_x, *_ = with_gradients(F.linear, tensors)
    gradient = torch.randn(
        32, 140, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    ).float()
    for rows in (slice(0, 1), slice(3, 6), slice(7, 24)):
        leaf = x[rows].clone().requires_grad_()
        part = F.linear(leaf, w, b)
        assert torch.equal(part, output[rows])
        assert torch.equal(torch.autograd.grad(part, leaf, gradient[rows])[0], grad_x[rows])


def test_strides_views_and_expanded_gradients() -> None:
    x, w, b = operands((6, 90, 70))
    strided = (torch.randn(90, 6).T, torch.randn(90, 140).T[::2], torch.randn(140)[::2])
    for tensors in (strided, (x[:, ::2], w[:, ::2], b), (x[:1].expand(6, 90), w, b)):
        ours = with_gradients(F.linear, tensors)
        theirs = with_gradients(torch.nn.functional.linear, tensors)
        for actual, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(actual, expected)
    leaf = w.clone().requires_grad_()
    F.linear(x, leaf, b).sum().backward()  # a gradient of strides 0
    torch.testing.assert_close(leaf.grad, x.sum(0).expand(70, 90))


def test_values_that_are_not_finite_stay_where_they_are() -> None:
    x, w, b = operands((5, 40, 20))
    x[1, 3], x[2, 39], w[4, 0] = float("nan"), float("inf"), -float("inf")
    ours = with_gradients(F.linear, (x, w, b))
    theirs = with_gradients(torch.nn.functional.linear, (x, w, b))
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def not_meant() -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    yield "many rows", lambda x, w, b: F.linear(x.repeat(_linear.MOST_ROWS, 1), w, b)
    yield "three dimensions", lambda x, w, b: F.linear(x[None], w, b)
    yield "one dimension", lambda x, w, b: F.linear(x[0], w, b)
    yield "no rows", lambda x, w, b: F.linear(x[:0], w, b)


@pytest.mark.parametrize("call", [each for _, each in not_meant()], ids=[n for n, _ in not_meant()])
def test_other_calls_are_torchs(call: Callable[..., Tensor]) -> None:
    x, w, b = operands((4, 8, 6))
    leaf = w.requires_grad_()
    assert is_ours(F.linear(x, leaf, b))
    assert not is_ours(call(x, leaf, b))


def test_small_weights_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = operands((4, 8, 6))
    leaf = w.requires_grad_()
    monkeypatch.setattr(_linear, "LEAST_WEIGHTS", 49)
    assert not is_ours(F.linear(x, leaf, b))


def test_transforms_autocast_and_compile_have_torchs_numbers() -> None:
    x, w, b = operands((4, 8, 6), torch.float64)
    expected = torch.func.jacrev(torch.nn.functional.linear)(x, w, b)
    torch.testing.assert_close(torch.func.jacrev(F.linear)(x, w, b), expected)
    torch.testing.assert_close(torch.func.jacfwd(F.linear)(x, w, b), expected)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(lambda each: F.linear(each, w, b), leaf, vectorize=True),
        expected,
    )
    compiled = torch.compile(F.linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(leaf, w, b), torch.nn.functional.linear(x, w, b))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x.float(), w.float(), b.float()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w, b: (x[:, :3], w, b),
        lambda x, w, b: (x, w, b[:2]),
        lambda x, w, b: (x.double(), w, b),
        lambda x, w, b: (x, w[0, 0], b),
    ],
)
def test_torch_says_what_is_wrong(change: Callable[..., tuple[Tensor, ...]]) -> None:
    arguments = change(*operands((4, 8, 6)))
    with pytest.raises(RuntimeError) as expected:
        torch.nn.functional.linear(*arguments)
    with pytest.raises(RuntimeError) as actual:
        F.linear(*arguments)
    assert str(actual.value) == str(expected.value)


def test_only_what_a_gradient_needs_is_saved() -> None:
    x, w, b = operands((4, 8, 6))
    # A frozen weight: the input may be written. An input without a gradient: the weight may be.
    frozen = x.clone().requires_grad_() * 1
    output = F.linear(frozen, w, b)
    frozen.add_(1)
    output.sum().backward()
    leaf = w.clone().requires_grad_()
    output = F.linear(x, leaf, b)
    output.sum().backward(retain_graph=True)
    with torch.no_grad():
        leaf.add_(1)
    output.sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * x.sum(0).expand(6, 8))
    with torch.inference_mode():
        inferred = torch.ones(4, 8)
    bias = b.clone().requires_grad_()
    F.linear(inferred, w, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((6,), 4.0))  # type: ignore[arg-type]


def test_other_gradients_and_modes_are_torchs() -> None:
    x, w, _ = operands((4, 8, 6))
    leaf = w.clone().requires_grad_()
    index = torch.tensor([[1], [2], [0], [5]])
    F.linear(x, leaf).gather(1, index, sparse_grad=True).sum().backward()
    expected = torch.zeros(6, 8).index_add_(0, index[:, 0], x)
    torch.testing.assert_close(leaf.grad, expected)
    output = F.linear(x, leaf)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 4 * 8 * 6
    assert not is_ours(F.linear(x, w.t().contiguous().t().requires_grad_()))
    traced = torch.jit.trace(F.linear, (x, leaf))
    assert torch.equal(traced(x, leaf), torch.nn.functional.linear(x, leaf))


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
def test_other_layouts_are_torchs() -> None:
    x, w, _ = operands((4, 8, 6))
    expected = torch.nn.functional.linear(x, w)
    for weight in (w.to_sparse_csr(), w.to_sparse(), w.to_mkldnn()):
        images = x.to_mkldnn() if weight.is_mkldnn else x
        output = F.linear(images, weight)
        torch.testing.assert_close(output.to_dense() if weight.is_mkldnn else output, expected)
    nested = F.linear(torch.nested.nested_tensor([x[:3], x[3:]]), w)
    torch.testing.assert_close(torch.cat(nested.unbind()), expected)


def test_a_linear_function_in_a_forward_stays_torchs_when_converted() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, w)

    assert type(nnops.convert(Model())) is Model


def test_torchs_own_samples_and_error_inputs() -> None:
    common = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    (info,) = (each for each in common.op_db if each.name == "nn.functional.linear")
    reached = 0
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=True):
        output = F.linear(sample.input, *sample.args, **sample.kwargs)
        reached += is_ours(output)
        expected = torch.nn.functional.linear(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(output, expected)
    assert reached > 0
    if info.error_inputs_func is not None:
        for error in info.error_inputs("cpu"):
            with pytest.raises(error.error_type):
                F.linear(
                    error.sample_input.input, *error.sample_input.args, **error.sample_input.kwargs
                )


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("_linear", ((4, 8), (6, 7), None)),
        ("_linear", ((4, 8), (6, 8), (5,))),
        ("_linear", ((4, 8, 1), (6, 8), None)),
        ("_linear_backward_input", ((4, 6), (5, 8))),
        ("_linear_backward_weight", ((4, 6), (5, 8))),
    ],
)
def test_operators_check_their_arguments(
    name: str, shapes: tuple[tuple[int, ...] | None, ...]
) -> None:
    arguments = [None if shape is None else torch.zeros(shape) for shape in shapes]
    with pytest.raises(RuntimeError, match=f"nnops::{name}: "):
        getattr(torch.ops.nnops, name)(*arguments)


@pytest.mark.parametrize("sizes", [(0, 3, 2), (2, 0, 3), (2, 3, 0)], ids=str)
def test_operators_take_empty_matrices(sizes: tuple[int, int, int]) -> None:
    x, w, b = operands(sizes)
    gy = torch.ones(sizes[0], sizes[2])
    ops = torch.ops.nnops
    assert torch.equal(ops._linear(x, w, b), torch.nn.functional.linear(x, w, b))
    assert torch.equal(ops._linear_backward_input(gy, w), gy @ w)
    assert torch.equal(ops._linear_backward_weight(gy, x), gy.T @ x)


def test_fake_kernels_give_the_sizes() -> None:
    x, w, b = operands((4, 8, 6))
    gy = torch.zeros(4, 6)
    for name, arguments in (
        ("_linear", (x, w, b)),
        ("_linear_backward_input", (gy, w)),
        ("_linear_backward_weight", (gy, x)),
    ):
        operator = getattr(torch.ops.nnops, name)
        real, fake = operator(*arguments), operator(*(each.to("meta") for each in arguments))
        assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_convert_trains_a_classifier_with_it() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(70, 50), torch.nn.ReLU(), torch.nn.Linear(50, 5)))
    converted = nnops.convert(copy.deepcopy(model))
    assert type(converted[0]) is nn.Linear and type(nnops.revert(converted)[0]) is torch.nn.Linear
    x = torch.randn(8, 70)
    assert is_ours(converted[2](torch.randn(8, 50)))
    for net in (model, converted):
        net(x).square().mean().backward()
    for theirs, ours in zip(model.parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
