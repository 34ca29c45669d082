"""What the operator database is made of: cases, samples and the maker of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Sample:
    """One valid call: function(*args, **kwargs). Tensors that need a gradient say so."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorSample:
    """One call that must raise `error`, with a message that matches the regex `match`."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: type[Exception]
    match: str
    # Whether torch raises the same class; where it does not, why is said in `differs`.
    differs: str = ""


class Maker:
    """Makes the tensors of samples: reproducible, on one device, of one dtype.

    Each kind of device draws numbers of its own.
    """

    def __init__(
        self, dtype: torch.dtype, device: str = "cpu", seed: int = 0, requires_grad: bool = False
    ) -> None:
        self.dtype = dtype
        self.requires_grad = requires_grad and dtype.is_floating_point
        self._random: dict[str, Any] = {
            "generator": torch.Generator(device).manual_seed(seed),
            "device": torch.device(device),
        }

    def tensor(
        self, *shape: int, low: float = -2.0, high: float = 2.0, grad: bool = True
    ) -> Tensor:
        """Uniform in [low, high); whole numbers in [2 low, 2 high] for integer dtypes."""
        if self.dtype.is_floating_point:
            uniform = torch.rand(shape, dtype=torch.float64, **self._random)
            values = uniform * (high - low) + low
        else:
            lowest = 0 if self.dtype == torch.uint8 else int(2 * low)
            values = torch.randint(lowest, int(2 * high) + 1, shape, **self._random).double()
        result = values.to(self.dtype)
        return result.requires_grad_(self.requires_grad and grad)

    def image(self, *shape: int, layout: str = "NCHW", grad: bool = True) -> Tensor:
        """A tensor of [N, C, H, W], "NCHW" or "channels_last" in memory."""
        image = self.tensor(*shape, grad=False)
        if layout == "channels_last":
            image = image.contiguous(memory_format=torch.channels_last)
        return image.requires_grad_(self.requires_grad and grad)

    def integer_valued(self, *shape: int, magnitude: int = 3, grad: bool = True) -> Tensor:
        """Small whole numbers in any dtype: sums of products of them are exact, ties abound."""
        low = 0 if self.dtype == torch.uint8 else -magnitude
        values = torch.randint(low, magnitude + 1, shape, **self._random)
        result = values.to(self.dtype)
        return result.requires_grad_(self.requires_grad and grad)

    def distinct(self, *shape: int, grad: bool = True) -> Tensor:
        """All values different and far apart: finite differences never change a maximum."""
        count = 1
        for size in shape:
            count *= size
        values = torch.randperm(count, **self._random).double().reshape(shape)
        result = ((values - count / 2) * (8 / max(count, 1))).to(self.dtype)
        return result.requires_grad_(self.requires_grad and grad)

    def indices(self, *shape: int, high: int) -> Tensor:
        """int64 in [0, high)."""
        return torch.randint(high, shape, **self._random)


@dataclass(frozen=True)
class Work:
    """What a call cannot avoid: operations, and bytes read and written if each moves once.

    flops counts two for a multiply-add; exponentials and logarithms count as one.
    """

    flops: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.read + other.read, self.written + other.written)


NO_WORK = Work(0, 0, 0)

# The kernel class of samples that measure the price of a call, not the work in it.
OVERHEAD = "overhead"

LAYOUTS = ("NCHW", "channels_last")
# The shapes that the goals are about; an operator may have more lists, which are timed on request.
DEFAULT_LIST = "goals"


@dataclass(frozen=True)
class BenchmarkSample:
    """One call worth timing. Nothing is allocated before `build` is called.

    Tensors that need a gradient in training (not targets, nor the images of a first layer) get one
    when the maker says so.
    """

    name: str
    # Which of the operator's kernels this is for: goals are set per class.
    kernel_class: str
    build: Callable[[Maker], Sample]
    # One of LAYOUTS, or "" where there is no choice.
    layout: str = ""
    # The list of shapes that it belongs to.
    shape_list: str = DEFAULT_LIST


@dataclass(frozen=True)
class OpCase:
    """One function of nnops.nn.functional, held against torch.nn.functional's of the same name.

    An operator that torch does not have names its `function`, and its `reference` in torch code.
    """

    name: str
    # Names under torch.ops.nnops that its forward, backward and double backward reach.
    operators: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    samples: Callable[[Maker], Iterator[Sample]]
    # Small samples, smooth at their inputs, for gradcheck and gradgradcheck in float64.
    gradcheck_samples: Callable[[Maker], Iterator[Sample]]
    error_samples: Callable[[], Iterator[ErrorSample]]
    # The result must equal torch's bit for bit (selection, not arithmetic).
    exact: bool = False
    # What float32 results of benchmark samples may be off by, in units of the largest one.
    error_share: float = 0.0
    function: Callable[..., Any] | None = None
    reference: Callable[..., Any] | None = None
    # For benchmarks: the calls to time, and the work of one forward and one backward pass, the
    # latter for those tensors of the sample that need a gradient.
    benchmark_samples: tuple[BenchmarkSample, ...] = ()
    forward_work: Callable[[Sample], Work] = lambda sample: NO_WORK
    backward_work: Callable[[Sample], Work] = lambda sample: NO_WORK
    # Names of the leading arguments whose gradients are operators of their own, to be timed apart.
    backward_parts: tuple[str, ...] = ()

    @property
    def our_function(self) -> Callable[..., Any]:
        import nnops.nn.functional as functional

        function: Callable[..., Any] = self.function or getattr(functional, self.name)
        return function

    @property
    def torch_function(self) -> Callable[..., Any]:
        reference: Callable[..., Any] = self.reference or getattr(torch.nn.functional, self.name)
        return reference

    def ours(self, sample: Sample) -> Any:
        return self.our_function(*sample.args, **sample.kwargs)

    def torchs(self, sample: Sample) -> Any:
        return self.torch_function(*sample.args, **sample.kwargs)


def map_tensors(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    """A copy of `sample` with `change` applied to each of its tensors."""

    def convert(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    return Sample(
        sample.name,
        tuple(convert(value) for value in sample.args),
        {key: convert(value) for key, value in sample.kwargs.items()},
    )


def tensors_of(sample: Sample) -> list[Tensor]:
    values = [*sample.args, *sample.kwargs.values()]
    return [value for value in values if isinstance(value, Tensor)]


def detached(sample: Sample, dtype: torch.dtype | None = None, device: str | None = None) -> Sample:
    """A copy whose tensors are leaves of their own; floating ones are cast to `dtype`.

    The strides stay, gaps included; only an expanded tensor is packed. The copies lie on `device`,
    where it is given.
    """

    def change(tensor: Tensor) -> Tensor:
        cast = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
        place = tensor.device if device is None else device
        expanded = any(
            size > 1 and stride == 0
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        if expanded:
            copy = tensor.detach().to(place, cast, copy=True)
        else:
            copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=cast, device=place)
            copy.copy_(tensor.detach())
        return copy.requires_grad_(tensor.requires_grad)

    return map_tensors(sample, change)


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
