"""How exact conv2d is: `nnops.set_conv_precision`, `nnops.conv_precision`.

A direct sum of N products in float32 has an error of its own. Winograd's forms need 2 to 4 times
fewer products and round at other places, so their error is another one. Two settings say which
algorithms may run:

    "highest"   direct sums, and F(2x2, 3x3), whose error is that of a direct sum
    "high"      also F(4x4, 3x3) and F(2x2, 5x5), the forms of six points: the default

On CUDA "high" also lets float32 run in TF32 where torch.backends.cudnn.conv.fp32_precision is
'tf32', as torch's convolutions do; "highest" does not. What follows is about Winograd's forms.

The bound of "high", against float64: for inputs and weights without preferred sign, 1.5e-6 of the
output's standard deviation in the mean square and 1e-5 at an element, which one in a million may
exceed by a quarter, for sums over up to 2048 channels (longer ones are computed directly). A direct
sum has about 3e-7 and 2e-6 there. The error goes with the largest numbers of a tile of 6x6 pixels,
not with those that an output reads: a pixel a million times as large as its neighbours costs these
six digits, where a direct sum keeps them. An image with numbers that are not finite, or so large
that a transform is not, is computed directly: what is NaN or infinite is so where torch has it.

A call can say otherwise than the process, and its gradients then go with it:
`F.conv2d(..., precision="highest")`, or the attribute `precision` of a module.

float64 is always computed directly, and results of either setting have the same bits for any
number of threads, any batch around an image, and every run, as long as autotuning is off
(nnops/tuning.py). They have the same bits with AVX2 and AVX-512 too, but for bfloat16 on CPUs with
AVX512_BF16: there `pair_rows` and `pair_products` add two products at a time, in float32 as the
others do, but take subnormal numbers for zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nnops import _library

_C = _library._C

# Names to what the operators take; their default, 0, is what is set for the process.
CONV_PRECISIONS = {"highest": 1, "high": 2}


def set_conv_precision(precision: str) -> None:
    """Sets how exact conv2d's sums must be, in this process.

    The environment variable NNOPS_CONV_PRECISION sets it at the start.

    Args:
        precision: "highest" or "high".

    Raises:
        ValueError: for another name.
    """
    _C.set_conv_precision(precision)


@contextmanager
def conv_precision(precision: str) -> Iterator[None]:
    """Sets it while the context lasts, for all threads: backward passes run in threads of torch's.

    Args:
        precision: "highest" or "high".

    Raises:
        ValueError: for another name.
    """
    before = _C.conv_precision()
    _C.set_conv_precision(precision)
    try:
        yield
    finally:
        _C.set_conv_precision(before)
