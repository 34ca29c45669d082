"""Convolutions with the ReLU and the max-pool that follow them, as one module.

Each is a `nnops.nn.Conv2d` with more behind it: the same parameters under the same names, so a
state_dict of the layers one by one loads, and the other way round.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from nnops.nn import _arguments, functional as F
from nnops.nn.conv import Conv2d, convolution_arguments


class ConvReLU2d(Conv2d):
    """ReLU behind a convolution: relu(conv2d(input)).

    Takes the arguments of torch.nn.Conv2d.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d_relu(*convolution_arguments(self, input), precision=self.precision)


class ConvMaxPool2d(Conv2d):
    """A max-pool behind a convolution: max_pool2d(conv2d(input)).

    Takes the arguments of torch.nn.Conv2d, those behind the third by name, and those of the pool:

    Args:
        pool_kernel_size: height and width of the window; one number stands for both, here and
            below.
        pool_stride: from one window to the next; None: `pool_kernel_size`.
        pool_padding: rows and columns around the convolution's output that no maximum comes from.
        pool_dilation: from one element of the window to the next; 1 means none.
        ceil_mode: let the last window hang over the end instead of leaving elements out.
    """

    # What stands in the pool's attributes too, for `extra_repr`.
    _pool_attributes: ClassVar[tuple[str, ...]] = (
        "pool_kernel_size",
        "pool_stride",
        "pool_padding",
        "pool_dilation",
        "ceil_mode",
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        pool_kernel_size: _arguments.IntOrPair,
        pool_stride: _arguments.IntOrPair | None = None,
        pool_padding: _arguments.IntOrPair = 0,
        pool_dilation: _arguments.IntOrPair = 1,
        ceil_mode: bool = False,
        **conv: Any,
    ) -> None:
        size = _arguments.pair("conv2d", "kernel_size", kernel_size)
        super().__init__(in_channels, out_channels, size, **conv)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.ceil_mode = ceil_mode

    def _pool(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._pool_attributes}

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d_max_pool2d(
            *convolution_arguments(self, input), precision=self.precision, **self._pool()
        )

    def extra_repr(self) -> str:
        pool = ", ".join(f"{name}={value}" for name, value in self._pool().items())
        conv = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{conv}, {pool}"


class ConvReLUMaxPool2d(ConvMaxPool2d):
    """ReLU and a max-pool behind a convolution: max_pool2d(relu(conv2d(input))).

    Takes the arguments of ConvMaxPool2d. A max-pool with a ReLU behind it gives the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d_relu_max_pool2d(
            *convolution_arguments(self, input), precision=self.precision, **self._pool()
        )
