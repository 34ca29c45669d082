"""How conv2d shares a problem over threads: `conv2d_partition`, behind `python -m nnops partition`.

The compiled algorithms tell, from the functions that cut their loops when they run: nothing is
computed, and no more cores are needed than there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnops.algorithms import _C, CONV_PASSES

Pair = int | tuple[int, int]


@dataclass(frozen=True)
class Phase:
    """A parallel loop; the threads wait for each other at its end."""

    name: str
    # The unit: products of the convolution, those with padding included; otherwise elements that
    # are copied or added.
    products: bool
    # Whether threads take the next task when they are free, rather than equal shares.
    dynamic: bool
    # Of each thread.
    work: tuple[int, ...]


@dataclass(frozen=True)
class Partition:
    """One call of one pass: which algorithm, how many threads, and what each of them does."""

    conv_pass: str
    algorithm: str
    asked: int
    # Fewer than asked where the problem is too small to pay for more.
    threads: int
    phases: tuple[Phase, ...]

    @property
    def products(self) -> int:
        """The terms of all sums, those with padding included: the same for any thread count."""
        return sum(sum(phase.work) for phase in self.phases if phase.products)

    @property
    def busy(self) -> int:
        """Threads that multiply in the phase that keeps most of them busy."""
        return max((sum(map(bool, each.work)) for each in self.phases if each.products), default=0)

    @property
    def imbalance(self) -> float:
        """Products of the busiest thread of each phase over the mean of all `threads`; at least 1.

        The time of the multiplications is this many times what it would be if all threads always
        had the same to do.
        """
        longest = sum(max(phase.work) for phase in self.phases if phase.products)
        return longest * self.threads / self.products if self.products else 1.0


def conv2d_partition(
    input: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    conv_pass: str = "forward",
    threads: int,
) -> Partition:
    """How a call of nnops's conv2d would be shared by so many threads, without calling it.

    Sizes, strides and dtypes of the tensors count, not what is in them: tensors on the meta device
    will do. `nnops.conv_algorithm` and
    `nnops.set_autotune` are respected. A dynamic schedule is played with threads of equal
    speed.

    Args:
        input: images [N, C, H, W], floating or integer.
        weight: [OC, C / groups, KH, KW], of the same dtype.
        stride: as in torch.nn.functional.conv2d, like all that follow.
        padding: numbers only.
        dilation: number or (height, width).
        groups: divides C and OC.
        conv_pass: forward, backward_input or backward_weight.
        threads: what torch.set_num_threads would be given.

    Raises:
        ValueError: for an unknown pass, or no threads.
        RuntimeError: for sizes that do not fit.
    """
    if conv_pass not in CONV_PASSES:
        raise ValueError(
            f"conv2d_partition: conv_pass must be one of {', '.join(CONV_PASSES)}, "
            f"but got {conv_pass!r}"
        )
    lists = (_pair(stride), _pair(padding), _pair(dilation))
    parameters = (*lists, groups)
    input, weight = (
        torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="meta")
        for each in (input, weight)
    )
    ops = torch.ops.nnops
    output = ops.conv2d(input, weight, None, *parameters)
    # The gradient that a pass writes, as its call would lay it out.
    if conv_pass == "backward_input":
        input = ops.conv2d_backward_input(output, weight, input.shape[2:], *parameters)
    elif conv_pass == "backward_weight":
        weight = ops.conv2d_backward_weight(output, input, weight.shape[2:], *parameters)
    algorithm, used, phases = _C.conv2d_partition(
        _C.Conv2dProblem(
            CONV_PASSES[conv_pass],
            _layout(input),
            _layout(weight),
            _layout(output),
            *lists,
            groups,
            str(input.dtype).removeprefix("torch."),
        ),
        threads,
    )
    return Partition(
        conv_pass,
        algorithm,
        threads,
        used,
        tuple(
            Phase(name, products, dynamic, tuple(work)) for name, products, dynamic, work in phases
        ),
    )


def _pair(value: Pair) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _layout(tensor: Tensor) -> tuple[list[int], list[int]]:
    return list(tensor.shape), list(tensor.stride())
