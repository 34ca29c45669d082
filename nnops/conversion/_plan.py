"""What one module's forward becomes: chains of layers in one call, nnops's functions for torch's.

`Planner` reads the module's graph, or two if training and eval mode differ, and writes a forward in
Python for each. A written forward runs where its guards hold: all arguments are tensors, and what
the graph took for granted (attributes, names of children) is as it was. Elsewhere the module's own
forward runs, with the same layers, so that nothing depends on a guard but speed.
"""

from __future__ import annotations

import contextlib
import linecache
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import Module, ModuleDict, ModuleList, Sequential

from nnops.conversion._chains import LINKS, Chain, is_fusible_pool, is_plain
from nnops.conversion._fused import class_derived_from
from nnops.conversion._runs import MOST_IMAGES, STEPS, LayerRun, Step
from nnops.conversion._trace import MISSING, NotTraced, Tensors, Trace, required_arguments, trace
from nnops.nn import Conv2d, functional as F

_numbers = count()

_POOL_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_POOL_DEFAULTS = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
_CONV_PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _exchanged_functions() -> dict[Any, Callable[..., Any]]:
    """torch's functions to nnops's of the same arguments."""
    functions: dict[Any, Callable[..., Any]] = {
        torch.relu: F.relu,
        torch.max_pool2d: F.max_pool2d,
    }
    for name, ours in vars(F).items():
        if name == "linear":
            continue  # mostly torch's: not worth what a call is guarded with
        theirs = getattr(torch.nn.functional, name, None)
        if isinstance(ours, FunctionType) and not name.startswith("_") and callable(theirs):
            functions[theirs] = ours
    return functions


EXCHANGED = _exchanged_functions()
_METHODS = {"relu": F.relu, "relu_": F.relu_}


@dataclass(frozen=True)
class Finding:
    """One line of what was found in a forward."""

    layer: str  # a path below the module, or a function's name
    state: str  # "fused", "folded", "swapped" or "left"
    note: str
    others: tuple[str, ...] = ()  # the layers that the note speaks of


@dataclass
class Variant:
    """A written forward: its source, and what its names stand for."""

    source: str
    # A Chain, a constant of a guard, or "module:name" of what is imported.
    names: dict[str, Any]
    guarded: bool = True  # whether `holds` asks anything
    holds: Callable[[Module], bool] = field(init=False)
    run: Callable[..., Any] = field(init=False)
    scope: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.scope = {
            name: pkgutil.resolve_name(value) if type(value) is _Import else value
            for name, value in self.names.items()
        }
        # The source is kept where tracebacks and torch.compile look for it.
        filename = f"<nnops forward {next(_numbers)}>"
        linecache.cache[filename] = (
            len(self.source),
            None,
            self.source.splitlines(keepends=True),
            filename,
        )
        exec(compile(self.source, filename, "exec"), self.scope)
        self.run, self.holds = self.scope["forward"], self.scope["holds"]

    def __reduce__(self) -> Any:
        return Variant, (self.source, self.names, self.guarded)


class _Import(str):
    """What a name of a written forward is imported from, as pkgutil.resolve_name takes it."""


@dataclass
class Plan:
    """The written forwards of one module."""

    arguments: tuple[Tensors | None, ...]  # None: a tensor
    variants: list[Variant]
    findings: list[Finding]
    number: int = field(default_factory=_numbers.__next__)

    def choose(self, module: Module, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
        """The forward for this call; None: the module's own."""
        if len(arguments) != len(self.arguments):
            return None
        for argument, tensors in zip(arguments, self.arguments):  # noqa: B905  (as asked above)
            if not (isinstance(argument, Tensor) if tensors is None else tensors.fits(argument)):
                return None
        for variant in self.variants:
            if not variant.guarded or variant.holds(module):
                return variant.run
        return None


def is_open(module: Module) -> bool:
    """Whether the module's class has a forward of somebody's own, or is a Sequential.

    What derives from any other class of torch.nn is a layer, or a wrapper such as DataParallel.
    """
    for kind in type(module).__mro__:
        if kind in (Module, Sequential, ModuleList, ModuleDict, object):
            continue
        if kind.__module__.startswith(("torch.", "nnops.")):
            return False
    return type(module).forward is not Module.forward


class Planner:
    """Plans for the modules of one model, each asked for after those that contain it.

    What is learnt on the way is kept: how children are called, and how their forwards begin and
    end.
    """

    def __init__(self) -> None:
        self._calls: dict[Module, dict[str, Tensors]] = {}
        self._ends: dict[tuple[Module, bool], tuple[str, str]] = {}

    def plan(self, module: Module) -> Plan | str:
        """What becomes of the module's forward, or why nothing can.

        A plan has no variants if there is nothing to do.
        """
        if not is_open(module):
            return "its class is torch's"
        if "forward" in vars(module):
            return "its forward was replaced"
        variants: list[Variant] = []
        found: dict[bool, list[Finding]] = {}
        reason = ""
        for training in (True, False):
            try:
                traced = self._trace_with_ends(module, training)
                self._note_calls(module, traced)
                found[training] = _rewrite(module, traced)
                if any(finding.state in ("fused", "swapped") for finding in found[training]):
                    variants.append(_write(module, traced))
            except NotTraced as error:
                reason = str(error)
                found.pop(training, None)
                continue
            if not any(name == "training" for _, name in traced.reads):
                break
        if not found:
            return reason
        names = required_arguments(type(module).forward)
        calls = self._calls.get(module, {})
        plan = Plan(tuple(calls.get(name) for name in names), variants, _merged(found))
        if variants:
            try:
                class_derived_from(type(module), plan.number)
            except Exception as error:  # a class may refuse in its own way
                return f"its class cannot be derived from: {error}"
        return plan

    def _note_calls(self, module: Module, traced: Trace) -> None:
        """Notes which children are called with lists of tensors."""
        for node in traced.graph.nodes:
            if node.op != "call_module":
                continue
            child = module.get_submodule(str(node.target))
            lists = {
                position: Tensors(list if isinstance(argument, list) else tuple, len(argument))
                for position, argument in enumerate(node.args)
                if isinstance(argument, (list, tuple))
            }
            if lists and is_open(child):
                with contextlib.suppress(NotTraced):
                    names = required_arguments(type(child).forward)
                    self._calls[child] = {
                        names[position]: tensors
                        for position, tensors in lists.items()
                        if position < len(names)
                    }

    # --- looking into children ----------------------------------------------------------------

    def _trace_with_ends(self, module: Module, training: bool) -> Trace:
        """The module's graph, with children looked into that begin or end in mid-chain."""
        arguments = self._calls.get(module)
        inlined: frozenset[str] = frozenset()
        traced = trace(module, training, arguments)
        while more := frozenset(self._to_inline(module, traced, training)) - inlined:
            try:
                traced = trace(module, training, arguments, inlined | more)
            except NotTraced:
                return traced
            inlined |= more
        return traced

    def _to_inline(self, module: Module, traced: Trace, training: bool) -> Iterator[str]:
        for node in traced.graph.nodes:
            producer = _single_input(node)
            if producer is None or len(producer.users) != 1:
                continue
            children = [each for each in (producer, node) if _opened_child(module, each)]
            if (
                children
                and self._ends_of(module, node, training)[0] in ("norm", "relu", "pool")
                and self._ends_of(module, producer, training)[1] in ("conv", "norm", "relu")
            ):
                yield from (str(child.target) for child in children)

    def _ends_of(self, module: Module, node: Node, training: bool) -> tuple[str, str]:
        """Kinds of the first and the last call of what this node calls; "" for other kinds."""
        child = _opened_child(module, node)
        if child is None:
            kind = _kind(module, node)
            return kind, kind
        if (child, training) not in self._ends:
            self._ends[child, training] = self._find_ends(child, training)
        return self._ends[child, training]

    def _find_ends(self, child: Module, training: bool) -> tuple[str, str]:
        try:
            graph = trace(child, training).graph
        except NotTraced:
            return "", ""
        first = last = ""
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if len(inputs) == 1 and len(inputs[0].users) == 1:
            first = self._ends_of(child, next(iter(inputs[0].users)), training)[0]
        result = graph.output_node().args[0]
        if isinstance(result, Node) and len(result.users) == 1:
            last = self._ends_of(child, result, training)[1]
        return first, last


def _merged(found: dict[bool, list[Finding]]) -> list[Finding]:
    """The findings of both modes; what is so in one of them alone says so."""
    if len(found) == 1:
        (findings,) = found.values()
        return findings
    merged = list(found[True])
    for place, finding in enumerate(merged):
        if finding.state != "left" and finding not in found[False]:
            merged[place] = replace(finding, note=f"in training mode, {finding.note}")
    for finding in found[False]:
        if finding not in found[True]:
            eval_only = finding.state != "left" and "in eval mode" not in finding.note
            note = f"in eval mode, {finding.note}" if eval_only else finding.note
            merged.append(replace(finding, note=note))
    return merged


def _single_input(node: Node) -> Node | None:
    if node.op == "output" or not node.args or not isinstance(node.args[0], Node):
        return None
    return node.args[0]


def _opened_child(module: Module, node: Node) -> Module | None:
    """The child that this node calls, if it is one to look into."""
    if node.op != "call_module":
        return None
    child = module.get_submodule(str(node.target))
    return child if is_open(child) and is_plain(child, type(child)) else None


# --- chains -----------------------------------------------------------------------------------


def _kind(module: Module, node: Node) -> str:
    """ "conv", a key of LINKS, or ""."""
    if node.op == "call_module":
        called: Any = module.get_submodule(str(node.target))
        if len(node.args) != 1 or node.kwargs:
            return ""
        for kind, layer in (("conv", Conv2d), *LINKS.items()):
            if is_plain(called, layer):
                fits = kind != "pool" or is_fusible_pool(called.kernel_size, called.return_indices)
                return kind if fits else ""
        return ""
    function = _function(node)
    if function in (F.relu, F.relu_):
        return "relu"
    if function is F.conv2d and _bound(node, _CONV_PARAMETERS, _CONV_DEFAULTS) is not None:
        return "conv"
    if function is F.max_pool2d and _pool_arguments(node) is not None:
        return "pool"
    return ""


def _is_changed(module: Module, node: Node, layer: type[Module]) -> bool:
    """Whether the node calls such a layer, but one that does more than its class says."""
    if node.op != "call_module":
        return False
    called = module.get_submodule(str(node.target))
    return type(called) is layer and not is_plain(called, layer)


def _function(node: Node) -> Any:
    """nnops's function that the node calls or should call."""
    if node.op == "call_function":
        return EXCHANGED.get(node.target, node.target)
    return _METHODS.get(str(node.target)) if node.op == "call_method" else None


def _bound(
    node: Node, parameters: tuple[str, ...], defaults: dict[str, Any]
) -> dict[str, Any] | None:
    """The node's arguments by name, None if there are others."""
    bound = {**defaults, **dict(zip(parameters, node.args, strict=False)), **node.kwargs}
    if len(node.args) > len(parameters) or set(bound) != set(parameters):
        return None
    return bound


def _pool_arguments(node: Node) -> tuple[Any, ...] | None:
    """`kernel_size` to `ceil_mode` of a call of max_pool2d, if they are numbers and fusible."""
    kwargs = dict(node.kwargs)
    if kwargs.pop("return_indices", False) or len(node.args) > len(_POOL_PARAMETERS):
        return None
    bound = {**_POOL_DEFAULTS, **dict(zip(_POOL_PARAMETERS, node.args, strict=False)), **kwargs}
    if set(bound) != set(_POOL_PARAMETERS):
        return None
    _, *values = (bound[name] for name in _POOL_PARAMETERS)
    constant = all(_is_number(value) for value in values)
    return tuple(values) if constant and is_fusible_pool(values[0], False) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) > 0 and all(map(_is_number, value))
    return value is None or isinstance(value, (bool, int))


def _rewrite(module: Module, traced: Trace) -> list[Finding]:
    """Puts chains and nnops's functions into the graph."""
    findings: list[Finding] = []
    for node in list(traced.graph.nodes):
        if _kind(module, node) == "conv":
            findings += _rewrite_chain(module, traced.graph, node)
        elif _is_changed(module, node, Conv2d):
            findings.append(Finding(_name(node), "left", "it has hooks or another forward"))
    for node in list(traced.graph.nodes):
        function = _function(node)
        if function in EXCHANGED.values() and function is not node.target:
            node.op, node.target = "call_function", function
            findings.append(Finding(f"{function.__name__}()", "swapped", ""))
    return findings + _rewrite_runs(module, traced.graph)


def _rewrite_chain(module: Module, graph: Graph, conv: Node) -> list[Finding]:
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    nodes, kinds, reason = _chain_from(module, conv)
    if not nodes:
        return [Finding(_name(conv), "left", f"{reason}")] if reason else []
    pool = None
    if "pool" in kinds and (pool_node := nodes[kinds.index("pool")]).op != "call_module":
        pool = _pool_arguments(pool_node)
    chain = Chain(tuple(kinds), pool, _name(conv))
    last = nodes[-1]
    # At the convolution's place: what it reads may be written over behind it.
    with graph.inserting_before(conv):
        if conv.op == "call_module":
            input, layer = conv.args[0], graph.create_node("get_attr", str(conv.target))
        else:
            bound = _bound(conv, _CONV_PARAMETERS, _CONV_DEFAULTS)
            assert bound is not None
            input, layer = tuple(bound[name] for name in _CONV_PARAMETERS), None
        layers = [
            graph.create_node("get_attr", str(node.target)) if node.op == "call_module" else None
            for node in nodes
        ]
        call = graph.call_function(chain, (input, layer, *layers))
    last.replace_all_uses_with(call)
    for node in reversed([conv, *nodes]):
        graph.erase_node(node)
    names = {kind: _name(node) for kind, node in zip(kinds, nodes, strict=True)}
    when = "in eval mode without gradients, " if "norm" in kinds else ""
    links = [kind for kind in ("norm", "relu", "pool") if kind in names]
    findings = [Finding(_name(conv), "fused", f"{when}with", tuple(names[kind] for kind in links))]
    for kind in links:
        state = "folded" if kind == "norm" else "fused"
        often = f"in one of {calls[names[kind]]} calls, " if calls[names[kind]] > 1 else ""
        findings.append(Finding(names[kind], state, f"{often}{when}into", (_name(conv),)))
    return findings


def _chain_from(module: Module, conv: Node) -> tuple[list[Node], list[str], str]:
    """The nodes behind `conv` that run with it, their kinds, and why there are no more."""
    nodes: list[Node] = []
    kinds: list[str] = []
    last, reason = conv, ""
    while True:
        if len(last.users) != 1:
            reason = f"its output is used {len(last.users)} times"
            break
        (user,) = last.users
        kind = _kind(module, user)
        if user.op == "output":
            reason = "its output is returned"
            break
        if not _may_follow(kind, kinds) or _single_input(user) is not last:
            reason = f"followed by {_name(user)}"
            if any(_is_changed(module, user, layer) for layer in LINKS.values()):
                reason += ", which has hooks or another forward"
            break
        nodes.append(user)
        kinds.append(kind)
        last = user
    # Nothing is gained by what is passed through at the end.
    while kinds and kinds[-1] == "pass":
        nodes.pop()
        kinds.pop()
    return nodes, kinds, reason


def _may_follow(kind: str, kinds: list[str]) -> bool:
    """Whether a call of this kind runs with a convolution and the kinds before it.

    A ReLU behind a pool stays outside: the ReLU of -0.0 is -0.0, so that of [-1.0, -0.0] the first
    makes [0.0, -0.0] and the pool 0.0, where the other order gives -0.0.
    """
    if kind == "pass":
        return True
    order = ["norm", "relu", "pool"]
    if kind not in order:
        return False
    done = [order.index(each) for each in kinds if each != "pass"]
    return order.index(kind) > max(done, default=-1)


def _name(node: Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    if node.op == "call_method":
        return f"{node.target}()"
    return f"{getattr(node.target, '__name__', node.target)}()"


# --- runs -------------------------------------------------------------------------------------


def _step(module: Module, node: Node) -> Step | None:
    """The node as a step of a run, None if it cannot be one."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if len(node.args) == 1 and not node.kwargs:
            for kind, layers in STEPS.items():
                if any(is_plain(called, layer) for layer in layers):
                    return Step(kind)
        return None
    if isinstance(node.target, Chain):
        is_layer = isinstance(node.args[1], Node) and node.target.norm_at is None
        return Step("conv", node.target, len(node.target.links)) if is_layer else None
    arguments: tuple[Any, ...] = (*node.args[1:], *node.kwargs.items())
    if node.target in (F.relu, F.relu_):
        return Step("relu")
    if node.target in (torch.flatten, "flatten") and arguments in ((1,), (("start_dim", 1),)):
        return Step("flatten")
    if node.target in ("view", "reshape") and len(arguments) == 2 and arguments[0] == -1:
        return Step("flatten", size=arguments[1]) if type(arguments[1]) is int else None
    if node.target is torch.nn.functional.dropout and node.kwargs.get("training") is False:
        return Step("pass")
    return None


# What may follow a step of a run, but for "pass".
_NEXT = {
    "conv": ("conv", "flatten"),
    "flatten": ("linear",),
    "linear": ("linear", "relu"),
    "relu": ("linear",),
}


def _run_from(module: Module, first: Node) -> tuple[list[Node], list[Step]]:
    """The nodes from a convolution on that run as one call, as far as that pays."""
    nodes: list[Node] = []
    steps: list[Step] = []
    kind = ""
    node, step = first, _step(module, first)
    while step is not None:
        nodes.append(node)
        steps.append(step)
        kind = kind if step.kind == "pass" else step.kind
        if len(node.users) != 1:
            break
        (user,) = node.users
        if _single_input(user) is not node:
            break
        node, step = user, _step(module, user)
        if step is not None and step.kind not in ("pass", *_NEXT[kind]):
            break
    while steps and steps[-1].kind in ("pass", "flatten"):
        nodes.pop()
        steps.pop()
    return nodes, steps


def _rewrite_runs(module: Module, graph: Graph) -> list[Finding]:
    """Lets convolutions and linear layers in a row run as one call where that is allowed."""
    findings: list[Finding] = []
    seen: set[Node] = set()
    for first in list(graph.nodes):
        step = None if first in seen else _step(module, first)
        if step is None or step.kind not in ("conv", "linear"):
            continue
        nodes, steps = _run_from(module, first)
        seen.update(nodes)
        if sum(step.kind in ("conv", "linear") for step in steps) < 2:
            continue
        findings += _findings_of_run(nodes, steps)
        with graph.inserting_before(first):
            layers: list[Node | None] = []
            for node, step in zip(nodes, steps, strict=True):
                called: Any = node.args[1:] if step.chain is not None else (node,)
                for each in called:
                    is_module = each is not None and each.op in ("call_module", "get_attr")
                    layers.append(
                        graph.create_node("get_attr", str(each.target)) if is_module else None
                    )
            call = graph.call_function(LayerRun(tuple(steps)), (first.args[0], *layers))
        nodes[-1].replace_all_uses_with(call)
        for node in reversed(nodes):
            unused = [
                each for each in node.args if isinstance(each, Node) and each.op == "get_attr"
            ]
            graph.erase_node(node)
            for each in unused:
                if not each.users:
                    graph.erase_node(each)
    return findings


def _findings_of_run(nodes: list[Node], steps: list[Step]) -> list[Finding]:
    """Of the linear layers; the convolutions have those of their chains."""
    when = f"up to {MOST_IMAGES} images without gradients,"
    linear = [_name(node) for node, step in zip(nodes, steps, strict=True) if step.kind == "linear"]
    if steps[0].kind == "conv":
        first = nodes[0].target
        head = first.head if isinstance(first, Chain) else _name(nodes[0])
        return [Finding(name, "fused", f"{when} into", (head,)) for name in linear]
    head, *others = linear
    return [
        Finding(head, "fused", f"{when} with", tuple(others)),
        *(Finding(name, "fused", f"{when} into", (head,)) for name in others),
    ]


# --- writing ----------------------------------------------------------------------------------


def _write(module: Module, traced: Trace) -> Variant:
    """The forward and its guards as a function each.

    Raises:
        NotTraced: if it calls what cannot be imported again.
    """
    traced.graph.lint()
    code = traced.graph.python_code("self")
    text = code.src.strip()
    for node in traced.graph.nodes:
        # Module looks its children up in three dictionaries, a microsecond each.
        if node.op == "get_attr" and isinstance(_attribute(module, str(node.target)), Module):
            text = re.sub(rf"(?m)^( *{node.name}) = [^;\n]*", rf"\1 = {_access(node.target)}", text)
    used = set(re.findall(r"\w+", text))
    names = {
        name: value if isinstance(value, (Chain, LayerRun)) else _imported(value)
        for name, value in code.globals.items()
        if name in used
    }
    guards: list[str] = []

    def constant(value: Any) -> str:
        names[f"_guard_{len(guards)}"] = value
        return f"_guard_{len(guards)}"

    for (path, name), value in traced.reads.items():
        attribute = f"{_access(path)}.{name}"
        if value is MISSING:
            guards.append(f"not hasattr({_access(path)}, {name!r})")
        elif value is None or isinstance(value, bool):
            guards.append(f"{attribute} is {value}")
        elif isinstance(value, tuple) and type(value) not in (tuple, torch.Size):
            guards.append(f"{attribute} == {constant(list(value))}")
        else:
            guards.append(f"{attribute} == {constant(value)}")
    for path, children in traced.children.items():
        guards.append(f"tuple({_access(path)}._modules) == {constant(children)}")
    if traced.inlined:
        names["_has_any_global_hook"] = _Import("torch.nn.modules.module:_has_any_global_hook")
        guards.append("not _has_any_global_hook()")
    for path in sorted(traced.inlined):
        names["is_plain_container"] = _Import("nnops.conversion._chains:is_plain_container")
        kind = constant(type(module.get_submodule(path)))
        guards.append(f"is_plain_container({_access(path)}, {kind})")
    source = (
        text
        + "\n\n\ndef holds(self):\n    return "
        + ("(\n        " + "\n        and ".join(guards) + "\n    )" if guards else "True")
    )
    return Variant(source + "\n", names, bool(guards))


def _attribute(module: Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _access(path: str) -> str:
    return "self" + "".join(f"._modules[{name!r}]" for name in path.split(".") if name)


def _imported(value: Any) -> _Import:
    if isinstance(value, ModuleType):
        return _Import(value.__name__)
    if isinstance(value, float):
        return _Import(f"math:{value}")
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    where = _Import(f"{module}:{name}")
    try:
        same = pkgutil.resolve_name(where) is value
    except (ImportError, AttributeError, ValueError):
        same = False
    if not same:
        raise NotTraced(f"it calls {where}, which cannot be imported")
    return where
