"""The algorithms of max_pool2d compute the same bits; each problem gets the one meant for it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nnops import _C
from nnops.algorithms import forced_algorithm

ops = torch.ops.nnops

about_the_cpu = pytest.mark.skipif(
    _C.available_isas() == ["cuda"], reason="names algorithms of the CPU"
)

Window = tuple[list[int], list[int], list[int], list[int]]


def window(kernel: int, stride: int, pad: int = 0, dilation: int = 1) -> Window:
    return [kernel] * 2, [stride] * 2, [pad] * 2, [dilation] * 2


# Kernels with code of their own, kernels without, windows that overlap, tile and leave gaps.
WINDOWS = (
    window(2, 2),
    window(2, 2, 1),
    window(3, 2),
    window(3, 2, 1),
    window(3, 1, 1),
    window(5, 2, 2),
    window(4, 1, 2),
    window(2, 3),
    window(2, 2, 0, 2),
    ([3, 2], [1, 2], [1, 0], [2, 1]),
)
# Around the widths of all vectors; one and two columns; odd and even heights.
SIZES = (
    *((1, 5, 6), (3, 8, 9), (5, 13, 13), (4, 6, 18), (6, 7, 33), (20, 9, 36), (37, 6, 70)),
    # Several rows in a vector.
    *((2, 35, 4), (4, 34, 4), (3, 17, 8), (5, 9, 16), (33, 8, 8)),
)


def image_of_ties(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    image = torch.randint(-3, 4, (2, *shape)).to(dtype)
    return image.to(memory_format=torch.channels_last) if channels_last else image


def awkward_image(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Many ties, both zeros, infinities and NaN."""
    image = torch.randint(-3, 4, (2, *shape)).to(dtype)
    special = torch.rand_like(image, dtype=torch.float32)
    image[special < 0.05] = float("nan")
    image[(special >= 0.05) & (special < 0.15)] = -float("inf")
    image[(special >= 0.15) & (special < 0.2)] = -0.0
    return image.to(memory_format=torch.channels_last) if channels_last else image


def same_bits(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(0.5).view(integer), b.nan_to_num(0.5).view(integer)
    )


FORMS = ("max_pool2d", "max_pool2d_with_offsets", "max_pool2d_with_indices")


def outputs(form: str, image: Tensor, arguments: Window, ceil_mode: bool) -> tuple[Tensor, ...]:
    result: Any = getattr(ops, form)(image, *arguments, ceil_mode)
    return result if isinstance(result, tuple) else (result,)


@about_the_cpu
@pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward_is_the_same_by_every_algorithm(
    dtype: torch.dtype, channels_last: bool, isa: str
) -> None:
    algorithm = "channels" if channels_last else "rows"
    compared = 0
    for shape in SIZES:
        image = awkward_image(shape, dtype, channels_last)
        for arguments in WINDOWS:
            for form in FORMS:
                for ceil_mode in (False, True):
                    results = outputs(form, image, arguments, ceil_mode)
                    if _C.last_choice()[1] != algorithm:
                        continue
                    with forced_algorithm("max_pool2d", "tiles"):
                        expected = outputs(form, image, arguments, ceil_mode)
                    for result, other in zip(results, expected, strict=True):
                        assert same_bits(result, other), (shape, arguments, form, ceil_mode)
                    compared += 1
    assert compared > 100


@about_the_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_beyond_the_caches(dtype: torch.dtype, isa: str) -> None:
    """They are asked for ahead, as far as there are windows: whatever the windows are like."""
    side = 128 if dtype == torch.float32 else 184
    image = awkward_image((128, side, side), dtype, channels_last=True)
    assert image.nbytes >= 16 << 20
    windows = (
        window(2, 2),
        window(2, 2, 1),
        window(2, 3, 0, 2),
        window(side, side),
        ([1, 2], [1, 100], [0, 0], [1, 1]),
        ([2, 2], [2**31 - 1] * 2, [0, 0], [1, 1]),
    )
    for arguments in windows:
        is_large = arguments[0][0] * arguments[0][1] > 255  # for offsets of one byte
        for form in FORMS[::2] if is_large else FORMS:
            results = outputs(form, image, arguments, False)
            assert _C.last_choice()[1] == "channels"
            with forced_algorithm("max_pool2d", "tiles"):
                expected = outputs(form, image, arguments, False)
            for result, other in zip(results, expected, strict=True):
                assert same_bits(result, other), (arguments, form)


@about_the_cpu
@pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_backward_is_the_same_by_every_algorithm(
    dtype: torch.dtype, channels_last: bool, isa: str
) -> None:
    seen = set()
    # Beside small maps one of which "phases" copies the offsets in parts, and one too wide for it.
    for shape, ceil_mode in itertools.product((*SIZES, (4, 150, 130), (4, 5, 1035)), (False, True)):
        image = image_of_ties(shape, dtype, channels_last)
        for arguments in WINDOWS:
            output, offsets = ops.max_pool2d_with_offsets(image, *arguments, ceil_mode)
            grad = torch.randn_like(output)
            grad[0, 0, 0, 0] = float("nan")
            size = list(image.shape[-2:])
            result = ops.max_pool2d_backward(grad, offsets, size, *arguments)
            seen.add(_C.last_choice()[1])
            with forced_algorithm("max_pool2d_backward", "scatter"):
                expected = ops.max_pool2d_backward(grad, offsets, size, *arguments)
            assert same_bits(result, expected), (shape, arguments, ceil_mode)
    assert seen == {"tiles", "shifts", "scatter", "channels" if channels_last else "phases"}


@pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_backward_of_a_plane_does_not_depend_on_its_neighbours(
    dtype: torch.dtype, channels_last: bool, isa: str
) -> None:
    for shape in ((6, 13, 13), (3, 8, 9), (7, 6, 5)):
        image = image_of_ties(shape, dtype, channels_last)
        for arguments in WINDOWS:
            output, offsets = ops.max_pool2d_with_offsets(image, *arguments, False)
            grad = torch.randn_like(output)
            size = list(shape[1:])
            whole = ops.max_pool2d_backward(grad, offsets, size, *arguments)
            for n in range(2):
                for c in range(shape[0]):
                    plane = (slice(n, n + 1), slice(c, c + 1))
                    alone = ops.max_pool2d_backward(
                        grad[plane].contiguous(), offsets[plane].contiguous(), size, *arguments
                    )
                    assert same_bits(whole[plane], alone), (shape, arguments, n, c)


@pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_window_without_a_maximum_adds_nothing(
    dtype: torch.dtype, channels_last: bool, isa: str
) -> None:
    """As a dead ReLU leaves it; infinite and NaN gradients of such a window count as little."""
    for shape in SIZES:
        image = image_of_ties(shape, dtype, channels_last)
        for arguments in WINDOWS:
            output, offsets = ops.max_pool2d_with_offsets(image, *arguments, False)
            grad = torch.randn_like(output)
            none = torch.rand(output.shape) < 0.3
            size = list(shape[1:])
            expected = ops.max_pool2d_backward(
                grad.masked_fill(none, 0.0), offsets, size, *arguments
            )
            grad[none & (torch.rand(output.shape) < 0.3)] = float("nan")
            grad[none & (torch.rand(output.shape) < 0.3)] = float("inf")
            offsets[none] = 255
            result = ops.max_pool2d_backward(grad, offsets, size, *arguments)
            assert same_bits(result, expected), (shape, arguments)


@about_the_cpu
@pytest.mark.parametrize("algorithm", ["phases", "scatter"])
@pytest.mark.parametrize("others", ["taps", "none"])
@pytest.mark.parametrize("plane", [0, 3, 5, 8])
@pytest.mark.parametrize("pad", [0, 1])
def test_a_wrong_offset_among_small_planes_is_found(
    pad: int, plane: int, others: str, algorithm: str, isa: str
) -> None:
    arguments = window(3, 2, pad)
    size = [18, 18]
    output, offsets = ops.max_pool2d_with_offsets(torch.randn(3, 3, *size), *arguments, False)
    if others == "none":
        offsets.fill_(255)
    position = plane * output[0, 0].numel() + 2
    # Beyond the window; or, with padding, above the input.
    offsets.view(-1)[position] = 0 if pad else 9
    with (
        forced_algorithm("max_pool2d_backward", algorithm),
        pytest.raises(RuntimeError, match=f"at position {position} of their memory"),
    ):
        ops.max_pool2d_backward(torch.ones_like(output), offsets, size, *arguments)


@about_the_cpu
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("size", [(11, 18), (12, 17), (7, 36), (16, 33), (13, 13), (9, 14)])
def test_phases_finds_what_scatter_finds(
    size: tuple[int, int], pad: int, ceil_mode: bool, isa: str
) -> None:
    arguments = window(3, 2, pad)
    output, offsets = ops.max_pool2d_with_offsets(torch.randn(3, 3, *size), *arguments, ceil_mode)
    grad = torch.ones_like(output)

    def complaint(algorithm: str) -> str:
        with forced_algorithm("max_pool2d_backward", algorithm):
            try:
                ops.max_pool2d_backward(grad, offsets, list(size), *arguments)
            except RuntimeError as error:
                return str(error)
        return ""

    found = 0
    for position in range(output[0, 0].numel()):
        for code in (*range(9), 9, 128, 254, 255):
            place = offsets[1, 1].view(-1)[position]
            before = place.item()
            place.fill_(code)
            complaints = complaint("phases"), complaint("scatter")
            assert complaints[0] == complaints[1], (position, code)
            found += bool(complaints[0])
            place.fill_(before)
    assert found >= 3 * output[0, 0].numel()


@about_the_cpu
def test_each_problem_gets_its_algorithm() -> None:
    image = torch.randn(2, 5, 12, 14)
    last = image.to(memory_format=torch.channels_last)
    expected = (
        (image, window(3, 2, 1), "rows"),
        (last, window(3, 2, 1), "channels"),
        (image.to(torch.int32), window(2, 2), "tiles"),
        (image, window(3, 3), "tiles"),
        (image, window(2, 2, 0, 2), "tiles"),
        (image.transpose(2, 3), window(2, 2), "tiles"),
        (image[:, :, 1:11, 2:9], window(2, 2), "rows"),
    )
    for input, arguments, algorithm in expected:
        ops.max_pool2d(input, *arguments, False)
        assert _C.last_choice()[1] == algorithm, (input.shape, input.stride(), arguments)


@about_the_cpu
def test_an_algorithm_that_cannot_do_it_says_so() -> None:
    with (
        forced_algorithm("max_pool2d", "channels"),
        pytest.raises(RuntimeError, match="'channels' cannot"),
    ):
        ops.max_pool2d(torch.randn(1, 2, 4, 4), *window(2, 2), False)
