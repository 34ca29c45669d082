"""torch.nn.functional with nnops's operators in place of torch's.

`import nnops.nn.functional as F` serves every name of torch.nn.functional: the functions below are
nnops's, with torch's signatures, defaults and warnings; every other name is torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as _torch_functional
from torch import Tensor

from nnops.nn import _arguments, _autocast
from nnops.nn._classification_losses import (
    cross_entropy as cross_entropy,
    nll_loss as nll_loss,
)
from nnops.nn._pointwise_losses import (
    binary_cross_entropy as binary_cross_entropy,
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    huber_loss as huber_loss,
    kl_div as kl_div,
    l1_loss as l1_loss,
    mse_loss as mse_loss,
    smooth_l1_loss as smooth_l1_loss,
)
from nnops.ops import (
    conv2d as _conv2d,
    fused_conv2d as _fused_conv2d,
    linear as _linear,
    max_pool2d as _max_pool2d,
    max_unpool2d as _max_unpool2d,
    relu as _relu,
)
from nnops.precision import CONV_PRECISIONS

# `from nnops.nn.functional import *` gives every name that torch's gives.
__all__ = [name for name in dir(_torch_functional) if name[0] != "_"]


def __getattr__(name: str) -> Any:
    return getattr(_torch_functional, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), element by element; NaN stays NaN.

    Args:
        input (Tensor[*]): any shape and strides; floating or integer dtype.
        inplace: write the result over `input` and return it.

    Returns:
        Tensor[*]: same shape, dtype and dimension order as `input`.

    Raises:
        NotImplementedError: for bool and complex dtypes.

    Source: torch.nn.functional.relu.
    """
    if not isinstance(input, Tensor):
        _arguments.check_tensor("relu", "input", input)
    result: Tensor = _relu.relu_(input) if inplace else _relu.pass_positive(input)
    return result


def relu_(input: Tensor) -> Tensor:
    """relu(input, inplace=True)."""
    return relu(input, inplace=True)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _arguments.IntOrPair = 1,
    padding: str | _arguments.IntOrPair = 0,
    dilation: _arguments.IntOrPair = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Cross-correlates a batch of images with a bank of filters.

    output[n, o, y, x] = bias[o] + sum over c, i, j of weight[o, c, i, j]
        * input[n, c, y * stride + i * dilation - padding, x * stride + j * dilation - padding]

    Args:
        input (Tensor[N, C_in, H, W] or Tensor[C_in, H, W]): float32, float64, bfloat16, float16 or
            an integer dtype; contiguous, channels_last or any other strides.
        weight (Tensor[C_out, C_in / groups, K_h, K_w]): same dtype.
        bias (Tensor[C_out]): same dtype, or None.
        stride: pixels from one output to the next, one number or (height, width).
        padding: pixels of zeros on each side, one number or (height, width); 'valid' is none,
            'same' keeps the size (stride 1 only; an odd total puts the extra row or column at the
            bottom or right).
        dilation: pixels from one tap of the filter to the next; 1 is dense.
        groups: channels are split into this many groups that do not see each other.
        precision: how exact the sums must be, here and in the gradients: "highest" or "high"; None
            is what `nnops.set_conv_precision` set.

    Returns:
        Tensor[N, C_out, H_out, W_out] (or without N), channels_last if input or weight is.
        H_out = floor((H + 2 padding - dilation (K_h - 1) - 1) / stride) + 1, W_out alike.
        bfloat16 and float16 accumulate in float32; integers wrap around. On CUDA, operands of
        float32 are rounded to TF32 (10 bits of mantissa) while torch's switch
        torch.backends.cudnn.conv.fp32_precision is 'tf32', which is torch's default; sums stay
        in float32.

    Raises:
        RuntimeError: for sizes, strides, paddings, dilations or groups that do not fit.
        TypeError: for arguments of a wrong type.
        ValueError: for another precision.
        NotImplementedError: for bool and complex dtypes.

    Differences from torch: an input with zero channels raises RuntimeError.

    Source: torch.nn.functional.conv2d.
    """
    if _autocast.is_on():
        input, weight, bias = _autocast.lowered(input, weight, bias)
    numbers = _convolution("conv2d", input, weight, bias, stride, padding, dilation, groups)
    output: Tensor
    if input.dim() == 3:
        output = _conv2d.conv2d(input.unsqueeze(0), *numbers, *_precision(precision)).squeeze(0)
    else:
        output = _conv2d.conv2d(input, *numbers, *_precision(precision))
    return output


def _convolution(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _arguments.IntOrPair,
    padding: str | _arguments.IntOrPair,
    dilation: _arguments.IntOrPair,
    groups: int,
) -> tuple[Any, ...]:
    """The operator's arguments behind `input`, up to `groups`."""
    if not isinstance(input, Tensor):
        _arguments.check_tensor(op, "input", input)
    if not isinstance(weight, Tensor):
        _arguments.check_tensor(op, "weight", weight)
    if not (bias is None or isinstance(bias, Tensor)):
        _arguments.check_tensor(op, "bias", bias)
    strides = _arguments.pair(op, "stride", stride)
    dilations = _arguments.pair(op, "dilation", dilation)
    paddings: tuple[int, ...]
    if isinstance(padding, str):
        paddings = _named_padding(padding, weight, strides, dilations)
    else:
        paddings = _arguments.pair(op, "padding", padding)
    group_count = _arguments.whole_number(op, "groups", groups)
    return weight, bias, strides, paddings, dilations, group_count


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _arguments.IntOrPair = 1,
    padding: str | _arguments.IntOrPair = 0,
    dilation: _arguments.IntOrPair = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """relu(conv2d(...)) in one go, bit for bit: the ReLU goes over the output in the cache.

    Takes, returns and raises what `conv2d` does. Backward keeps the output and what conv2d keeps.

    Source: torch.nn.functional.conv2d and relu.
    """
    if _autocast.is_on():
        input, weight, bias = _autocast.lowered(input, weight, bias)
    numbers = _convolution("conv2d_relu", input, weight, bias, stride, padding, dilation, groups)
    output: Tensor
    if input.dim() == 3:
        output = _fused_conv2d.conv2d_relu(
            input.unsqueeze(0), *numbers, *_precision(precision)
        ).squeeze(0)
    else:
        output = _fused_conv2d.conv2d_relu(input, *numbers, *_precision(precision))
    return output


def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _arguments.IntOrPair = 1,
    padding: str | _arguments.IntOrPair = 0,
    dilation: _arguments.IntOrPair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: _arguments.IntOrPair,
    pool_stride: _arguments.IntOrPair | None = None,
    pool_padding: _arguments.IntOrPair = 0,
    pool_dilation: _arguments.IntOrPair = 1,
    ceil_mode: bool = False,
    precision: str | None = None,
) -> Tensor:
    """max_pool2d(conv2d(...)) in one go, bit for bit, without the convolution's output.

    A few images, or rows of one, are convolved at a time and pooled while they are in the cache.
    Backward keeps what conv2d keeps and one byte an element of the result.

    Args:
        input (Tensor[N, C_in, H, W] or Tensor[C_in, H, W]): as for `conv2d`, like all arguments
            up to `groups` and `precision`.
        pool_kernel_size: height and width of the pool's window; one number stands for both, here
            and below.
        pool_stride: from one window to the next; None: `pool_kernel_size`.
        pool_padding: rows and columns around the convolution's output that no maximum comes from,
            at most half of `pool_kernel_size`.
        pool_dilation: from one element of the window to the next; 1 means none.
        ceil_mode: let the last window hang over the end instead of leaving elements out.

    Returns:
        Tensor[N, C_out, OH, OW] (or without N): the sizes of `max_pool2d` behind `conv2d`,
        channels_last if input or weight is.

    Raises:
        RuntimeError, TypeError, ValueError, NotImplementedError: as conv2d and max_pool2d.

    Differences from torch: those of the two functions.

    Source: torch.nn.functional.conv2d and max_pool2d.
    """
    return _convolve_and_pool(
        "conv2d_max_pool2d",
        False,
        input,
        (weight, bias, stride, padding, dilation, groups),
        (pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode),
        precision,
    )


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _arguments.IntOrPair = 1,
    padding: str | _arguments.IntOrPair = 0,
    dilation: _arguments.IntOrPair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: _arguments.IntOrPair,
    pool_stride: _arguments.IntOrPair | None = None,
    pool_padding: _arguments.IntOrPair = 0,
    pool_dilation: _arguments.IntOrPair = 1,
    ceil_mode: bool = False,
    precision: str | None = None,
) -> Tensor:
    """max_pool2d(relu(conv2d(...))) in one go: `conv2d_max_pool2d` with a ReLU between.

    The byte that backward keeps of an element also says whether the ReLU let it pass.

    Source: torch.nn.functional.conv2d, relu and max_pool2d.
    """
    return _convolve_and_pool(
        "conv2d_relu_max_pool2d",
        True,
        input,
        (weight, bias, stride, padding, dilation, groups),
        (pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode),
        precision,
    )


def _convolve_and_pool(
    op: str,
    rectify: bool,
    input: Tensor,
    convolution: tuple[Any, ...],
    window: tuple[Any, ...],
    precision: str | None,
) -> Tensor:
    if _autocast.is_on():
        input, *filters = _autocast.lowered(input, *convolution[:2])
        convolution = (*filters, *convolution[2:])
    numbers = _convolution(op, input, *convolution)
    windows = _window(op, *window)
    batched = input.dim() != 3
    output = _fused_conv2d.convolve_and_pool(
        input if batched else input.unsqueeze(0),
        *numbers,
        rectify,
        *windows,
        *_precision(precision),
    )
    # torch pools a single image to row-major order, whatever its own.
    return output if batched else output.squeeze(0).contiguous()


def _precision(precision: str | None) -> tuple[int, ...]:
    """The operator's last argument; its default is what is set for the process."""
    return () if precision is None else (_precision_code(precision),)


def _precision_code(precision: str) -> int:
    if precision not in CONV_PRECISIONS:
        raise ValueError(
            f"nnops::conv2d: precision must be 'highest' or 'high', but got {precision!r}"
        )
    return CONV_PRECISIONS[precision]


def _named_padding(
    padding: str, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, ...]:
    """(height, width), or (top, bottom, left, right), of padding 'valid' or 'same'."""
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise RuntimeError(
            f"nnops::conv2d: padding must be 'valid', 'same' or numbers, but got {padding!r}"
        )
    if stride != (1, 1):
        raise RuntimeError(f"nnops::conv2d: padding='same' needs stride 1, but got stride={stride}")
    if weight.dim() != 4:
        return 0, 0  # the operator rejects such a weight
    total = [dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1)]
    top, left = total[0] // 2, total[1] // 2
    return top, total[0] - top, left, total[1] - left


def max_pool2d(
    input: Tensor,
    kernel_size: _arguments.IntOrPair,
    stride: _arguments.IntOrPair | None = None,
    padding: _arguments.IntOrPair = 0,
    dilation: _arguments.IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of each plane.

    The first of equal maxima counts; NaN is larger than everything.

    Args:
        input (Tensor[N, C, H, W] or Tensor[C, H, W]): floating or integer dtype, any strides; N
            may be 0.
        kernel_size: height and width of the window; one number stands for both, here and below.
        stride: from one window to the next; None: `kernel_size`.
        padding: rows and columns around the input that no maximum comes from, at most half of
            `kernel_size`.
        dilation: from one element of the window to the next; 1 means none.
        ceil_mode: let the last window hang over the end instead of leaving elements out.
        return_indices: also return the place of each maximum.

    Returns:
        Tensor[N, C, OH, OW] of the input's dtype, or a pair of it and an int64 tensor of the same
        sizes with the places h * W + w. Both are channels_last where `input` is.

    Raises:
        RuntimeError: for sizes out of range or a window that does not fit.
        NotImplementedError: for bool and complex dtypes.
        TypeError: for arguments of the wrong type.

    Differences from torch: a window that dilation and padding leave without any element has the
    index -1, where torch has the place at which it would begin; it has no gradient. Backward
    keeps one byte an output element (for windows of at most 255 elements) and not the input.

    Source: torch.nn.functional.max_pool2d.
    """
    _arguments.check_tensor("max_pool2d", "input", input)
    window = _window("max_pool2d", kernel_size, stride, padding, dilation, ceil_mode)
    if return_indices:
        pooled: tuple[Tensor, Tensor] = _max_pool2d.max_pool2d_with_indices(input, *window)
        return pooled
    return _max_pool2d.pool(input, *window)


def _window(
    op: str,
    kernel_size: _arguments.IntOrPair,
    stride: _arguments.IntOrPair | None,
    padding: _arguments.IntOrPair,
    dilation: _arguments.IntOrPair,
    ceil_mode: bool,
) -> tuple[Any, ...]:
    """The pooling operators' arguments behind `input`."""
    _arguments.check_bool(op, "ceil_mode", ceil_mode)
    kernel = _arguments.pair(op, "kernel_size", kernel_size)
    step = kernel
    if stride is not None and stride != [] and stride != ():
        step = _arguments.pair(op, "stride", stride)
    pad = _arguments.pair(op, "padding", padding)
    gap = _arguments.pair(op, "dilation", dilation)
    return kernel, step, pad, gap, ceil_mode


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: _arguments.IntOrPair,
    stride: _arguments.IntOrPair | None = None,
    padding: _arguments.IntOrPair = 0,
    dilation: _arguments.IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """max_pool2d(..., return_indices=True), whatever `return_indices` says, as in torch."""
    output, indices = max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True)
    return output, indices


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: _arguments.IntOrPair,
    stride: _arguments.IntOrPair | None = None,
    padding: _arguments.IntOrPair = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts pooled values back to where they were the maxima; zero elsewhere.

    Args:
        input (Tensor[N, C, H, W] or Tensor[C, H, W]): floating dtype, any strides; the first
            dimension may be 0.
        indices (Tensor like input): int64, the places h * OW + w that max_pool2d returned.
        kernel_size: of the pooling; one number stands for height and width, here and below.
        stride: of the pooling; None: `kernel_size`.
        padding: of the pooling.
        output_size: (OH, OW), or the whole size with (N, C) in front; it may differ from
            ((H - 1) * stride + kernel_size - 2 * padding) by less than the stride.

    Returns:
        Tensor[N, C, OH, OW]: of the input's dtype, channels_last where `input` is. Of equal
        indices the last in row-major order counts.

    Raises:
        RuntimeError: for an index outside of its plane, for indices of another size or dtype.
        ValueError: for an `output_size` that does not belong to the pooling.
        NotImplementedError: for dtypes that are not floating.
        TypeError: for arguments of the wrong type.
        IndexError: for a pair that is not one.

    Differences from torch: the result is the same in every run, also where indices repeat, so it
    is allowed under torch.use_deterministic_algorithms; `stride` and `padding` must not have more
    than two elements.

    Source: torch.nn.functional.max_unpool2d.
    """
    _arguments.check_tensor("max_unpool2d", "input", input)
    _arguments.check_tensor("max_unpool2d", "indices", indices)
    if _autocast.is_on() and input.device.type == "cpu":
        (input,) = _autocast.in_float32(input)
    size = _arguments.unpool_output_size(input, kernel_size, stride, padding, output_size)
    result: Tensor = _max_unpool2d.max_unpool2d(input, indices, size)
    return result


# torch.fx records a call of one of these on a proxy as one node, as it does with torch's functions.
for _name, _value in list(globals().items()):
    if isinstance(_value, FunctionType) and _name[0] != "_":
        torch.fx.wrap(_name)


# Below the loop: in a trace it is torch's linear, which it would choose there anyway.
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias: nnops's for a few rows of input, else torch's.

    With at most 32 rows, on the CPU, and a contiguous weight of 2^18 elements or more, nnops reads
    the weight once and writes its gradient, from 4 MB on, into huge pages. With more rows, a
    smaller weight, other dimensions, layouts and subclasses, in traces, under torch.compile,
    torch.func, forward-mode AD, autocast and dispatch modes it is torch's matrix product, which
    nnops has none of its own for.

    Args:
        input (Tensor[N, I] | Tensor[*, I]): rows; strided floating tensors for nnops's own.
        weight (Tensor[O, I]).
        bias (Tensor[O]).

    Returns:
        Tensor[N, O] | Tensor[*, O].

    Raises:
        What torch.nn.functional.linear raises.

    Differences from torch:
        A row's numbers do not depend on the other rows as long as there are at most 32.
        torch.autograd.grad by the input alone computes the gradient of a weight that requires one
        too.

    Source: torch.nn.functional.linear.
    """
    output: Tensor
    if _linear.applies(input, weight, bias) and not _autocast.is_on():
        output = _linear.linear(input, weight, bias)
    else:
        output = _torch_functional.linear(input, weight, bias)
    return output
