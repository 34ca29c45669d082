"""What a converted forward calls where several layers in a row can be one call.

On a small net's few images calls cost more than sums, and linear layers of few images only read
their weights. Where nothing is differentiated, a run of convolutions (each with its chain), a
flattening and linear layers, or of linear layers alone, is one operator. Like a chain, a
run holds no layer: each call brings them and asks whether they are what they were. Where they are
not, or the call is another one (gradients, many images, another device), the layers run one by one;
so do, once more, the first images of a size, which shows that the layers fit together.

torch.compile has the same call in its graph where it knows the number of images, and asks when it
traces: what was asked then is guarded. For a number that may change the graph holds the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value
from torch.nn import Dropout, Flatten, Identity, Linear as TorchLinear
from torch.nn.modules.module import _has_any_global_hook

from nnops._library import _C
from nnops.conversion._chains import Chain
from nnops.nn import Conv2d, Linear, MaxPool2d, ReLU, _autocast, functional as F
from nnops.nn.conv import convolution_arguments
from nnops.nn.functional import _convolution, _window
from nnops.ops._operator import PLAIN_TENSORS, dispatch_modes, is_plain_graph, is_transformed
from nnops.ops.conv2d import sizes_behind
from nnops.ops.layer_chain import convolution, layer_chain, linear
from nnops.ops.max_pool2d import pooled_size
from nnops.precision import CONV_PRECISIONS

# With more images than these the sums are large enough to be computed layer by layer.
MOST_IMAGES = 8

# A step's kind to the class of its module. A "flatten" keeps the first dimension and joins the
# others; a "relu" follows a linear layer; a "pass" does nothing in eval mode.
STEPS: dict[str, tuple[type, ...]] = {
    "conv": (Conv2d,),
    "flatten": (Flatten,),
    "linear": (Linear, TorchLinear),
    "relu": (ReLU,),
    "pass": (Identity, Dropout),
}

# The attributes that a layer's numbers depend on, if they depend on any.
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode", "precision"),
    MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    Flatten: ("start_dim", "end_dim"),
    Dropout: ("training",),
}
_WITH_WEIGHTS = (Conv2d, Linear, TorchLinear)


class Step(NamedTuple):
    """One layer of a run."""

    kind: str  # a key of STEPS
    # What the convolution's chain calls, if it has one; the chain's modules follow the layer's.
    chain: Callable[..., Any] | None = None
    links: int = 0  # of the chain
    size: int = 0  # elements of an image behind a flatten written as view(-1, size); or 0


class LayerRun:
    """Layers in a row, each one's output read by the next one alone.

    Args:
        steps: the layers in the order of calls; at least two of them compute, and the last.
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps
        # Of the modules that a call brings.
        classes: list[tuple[type, ...]] = []
        for step in steps:
            classes.append(STEPS[step.kind])
            if isinstance(step.chain, Chain):
                classes += ((kind,) for kind in step.chain.classes)
        self._classes = tuple(classes)
        self._dimensions = 2 if steps[0].kind == "linear" else 4  # of the input
        self.__name__ = "layer_run"  # torch.fx writes this name into the forward
        # What the last call depended on, and the layers and the precision that follow from it.
        self._known: tuple[list[Any], list[int], int] | None = None

    def __reduce__(self) -> Any:
        return LayerRun, (self.steps,)

    def with_chains(self, change: Callable[[Chain], Callable[..., Any]]) -> Callable[..., Tensor]:
        """The layers one by one, with `change` applied to the chains."""
        changed = LayerRun(
            tuple(
                step._replace(chain=change(step.chain)) if isinstance(step.chain, Chain) else step
                for step in self.steps
            )
        )
        return lambda input, *modules: changed._one_by_one(input, modules)

    def __call__(self, input: Tensor, *modules: Any) -> Tensor:
        """The run's output; `modules` are those of the steps, None for a function."""
        if torch.compiler.is_compiling():
            output = self._in_graph(input, modules) if is_plain_graph() else None
            return self._one_by_one(input, modules) if output is None else output
        # A nested tensor has dimensions, but no sizes.
        fits = type(input) is Tensor and input.dim() == self._dimensions
        sizes = input.shape if fits else ()
        read = self._read(modules) if self._applies(input, sizes) else None
        if read is None:
            return self._one_by_one(input, modules)
        parameters, state = read
        if _is_differentiated(input, parameters):
            return self._one_by_one(input, modules)
        state.append(sizes[1:])
        # Read once, and used as it was read: another thread may write it meanwhile.
        known = self._known
        if known is None or known[0] != state:
            output = self._one_by_one(input, modules)
            numbers = self._numbers(input, modules)
            if numbers is None:
                self._known = None
                return output
            # Not `output`: later calls must give the same bits.
            known = self._known = (state, *numbers)
        try:
            result: Tensor = layer_chain(input, parameters, *known[1:])
        except RuntimeError:
            return self._one_by_one(input, modules)  # the layers say better what is wrong
        return result

    def _modules(self, modules: tuple[Any, ...]) -> Iterator[tuple[Step, Any, tuple[Any, ...]]]:
        """Each step with its module and those of its chain."""
        place = 0
        for step in self.steps:
            end = place + 1 + step.links
            yield step, modules[place], modules[place + 1 : end]
            place = end

    def _applies(self, input: Tensor, sizes: tuple[int, ...]) -> bool:
        return (
            len(sizes) > 0
            and sizes[0] <= MOST_IMAGES
            and input.is_cpu
            and not dispatch_modes()
            and not is_transformed()
            and not _autocast.is_on()
            and not _has_any_global_hook()
        )

    def _in_graph(self, input: Tensor, modules: tuple[Any, ...]) -> Tensor | None:
        """`__call__` as torch.compile traces it; None where the layers run one by one.

        What is read here is guarded, at a price in each call of the graph. So no more is than what
        may change: attributes of the layers, and their parameters.
        """
        if (
            type(input) is not Tensor
            or input.dim() != self._dimensions
            or not all(map(has_static_value, input.shape))
            or input.shape[0] > MOST_IMAGES
            or _autocast.is_on()
        ):
            return None
        state: list[Any] = []
        for module in modules:
            if type(module) in _ATTRIBUTES:
                state += [getattr(module, name) for name in _ATTRIBUTES[type(module)]]
        numbers = self._constants(tuple(input.shape), input.device.type, *modules, *state)
        if numbers is None:
            return None
        parameters: list[Tensor] = []
        for module in modules:
            if type(module) in _WITH_WEIGHTS:
                held = module.__dict__["_parameters"]
                parameters += [each for each in (held["weight"], held["bias"]) if each is not None]
        if _is_differentiated(input, parameters):
            return None
        output: Tensor = torch.ops.nnops._layer_chain(input, parameters, *numbers)
        return output

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _constants(self, sizes: tuple[int, ...], device: str, *modules_and_state: Any) -> Any:
        """`_numbers` of the modules as they are, asked for once, while torch.compile traces.

        It guards that modules and state are the same; like torch's layers, it sees no hook that
        comes later.
        """
        modules = modules_and_state[: len(self._classes)]
        if device != "cpu" or _has_any_global_hook() or self._read(modules) is None:
            return None
        try:
            return self._numbers(torch.empty(sizes, device="meta"), modules)
        except (RuntimeError, TypeError, ValueError):
            return None  # the layers, one by one, say what is wrong

    def _read(self, modules: tuple[Any, ...]) -> tuple[list[Tensor], list[Any]] | None:
        """The parameters in order, and what the numbers depend on; None if a layer changed."""
        return _C.read_layers(modules, self._classes, _ATTRIBUTES, _WITH_WEIGHTS, PLAIN_TENSORS)

    def _numbers(self, input: Tensor, modules: tuple[Any, ...]) -> tuple[list[int], int] | None:
        """The layers as the operator takes them, and the precision; None for what it has not."""
        layers: list[int] = []
        precisions = set()
        size: Any = input.shape[1:]  # of an image
        steps = list(self._modules(modules))
        for place, (step, module, links) in enumerate(steps):
            if step.kind == "conv":
                if module.padding_mode != "zeros":
                    return None
                precisions.add(module.precision)
                chain: Any = step.chain
                if chain is not None and not chain.are_unchanged(module, links):
                    return None
                arguments = convolution_arguments(module, input)
                weight, _, stride, padding, dilation, groups = _convolution("conv2d", *arguments)
                sizes = sizes_behind((1, *size), weight.shape, stride, padding, dilation)
                _, *size = sizes
                window = None
                if chain is not None and chain.pool_at is not None:
                    window = _window("max_pool2d", *chain.window(links))
                    size[1:] = pooled_size(size[1:], *window)
                layers += convolution(
                    module.bias is not None,
                    stride,
                    padding,
                    dilation,
                    groups,
                    relu=chain is not None and "relu" in chain.links,
                    window=window,
                )
            elif step.kind == "linear":
                following = [each.kind for each, _, _ in steps[place + 1 :] if each.kind != "pass"]
                layers += linear(module.bias is not None, following[:1] == ["relu"])
            elif step.kind == "flatten":
                if not _keeps_images(module) or step.size not in (0, math.prod(size)):
                    return None
            elif type(module) is Dropout and module.training:
                return None
        if len(precisions) > 1:
            return None
        precision = precisions.pop() if precisions else None
        return layers, 0 if precision is None else CONV_PRECISIONS[precision]

    def _one_by_one(self, input: Tensor, modules: tuple[Any, ...]) -> Tensor:
        output: Any = input
        for step, module, links in self._modules(modules):
            if step.chain is not None:
                output = step.chain(output, module, *links)
            elif module is not None:
                output = module(output)
            elif step.kind == "flatten":
                output = output.view(-1, step.size) if step.size else output.flatten(1)
            elif step.kind == "relu":
                output = F.relu(output)
        result: Tensor = output
        return result


def _is_differentiated(input: Tensor, parameters: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in (input, *parameters))


def _keeps_images(module: Any) -> bool:
    """Whether a flatten, or the function it stands for, joins all dimensions but the first."""
    return module is None or (module.start_dim, module.end_dim) in ((1, -1), (1, 3))
