"""What a converted forward calls where a convolution and the layers behind it are one call.

A chain holds no layer: each call brings them, and asks whether they are what they were when the
forward was written: the same class, without hooks, with a pool that can be fused. If so, one fused
operator runs; if not, the layers run one by one. So a hook registered later fires, a layer that is
exchanged later counts, and nothing has to be told.

A BatchNorm2d behind the convolution is folded into it where it has become a constant: in eval mode
and where nothing is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Identity, Module
from torch.nn.modules.module import _has_any_global_hook

from nnops.nn import Conv2d, MaxPool2d, ReLU, functional as F
from nnops.nn.conv import convolution_arguments
from nnops.ops._operator import PLAIN_TENSORS, is_plain_eager
from nnops.ops.max_pool2d import has_offsets

# What may stand behind a convolution, to the class of its module.
LINKS: dict[str, type[Module]] = {
    "norm": BatchNorm2d,
    "pass": Identity,
    "relu": ReLU,
    "pool": MaxPool2d,
}


class Chain:
    """A convolution and what follows it, each link's output read by the next link alone.

    Args:
        links: keys of `LINKS` in the order of calls: "norm" at most once and first but for
            "pass", then "relu", then "pool", each at most once.
        pool: the arguments of a pool that is a function and no module, `kernel_size` to
            `ceil_mode`.
        head: what the report calls the convolution.
    """

    def __init__(
        self, links: tuple[str, ...], pool: tuple[Any, ...] | None = None, head: str = ""
    ) -> None:
        self.links = links
        self.pool = pool
        self.head = head
        self.norm_at = links.index("norm") if "norm" in links else None
        self.pool_at = links.index("pool") if "pool" in links else None
        self.classes = tuple(LINKS[link] for link in links)
        self.fused = _FUSED["relu" in links, "pool" in links]
        # torch.fx writes this name into the forward.
        self.__name__ = "_".join(("conv", *(link for link in links if link != "pass")))
        self._folded: _Folded | None = None

    def __reduce__(self) -> Any:
        return Chain, (self.links, self.pool, self.head)

    def __call__(self, input: Any, conv: Any, *modules: Module | None) -> Any:
        """The chain's output.

        Args:
            input: what the convolution reads; all arguments of `conv2d`, if `conv` is None.
            conv: the convolution, or None for a function.
            modules: one a link, None for a function.
        """
        if not self.are_unchanged(conv, modules):
            return self._one_by_one(input, conv, modules)
        if conv is None:
            arguments, precision = input, None
        else:
            arguments, precision = convolution_arguments(conv, input), conv.precision
        if self.norm_at is not None:
            folded = self._fold(arguments, modules[self.norm_at])
            if folded is None:
                return self._one_by_one(input, conv, modules)
            arguments = (arguments[0], *folded, *arguments[3:])
        if self.pool_at is None:
            return self.fused(*arguments, precision=precision)
        kernel_size, stride, padding, dilation, ceil_mode = self.window(modules)
        return self.fused(
            *arguments,
            precision=precision,
            pool_kernel_size=kernel_size,
            pool_stride=stride,
            pool_padding=padding,
            pool_dilation=dilation,
            ceil_mode=ceil_mode,
        )

    def are_unchanged(self, conv: Module | None, modules: tuple[Module | None, ...]) -> bool:
        """Whether the layers are those that the forward was written for."""
        if _has_any_global_hook() or not (conv is None or is_plain(conv, Conv2d)):
            return False
        for module, kind in zip(modules, self.classes):  # noqa: B905  (as many by construction)
            if module is not None and not is_plain(module, kind):
                return False
        if self.pool_at is None:
            return True
        pool: Any = modules[self.pool_at]
        return pool is None or is_fusible_pool(pool.kernel_size, pool.return_indices)

    def window(self, modules: tuple[Module | None, ...]) -> tuple[Any, ...]:
        """The pool's arguments, `kernel_size` to `ceil_mode`."""
        assert self.pool_at is not None
        pool: Any = modules[self.pool_at]
        if pool is None:
            assert self.pool is not None
            return self.pool
        return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode

    def _one_by_one(self, input: Any, conv: Any, modules: tuple[Module | None, ...]) -> Any:
        output = F.conv2d(*input) if conv is None else conv(input)
        for link, module in zip(self.links, modules, strict=True):
            if module is not None:
                output = module(output)
            elif link == "relu":
                output = F.relu(output)
            else:
                assert self.pool is not None
                output = F.max_pool2d(output, *self.pool)
        return output

    def _fold(self, arguments: tuple[Any, ...], norm: Any) -> tuple[Tensor, Tensor] | None:
        """The weight and bias that do the BatchNorm's work too; None where it is no constant."""
        if norm.training or norm.running_mean is None or norm.running_var is None:
            self._folded = None
            return None
        input, weight, bias = arguments[:3]
        sources = (weight, bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if not is_plain_eager() or input.dim() != 4:
            return None
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (input, *sources)
        ):
            return None
        state = _state(sources, norm.eps)
        if state is None:
            return None
        folded = self._folded
        if folded is None or folded.state != state or not all(map(is_, folded.sources, sources)):
            folded = self._folded = _Folded(sources, state, _folded(*sources, norm.eps))
        return folded.result


class _Folded(NamedTuple):
    """A folded weight and bias, and the tensors they were computed from."""

    sources: tuple[Any, ...]
    state: tuple[Any, ...]
    result: tuple[Tensor, Tensor] | None


def _state(sources: tuple[Any, ...], eps: float) -> tuple[Any, ...] | None:
    """What changes when one of the tensors is written; None if that cannot be seen."""
    state: list[Any] = [eps]
    for tensor in sources:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN_TENSORS or tensor.is_inference():
            return None
        state += [tensor._version, tensor.data_ptr()]
    return tuple(state)


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor] | None:
    """conv's weight and bias with the BatchNorm in them, summed in float64 and rounded once."""
    tensors = [
        tensor for tensor in (weight, bias, scale, shift, mean, variance) if tensor is not None
    ]
    if {(tensor.dtype, tensor.device) for tensor in tensors} != {(weight.dtype, weight.device)}:
        return None
    if not weight.is_floating_point() or mean.shape != weight.shape[:1]:
        return None
    with torch.inference_mode(False), torch.no_grad():
        factor = (variance.double() + eps).rsqrt()
        if scale is not None:
            factor = factor * scale.double()
        folded_bias = -mean.double() if bias is None else bias.double() - mean.double()
        folded_bias = folded_bias * factor
        if shift is not None:
            folded_bias = folded_bias + shift.double()
        folded_weight = weight.double() * factor.reshape(-1, 1, 1, 1)
        result = folded_weight.to(weight.dtype), folded_bias.to(weight.dtype)
        # A fake tensor is nothing to keep, and what overflows only when folded must not be.
        if any(type(each) is not Tensor or not each.isfinite().all() for each in result):
            return None
    return result


def is_plain(module: Module, kind: type[Module]) -> bool:
    """Whether calling `module` does what `kind.forward` says, and nothing else."""
    if type(module) is not kind:
        return False
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl")
        or "forward" in own
    )


def is_plain_container(module: Module, original: type[Module]) -> bool:
    """`is_plain`, whether or not convert() derived a class from the original one."""
    return original_class(module) is original and is_plain(module, type(module))


def original_class(module: Module) -> type[Module]:
    """The module's class, without what convert() derived from it."""
    kind = type(module)
    original: type[Module] = vars(kind).get("_nnops_original", kind)
    return original


def is_fusible_pool(kernel_size: Any, return_indices: bool) -> bool:
    """Whether a pool with this window can be the end of a chain."""
    if return_indices:
        return False
    pair = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    return has_offsets((pair[0], pair[-1]))


# (with a ReLU, with a pool) to the operator.
_FUSED: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): F.conv2d,
    (True, False): F.conv2d_relu,
    (False, True): F.conv2d_max_pool2d,
    (True, True): F.conv2d_relu_max_pool2d,
}
