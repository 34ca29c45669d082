"""The error of every algorithm of conv2d against float64, beside torch's own.

Inputs, gradients and weights are normally distributed. Errors are in units of what a sum of so many
products is large: the root mean square of one factor times the norm of the other, which is the
standard deviation of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from nnops import _C
from nnops.algorithms import CONV_PASSES, forced_algorithm

TORCH = "torch"
CHANNELS = (16, 64, 256, 512, 1024, 2048)
KERNELS = (3, 5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FILTERS = 32
# Pixels along an image's side: divisible by no tile.
SIZE = 19


@dataclass(frozen=True)
class Accuracy:
    """Errors of one algorithm on one problem."""

    conv_pass: str
    algorithm: str  # or TORCH
    dtype: str
    kernel: int
    channels: int  # that a sum goes over; in backward_weight those of the input
    largest: float
    mean: float
    rms: float

    @property
    def ulps(self) -> float:
        """The largest error in units in the last place of the result's standard deviation."""
        return self.largest / torch.finfo(getattr(torch, self.dtype)).eps


def accuracies(
    channels: tuple[int, ...] = CHANNELS, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> Iterator[Accuracy]:
    """One problem after the other: torch, then every algorithm that can compute it."""
    for conv_pass, op in CONV_PASSES.items():
        for dtype in dtypes:
            for kernel in KERNELS:
                for count in channels:
                    problem = _Problem(conv_pass, dtype, kernel, count)
                    yield problem.measure(TORCH, problem.torchs)
                    for algorithm in _C.algorithms()[op]:
                        # The reference sums one product after the other, far too slowly for this.
                        if algorithm == "reference":
                            continue
                        try:
                            with forced_algorithm(op, algorithm):
                                yield problem.measure(algorithm, problem.ours)
                        except RuntimeError as error:
                            if "the forced algorithm" not in str(error):
                                raise


class _Problem:
    """A pass with its operands, and the result in float64."""

    def __init__(self, conv_pass: str, dtype: torch.dtype, kernel: int, channels: int) -> None:
        self.conv_pass, self.dtype, self.kernel, self.channels = conv_pass, dtype, kernel, channels
        self.padding = kernel // 2
        generator = torch.Generator().manual_seed(channels)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator).to(dtype)

        if conv_pass == "backward_weight":
            # The sum goes over pixels; both images have the channels.
            self.operands = (normal(2, FILTERS, SIZE, SIZE), normal(2, channels, SIZE, SIZE))
        else:
            sizes = (FILTERS, channels) if conv_pass == "forward" else (channels, FILTERS)
            self.operands = (normal(1, channels, SIZE, SIZE), normal(*sizes, kernel, kernel))
        self.exact = self._direct(*(each.double() for each in self.operands))
        a, b = (each.double() for each in self.operands)
        terms = 2 * SIZE * SIZE if conv_pass == "backward_weight" else channels * kernel**2
        self.scale = float(a.square().mean().sqrt() * b.square().mean().sqrt()) * terms**0.5

    def _direct(self, a: Tensor, b: Tensor) -> Tensor:
        if self.conv_pass == "forward":
            return torch_functional.conv2d(a, b, padding=self.padding)
        if self.conv_pass == "backward_input":
            return torch_functional.conv_transpose2d(a, b, padding=self.padding)
        weight = a.new_empty(a.shape[1], b.shape[1], self.kernel, self.kernel)
        parameters = ([1, 1], [self.padding] * 2, [1, 1], False, [0, 0], 1)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            a, b, weight, None, *parameters, [False, True, False]
        )[1]
        return gradient

    def torchs(self) -> Tensor:
        return self._direct(*self.operands)

    def ours(self) -> Tensor:
        a, b = self.operands
        parameters = ([1, 1], [self.padding] * 2, [1, 1], 1)
        result: Tensor
        if self.conv_pass == "forward":
            result = torch.ops.nnops.conv2d(a, b, None, *parameters)
        elif self.conv_pass == "backward_input":
            result = torch.ops.nnops.conv2d_backward_input(a, b, a.shape[2:], *parameters)
        else:
            size = [self.kernel] * 2
            result = torch.ops.nnops.conv2d_backward_weight(a, b, size, *parameters)
        return result

    def measure(self, algorithm: str, function: Callable[[], Tensor]) -> Accuracy:
        error = (function() - self.exact).abs() / self.scale
        return Accuracy(
            self.conv_pass,
            algorithm,
            str(self.dtype).removeprefix("torch."),
            self.kernel,
            self.channels,
            float(error.max()),
            float(error.mean()),
            float(error.square().mean().sqrt()),
        )
