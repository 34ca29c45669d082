"""The CUDA kernels of max_pool2d and max_unpool2d, emulated: every instance of them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as torch_functional
from test_max_pool2d_algorithms import FORMS, SIZES, WINDOWS, awkward_image, outputs, same_bits
from torch import Tensor

from nnops import _C
from nnops.algorithms import forced_algorithm

pytestmark = pytest.mark.skipif(
    _C.build_info()["cuda"] not in ("emulated", "checked"), reason="needs the emulated extension"
)

ops = torch.ops.nnops
CHANNELS_LAST = torch.channels_last
HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALVES)
LAYOUTS = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["row-major", "channels_last"]
)

# Rows and channels of whole vectors of every dtype too.
SHAPES = (*SIZES, (2, 6, 16), (3, 5, 32), (16, 5, 7))


def expected_outputs(form: str, image: Tensor, arguments: object, ceil_mode: bool) -> list[Tensor]:
    values, indices = torch_functional.max_pool2d(
        image, *arguments, ceil_mode=ceil_mode, return_indices=True
    )
    if form == "max_pool2d":
        return [values]
    if form == "max_pool2d_with_indices":
        return [values, indices]
    (kernel, stride, padding, dilation), width = arguments, image.shape[-1]
    rows = indices // width + padding[0]
    columns = indices % width + padding[1]
    rows -= torch.arange(values.shape[-2])[:, None] * stride[0]
    columns -= torch.arange(values.shape[-1]) * stride[1]
    offsets = rows // dilation[0] * kernel[1] + columns // dilation[1]
    return [values, offsets.to(torch.uint8)]


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_has_torchs_bits(dtype: torch.dtype, channels_last: bool) -> None:
    seen = set()
    for shape, arguments in itertools.product(SHAPES, WINDOWS):
        image = awkward_image(shape, dtype, channels_last)
        for form, ceil_mode in itertools.product(FORMS, (False, True)):
            found = outputs(form, image, arguments, ceil_mode)
            seen.add(_C.last_choice()[1])
            expected = expected_outputs(form, image, arguments, ceil_mode)
            for ours, torchs in zip(found, expected, strict=True):
                assert same_bits(ours, torchs), (shape, arguments, form, ceil_mode)
    assert seen == ({"windows"} if channels_last else {"pairs", "windows"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_that_vectors_do_not_fit(dtype: torch.dtype) -> None:
    image = awkward_image((16, 6, 32), dtype, False)
    last = image.to(memory_format=CHANNELS_LAST)
    shifted = torch.cat([image.new_zeros(1), image.flatten()])[1:]  # packed, but not aligned
    views = (
        shifted.view(image.shape),
        shifted.view(2, 6, 32, 16).permute(0, 3, 1, 2),
        image[:, :, 1:, 1:],
        image[:, 1:, ::2],
        image[..., ::2],
        image.transpose(2, 3),
        last[:, 1:15],
        last[:, :8, 1:],
        last[:, ::2],
        last[1:, :, :, ::2],
        image[:1, :1].expand(2, 16, 6, 32),
    )
    for index, view in enumerate(views):
        for arguments in WINDOWS[:4]:
            for form in FORMS:
                found = outputs(form, view, arguments, False)
                expected = expected_outputs(form, view, arguments, False)
                for ours, torchs in zip(found, expected, strict=True):
                    assert same_bits(ours, torchs), (index, arguments, form)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_sums_in_row_major_order(dtype: torch.dtype, channels_last: bool) -> None:
    """float32 and float64 have the bits of torch's scatter, the halves those of float32."""
    seen = set()
    for shape, arguments in itertools.product(SHAPES, WINDOWS):
        image = torch.randint(-3, 4, (2, *shape)).to(dtype)
        if channels_last:
            image = image.to(memory_format=CHANNELS_LAST)
        output, offsets = ops.max_pool2d_with_offsets(image, *arguments, False)
        _, indices = ops.max_pool2d_with_indices(image, *arguments, False)
        grad = torch.randn_like(output)
        grad[0, 0, 0, 0] = float("nan")
        size = list(image.shape[-2:])
        result = ops.max_pool2d_backward(grad, offsets, size, *arguments)
        seen.add(_C.last_choice()[1])
        by_index = ops.max_pool2d_with_indices_backward(grad, indices, size)

        leaf = image.to(torch.float32 if dtype in HALVES else dtype).contiguous().requires_grad_()
        pooled = torch_functional.max_pool2d(leaf, *arguments)
        (expected,) = torch.autograd.grad(pooled, leaf, grad.to(leaf.dtype).contiguous())
        assert same_bits(result, expected.to(dtype)), (shape, arguments)
        assert same_bits(by_index, result), (shape, arguments)
        with forced_algorithm("max_pool2d_backward", "gather"):
            assert same_bits(ops.max_pool2d_backward(grad, offsets, size, *arguments), result)
    assert seen == ({"gather"} if channels_last else {"pairs", "gather"})


def test_positions_that_need_64_bits() -> None:
    """A stride this large makes the kernels with int64_t run."""
    for dtype, channels_last in itertools.product((*DTYPES, torch.int16), (False, True)):
        image = torch.randint(-3, 4, (2, 3, 7, 8)).to(dtype)
        if channels_last:
            image = image.to(memory_format=CHANNELS_LAST)
        for arguments in (
            ([3, 3], [2**30, 2], [1, 1], [2, 1]),
            ([2, 5], [1, 2**30], [1, 0], [3, 1]),
        ):
            for form in FORMS:
                found = outputs(form, image, arguments, False)
                expected = expected_outputs(form, image, arguments, False)
                for ours, torchs in zip(found, expected, strict=True):
                    assert same_bits(ours, torchs), (dtype, arguments, form)
            if not image.is_floating_point():
                continue
            grad = torch.randn_like(outputs(FORMS[0], image, arguments, False)[0])
            _, offsets = outputs(FORMS[1], image, arguments, False)
            _, indices = outputs(FORMS[2], image, arguments, False)
            found = ops.max_pool2d_backward(grad, offsets, [7, 8], *arguments)
            expected = ops.max_pool2d_with_indices_backward(grad, indices, [7, 8])
            assert same_bits(found, expected), (dtype, arguments)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [1, 2, 7, 200])
def test_many_values_at_one_place(places: int, dtype: torch.dtype, channels_last: bool) -> None:
    """Chains of every length are added in row-major order; the last of the values is assigned."""
    shape = (2, 5, 9, 11)
    indices = torch.randint(places, shape)
    values = torch.randn(shape).to(dtype)
    if channels_last:
        indices = indices.to(memory_format=CHANNELS_LAST)
        values = values.to(memory_format=CHANNELS_LAST)
    wide = values.float() if dtype in HALVES else values
    added = torch.zeros(2, 5, 15 * 14, dtype=wide.dtype)
    assigned = torch.zeros(2, 5, 15 * 14, dtype=dtype)
    some = indices.where(torch.rand(shape) < 0.9, torch.tensor(-1))
    for position in range(9 * 11):
        place = indices.flatten(2)[:, :, position, None]
        value = values.flatten(2)[:, :, position, None]
        assigned.scatter_(2, place, value)
        kept = some.flatten(2)[:, :, position, None]
        term = wide.flatten(2)[:, :, position, None]
        before = added.gather(2, kept.clamp(min=0))
        added.scatter_(2, kept.clamp(min=0), torch.where(kept >= 0, before + term, before))
    found = ops.max_pool2d_with_indices_backward(values, some, [15, 14])
    assert same_bits(found, added.to(dtype).view(found.shape))
    found = ops.max_unpool2d(values, indices, [15, 14])
    assert same_bits(found, assigned.view(found.shape))


def test_the_lowest_wrong_index_is_named() -> None:
    indices = torch.randint(12, (2, 3, 700))
    for wrong in (0, 1, 255, 256, 2099 * 2 - 1):
        bad = indices.clone()
        bad.view(-1)[wrong:] = 12
        bad.view(-1)[wrong] = -7
        with pytest.raises(RuntimeError, match="but got -7 in plane"):
            ops.max_unpool2d(torch.zeros(2, 3, 1, 700), bad.view(2, 3, 1, 700), [3, 4])
