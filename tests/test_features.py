"""What of torch works with nnops's functions and modules, cell by cell.

Every cell of the tables in docs/features.md is one test here: a subject and a feature. A cell that
is not in EXCEPTIONS must pass; one that is there must fail in the way that it says. The page is
written from the same lists:

    python tests/test_features.py
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import nnops.nn as nn
import nnops.nn.functional as F
from nnops.testing.claims import FUNCTIONS, MODULES, MODULES_IN_PART

PAGE = Path(__file__).parent.parent / "docs" / "features.md"

pytestmark = pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides",
    "ignore:`NLLLoss2d` has been deprecated",
    "ignore:Anomaly Detection has been enabled",
    "ignore:`torch.jit.script` is deprecated",
    # torch's own, of tracing and of the profiler.
    "ignore:.*_maybe_guard_rel",
    "ignore:The .grad attribute",
)


# ---- what a function is called with

# Made for a batch of so many; the rest of the arguments is the same for every batch.
Batched = Callable[[int], tuple[Tensor, ...]]


def values(*shape: int) -> Tensor:
    """Doubles far apart, so that no maximum is near another."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count).double() - count / 2 + 0.25).reshape(shape) / count


def probabilities(*shape: int) -> Tensor:
    return values(*shape).sigmoid()


def pooled(batch: int) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.max_pool2d(values(batch, 2, 6, 6), 2, return_indices=True)


def images(batch: int) -> tuple[Tensor, ...]:
    return (values(batch, 2, 6, 6),)


def rows(batch: int) -> tuple[Tensor, ...]:
    return values(batch, 5), values(batch, 5)


def classes(batch: int) -> tuple[Tensor, ...]:
    return values(batch, 5), torch.arange(batch) % 5


class Subject(NamedTuple):
    """A function of floating tensors: those of a batch, and parameters that belong to no batch."""

    name: str
    batched: Batched
    # (module of functions, batched tensors, parameters) -> output
    call: Callable[[Any, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
    parameters: Callable[[], tuple[Tensor, ...]] = tuple
    parameter_count: int = 0
    # Of torch's functions, where torch has it in several.
    torchs: Callable[..., Tensor] | None = None

    def ours(self, *tensors: Tensor) -> Tensor:
        """The function of all of its tensors in a row."""
        count = len(tensors) - self.parameter_count
        return self.call(F, tensors[:count], tensors[count:])

    def theirs(self, *tensors: Tensor) -> Tensor:
        count = len(tensors) - self.parameter_count
        if self.torchs is not None:
            return self.torchs(*tensors)
        return self.call(torch.nn.functional, tensors[:count], tensors[count:])

    def tensors(self, batch: int = 3) -> list[Tensor]:
        return [*self.batched(batch), *self.parameters()]

    def batch_dims(self) -> tuple[int | None, ...]:
        count = len(self.batched(1))
        return (*(0,) * count, *(None,) * self.parameter_count)


def filters() -> tuple[Tensor, ...]:
    return values(3, 2, 3, 3), values(3)


def _convolution(name: str, torchs: Callable[..., Tensor] | None, **window: Any) -> Subject:
    def call(functions: Any, batched: Any, parameters: Any) -> Tensor:
        return getattr(functions, name)(*batched, *parameters, padding=1, **window)

    return Subject(name, images, call, filters, 2, torchs)


def _torch_convolution(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(input, weight, bias, padding=1)


def _simple(name: str, batched: Batched, *arguments: Any, **options: Any) -> Subject:
    def call(functions: Any, tensors: Any, parameters: Any) -> Tensor:
        return getattr(functions, name)(*tensors, *arguments, **options)

    return Subject(name, batched, call)


def _relu_(functions: Any, tensors: Any, parameters: Any) -> Tensor:
    # A leaf may not be written over.
    return functions.relu_(tensors[0].clone())


def _with_indices(functions: Any, tensors: Any, parameters: Any) -> Tensor:
    return functions.max_pool2d_with_indices(tensors[0], 2)[0]


SUBJECTS = (
    _convolution("conv2d", None),
    _convolution("conv2d_relu", lambda *each: _torch_convolution(*each).relu()),
    _convolution(
        "conv2d_max_pool2d",
        lambda *each: torch.nn.functional.max_pool2d(_torch_convolution(*each), 2),
        pool_kernel_size=2,
    ),
    _convolution(
        "conv2d_relu_max_pool2d",
        lambda *each: torch.nn.functional.max_pool2d(_torch_convolution(*each).relu(), 2),
        pool_kernel_size=2,
    ),
    _simple("max_pool2d", images, 2),
    Subject("max_pool2d_with_indices", images, _with_indices),
    _simple("max_unpool2d", pooled, 2),
    _simple("relu", images),
    Subject("relu_", images, _relu_),
    _simple("l1_loss", rows),
    _simple("mse_loss", rows),
    _simple("smooth_l1_loss", rows, beta=0.7),
    _simple("huber_loss", rows, delta=0.7),
    _simple("kl_div", lambda batch: (values(batch, 5), probabilities(batch, 5)), log_target=True),
    _simple("nll_loss", classes),
    _simple("cross_entropy", classes, label_smoothing=0.1),
    _simple(
        "binary_cross_entropy", lambda batch: (probabilities(batch, 5), probabilities(batch, 5))
    ),
    _simple(
        "binary_cross_entropy_with_logits",
        lambda batch: (values(batch, 5), probabilities(batch, 5)),
    ),
)
CONVOLUTIONS = tuple(subject.name for subject in SUBJECTS if subject.name.startswith("conv2d"))


def test_every_function_is_a_subject() -> None:
    assert {subject.name for subject in SUBJECTS} == {*FUNCTIONS, *CONVOLUTIONS}


# ---- help for the checks


def leaves_of(tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies that need a gradient, where they are floating."""
    return [
        tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_()
        if tensor.is_floating_point()
        else tensor
        for tensor in tensors
    ]


def floating(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(index for index, each in enumerate(tensors) if each.is_floating_point())


def result_and_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Forward and backward; gradients are taken from leaves with .backward(), as users do."""
    leaves = leaves_of(tensors)
    output = function(*leaves)
    output.square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_same(actual: Any, expected: Any, exact: bool = False) -> None:
    actual, expected = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        if exact:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other)


def total(subject: Subject) -> Callable[..., Tensor]:
    return lambda *tensors: subject.ours(*tensors).square().sum()


# ---- features of functions: each takes a subject and raises where something is wrong


def compiled(subject: Subject) -> None:
    """torch.compile, fullgraph, dynamic batch: one compilation, eager's values and gradients."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(subject.ours, backend=counter, fullgraph=True)

    def for_any_batch(*tensors: Tensor) -> Tensor:
        for tensor, dim in zip(tensors, subject.batch_dims(), strict=True):
            if dim is not None:
                torch._dynamo.mark_dynamic(tensor, dim)  # an error if it becomes a constant
        return function(*tensors)

    for batch in (4, 7):  # sizes that no other dimension has: equal ones count as related
        tensors = subject.tensors(batch)
        assert_same(
            result_and_gradients(for_any_batch, tensors),
            result_and_gradients(subject.ours, tensors),
        )
    assert counter.frame_count == 1


class _AsModule(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor], parameters: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.function = function
        self.parameters_of_it = torch.nn.ParameterList(map(torch.nn.Parameter, parameters))

    def forward(self, batched: tuple[Tensor, ...]) -> Tensor:
        return self.function(*batched, *self.parameters_of_it)


def exported(subject: Subject) -> None:
    """torch.export, strict and not, dynamic batch."""
    module = _AsModule(subject.ours, subject.parameters())
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    shapes = ({0: batch},) * len(subject.batched(2))
    other = subject.batched(7)
    for strict in (False, True):
        program = torch.export.export(
            module, (subject.batched(3),), dynamic_shapes=(shapes,), strict=strict
        )
        assert any("nnops" in str(node.target) for node in program.graph.nodes)
        assert_same(program.module()(other), module(other))


def traced_by_make_fx(subject: Subject) -> None:
    """make_fx with symbolic sizes; the graph differentiates."""
    graph = make_fx(subject.ours, tracing_mode="symbolic")(*subject.tensors())
    tensors = subject.tensors(5)
    assert_same(result_and_gradients(graph, tensors), result_and_gradients(subject.ours, tensors))


def traced_by_fx(subject: Subject) -> None:
    """torch.fx.symbolic_trace: one node a call."""
    count = len(subject.tensors())
    names = [f"x{index}" for index in range(count)]
    namespace: dict[str, Any] = {"function": subject.ours}
    # Proxies need parameters of their own: symbolic_trace gives *args a single one.
    arguments = ", ".join(names)
    exec(f"def traced({arguments}): return function({arguments})", namespace)
    graph = torch.fx.symbolic_trace(namespace["traced"])
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert getattr(F, subject.name) in called
    tensors = subject.tensors()
    assert_same(graph(*tensors), subject.ours(*tensors), exact=True)


def forward_mode(subject: Subject) -> None:
    """jvp against vjp."""
    tensors = subject.tensors()
    variables = floating(tensors)

    def function(*changing: Tensor) -> Tensor:
        every = list(tensors)
        for index, each in zip(variables, changing, strict=True):
            every[index] = each
        return subject.ours(*every)

    point = tuple(tensors[index] for index in variables)
    tangents = tuple(torch.randn_like(each) for each in point)
    output, tangent = jvp(function, point, tangents)
    _, pull = vjp(function, *point)
    cotangent = torch.randn_like(output)
    pulled = pull(cotangent)
    expected = sum((one * other).sum() for one, other in zip(pulled, tangents, strict=True))
    assert_same((tangent * cotangent).sum(), expected)


def vmapped(subject: Subject) -> None:
    tensors = subject.tensors(2)
    count = len(subject.batched(1))
    dims = tuple(0 if index < count else None for index in range(len(tensors)))
    stacks = [subject.batched(2) for _ in range(3)]
    stacked = [torch.stack(each) for each in zip(*stacks, strict=True)]
    actual = vmap(subject.ours, in_dims=dims)(*stacked, *tensors[count:])
    assert_same(actual, torch.stack([subject.ours(*each, *tensors[count:]) for each in stacks]))


def per_sample_gradients(subject: Subject) -> None:
    """vmap(grad(...)): by the parameters where there are some, else by the input."""
    tensors = subject.tensors()
    by = len(tensors) - subject.parameter_count if subject.parameter_count else 0
    count = len(subject.batched(1))

    def loss(*single: Tensor) -> Tensor:
        return total(subject)(*(each[None] for each in single[:count]), *single[count:])

    gradient = grad(loss, argnums=by)
    actual = vmap(gradient, in_dims=subject.batch_dims())(*tensors)
    expected = []
    for index in range(3):
        single = [
            tensor if dim is None else tensor[index]
            for tensor, dim in zip(tensors, subject.batch_dims(), strict=True)
        ]
        expected.append(gradient(*single))
    assert_same(actual, torch.stack(expected))


def second_derivatives(subject: Subject) -> None:
    """torch.func.hessian and jacrev of jacrev, by five elements, against torch's function."""
    first, *others = subject.tensors(1)

    def by_five(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def changed(five: Tensor) -> Tensor:
            change = torch.nn.functional.pad(five, (0, first.numel() - 5))
            return function(first + change.view_as(first), *others).square().sum()

        return changed

    point = torch.zeros(5, dtype=first.dtype)
    expected = torch.autograd.functional.hessian(by_five(subject.theirs), point)
    assert_same(hessian(by_five(subject.ours))(point), expected)
    assert_same(jacrev(jacrev(by_five(subject.ours)))(point), expected)


def compiled_transforms(subject: Subject) -> None:
    """torch.compile of vmap(grad), of jvp and of the two together."""
    tensors = subject.tensors(2)
    first = tensors[0]

    def loss(first: Tensor) -> Tensor:
        return total(subject)(first, *tensors[1:])

    def all_of_them(first: Tensor) -> tuple[Tensor, ...]:
        batch = torch.stack([first, first.flip(0)])
        return (
            vmap(grad(loss))(batch),
            jvp(loss, (first,), (first,))[1],
            jvp(grad(loss), (first,), (first,))[1],
        )

    torch._dynamo.reset()
    function = torch.compile(all_of_them, backend="aot_eager", fullgraph=True)
    assert_same(function(first), all_of_them(first))


def autocast(subject: Subject) -> None:
    """bfloat16 and float16: torch's dtypes of results and gradients."""
    tensors = subject.tensors()
    for dtype in (torch.bfloat16, torch.float16):
        outcomes = []
        for function in (subject.ours, subject.theirs):
            leaves = leaves_of(tensors, torch.float32)
            with torch.autocast("cpu", dtype=dtype):
                output = function(*leaves)
            output.sum().backward()
            outcomes.append([output, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
        for ours, theirs in zip(*outcomes, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        plain = [tensor.float() if tensor.is_floating_point() else tensor for tensor in leaves]
        torch.testing.assert_close(
            outcomes[0][0].float(), subject.ours(*plain), rtol=0.02, atol=0.02
        )


def narrow_autocast_inputs(subject: Subject) -> None:
    """A bfloat16 input beside float32 others, as a layer before leaves it."""
    first, *others = (
        tensor.float() if tensor.is_floating_point() else tensor for tensor in subject.tensors()
    )
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            ours = subject.ours(first.to(dtype), *others)
            theirs = subject.theirs(first.to(dtype), *others)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def anomaly_mode(subject: Subject) -> None:
    tensors = subject.tensors()
    expected = result_and_gradients(subject.ours, tensors)
    with torch.autograd.detect_anomaly():
        assert_same(result_and_gradients(subject.ours, tensors), expected, exact=True)


def inference_mode(subject: Subject) -> None:
    tensors = subject.tensors()
    with torch.inference_mode():
        output = subject.ours(*tensors)
    assert output.is_inference()
    assert_same(output, subject.ours(*tensors), exact=True)


def checkpointing(subject: Subject) -> None:
    """torch.utils.checkpoint, reentrant and not."""
    tensors = subject.tensors()
    expected = result_and_gradients(subject.ours, tensors)
    for reentrant in (False, True):

        def function(*each: Tensor, reentrant: bool = reentrant) -> Tensor:
            return checkpoint(subject.ours, *each, use_reentrant=reentrant)

        assert_same(result_and_gradients(function, tensors), expected, exact=True)


def saved_tensor_hooks(subject: Subject) -> None:
    """What is saved goes through the hooks and comes back from them."""
    tensors = subject.tensors()
    expected = result_and_gradients(subject.ours, tensors)
    packed = 0

    def pack(tensor: Tensor) -> bytes:
        nonlocal packed
        packed += 1
        memory = BytesIO()
        torch.save(tensor.detach(), memory)
        return memory.getvalue()

    def unpack(data: bytes) -> Tensor:
        return torch.load(BytesIO(data), weights_only=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        assert_same(result_and_gradients(subject.ours, tensors), expected, exact=True)
    assert packed


def deterministic(subject: Subject) -> None:
    """torch.use_deterministic_algorithms raises and changes nothing."""
    tensors = subject.tensors()
    expected = result_and_gradients(subject.ours, tensors)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(result_and_gradients(subject.ours, tensors), expected, exact=True)
    finally:
        torch.use_deterministic_algorithms(False)


def profiled(subject: Subject) -> None:
    """torch.profiler: the operator by name, with the sizes of its inputs."""
    tensors = subject.tensors()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        subject.ours(*tensors)
    events = [event for event in profile.events() if event.name.startswith("nnops::")]
    assert events[0].name.startswith(f"nnops::_{_operator_of(subject)}")
    assert events[0].input_shapes[0] == list(tensors[0].shape)


def _operator_of(subject: Subject) -> str:
    return {"conv2d_relu_max_pool2d": "conv2d_max_pool2d"}.get(subject.name, subject.name)


def flops_counted(subject: Subject) -> None:
    """torch.utils.flop_counter, forward and backward: torch's number."""
    counts = []
    for function in (subject.ours, subject.theirs):
        with FlopCounterMode(display=False) as counter:
            result_and_gradients(function, subject.tensors())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert (counts[0] > 0) == (subject.name in CONVOLUTIONS)


def on_meta(subject: Subject) -> None:
    """Sizes and strides without data."""
    tensors = subject.tensors()
    expected = subject.ours(*tensors)
    output = subject.ours(*(tensor.to("meta") for tensor in tensors))
    assert output.is_meta and output.shape == expected.shape
    assert output.stride() == expected.stride() and output.dtype == expected.dtype


class Wrapped(Tensor):
    """A subclass that holds a tensor and does everything with it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=held.device, strides=held.stride()
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Wrapped, lambda each: each.held, (args, kwargs or {}))
        return pytree.tree_map_only(Tensor, Wrapped, func(*args, **kwargs))


class Marked(Tensor):
    """A subclass without behaviour of its own, as torch's layers pass it on."""


def subclasses(subject: Subject) -> None:
    """A wrapper with __torch_dispatch__, forward and backward; a plain subclass."""
    tensors = subject.tensors()
    expected = result_and_gradients(subject.ours, tensors)
    leaves = [
        Wrapped(tensor).requires_grad_(tensor.is_floating_point())
        for tensor in (each.clone() for each in tensors)
    ]
    output = subject.ours(*leaves)
    assert type(output) is Wrapped
    output.square().sum().backward()
    gradients = [leaf.grad.held for leaf in leaves if leaf.grad is not None]
    assert_same([output.held, *gradients], expected, exact=True)
    marked = subject.ours(*(tensor.as_subclass(Marked) for tensor in tensors))
    assert type(marked) is Marked
    assert_same(marked.as_subclass(Tensor), expected[0], exact=True)


def many_threads(subject: Subject) -> None:
    """Eight Python threads at once, while another sets the number of threads."""
    tensors = subject.tensors(8)
    expected = result_and_gradients(subject.ours, tensors)
    results: list[Any] = []
    before = torch.get_num_threads()

    def work() -> None:
        results.append([result_and_gradients(subject.ours, tensors) for _ in range(3)][-1])

    threads = [threading.Thread(target=work) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for count in (1, 2, 3) * 5:
            torch.set_num_threads(count)
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
    finally:
        torch.set_num_threads(before)
    assert len(results) == 8
    for result in results:
        assert_same(result, expected, exact=True)


def one_graph_many_threads(subject: Subject) -> None:
    """Eight Python threads run backward through one graph."""
    leaves = leaves_of(subject.tensors(8))
    output = subject.ours(*leaves).square().sum()
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    expected = torch.autograd.grad(output, leaves, retain_graph=True)
    results: list[Any] = []

    def work() -> None:
        results.append(torch.autograd.grad(output, leaves, retain_graph=True))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert len(results) == 8
    for result in results:
        assert_same(result, expected, exact=True)


def shared_memory(subject: Subject) -> None:
    tensors = subject.tensors()
    expected = result_and_gradients(subject.ours, tensors)
    shared = [tensor.clone().share_memory_() for tensor in tensors]
    assert all(tensor.is_shared() for tensor in shared)
    assert_same(subject.ours(*shared), expected[0], exact=True)


class Feature(NamedTuple):
    title: str
    check: Callable[[Any], None]
    slow: bool = False


FEATURES = (
    Feature("`torch.compile`, whole graph, dynamic batch", compiled),
    Feature("`torch.export`, strict and not, dynamic batch", exported),
    Feature("`make_fx`, symbolic sizes", traced_by_make_fx),
    Feature("`torch.fx.symbolic_trace`", traced_by_fx),
    Feature("forward mode, `jvp`", forward_mode),
    Feature("`vmap`", vmapped),
    Feature("per-sample gradients, `vmap(grad)`", per_sample_gradients),
    Feature("`hessian`, `jacrev`", second_derivatives),
    Feature("`vmap(grad)`, `jvp`, `jvp(grad)` compiled", compiled_transforms, slow=True),
    Feature("autocast, bfloat16 and float16", autocast),
    Feature("autocast of mixed inputs", narrow_autocast_inputs),
    Feature("anomaly mode", anomaly_mode),
    Feature("inference mode", inference_mode),
    Feature("activation checkpointing, reentrant and not", checkpointing),
    Feature("saved-tensor hooks", saved_tensor_hooks),
    Feature("`use_deterministic_algorithms`", deterministic),
    Feature("`torch.profiler`: names and sizes", profiled),
    Feature("`torch.utils.flop_counter`", flops_counted),
    Feature("meta tensors", on_meta),
    Feature("tensor subclasses", subclasses),
    Feature("8 Python threads, `set_num_threads` meanwhile", many_threads),
    Feature("8 Python threads run backward through one graph", one_graph_many_threads),
    Feature("tensors in shared memory", shared_memory),
)


class Exceptional(NamedTuple):
    """A cell that is not as the others."""

    state: str  # "differs" or "not supported"
    reason: str
    error: type[BaseException]
    match: str


# (subject, title of the feature) -> how the check fails.
EXCEPTIONS: dict[tuple[str, str], Exceptional] = {}


def cell_id(subject: Any, feature: Feature) -> str:
    return f"{subject.name}-{feature.check.__name__}"


def run_cell(subject: Any, feature: Feature) -> None:
    exceptional = EXCEPTIONS.get((subject.name, feature.title))
    if exceptional is None:
        feature.check(subject)
        return
    with pytest.raises(exceptional.error, match=exceptional.match):
        feature.check(subject)


@pytest.mark.parametrize(
    "subject, feature",
    [
        pytest.param(
            subject,
            feature,
            id=cell_id(subject, feature),
            marks=[pytest.mark.slow] if feature.slow else [],
        )
        for subject in SUBJECTS
        for feature in FEATURES
    ],
)
def test_function(subject: Subject, feature: Feature) -> None:
    run_cell(subject, feature)


# ---- features of modules


class Layer(NamedTuple):
    """A module by the name that it has in torch.nn too, with what it is made of and called with."""

    name: str
    batched: Batched
    arguments: tuple[Any, ...] = ()
    # Of ours, where torch has it in several layers.
    pool: dict[str, int] | None = None

    def make(self, module: Any = nn) -> torch.nn.Module:
        return self.make_by_default(module).double()

    def make_by_default(self, module: Any = nn) -> torch.nn.Module:
        """Of the default dtype."""
        if module is torch.nn and self.pool is not None:
            return TorchFused(self)
        return getattr(module, self.name)(*self.arguments, **(self.pool or {}))

    def pair(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Ours and torch's with the same parameters."""
        ours, theirs = self.make(), self.make(torch.nn)
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs


class TorchFused(torch.nn.Conv2d):
    """A convolution and what follows it, in torch's functions."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(*layer.arguments)
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if "ReLU" in self.layer.name:
            output = output.relu()
        return torch.nn.functional.max_pool2d(output, 2) if self.layer.pool else output


_INPUTS: dict[str, tuple[Batched, tuple[Any, ...]]] = {
    "Conv2d": (images, (2, 3, 3)),
    "MaxPool2d": (images, (2,)),
    "MaxUnpool2d": (pooled, (2,)),
    "ReLU": (images, ()),
    # Weights enough to be ours.
    "Linear": (lambda batch: (values(batch, 512),), (512, 512)),
    "NLLLoss": (classes, ()),
    "NLLLoss2d": (classes, ()),
    "CrossEntropyLoss": (classes, ()),
    "BCELoss": (lambda batch: (probabilities(batch, 5), probabilities(batch, 5)), ()),
    "KLDivLoss": (lambda batch: (values(batch, 5), probabilities(batch, 5)), ()),
    "BCEWithLogitsLoss": (lambda batch: (values(batch, 5), probabilities(batch, 5)), ()),
}
LAYERS = (
    *(Layer(name, *_INPUTS.get(name, (rows, ()))) for name in MODULES + MODULES_IN_PART),
    Layer("ConvReLU2d", images, (2, 3, 3), {}),
    Layer("ConvMaxPool2d", images, (2, 3, 3), {"pool_kernel_size": 2}),
    Layer("ConvReLUMaxPool2d", images, (2, 3, 3), {"pool_kernel_size": 2}),
)


def test_every_module_is_a_layer() -> None:
    own = {name for name, value in vars(nn).items() if isinstance(value, type)}
    own = {name for name in own if issubclass(getattr(nn, name), torch.nn.Module)}
    ours = {name for name in own if getattr(nn, name).__module__.startswith("nnops.")}
    assert {layer.name for layer in LAYERS} == ours | {*MODULES, *MODULES_IN_PART}


def layer_compiled(layer: Layer) -> None:
    torch._dynamo.reset()
    module = layer.make()
    tensors = [*layer.batched(3)]
    function = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_same(result_and_gradients(function, tensors), result_and_gradients(module, tensors))


def layer_exported(layer: Layer) -> None:
    module, inputs = layer.make(), layer.batched(3)
    for strict in (False, True):
        program = torch.export.export(module, inputs, strict=strict)
        assert_same(program.module()(*inputs), module(*inputs))


def layer_traced(layer: Layer) -> None:
    module, inputs = layer.make(), layer.batched(3)
    # What is ours in part is torch's in a trace.
    exact = layer.name not in MODULES_IN_PART
    assert_same(torch.fx.symbolic_trace(module)(*inputs), module(*inputs), exact)


def layer_called_functionally(layer: Layer) -> None:
    """functional_call; per-sample gradients of parameters, or of the input."""
    module, inputs = layer.make(), layer.batched(3)
    parameters = {name: each.detach() for name, each in module.named_parameters()}
    assert_same(functional_call(module, parameters, inputs), module(*inputs), exact=True)

    def loss(parameters: Any, first: Tensor, *others: Tensor) -> Tensor:
        single = (each[None] for each in (first, *others))
        return functional_call(module, parameters, tuple(single)).square().sum()

    gradient = grad(loss, argnums=0 if parameters else 1)
    actual = vmap(gradient, in_dims=(None, *(0,) * len(inputs)))(parameters, *inputs)
    expected = [gradient(parameters, *(each[index] for each in inputs)) for index in range(3)]
    assert_same(actual, pytree.tree_map(lambda *each: torch.stack(each), *expected))


def layer_persistent(layer: Layer) -> None:
    """pickle, deepcopy, torch.save of the whole module."""
    module, inputs = layer.make(), layer.batched(3)
    memory = BytesIO()
    torch.save(module, memory)
    memory.seek(0)
    for other in (
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        torch.load(memory, weights_only=False),
    ):
        assert type(other) is type(module)
        assert_same(other(*inputs), module(*inputs), exact=True)


def layer_state(layer: Layer) -> None:
    """state_dict with weights_only, from torch.nn to nnops.nn and back."""
    for source, target in (layer.pair(), layer.pair()[::-1]):
        memory = BytesIO()
        torch.save(source.state_dict(), memory)
        memory.seek(0)
        target.load_state_dict(torch.load(memory, weights_only=True), strict=True)
        assert_same([*target.state_dict().values(), 0.0], [*source.state_dict().values(), 0.0])


def layer_on_meta(layer: Layer) -> None:
    """Made on meta, materialised, loaded; and run on meta."""
    module, inputs = layer.make(), layer.batched(3)
    with torch.device("meta"):
        deferred = layer.make()
    output = deferred(*(each.to("meta") for each in inputs))
    expected = module(*inputs)
    assert output.is_meta and output.shape == expected.shape
    deferred.to_empty(device="cpu").load_state_dict(module.state_dict())
    assert_same(deferred(*inputs), expected, exact=True)


def layer_default_dtype(layer: Layer) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        module = layer.make_by_default()
        output = module(*layer.batched(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert output.dtype is torch.float64
    assert all(each.dtype is torch.float64 for each in module.parameters())


def layer_in_autocast(layer: Layer) -> None:
    """Under autocast and GradScaler: a step with torch's gradients."""
    gradients = []
    ours, theirs = (module.float() for module in layer.pair())
    inputs = [each.float() if each.is_floating_point() else each for each in layer.batched(4)]
    for module in (ours, theirs):
        leaf = inputs[0].clone().requires_grad_()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        optimizer = torch.optim.SGD([leaf, *module.parameters()], lr=0.5)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = module(leaf, *inputs[1:]).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        gradients.append([leaf.detach(), *(each.detach() for each in module.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.005)


LAYER_FEATURES = (
    Feature("`torch.compile`, whole graph", layer_compiled),
    Feature("`torch.export`, strict and not", layer_exported),
    Feature("`torch.fx.symbolic_trace`", layer_traced),
    Feature("`functional_call`, per-sample gradients", layer_called_functionally),
    Feature("pickle, `deepcopy`, `torch.save`", layer_persistent),
    Feature("`state_dict` from and to torch.nn, `weights_only`", layer_state),
    Feature("meta device, deferred initialisation", layer_on_meta),
    Feature("`set_default_dtype`", layer_default_dtype),
    Feature("autocast with `GradScaler`", layer_in_autocast),
)


@pytest.mark.parametrize(
    "layer, feature",
    [
        pytest.param(layer, feature, id=cell_id(layer, feature))
        for layer in LAYERS
        for feature in LAYER_FEATURES
    ],
)
def test_module(layer: Layer, feature: Feature) -> None:
    run_cell(layer, feature)


# ---- other kinds of tensors


def other_kinds() -> Iterator[tuple[str, Tensor]]:
    image = torch.randn(2, 3, 8, 8)
    for layout in (torch.strided, torch.jagged):
        yield f"nested, {layout}", torch.nested.nested_tensor(list(image), layout=layout)
    yield "sparse", image.to_sparse()
    yield "sparse rows", image[0, 0].to_sparse_csr()
    yield "mkldnn", image.to_mkldnn()
    yield "quantised", torch.quantize_per_tensor(image, 0.1, 0, torch.qint8)
    mesh = init_device_mesh("cpu", (1,))
    yield "DTensor", distribute_tensor(image, mesh, [Shard(0)])


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors",
    "ignore:Sparse CSR tensor support",
    "ignore:torch.quantize_per_tensor",
)
def test_other_kinds_of_tensors_are_refused() -> None:
    """torch's functions take some of them; ours refuse all, and never compute nonsense."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for kind, tensor in other_kinds():
            for function in (F.relu, lambda x: F.max_pool2d(x, 2), lambda x: F.mse_loss(x, x)):
                # Sizes of nested tensors are asked for first, in torch's words.
                refusals = (NotImplementedError, *([RuntimeError] if "nested" in kind else ()))
                with pytest.raises(refusals):
                    function(tensor)
                    pytest.fail(f"{kind} tensors are not refused")
    finally:
        dist.destroy_process_group()


# ---- the page


def table(subjects: tuple[Any, ...], features: tuple[Feature, ...]) -> Iterator[str]:
    """A row for each feature: how many subjects pass, and which do not, with the reason."""
    yield "| | works | otherwise |"
    yield "|---|---|---|"
    for feature in features:
        others = [
            f"`{subject.name}` {cell.state}: {cell.reason}"
            for subject in subjects
            if (cell := EXCEPTIONS.get((subject.name, feature.title)))
        ]
        passing = len(subjects) - len(others)
        yield f"| {feature.title} | {passing} of {len(subjects)} | {'; '.join(others)} |"


BEGINNING = """\
# What of torch works with nnops

Written by `python tests/test_features.py`; each cell, a function or a module with a feature, is a
test of that file, on the CPU. Beside these tables every operator passes `torch.library.opcheck`,
`gradcheck`, also in forward mode, and `gradgradcheck`; called as `torch.ops.nnops.conv2d` and so
on, without a function around it, dual numbers, `jvp`, `vmap(grad)` and `jvp(grad)` too
(tests/test_opdb.py).
"""

# Small float64 samples that torch 2.13 has of each function; test_torch_opinfo.py counts them.
SMALL_SAMPLES = {
    "conv2d": 30,
    "max_pool2d": 1440,
    "max_pool2d_with_indices": 1440,
    "max_unpool2d": 35,
    "relu": 4,
    "relu_": 4,
    "l1_loss": 6,
    "mse_loss": 6,
    "smooth_l1_loss": 8,
    "huber_loss": 9,
    "kl_div": 16,
    "nll_loss": 61,
    "cross_entropy": 21,
    "binary_cross_entropy": 11,
    "binary_cross_entropy_with_logits": 26,
}

SAMPLES = """\
## torch's own samples

The float64 samples of at most 600 elements that torch 2.13 has of each function (its OpInfos), and
how many pass `gradcheck`, in reverse and in forward mode, `gradgradcheck`, and `vmap` of all inputs
and of each alone (tests/test_torch_opinfo.py, `-m slow`). Values, gradients and errors of all
others are compared there too.
"""


def table_of_samples() -> Iterator[str]:
    checks = ("`gradcheck`", "`gradgradcheck`", "`vmap`")
    yield "| | " + " | ".join(checks) + " |"
    yield "|---|" + "---|" * len(checks)
    for name, count in SMALL_SAMPLES.items():
        yield f"| `{name}` |" + f" {count} of {count} |" * len(checks)
    total = sum(SMALL_SAMPLES.values())
    yield "| all |" + f" {total} of {total} |" * len(checks)


END = """\
## Converted nets

Of LeNet, the CIFAR-10 net and ResNet-18, converted by `nnops.convert`, tests/test_compiled_nets.py
and tests/test_onnx.py ask:

* `torch.compile(fullgraph=True)`, in inference and in training, contiguous and channels_last: one
  graph, no compilation for another batch where it is dynamic, and bit for bit what the layers give
  one by one (backend `aot_eager`). What Inductor writes calls our operators on the tensors that
  others computed, without a copy, and joins ReLU with what stands around it. In inference a graph
  for at most 8 images, if that is no number that changes, has the same run of layers in one call as
  the net that is not compiled, and its bits.
* `torch.export`, strict and not, for any batch, saved and loaded: graphs keep operators that can be
  differentiated, `nnops.conv2d` and so on. AOTInductor packages run for any batch.
* ONNX has no such operators: `torch.onnx.export(nnops.revert(model), ...)` exports torch's layers,
  with the weights of the converted model. `pip install 'nnops[peers]'` has what it takes.

Time of a compiled net (Inductor, one thread of a CPU with AVX-512) over that of the same converted
net uncompiled: ResNet-18 0.91 in inference and 0.92 a training step; the CIFAR-10 net 1.0 with 64
images and a training step of 8 or 64, 1.04 a step of one; LeNet 1.0 with 64 images, 0.98 a step.
Calls so small that torch's price for a graph counts are slower: 1.2 for one image of the CIFAR-10
net, 1.7 for one of LeNet, where torch's own nets, compiled, take 1.8 and 2.5 times as long as
these. Of the 35 us more that LeNet's call takes, 15 are the price of any graph, of a single ReLU
too; the rest are guards on layers and parameters, and checks of their sizes, without which it
takes 8 us less (`options={"size_asserts": False}`).

## Backward through backward

A step of a WGAN-GP critic, with its gradient penalty, gives torch's gradients. torch's time over
ours, on one thread (on two), for critics of convolutions with ReLU and pool: two 3x3 of 64 and 128
channels, images of 64x64, 2.8 (2.6); three of 32 to 128, 32x32, 2.0 (1.8); three 5x5 of these 1.5
(1.4); two 3x3 of 8 channels, 16x16, where calls count, 1.4 (1.4):
`python tests/test_gradient_penalty.py`.

## Several processes

tests/test_distributed.py: DistributedDataParallel (examples/distributed.py, by `torchrun`, on the
real digits) and `fully_shard` (FSDP2, which hands layers ordinary tensors), each with 2 processes
and, `-m slow`, with 4, give torch's losses (gloo). DataLoader workers compute with the operators
under fork, forkserver and spawn, after the parent has used them.

## Differences

* autocast: torch keeps the narrow copy of a weight for a second call in the same context, nnops
  casts again. The policy is torch's for the CPU, on every device but for `max_unpool2d`, which goes
  to float32 on the CPU alone.
* `torch.profiler`: operators are named `nnops::_conv2d` and so on, their Functions
  `Conv2dFunction`. Its own count of FLOPs (`with_flops`) knows torch's operators alone;
  `torch.utils.flop_counter` knows ours.
* `torch.fx.symbolic_trace`: a layer of nnops.nn is traced through and becomes a call of its
  function (`Linear`: of torch's); layers of torch.nn are leaves. Functions imported by name, with
  `from nnops.nn.functional import conv2d`, are not seen by it.
* Tensors of other layouts (sparse, mkldnn, nested), quantised ones, and DTensor, of which torch's
  functions take some, raise NotImplementedError; `linear` gives them to torch's.
* `nnops.convert` makes linear layers nnops.nn.Linear: what looks for exactly torch.nn.Linear, such
  as `torch.ao.quantization.quantize_dynamic`, comes before it, or after `nnops.revert`.
* Operators whose name begins with an underscore, `torch.ops.nnops._conv2d` and so on, are what all
  of this is made of, and have no derivative: transforms of them give zeros.
* `vmap` over the class weights of `cross_entropy` and `nll_loss`, and over the operator
  `relu_with_mask`, makes one call a slice; every other one is a single call.
"""


def page() -> str:
    parts = [BEGINNING]
    for title, subjects, features in (
        ("Functions of nnops.nn.functional", SUBJECTS, FEATURES),
        ("Modules of nnops.nn", LAYERS, LAYER_FEATURES),
    ):
        names = ", ".join(f"`{subject.name}`" for subject in subjects)
        parts += [f"## {title}\n", names + ".\n", *table(subjects, features), ""]
    parts += [SAMPLES, *table_of_samples(), ""]
    return "\n".join([*parts, END])


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "python tests/test_features.py writes it"


def test_exceptions_are_cells() -> None:
    cells = {
        (subject.name, feature.title)
        for subjects, features in ((SUBJECTS, FEATURES), (LAYERS, LAYER_FEATURES))
        for subject in subjects
        for feature in features
    }
    assert set(EXCEPTIONS) <= cells


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
