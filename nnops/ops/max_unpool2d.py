"""max_unpool2d: planes[index] = value; and the pair of adjoints that work on such indices.

max_pool2d_with_indices_backward adds values up into planes at the indices, max_unpool2d_backward
reads planes at the indices: both are linear and each is the other's adjoint. max_unpool2d differs
from the first only where indices repeat; its gradient goes to all of the equal ones, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nnops.ops._images import call_with_folded_batch, empty_resized
from nnops.ops._operator import Formulas, mount


class MaxUnpool2d(Formulas):
    """(input, indices, output_size) -> planes"""

    name = "max_unpool2d"
    differentiable = (0,)

    @staticmethod
    def fake(input: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
        return empty_resized(input, output_size[0], output_size[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, indices, ctx.output_size = inputs
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_unpool2d_backward(grad_outputs[0], indices), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_unpool2d(tangents[0], indices, ctx.output_size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_unpool2d, 2, info, in_dims, inputs)


class MaxUnpool2dBackward(Formulas):
    """(grad_output, indices) -> grad_input"""

    name = "max_unpool2d_backward"
    differentiable = (0,)

    @staticmethod
    def fake(grad_output: Tensor, indices: Tensor) -> Tensor:
        return empty_resized(indices, indices.shape[-2], indices.shape[-1], grad_output.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, indices = inputs
        ctx.plane_size = tuple(grad_output.shape[-2:])
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_pool2d_with_indices_backward(grad_outputs[0], indices, ctx.plane_size), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_unpool2d_backward(tangents[0], indices)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_unpool2d_backward, 2, info, in_dims, inputs)


class MaxPool2dWithIndicesBackward(Formulas):
    """(grad_output, indices, input_size) -> grad_input"""

    name = "max_pool2d_with_indices_backward"
    differentiable = (0,)

    @staticmethod
    def fake(grad_output: Tensor, indices: Tensor, input_size: Sequence[int]) -> Tensor:
        return empty_resized(indices, input_size[0], input_size[1], grad_output.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, indices, ctx.input_size = inputs
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_unpool2d_backward(grad_outputs[0], indices), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return max_pool2d_with_indices_backward(tangents[0], indices, ctx.input_size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return call_with_folded_batch(max_pool2d_with_indices_backward, 2, info, in_dims, inputs)


max_unpool2d = mount(MaxUnpool2d)
max_unpool2d_backward = mount(MaxUnpool2dBackward)
max_pool2d_with_indices_backward = mount(MaxPool2dWithIndicesBackward)
