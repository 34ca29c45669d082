"""From one class of formulas to everything that differentiates: the autograd plumbing of all ops.

An operator `nnops::name` exists twice in C++: as `nnops::name`, the public operator, and as
`nnops::_name`, the same function on which no autograd is mounted. In Python one subclass of
`Formulas` says how it differentiates. `mount` derives from that class

* the registrations on the public operator (fake kernel, autograd, vmap), for torch.compile,
  torch.export, make_fx and callers of `torch.ops.nnops`;
* a light `torch.autograd.Function`, old style, for ordinary eager calls: `setup_context` of the
  new style makes torch inspect signatures on every call and costs about four times as much;
* a full `torch.autograd.Function` with `setup_context`, `jvp` and `vmap`, for torch.func transforms
  and forward-mode AD, where a registration alone would lose the tangent;

and returns the router, a plain function that picks the right one for each call.

The private names of torch that this needs are used here and nowhere else;
tests/test_router.py fails when torch changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils.flop_counter import register_flop_formula

from nnops import _library  # noqa: F401  (registers torch.ops.nnops)

_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
# How many are active.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
is_tracing: Callable[[], bool] = torch._C._is_tracing  # torch.jit.trace
# Whether it holds several tensors (torch.autograd.grad with is_grads_batched), and no values.
is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
_saved_tensors_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks

# Nobody else computes with tensors of these types.
PLAIN_TENSORS = (Tensor, torch.nn.Parameter)

# Holds the kernels in Python, for as long as it lives.
library_fragment = torch.library.Library("nnops", "FRAGMENT")

# Filled by `mount`: public operator name to its formulas.
FORMULAS: dict[str, type[Formulas]] = {}


class Formulas:
    """How one operator of torch.ops.nnops differentiates. No method has an instance.

    `setup_context(ctx, inputs, output)` saves what the derivatives need, the least of it:
    `needed_inputs(ctx)` tells which inputs are differentiated. `backward(ctx, *grad_outputs)`
    returns one gradient per input; it must itself be made of differentiable calls (other mounted
    operators, or torch's elementwise functions), so that derivatives of every order follow.
    """

    name: ClassVar[str]
    # Positions of the inputs that can need a gradient; the first of them is never None.
    differentiable: ClassVar[tuple[int, ...]]
    # Whether all outputs behind the first are records for backward, without a gradient.
    has_records: ClassVar[bool] = False

    @staticmethod
    def fake(*inputs: Any) -> Any:
        """Outputs of the right shape, strides and dtype, without data (symbolic sizes allowed)."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Tangent of the output(s), from one tangent (or None) per input."""
        raise NotImplementedError

    # vmap(info, in_dims, *inputs) -> (outputs, out_dims); None: one call per slice, then stacked.
    vmap: ClassVar[Callable[..., Any] | None] = None
    # flops(*inputs) -> the number that torch.utils.flop_counter counts; None: nothing is counted.
    flops: ClassVar[Callable[..., int] | None] = None
    # The same function in torch's operators, of the same inputs, for compilers, which join them
    # with what stands around them; None: the operator stays a call of its own.
    in_torch: ClassVar[Callable[..., Any] | None] = None


Router = Callable[..., Any]


def mount(formulas: type[Formulas]) -> Router:
    """Registers `formulas` with torch and returns the function that calls the operator."""
    name = formulas.name
    public = getattr(torch.ops.nnops, name).default
    raw = function_of(getattr(torch.ops.nnops, f"_{name}").default)
    class_name = f"{formulas.__name__}Function"
    apply_light = light_apply(class_name, _light_forward(formulas, raw), formulas.backward)
    full = _full_function(class_name, formulas, raw)
    first, *others = formulas.differentiable

    def route(*inputs: Any) -> Any:
        if _is_compiling():
            return public(*inputs)
        if _transforms_active() or forward_ad._current_level >= 0:
            return public(*inputs) if _is_inside_transform() else full.apply(*inputs)
        if dispatch_modes() and _is_recording():
            return public(*inputs)
        if _is_grad_enabled():
            if inputs[first].requires_grad:
                return apply_light(*inputs)
            for position in others:
                tensor = inputs[position]
                if tensor is not None and tensor.requires_grad:
                    return apply_light(*inputs)
        return raw(*inputs)

    route.__name__ = route.__qualname__ = name
    route.__doc__ = f"torch.ops.nnops.{name}, differentiable in every way that torch offers."
    full.router = route

    for operator in (f"nnops::{name}", f"nnops::_{name}"):
        torch.library.register_fake(operator, _one_device(name, formulas.fake))
    library_fragment.impl(
        name, _autograd_kernel(class_name, formulas, public, raw), "Autograd", with_keyset=True
    )
    torch.library.register_vmap(f"nnops::{name}", _vmap_rule(formulas, route))
    if formulas.flops is not None:
        _register_flops(name, formulas.flops)
    FORMULAS[name] = formulas
    return route


def _register_flops(name: str, flops: Callable[..., int]) -> None:
    def count(*inputs: Any, out_val: Any, **kwargs: Any) -> int:
        return flops(*inputs)

    packets = [getattr(torch.ops.nnops, each) for each in (name, f"_{name}")]
    register_flop_formula(packets, get_raw=True)(count)


def first_output(route: Router, formulas: type[Formulas]) -> Router:
    """`route` of a mounted operator for callers who want its first output alone.

    The other outputs, which backward needs, then are no outputs of the autograd Function: they need
    not be wrapped and marked on every call.
    """
    raw = function_of(getattr(torch.ops.nnops, f"_{formulas.name}").default)
    class_name = f"{formulas.__name__}Function"
    apply_light = light_apply(class_name, _first_output_forward(formulas, raw), formulas.backward)
    first, *others = formulas.differentiable

    def route_first(*inputs: Any) -> Any:
        if not is_plain_eager():
            return route(*inputs)[0]
        if _is_grad_enabled():
            if inputs[first].requires_grad:
                return apply_light(*inputs)
            for position in others:
                tensor = inputs[position]
                if tensor is not None and tensor.requires_grad:
                    return apply_light(*inputs)
        return raw(*inputs)[0]

    return route_first


def light_apply(
    class_name: str, forward: Callable[..., Any], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`apply` of an old-style Function, for callers who have asked that `is_plain_eager()`."""
    return _apply_of(_old_style_function(class_name, forward, backward))


def function_of(overload: Any) -> Callable[..., Any]:
    """What the overload's `__call__`, a function in Python, hands its arguments on to."""
    function: Callable[..., Any] = overload._op
    return function


def _apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without its part in Python, a fifth of the price of a small call.

    That part asks whether a functorch transform is active, which the router has asked before.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def _one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake kernel behind a check that csrc/ops makes for real tensors: one device for all.

    One meta tensor among real ones leads here, and the result would pass for computed.
    """

    def checked_fake(*inputs: Any) -> Any:
        devices = {value.device for value in inputs if isinstance(value, Tensor)}
        if len(devices) > 1:
            names = sorted(map(str, devices))
            raise RuntimeError(
                f"nnops::{name}: all tensors must be on the same device, but got {names}"
            )
        return fake(*inputs)

    return checked_fake


def _is_recording() -> bool:
    """Whether make_fx writes a graph, which must be made of operators that differentiate."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _is_compiling_graph() -> bool:
    """Whether AOTAutograd writes a graph to be run, in which all derivatives are calls already.

    torch.export, which has graphs written too, gives them to people: they keep our public names.
    """
    return (
        torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FUNCTIONAL) is not None
        and not torch.compiler.is_exporting()
        and not _transforms_active()
    )


def _is_inside_transform() -> bool:
    """Whether a functorch transform runs the formulas of a public operator that was called in it.

    It has then put its own dispatch aside, with which a Function would be differentiated.
    """
    return _transforms_active() and torch._C._dispatch_tls_is_dispatch_key_excluded(
        torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode
    )


def is_plain_eager() -> bool:
    """Whether a call made now is neither traced nor transformed."""
    return not (_is_compiling() or is_transformed() or (dispatch_modes() and _is_recording()))


def are_saved_tensors_hooked() -> bool:
    """Whether somebody handles what is saved now: checkpoints, offloading, compression."""
    return _saved_tensors_hooks(False) is not None


def is_transformed() -> bool:
    """Whether a functorch transform or forward-mode AD sees a call made now."""
    return _transforms_active() or forward_ad._current_level >= 0


def is_plain_graph() -> bool:
    """Whether a call made now, which torch.compile traces, is neither exported nor transformed."""
    return not (
        torch.compiler.is_exporting() or _transforms_active() or forward_ad._current_level >= 0
    )


def may_be_differentiated(*inputs: Tensor | None) -> bool:
    """Whether a call on `inputs`, made now, may be differentiated.

    For operators that exist in two forms, one of which records what the derivative needs.
    """
    if _is_grad_enabled():
        for tensor in inputs:
            if tensor is not None and tensor.requires_grad:
                return True
    return not _is_compiling() and (_transforms_active() or forward_ad._current_level >= 0)


SetupContext = Callable[[Any, tuple[Any, ...], Any], None]


def _whole_setup(formulas: type[Formulas]) -> SetupContext:
    """`setup_context` where all outputs are returned: records are marked as such."""
    if not formulas.has_records:
        return formulas.setup_context

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        formulas.setup_context(ctx, inputs, output)

    return setup_context


def _old_style_function(
    class_name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    base: type = torch.autograd.Function,
) -> type[torch.autograd.Function]:
    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(class_name, (base,), body)

    def apply(ctx: Any, *grad_outputs: Any) -> Any:
        return backward(ctx, *grad_outputs)

    # torch's own `apply` asks on every call which of `backward` and `vjp` the Function defines.
    function._backward_cls.apply = apply
    return function  # type: ignore[no-any-return]


def _light_forward(formulas: type[Formulas], raw: Callable[..., Any]) -> Callable[..., Any]:
    setup_context = _whole_setup(formulas)

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = raw(*inputs)
        setup_context(ctx, inputs, output)
        return output

    return forward


def _first_output_forward(formulas: type[Formulas], raw: Callable[..., Any]) -> Callable[..., Any]:
    setup_context = formulas.setup_context

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = raw(*inputs)
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)
        return output[0]

    return forward


def _autograd_kernel(
    class_name: str, formulas: type[Formulas], public: Any, raw: Callable[..., Any]
) -> Any:
    """What the dispatcher calls for the public operator where autograd is concerned.

    As torch.library.register_autograd, with two additions: tangents are not lost, and inside a
    functorch transform, where torch.compile has it called, it differentiates too. Its Function
    needs no `setup_context` there, because vmap is the business of a kernel of its own.

    A compiled graph runs where nothing is differentiated any more, and gets the operator that has
    no autograd: this kernel, in Python, would cost each of its calls up to eight microseconds.
    """
    setup_context = _whole_setup(formulas)
    in_graph = formulas.in_torch or raw
    differentiable = formulas.differentiable

    def may_have_tangents() -> bool:
        # A compiled torch.func.jvp enters its level without telling forward_ad.
        return _transforms_active() or forward_ad._current_level >= 0

    def below_autograd(keyset: Any, inputs: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            if _is_compiling_graph():
                return in_graph(*inputs)
            return public.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    def forward(ctx: Any, *inputs_and_keyset: Any) -> Any:
        *given, keyset = inputs_and_keyset
        if _transforms_active():
            # A Function's forward runs without gradients, but those off are for this level alone.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                output = below_autograd(keyset, tuple(given))
        else:
            output = below_autograd(keyset, tuple(given))
        # The dispatcher leaves out what equals its default.
        defaults = public._schema.arguments[len(given) :]
        inputs = (*given, *(argument.default_value for argument in defaults))
        forward_mode = may_have_tangents()
        if forward_mode:
            ctx.forward_mode = True
        setup_context(ctx, inputs, output)
        if forward_mode:
            ctx.save_for_forward(*(getattr(ctx, "to_save", None) or ()))
        return output

    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        gradients = formulas.backward(ctx, *grad_outputs)
        return (*gradients, None) if isinstance(gradients, tuple) else (gradients, None)

    # Inside a functorch transform a Function must be one of a single level.
    function: Any = _old_style_function(class_name, forward, backward, _SingleLevelFunction)
    function.jvp = staticmethod(formulas.jvp)
    apply = function.apply

    def kernel(keyset: Any, *inputs: Any) -> Any:
        needed = may_have_tangents() or (
            torch.is_grad_enabled()
            and any(
                inputs[position] is not None and inputs[position].requires_grad
                for position in differentiable
            )
        )
        if not needed:
            return below_autograd(keyset, inputs)
        if not _transforms_active():
            return apply(*inputs, keyset)
        with enable_single_level_autograd_function():
            return apply(*inputs, keyset)

    return kernel


def _full_function(class_name: str, formulas: type[Formulas], raw: Callable[..., Any]) -> Any:
    def forward(*inputs: Any) -> Any:
        return raw(*inputs)

    setup = _whole_setup(formulas)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.forward_mode = True
        setup(ctx, inputs, output)
        ctx.save_for_forward(*(getattr(ctx, "to_save", None) or ()))

    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        return _vmap_rule(formulas, full.router)(info, in_dims, *inputs)

    body = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(formulas.backward),
        "jvp": staticmethod(formulas.jvp),
        "vmap": staticmethod(vmap),
        "router": None,
    }
    full: Any = type(class_name, (torch.autograd.Function,), body)
    return full


def _vmap_rule(formulas: type[Formulas], route: Router) -> Callable[..., Any]:
    if formulas.vmap is not None:
        return formulas.vmap
    return partial(one_call_per_slice, route)


def one_call_per_slice(
    route: Router, info: Any, in_dims: Sequence[Any], *inputs: Any
) -> tuple[Any, Any]:
    """vmap rule of operators that have none of their own."""
    results = []
    for index in range(info.batch_size):
        slices = [
            value.select(dim, index) if isinstance(dim, int) else value
            for value, dim in zip(inputs, in_dims, strict=True)
        ]
        results.append(route(*slices))
    if isinstance(results[0], tuple):
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)
    return torch.stack(results), 0


def needed_inputs(ctx: Any) -> tuple[bool, ...]:
    """For `setup_context`: which inputs may be differentiated.

    `ctx.needs_input_grad` knows nothing of forward-mode tangents, so where they are possible (the
    full Function) every input counts.
    """
    needs: tuple[bool, ...] = ctx.needs_input_grad
    return (True,) * len(needs) if hasattr(ctx, "forward_mode") else needs


def batch_first(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor:
    """`tensor` with the vmapped dimension in front, expanded where it had none."""
    if dim is None:
        return tensor.expand(batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)
