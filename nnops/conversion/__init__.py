"""convert(): a model of torch.nn layers becomes one of nnops.nn layers, fused where that is exact.

* `_exchange`: layers change class, in place or in a new tree of modules;
* `_trace`: a forward as a graph, with all that the graph takes for granted;
* `_plan`: finds convolutions and what follows them, and writes a forward that fuses them;
* `_chains`: what a written forward calls;
* `_fused`: the derived class through which a module runs a written forward;
* `_report`: what was done with which layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from nnops.conversion._exchange import convertible, exchange, our_classes
from nnops.conversion._fused import fuse as _fuse
from nnops.conversion._plan import Plan, Planner
from nnops.conversion._report import ConversionReport, report


def convert(model: Module, fuse: bool = True, inplace: bool = False) -> Module:
    """The model with nnops's layers in place of torch.nn's.

    Parameters and buffers are shared with `model`, not copied: an optimizer made before trains
    both, and state_dict keys stay. Hooks fire on both; those registered or removed later concern
    the one model they are called on. A layer used in several places stays one layer. Layers whose
    type is not exactly torch.nn's (subclasses, parametrized, lazy, quantised) and compiled or
    scripted parts are left alone: convert first, then compile.

    With `fuse`, a convolution runs in one call with the ReLU and the max-pool behind it, bit for
    bit as the layers one by one, wherever they follow each other in a Sequential or in a forward
    that torch.fx can read; functions that nnops has, such as torch.relu, are nnops's there. A
    BatchNorm2d behind the convolution is folded into it in calls in eval mode in which nothing is
    differentiated, and only in them. All layers keep their place and work on their own as before:
    it is the forward of the module around them that changes. A module with such a forward gets a
    class derived from its own; where the written forward does not apply (other arguments than
    tensors, attributes that changed, a layer that was replaced or has hooks), the layers run one by
    one.

    While it reads forwards, torch.fx watches the calls of all modules of the process: no model may
    run in another thread meanwhile. What a forward reads from global variables is taken to stay.

    Folded weights are computed again when a parameter, a running statistic or `eps` is another or
    was written to, and let go by a call in training mode. Writes through `.data` into the memory of
    a tensor leave no trace in torch: they count from the next other change on.

    Args:
        model: any module, also a single layer.
        fuse: allow neighbouring layers to run as one, and nnops's functions in place of torch's in
            a forward; without it layers change and nothing else does.
        inplace: change the classes of the modules of `model` and return `model`, instead of
            returning a new tree of modules and leaving `model` as it is.

    Returns:
        The converted model. `nnops.conversion_report` says what was done.

    Raises:
        TypeError: if `model` is not a module.
    """
    counterparts = {theirs: ours for ours, theirs in our_classes().items()}
    converted = exchange("convert", model, counterparts, inplace)
    if fuse:
        planner = Planner()
        plans = {
            module: found
            for module in convertible(converted)
            if isinstance(found := planner.plan(module), Plan) and found.variants
        }
        # Only now: every plan was made of modules with classes of their own.
        for module, found in plans.items():
            _fuse(module, found)
    return converted


def conversion_report(
    model: Module, example: Tensor | tuple[Any, ...] | None = None
) -> ConversionReport:
    """What `convert` does with each layer of a model, and why it leaves others.

    Args:
        model: a model, converted or not.
        example: an input of the model, or a tuple of its arguments. The model is called with it, in
            eval mode, to learn how large the maps are, and the report then says how many bytes an
            image need not be kept for backward: the map in front of each fused max-pool, less one
            byte for each pooled element.

    Returns:
        ConversionReport: `rows` as data; printed, a table.
    """
    plain = convert(model, fuse=False)
    return report(plain, None if example is None else convert(model), example)


def revert(model: Module, inplace: bool = False) -> Module:
    """The model with torch.nn's layers in place of nnops's: undoes `convert`, likewise sharing."""
    return exchange("revert", model, our_classes(), inplace)


__all__ = ["ConversionReport", "conversion_report", "convert", "revert"]
