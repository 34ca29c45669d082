"""One module's forward as a torch.fx graph, and what the graph took for granted.

torch.fx runs a forward once with stand-ins for its tensors and notes the calls. What Python decided
on the way is decided for good, so it is noted too, as a guard, or the trace is given up:

* attributes of modules are noted with their values (`training` is read as asked for, so that both
  modes are seen), and the entries of lists and dictionaries of modules;
* a forward is given up that branches on a tensor or its shape, writes attributes or globals, has a
  with statement, asks for grad mode or autocast, prints, draws random numbers in Python, calls an
  autograd Function, or computes with tensors that do not come from its arguments, parameters and
  buffers;
* what it reads from globals is taken to stay;
* every argument is taken for a tensor, or for a list of as many tensors as is said; optional ones
  are taken for left out.

Children are called, not looked into, but for those in `inlined`.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, Proxy
from torch.fx.proxy import Attribute
from torch.nn import Module
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nnops.conversion._source import unnoted_statement
from nnops.nn import functional

# What torch.nn.Module keeps in each instance for itself. `training` is for everybody.
_PRIVATE = frozenset(vars(Module())) - {"training"}
_MACHINERY = ("torch.fx", "torch.nn.modules.module", "nnops.conversion")

_OWN_FUNCTIONS = tuple(
    value
    for name, value in vars(functional).items()
    if isinstance(value, FunctionType)
    and value.__module__.startswith("nnops.nn")
    and not name.startswith("_")
)


MISSING = object()  # the value of an attribute that was asked for and not there


class NotTraced(Exception):
    """Why a forward was given up."""


@dataclass(frozen=True)
class Tensors:
    """An argument that is a list or tuple of tensors."""

    kind: Any  # list or tuple
    length: int

    def fits(self, argument: Any) -> bool:
        if type(argument) is not self.kind:
            return False
        return len(argument) == self.length and all(isinstance(each, Tensor) for each in argument)


@dataclass
class Trace:
    """A graph, and what must hold for it to stand for the module's forward."""

    graph: Graph
    # (path of a module, attribute) to the value that was read.
    reads: dict[tuple[str, str], Any] = field(default_factory=dict)
    # Path of a container to the names of its children.
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Paths of the modules looked into.
    inlined: frozenset[str] = frozenset()


def required_arguments(forward: Callable[..., Any]) -> list[str]:
    """Names of the arguments of a forward behind self that have no default.

    Raises:
        NotTraced: if it takes any number of arguments, or some by name only.
    """
    _, *parameters = inspect.signature(forward).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise NotTraced("its forward takes any number of arguments")
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise NotTraced("its forward takes arguments by name only")
    names = [each.name for each in parameters if each.default is each.empty]
    if not names:
        raise NotTraced("its forward needs no argument")
    return names


def trace(
    root: Module,
    training: bool,
    arguments: Mapping[str, Tensors] | None = None,
    inlined: frozenset[str] = frozenset(),
) -> Trace:
    """The graph of `root.forward` in one mode.

    Args:
        root: the module.
        training: the mode.
        arguments: name to what it is, of those that are no tensor.
        inlined: paths of children to look into.

    Raises:
        NotTraced: with the reason.
    """
    for path in ("", *inlined):
        kind = type(root.get_submodule(path))
        if reason := unnoted_statement(kind.forward, kind):
            raise NotTraced(reason)
    tracer = _Tracer(root, training, arguments or {}, inlined)
    before = _random_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(root)
            graph.output_node().type = None
    except NotTraced:
        raise
    except Exception as error:  # whatever a forward does with what is no tensor
        message = str(error).strip().split("\n")[0]
        raise NotTraced(f"{type(error).__name__}: {message}") from None
    if _random_state() != before:
        raise NotTraced("it draws random numbers in Python")
    for (path, name), value in tracer.result.reads.items():
        if type(value) is _List and list(value) != getattr(root.get_submodule(path), name):
            raise NotTraced(f"it writes into its attribute {name}")
    tracer.result.graph = graph
    return tracer.result


class _List(tuple[Any, ...]):
    """What a list held when it was read."""

    __slots__ = ()


class _TensorProxy(Proxy):
    """A stand-in that is not told from a tensor by isinstance."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        node: Any = self.node
        if node.target is operator.getitem:  # of a list that is an argument
            node = node.args[0]
        return _class_for_asker(_TensorProxy, node.op in ("placeholder", "get_attr"))

    def __getattr__(self, k: str) -> Attribute:
        return _AttributeProxy(self, k)


class _AttributeProxy(Attribute):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return _class_for_asker(_AttributeProxy, False)


def _class_for_asker(kind: type, is_tensor: bool) -> type:
    """What `__class__` says: the truth to torch, Tensor to a forward, where that is sure."""
    asker = sys._getframe(2).f_globals.get("__name__", "")
    if asker == "torch" or asker.startswith(("torch.", "nnops.")):
        return kind
    if is_tensor:
        return Tensor
    raise NotTraced("it asks for the type of a value that it computed")


class _Tracer(torch.fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(
        self,
        root: Module,
        training: bool,
        arguments: Mapping[str, Tensors],
        inlined: frozenset[str],
    ) -> None:
        super().__init__(autowrap_functions=_OWN_FUNCTIONS)
        # nnops's functions stand for themselves however a forward names them.
        self._autowrap_search.append(functional)
        self.required = required_arguments(type(root).forward)
        self.mode = training
        self.arguments = arguments
        self.inlined = inlined
        self.paths: dict[Module, str] = {module: path for path, module in root.named_modules()}
        self.result = Trace(Graph(), inlined=inlined)

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inlined

    def proxy(self, node: Node) -> Proxy:
        return _TensorProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, Proxy) and not self._is_state(a):
            raise NotTraced("it uses a tensor that is neither parameter nor buffer")
        return super().create_arg(a)

    def _is_state(self, tensor: Tensor) -> bool:
        state = (*self.root.parameters(), *self.root.buffers())
        return any(tensor is each for each in state)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        values: list[Any] = []
        for name in self.required:
            value: Any = self.create_proxy("placeholder", name, (), {})
            if name in self.arguments:
                tensors = self.arguments[name]
                value = tensors.kind(value[position] for position in range(tensors.length))
            values.append(value)
        before = [list(value) if type(value) is list else None for value in values]

        def run(*values: Any) -> Any:
            with self._watching(), _NoOtherTensors():
                result = root_fn(self.root, *values)
            for value, elements in zip(values, before, strict=True):
                if elements is not None and list(map(id, value)) != list(map(id, elements)):
                    raise NotTraced("it writes into a list that it is given")
            return result

        return run, values

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Notes what is read from modules; refuses what cannot be noted."""
        tracer = self

        def read(module: Module, name: str) -> Any:
            try:
                value = object.__getattribute__(module, name)
            except AttributeError:
                tracer._note_registered(module, name)
                raise
            if name == "_modules":
                tracer._note_children(module)
            elif name not in _PRIVATE and (
                name in object.__getattribute__(module, "__dict__")
                or (_is_constant(value) and _is_data(type(module), name))
            ):
                value = tracer._note(module, name, value)
            return value

        def write(module: Module, name: str, value: Any) -> None:
            raise NotTraced(f"it writes its attribute {name}")

        def refuse_mode(*args: Any, **kwargs: Any) -> Any:
            raise NotTraced("it asks for or sets grad mode or autocast")

        def refuse_autograd(*args: Any, **kwargs: Any) -> Any:
            raise NotTraced("it calls an autograd Function, or checkpoints")

        with contextlib.ExitStack() as stack:
            for owner, name, function in (
                (Module, "__getattribute__", read),
                (Module, "__setattr__", write),
                (torch, "is_grad_enabled", refuse_mode),
                (torch, "is_inference_mode_enabled", refuse_mode),
                (torch, "is_autocast_enabled", refuse_mode),
                (torch.autocast, "__enter__", refuse_mode),
                (torch.set_grad_enabled, "__init__", refuse_mode),
                (torch.no_grad, "__enter__", refuse_mode),
                (torch.enable_grad, "__enter__", refuse_mode),
                (torch.inference_mode, "__enter__", refuse_mode),
                (torch.autograd.graph.saved_tensors_hooks, "__enter__", refuse_autograd),
                # Called by Function.apply, also where a forward has kept `apply` under a name.
                (torch._functorch.utils, "unwrap_dead_wrappers", refuse_autograd),
            ):
                stack.enter_context(_replaced(owner, name, function))
            yield

    def _note(self, module: Module, name: str, value: Any) -> Any:
        if sys._getframe(2).f_globals.get("__name__", "").startswith(_MACHINERY):
            return value
        if name == "training":
            value = self.mode
        path = self._path(module)
        noted = value
        if type(value) is list and all(map(_is_constant, value)):
            noted = _List(value)
        elif not _is_constant(value):
            raise NotTraced(f"it reads its attribute {name}, a {type(value).__name__}")
        self.result.reads[path, name] = noted
        return value

    def _note_registered(self, module: Module, name: str) -> None:
        """Notes a parameter, buffer or child that is None, and an attribute that is missing."""
        if sys._getframe(2).f_globals.get("__name__", "").startswith(_MACHINERY):
            return
        members: dict[str, Any] = {}
        for registry in ("_parameters", "_buffers", "_modules"):
            members.update(object.__getattribute__(module, registry))
        value = members.get(name, MISSING)
        if value is None or value is MISSING:
            self.result.reads[self._path(module), name] = value

    def _note_children(self, module: Module) -> None:
        if sys._getframe(2).f_globals.get("__name__", "").startswith(_MACHINERY):
            return
        names = tuple(object.__getattribute__(module, "_modules"))
        self.result.children[self._path(module)] = names

    def _path(self, module: Module) -> str:
        if module not in self.paths:
            raise NotTraced("it uses a module that is not registered in it")
        return self.paths[module]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    inherited = name not in vars(owner)
    before = None if inherited else vars(owner)[name]
    setattr(owner, name, function)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    kinds = (bool, int, float, str, type, torch.dtype, torch.device, torch.Size)
    return value is None or isinstance(value, (*kinds, FunctionType, BuiltinFunctionType))


def _is_data(kind: type, name: str) -> bool:
    """Whether a class has such an attribute that is neither method nor property."""
    value = inspect.getattr_static(kind, name, None)
    return _is_constant(value) and not callable(value) and not name.startswith("_")


class _NoOtherTensors(TorchFunctionMode):
    """Refuses calls of torch's functions on anything but what the trace stands for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, Proxy) for leaf in tree_leaves((args, kwargs))):
            name = getattr(func, "__name__", str(func))
            if name != "__get__":  # of a tensor's attribute, such as its dtype
                raise NotTraced(f"it calls {name} on what does not come from its arguments")
        return func(*args, **kwargs)


def _random_state() -> Any:
    states: list[Any] = [random.getstate(), torch.get_rng_state().numpy().tobytes()]
    if numpy := sys.modules.get("numpy"):
        kind, keys, *rest = numpy.random.get_state()
        states.append((kind, keys.tobytes(), *rest))
    return states
