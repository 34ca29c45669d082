"""The autograd plumbing: which way a call takes, and that no way of differentiating is lost.

AUTOGRAD.md measured what each way costs and what it cannot do; here each situation is put and the
way that was taken is observed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import nnops.nn as nn
import nnops.nn.functional as F
from nnops.ops import relu as relu_ops
from nnops.ops._operator import FORMULAS, _is_inside_transform

IMAGE = (2, 2, 6, 6)


class Names(TorchDispatchMode):
    """Full names of our operators in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "nnops":
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def is_full(output: Tensor) -> bool:
    """Whether the node was made by the full Function, the one with a setup_context of its own."""
    function = output.grad_fn._forward_cls
    return function.setup_context is not torch.autograd.Function.setup_context


def test_the_private_names_of_torch_that_the_router_uses() -> None:
    assert callable(torch.ops.nnops._relu.default._op)
    assert callable(torch.autograd.Function._backward_cls.apply)
    assert torch._C._are_functorch_transforms_active() is False
    assert forward_ad._current_level == -1
    assert torch._C._len_torch_dispatch_stack() == 0
    with Names():
        assert torch._C._len_torch_dispatch_stack() == 1
    assert torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    assert torch._C._is_any_autocast_enabled() is False
    with torch.autocast("cpu"):
        assert torch._C._is_any_autocast_enabled() is True
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((torch._C._are_functorch_transforms_active(), _is_inside_transform()))
        return x

    torch.func.vmap(look)(torch.ones(2))
    assert seen == [(True, False)]
    with forward_ad.dual_level():
        assert forward_ad._current_level >= 0
    assert forward_ad._current_level == -1


# ---- which way


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_raw_operator_runs(guard: Any) -> None:
    x = torch.randn(5, requires_grad=True)
    with guard(), Names() as names:
        output = relu_ops.relu(x)
    assert names.seen == ["nnops::_relu"]
    assert not output.requires_grad


def test_inputs_that_need_no_gradient_run_raw() -> None:
    with Names() as names:
        output = relu_ops.relu(torch.randn(5))
    assert names.seen == ["nnops::_relu"]
    assert output.grad_fn is None


def test_a_needed_gradient_takes_the_light_function() -> None:
    x = torch.randn(5, requires_grad=True)
    with Names() as names:
        output = relu_ops.relu(x)
        output.sum().backward()
    assert names.seen == ["nnops::_relu", "nnops::_relu_backward"]
    assert output.grad_fn.name() == "ReluFunctionBackward"
    assert not is_full(output)


def test_a_forward_mode_level_takes_the_full_function() -> None:
    x = torch.randn(5, requires_grad=True)
    with forward_ad.dual_level():
        assert is_full(relu_ops.relu(x))
    assert not is_full(relu_ops.relu(x))


def test_a_transform_takes_the_full_function(monkeypatch: pytest.MonkeyPatch) -> None:
    full = inspect.getclosurevars(relu_ops.relu).nonlocals["full"]
    calls = []
    original = full.vmap

    def vmap(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(full, "vmap", staticmethod(vmap))
    x = torch.randn(3, 4)
    assert torch.equal(torch.func.vmap(F.relu)(x), x.clamp(min=0))
    assert calls


def test_compiling_takes_the_public_operator() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compile(F.relu, backend=backend, fullgraph=True)(torch.randn(4))
    targets = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.nnops.relu.default]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_compiled_graphs_call_no_autograd(mode: Callable[[], Any]) -> None:
    """The private operators, and for ReLU torch's own, which compilers join with others."""
    torch.compiler.reset()
    called: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    net = Net()
    x, target = torch.randn(IMAGE), torch.randn(2, 3, 3, 3)
    with mode():
        loss = torch.compile(net, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(x, target)
        assert torch.equal(loss, net(x, target))
        if loss.requires_grad:
            loss.backward()
    assert {"nnops._conv2d.default", "aten.relu.default", "nnops._mse_loss.default"} <= {*called}
    assert ("nnops._conv2d_backward_weight.default" in called) == loss.requires_grad
    assert ("aten.threshold_backward.default" in called) == loss.requires_grad
    assert not [name for name in called if re.match(r"nnops\.[^_]", name)]


def test_compiled_graphs_of_relu_in_place_copy_nothing() -> None:
    torch.compiler.reset()
    called: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    def net(x: Tensor) -> Tensor:
        return F.relu_(x * 2).square()

    x = torch.randn(5, requires_grad=True)
    compiled = torch.compile(net, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    compiled(x).sum().backward()
    gradient, x.grad = x.grad, None
    net(x).sum().backward()
    assert torch.equal(gradient, x.grad)
    assert {"aten.relu.default", "aten.threshold_backward.default"} <= {*called}
    assert not {"aten.copy.default", "aten.zeros_like.default", "aten.add.Tensor"} & {*called}


def test_every_operator_has_a_light_and_a_full_function() -> None:
    assert FORMULAS
    for name, formulas in FORMULAS.items():
        assert formulas.name == name
        assert hasattr(torch.ops.nnops, name) and hasattr(torch.ops.nnops, f"_{name}")
        for method in ("fake", "setup_context", "backward"):
            assert vars(formulas).get(method) or getattr(formulas, method)


# ---- compile and export


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.pool(self.act(self.conv(x))), target)


def loss_and_gradients(net: Any, parameters: list[Tensor], *inputs: Tensor) -> list[Tensor]:
    loss = net(*inputs)
    return [loss, *torch.autograd.grad(loss, parameters)]


COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", COMPILERS)
def test_compile_fullgraph_forward_and_backward(backend: str) -> None:
    torch._dynamo.reset()
    net = Net()
    inputs = torch.randn(IMAGE), torch.randn(2, 3, 3, 3)
    parameters = list(net.parameters())
    expected = loss_and_gradients(net, parameters, *inputs)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    actual = loss_and_gradients(compiled, parameters, *inputs)
    for ours, eager in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, eager)


def test_compile_with_dynamic_sizes() -> None:
    torch._dynamo.reset()
    net = Net()
    parameters = list(net.parameters())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, size in ((2, 6), (3, 8), (5, 10)):
        inputs = torch.randn(batch, 2, size, size), torch.randn(batch, 3, size // 2, size // 2)
        actual = loss_and_gradients(compiled, parameters, *inputs)
        expected = loss_and_gradients(net, parameters, *inputs)
        for ours, eager in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_our_operators(strict: bool) -> None:
    net = Net()
    inputs = torch.randn(IMAGE), torch.randn(2, 3, 3, 3)
    exported = torch.export.export(net, inputs, strict=strict)
    torch.testing.assert_close(exported.module()(*inputs), net(*inputs))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "nnops.relu.default" in targets


# ---- every function, differentiated in every way


def values(*shape: int) -> Tensor:
    """Doubles far apart, so that no finite step crosses a kink or a maximum."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count).double() - count / 2 + 0.25).reshape(shape) / 4


def positive(*shape: int) -> Tensor:
    return values(*shape).sigmoid() * 0.8 + 0.1


def unpool_indices() -> Tensor:
    return torch.nn.functional.max_pool2d(values(*IMAGE), 2, return_indices=True)[1]


# name -> (the call, from the functional module and its tensors; the tensors, the first of which
# is the variable).
Theme = tuple[Callable[..., Tensor], Callable[[], tuple[Tensor, ...]]]
FUNCTIONS: dict[str, Theme] = {
    "relu": (lambda F, x: F.relu(x), lambda: (values(3, 4),)),
    "conv2d": (
        lambda F, x, weight, bias: F.conv2d(x, weight, bias, padding=1),
        lambda: (values(2, 2, 4, 4), values(3, 2, 3, 3), values(3)),
    ),
    "max_pool2d": (lambda F, x: F.max_pool2d(x, 2), lambda: (values(2, 2, 4, 4),)),
    "max_unpool2d": (
        lambda F, x, indices: F.max_unpool2d(x, indices, 2),
        lambda: (values(2, 2, 3, 3), unpool_indices()),
    ),
    "l1_loss": (lambda F, x, y: F.l1_loss(x, y), lambda: (values(3, 4), values(3, 4) + 0.1)),
    "mse_loss": (lambda F, x, y: F.mse_loss(x, y), lambda: (values(3, 4), values(3, 4))),
    "smooth_l1_loss": (
        lambda F, x, y: F.smooth_l1_loss(x, y, beta=0.7),
        lambda: (values(3, 4), values(3, 4) + 0.1),
    ),
    "huber_loss": (
        lambda F, x, y: F.huber_loss(x, y, delta=0.7),
        lambda: (values(3, 4), values(3, 4) + 0.1),
    ),
    "kl_div": (
        lambda F, x, y: F.kl_div(x, y, reduction="batchmean"),
        lambda: (values(3, 4), positive(3, 4)),
    ),
    "nll_loss": (
        lambda F, x, classes: F.nll_loss(x, classes),
        lambda: (values(3, 4), torch.tensor([1, 0, 3])),
    ),
    "cross_entropy": (
        lambda F, x, classes: F.cross_entropy(x, classes, label_smoothing=0.1),
        lambda: (values(3, 4), torch.tensor([1, 0, 3])),
    ),
    "binary_cross_entropy": (
        lambda F, x, y: F.binary_cross_entropy(x, y),
        lambda: (positive(3, 4), positive(3, 4)),
    ),
    "binary_cross_entropy_with_logits": (
        lambda F, x, y: F.binary_cross_entropy_with_logits(x, y),
        lambda: (values(3, 4), positive(3, 4)),
    ),
}
EVERY = pytest.mark.parametrize("name", FUNCTIONS)


class Made(NamedTuple):
    """One function of one tensor, ours and torch's, and the point to differentiate at."""

    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]
    x: Tensor


@pytest.fixture
def made(name: str) -> Made:
    call, tensors = FUNCTIONS[name]
    x, *others = tensors()
    return Made(
        lambda each: call(F, each, *others),
        lambda each: call(torch.nn.functional, each, *others),
        x,
    )


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


@EVERY
def test_dual_numbers_keep_their_tangent(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        output = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
    assert output.tangent is not None, "the tangent is lost"
    step = 1e-6
    difference = (function(x + step * tangent) - function(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(output.tangent, difference, rtol=1e-5, atol=1e-7)


@EVERY
def test_func_jvp_and_vjp(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    tangent = torch.randn_like(x)
    value, forward = torch.func.jvp(function, (x,), (tangent,))
    torch.testing.assert_close(value, function(x))
    _, pull = torch.func.vjp(function, x)
    (cotangent,) = pull(torch.ones_like(value))
    torch.testing.assert_close(cotangent, gradient(function, x))
    torch.testing.assert_close(forward.sum(), (cotangent * tangent).sum())


@EVERY
def test_vmap(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    batch = torch.stack([x, x * 0.5, x.flip(-1)])
    expected = torch.stack([function(each) for each in batch])
    torch.testing.assert_close(torch.func.vmap(function)(batch), expected)
    last = torch.func.vmap(function, in_dims=-1)(batch.movedim(0, -1))
    torch.testing.assert_close(last, expected)


@EVERY
def test_vmap_of_grad(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    batch = torch.stack([x, x * 0.5, x.flip(-1)])
    expected = torch.stack([gradient(function, each) for each in batch])
    actual = torch.func.vmap(torch.func.grad(lambda each: function(each).sum()))(batch)
    torch.testing.assert_close(actual, expected)


@EVERY
def test_hessian_and_double_backward(name: str, made: Made) -> None:
    function, x = made.ours, made.x

    def total(each: Tensor) -> Tensor:
        return function(each).square().sum()

    expected = torch.autograd.functional.hessian(total, x)
    for actual in (
        torch.func.hessian(total)(x),
        torch.func.jacrev(torch.func.jacrev(total))(x),
    ):
        torch.testing.assert_close(actual, expected)
    assert expected.abs().sum() > 0


@EVERY
def test_matches_torch_when_differentiated_twice(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    results = []
    for each in (function, made.theirs):
        leaf = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(each(leaf).square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        results.append((first, second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- what is saved, and what is noticed


def bytes_saved(function: Callable[[Tensor], Any], x: Tensor) -> int:
    saved: dict[tuple[int, int], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr(), tensor.numel()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x.detach().requires_grad_())
    return sum(saved.values())


# Where torch saves a tensor that it made, nnops the caller's own two, which mostly live on anyway.
SAVES_ITS_INPUTS = ("l1_loss",)


@EVERY
def test_no_more_is_saved_than_torch_saves(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    # A few bytes for each row of a class loss, in place of torch's copy of the probabilities.
    rows = 64
    inputs = 2 * x.numel() * x.element_size() if name in SAVES_ITS_INPUTS else 0
    ours = bytes_saved(function, x)
    assert 0 < ours <= max(bytes_saved(made.theirs, x) + rows, inputs)


def test_relu_saves_its_output_alone() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert bytes_saved(F.relu, x) == 4000
    output = F.relu(x)
    assert output.grad_fn.saved_tensors[0].data_ptr() == output.data_ptr()


@pytest.mark.parametrize(
    "function",
    [F.relu, lambda x: F.relu_(x.clone()), lambda x: F.max_pool2d(F.relu(x), 2)],
    ids=["relu", "relu_", "relu then max_pool2d"],
)
def test_writing_over_a_saved_tensor_is_noticed(function: Callable[[Tensor], Tensor]) -> None:
    kept: list[Tensor] = []
    output = function(torch.randn(1, 1, 4, 4, requires_grad=True))
    node = output.grad_fn
    while node is not None:
        kept += [value for value in getattr(node, "saved_tensors", ()) if value.is_floating_point()]
        node = node.next_functions[0][0] if node.next_functions else None
    assert kept
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_conv2d_notices_a_changed_weight() -> None:
    x, weight = torch.randn(IMAGE, requires_grad=True), torch.randn(1, 2, 3, 3, requires_grad=True)
    output = F.conv2d(x, weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_twice_needs_retain_graph() -> None:
    x = torch.randn(4, requires_grad=True)
    output = F.relu(x).sum()
    output.backward(retain_graph=True)
    output.backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()


# ---- the surroundings


def test_functional_call_and_per_sample_gradients() -> None:
    net = Net().double()
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    inputs = values(*IMAGE), values(2, 3, 3, 3)

    def loss(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (x[None], target[None]))

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, *inputs)
    for index in range(2):
        expected = torch.func.grad(loss)(parameters, inputs[0][index], inputs[1][index])
        for name in parameters:
            torch.testing.assert_close(per_sample[name][index], expected[name])


def test_checkpointing_recomputes() -> None:
    from torch.utils.checkpoint import checkpoint

    net, inputs = Net(), (torch.randn(IMAGE), torch.randn(2, 3, 3, 3))
    expected = loss_and_gradients(net, list(net.parameters()), *inputs)
    actual = loss_and_gradients(
        lambda *each: checkpoint(net, *each, use_reentrant=False), list(net.parameters()), *inputs
    )
    for ours, plain in zip(actual, expected, strict=True):
        assert torch.equal(ours, plain)


@EVERY
def test_inference_mode_and_no_grad_give_the_same(name: str, made: Made) -> None:
    function, x = made.ours, made.x
    expected = function(x)
    with torch.no_grad():
        assert torch.equal(function(x.requires_grad_()), expected)
    with torch.inference_mode():
        output = function(x)
    assert torch.equal(output, expected) and output.is_inference()


@EVERY
def test_only_our_operators_run(name: str, made: Made) -> None:
    """No call back into torch's own kernel for the operation."""
    function, x = made.ours, made.x
    seen = set()

    class All(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    leaf = x.detach().requires_grad_()
    with All():
        torch.autograd.grad(function(leaf).sum(), leaf)
    forbidden = ("conv", "pool", "relu", "loss", "softmax", "cross_entropy", "kl_div", "binary_cr")
    theirs = {op for op in seen if op.startswith("aten::") and any(f in op for f in forbidden)}
    assert not theirs
    assert any(op.startswith("nnops::") for op in seen)
