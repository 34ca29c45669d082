"""max_pool2d and max_unpool2d: what the operator database cannot say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import nnops.nn as nn
import nnops.nn.functional as F
from nnops.testing.recorder import OperatorCalls
from nnops.testing.tolerances import assert_equal

ops = torch.ops.nnops
NAN, INF = float("nan"), float("inf")
CHANNELS_LAST = torch.channels_last


def called(function: Callable[[], Any]) -> list[str]:
    with OperatorCalls() as calls:
        function()
    return [name for name, _ in calls.recorded]


# --- values and indices ---------------------------------------------------------------------------


def test_the_table_of_cases() -> None:
    image = torch.tensor(
        [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]
    )[None]
    floats = image.float()
    assert nn.MaxPool2d(3, ceil_mode=True)(floats).tolist() == [[[2, 3], [5, 1]]]
    assert nn.MaxPool2d(3, ceil_mode=False)(floats).tolist() == [[[2]]]
    integers = nn.MaxPool2d(3)(image)
    assert integers.dtype == torch.int64
    assert integers.tolist() == [[[2]]]

    output, indices = nn.MaxPool2d(2, return_indices=True)(floats)
    assert indices.dtype == torch.int64
    assert output.tolist() == [[[2, 3], [5, 3]]]
    assert indices.tolist() == [[[1, 3], [15, 17]]]
    back = nn.MaxUnpool2d(2)(output, indices, output_size=(5, 5))
    expected = torch.zeros(1, 25)
    expected[0, [1, 3, 15, 17]] = torch.tensor([2.0, 3, 5, 3])
    assert torch.equal(back, expected.view(1, 5, 5))


SPECIAL_IMAGES = {
    "ties": torch.tensor([[1.0, 1, 0, 2], [1, 1, 2, 2], [3, 0, 0, 3], [0, 3, 3, 0]]),
    "NaN": torch.tensor([[1.0, NAN, 2, NAN], [NAN, 0, 0, 0], [3, NAN, INF, 3], [NAN, NAN, 3, 3]]),
    "-inf": torch.full((4, 4), -INF),
    "-inf and NaN": torch.tensor([[-INF, NAN], [-INF, -INF]]).repeat(2, 2),
    "signed zeros": torch.tensor([[-0.0, 0.0], [0.0, -0.0]]).repeat(2, 2),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SPECIAL_IMAGES)
def test_indices_of_special_values(
    name: str, dtype: torch.dtype, memory_format: torch.memory_format, isa: str
) -> None:
    image = SPECIAL_IMAGES[name].to(dtype).expand(2, 19, 4, 4).contiguous()
    image = image.contiguous(memory_format=memory_format)
    for arguments in ((2,), (3, 1, 1), (4,), (2, 1, 1, 2), (3, 2, 1, 1, True)):
        output, indices = F.max_pool2d(image, *arguments, return_indices=True)
        expected, places = torch_functional.max_pool2d(image, *arguments, return_indices=True)
        assert_equal(output, expected, f"{name} {arguments}")
        assert torch.equal(indices, places), f"{name} {arguments}"
        assert torch.equal(output.signbit(), expected.signbit()) or name.endswith("NaN")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_indices_of_the_lowest_integers(dtype: torch.dtype, isa: str) -> None:
    image = torch.full((1, 3, 5, 5), torch.iinfo(dtype).min, dtype=dtype)
    for memory_format in (torch.contiguous_format, CHANNELS_LAST):
        laid_out = image.contiguous(memory_format=memory_format)
        actual = F.max_pool2d(laid_out, 3, 1, 1, return_indices=True)
        expected = torch_functional.max_pool2d(laid_out, 3, 1, 1, return_indices=True)
        for ours, torchs in zip(actual, expected, strict=True):
            assert torch.equal(ours, torchs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_window_without_any_element(memory_format: torch.memory_format, isa: str) -> None:
    """Dilation can step over an input that is smaller than the padding is wide."""
    window = ([2, 2], [1, 1], [1, 1], [2, 4])
    image = torch.randn(2, 3, 2, 3).contiguous(memory_format=memory_format)
    output, indices = ops.max_pool2d_with_indices(image, *window, False)
    _, offsets = ops.max_pool2d_with_offsets(image, *window, False)
    assert output.shape == (2, 3, 2, 1)
    assert torch.equal(output, ops.max_pool2d(image, *window, False))
    assert (output == -INF).all()
    assert (indices == -1).all()
    assert (offsets == 255).all()

    for record in ({}, {"return_indices": True}):
        leaf = image.clone().requires_grad_()
        result = F.max_pool2d(leaf, 2, 1, 1, (2, 4), **record)
        pooled = result[0] if record else result
        (grad,) = torch.autograd.grad(pooled, leaf, torch.ones_like(pooled))
        assert (grad == 0).all()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(image, torch.ones_like(image))
            result = F.max_pool2d(dual, 2, 1, 1, (2, 4), **record)
            tangent = forward_ad.unpack_dual(result[0] if record else result).tangent
            assert (tangent == 0).all()
    lowest = F.max_pool2d(torch.ones(1, 1, 1, dtype=torch.int16), 2, 2, 1, 2)
    assert lowest.tolist() == [[[-(2**15)]]]


def test_offsets_are_places_inside_the_window(isa: str) -> None:
    image = torch.tensor([[0.0, 1, 2, 0], [3, 0, 0, 2], [0, 0, 9, 0], [0, 7, 0, 0]])[None]
    output, offsets = ops.max_pool2d_with_offsets(image, [2, 2], [2, 2], [0, 0], [1, 1], False)
    assert output.tolist() == [[[3, 2], [7, 9]]]
    assert offsets.dtype == torch.uint8
    assert offsets.tolist() == [[[2, 0], [3, 0]]]


@pytest.mark.parametrize("kernel, form", [((15, 17), "offsets"), ((16, 16), "indices")])
def test_the_byte_serves_windows_of_255_elements(kernel: tuple[int, int], form: str) -> None:
    image = torch.zeros(1, 16, 17)
    image[0, kernel[0] - 1, kernel[1] - 1] = 1  # the last element of the first window
    leaf = image.requires_grad_()
    assert called(lambda: F.max_pool2d(leaf, kernel, 20)) == [f"max_pool2d_with_{form}"]
    F.max_pool2d(leaf, kernel, 20).sum().backward()
    assert torch.equal(leaf.grad, image.detach())


def test_a_huge_kernel_is_no_slower_than_the_input_is_large() -> None:
    image = torch.randn(1, 2, 6, 7)
    arguments = (2**31 - 1, 1, 2**30 - 1)
    expected = torch_functional.max_pool2d(image, 13, 1, 6)
    assert torch.equal(F.max_pool2d(image, *arguments), expected)
    # Larger than 255 elements, and 2^62 of them: no product may overflow.
    leaf = image.clone().requires_grad_()
    F.max_pool2d(leaf, *arguments).sum().backward()
    assert torch.equal(leaf.grad, 42.0 * (image == image.amax((2, 3), keepdim=True)))


# --- which form runs, and what it keeps -----------------------------------------------------------


def test_nothing_is_recorded_without_a_gradient() -> None:
    image = torch.randn(1, 2, 6, 6)
    leaf = image.clone().requires_grad_()
    assert called(lambda: F.max_pool2d(image, 2)) == ["max_pool2d"]
    with torch.no_grad():
        assert called(lambda: F.max_pool2d(leaf, 2)) == ["max_pool2d"]
    assert called(lambda: F.max_pool2d(leaf, 2)) == ["max_pool2d_with_offsets"]
    assert called(lambda: F.max_pool2d(leaf, 2, return_indices=True)) == ["max_pool2d_with_indices"]


def saved_bytes(function: Callable[[], Any]) -> int:
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(saved.values())


def test_one_byte_an_output_element_is_saved() -> None:
    leaf = torch.randn(2, 3, 8, 10, requires_grad=True)
    assert saved_bytes(lambda: F.max_pool2d(leaf, 2)) == 2 * 3 * 4 * 5
    assert saved_bytes(lambda: F.max_pool2d(leaf, 2, return_indices=True)) == 8 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("kernel, stride", [((2, 2), (1, 2)), ((16, 17), (1, 1))])
def test_the_plain_operator_differentiates(
    kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    """For callers of torch.ops, who get no offsets: the maxima are found again in backward."""
    leaf = torch.randperm(2 * 17 * 18).double().view(1, 2, 17, 18)[..., : kernel[0] + 1, :]
    leaf = leaf.contiguous().requires_grad_()

    def function(input: Tensor) -> Tensor:
        return ops.max_pool2d(input, kernel, stride, [1, 1], [1, 1], True)

    assert gradcheck(function, leaf)
    assert gradgradcheck(function, leaf)
    router = nn.functional._max_pool2d.max_pool2d
    with forward_ad.dual_level():
        tangent = torch.randn_like(leaf)
        dual = forward_ad.make_dual(leaf.detach(), tangent)
        pooled = forward_ad.unpack_dual(router(dual, kernel, stride, [1, 1], [1, 1], True))
        expected = forward_ad.unpack_dual(
            torch_functional.max_pool2d(dual, kernel, stride, 1, 1, True)
        )
        assert torch.equal(pooled.primal, expected.primal)
        assert torch.equal(pooled.tangent, expected.tangent)


# --- transforms and compile -----------------------------------------------------------------------


def pooled_squares(input: Tensor) -> Tensor:
    return F.max_pool2d(input, 3, 2, 1).square().sum()


@pytest.mark.parametrize("shape", [(4, 3, 6, 7), (4, 2, 3, 6, 7)])
def test_vmap_is_one_call(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    expected = torch.stack([F.max_pool2d(image, 2) for image in images])
    assert torch.equal(torch.func.vmap(lambda image: F.max_pool2d(image, 2))(images), expected)
    moved = images.movedim(0, 2)
    actual = torch.func.vmap(lambda image: F.max_pool2d(image, 2), in_dims=2)(moved)
    assert torch.equal(actual, expected)
    per_image = torch.func.vmap(torch.func.grad(pooled_squares))(images)
    for image, grad in zip(images, per_image, strict=True):
        assert torch.equal(grad, torch.func.grad(pooled_squares)(image))


def test_vmap_of_a_wrong_rank_raises() -> None:
    with pytest.raises(RuntimeError, match=r"max_pool2d.*2 dimensions under vmap"):
        torch.func.vmap(lambda image: F.max_pool2d(image, 2))(torch.zeros(3, 6, 7))


def test_vmap_of_unpool_with_shared_indices() -> None:
    output, indices = F.max_pool2d(torch.randn(2, 6, 6), 2, return_indices=True)
    values = torch.randn(3, *output.shape)
    actual = torch.func.vmap(lambda value: F.max_unpool2d(value, indices, 2))(values)
    expected = torch.stack([F.max_unpool2d(value, indices, 2) for value in values])
    assert torch.equal(actual, expected)


def test_hessian() -> None:
    image = torch.randperm(20).double().view(1, 4, 5)
    actual = torch.func.hessian(pooled_squares)(image)
    expected = torch.func.hessian(
        lambda input: torch_functional.max_pool2d(input, 3, 2, 1).square().sum()
    )(image)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def step(input: Tensor) -> tuple[Tensor, Tensor]:
        output, indices = F.max_pool2d(input, 2, return_indices=True)
        unpooled = F.max_unpool2d(output, indices, 2)
        return F.max_pool2d(unpooled, 3, 2, 1, ceil_mode=True), indices

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 3, 8, 10), (3, 4, 6, 12)):
        for memory_format in (torch.contiguous_format, CHANNELS_LAST):
            leaf = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
            ours, indices = compiled(leaf)
            eager, places = step(leaf)
            assert torch.equal(ours, eager)
            assert torch.equal(indices, places)
            assert ours.stride() == eager.stride()
            (actual,) = torch.autograd.grad(ours.square().sum(), leaf)
            (expected,) = torch.autograd.grad(eager.square().sum(), leaf)
            assert torch.equal(actual, expected)


# --- max_unpool2d ---------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_the_last_of_equal_indices_counts(
    memory_format: torch.memory_format, threads: int, isa: str
) -> None:
    values = torch.randn(4, 33, 30, 31).contiguous(memory_format=memory_format)
    indices = torch.randint(60, values.shape)
    expected = torch.zeros(4 * 33, 60 * 62)
    for position in range(30 * 31):
        place = indices.flatten(2)[..., position].reshape(-1, 1)
        expected.scatter_(1, place, values.flatten(2)[..., position].reshape(-1, 1))
    expected = expected.view(4, 33, 60, 62)
    assert torch.equal(F.max_unpool2d(values, indices, 2), expected)


def test_unpool_to_an_empty_plane_and_back() -> None:
    values = torch.randn(1, 2, 2, 2, requires_grad=True)
    indices = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    output = F.max_unpool2d(values, indices, 2, 2, 2)
    assert output.shape == (1, 2, 0, 0)
    (grad,) = torch.autograd.grad(output.sum(), values)
    assert torch.equal(grad, torch.zeros_like(values))


def test_gradients_by_index_skip_minus_one_and_check_the_rest() -> None:
    indices = torch.tensor([[[3, -1], [3, 0]]])
    grad = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    scattered = ops.max_pool2d_with_indices_backward(grad, indices, [2, 2])
    assert scattered.tolist() == [[[8, 0], [0, 5]]]
    assert ops.max_unpool2d_backward(scattered, indices).tolist() == [[[5, 0], [5, 8]]]
    for wrong in (-2, 4, 2**62, -(2**63)):
        bad = indices.clone()
        bad[0, 1, 0] = wrong
        match = rf"indices must be in \[-1, 4\).*got {wrong} in plane \(0, 0\)"
        with pytest.raises(RuntimeError, match=match):
            ops.max_pool2d_with_indices_backward(grad, bad, [2, 2])
        with pytest.raises(RuntimeError, match=match):
            ops.max_unpool2d_backward(scattered, bad)


# --- bad input of the backward operators ----------------------------------------------------------

WINDOW = ([2, 2], [2, 2], [1, 1], [1, 1])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("wrong, where", [(4, (1, 1)), (254, (1, 1)), (0, (0, 0)), (2, (0, 1))])
def test_offsets_outside_of_the_window_or_the_input(
    wrong: int, where: tuple[int, int], memory_format: torch.memory_format, isa: str
) -> None:
    image = torch.randn(2, 3, 4, 4).contiguous(memory_format=memory_format)
    output, offsets = ops.max_pool2d_with_offsets(image, *WINDOW, False)
    offsets[1, 2, where[0], where[1]] = wrong
    if wrong == 2 and where == (0, 1):
        offsets[1, 2, 0, 1] = 1  # the window's first row lies in the padding
    if isa == "cuda":  # an answer would make every backward wait for the device
        none = offsets.clone()
        none[1, 2, where[0], where[1]] = 255
        grads = [ops.max_pool2d_backward(output, each, [4, 4], *WINDOW) for each in (offsets, none)]
        assert torch.equal(*grads)
        values = [ops.max_pool2d_gather(image, each, *WINDOW) for each in (offsets, none)]
        assert torch.equal(*values)
        return
    with pytest.raises(RuntimeError, match="offsets must point into the window and the input"):
        ops.max_pool2d_backward(output, offsets, [4, 4], *WINDOW)
    with pytest.raises(RuntimeError, match="offsets must point into the window and the input"):
        ops.max_pool2d_gather(image, offsets, *WINDOW)


def test_backward_operators_check_their_arguments() -> None:
    image = torch.randn(2, 3, 4, 4)
    output, offsets = ops.max_pool2d_with_offsets(image, *WINDOW, False)
    wrong_calls: dict[str, Callable[[], Any]] = {
        "dtype uint8": lambda: ops.max_pool2d_backward(output, output, [4, 4], *WINDOW),
        "same sizes": lambda: ops.max_pool2d_backward(output[:1], offsets, [4, 4], *WINDOW),
        "do not belong": lambda: ops.max_pool2d_backward(output, offsets, [9, 4], *WINDOW),
        r"do not belong.*2\*\*60|at most 2\*\*60": lambda: ops.max_pool2d_backward(
            output, offsets, [2**62, 4], *WINDOW
        ),
        r"\(height, width\)": lambda: ops.max_pool2d_backward(output, offsets, [4], *WINDOW),
        "255 elements": lambda: ops.max_pool2d_backward(
            output, offsets, [4, 4], [16, 16], *WINDOW[1:]
        ),
        "same batch and channels": lambda: ops.max_pool2d_gather(image[:1], offsets, *WINDOW),
        "two elements": lambda: ops.max_pool2d(image, [2], *WINDOW[1:], False),
        "at most 255": lambda: ops.max_pool2d_with_offsets(
            image, [2**31 - 1] * 2, [1, 1], [2**30 - 1] * 2, [1, 1], False
        ),
        "batch and channels": lambda: ops.max_unpool2d_backward(
            image, torch.zeros(2, 2, 2, 2, dtype=torch.int64)
        ),
        "non-negative": lambda: ops.max_unpool2d(output, torch.zeros_like(output).long(), [-1, 4]),
    }
    for match, call in wrong_calls.items():
        with pytest.raises(RuntimeError, match=match):
            call()
    with pytest.raises(NotImplementedError, match="dtype int32"):
        ops.max_pool2d_backward(output.int(), offsets, [4, 4], *WINDOW)


def test_sizes_that_overflow_raise() -> None:
    huge = torch.zeros(1).expand(1, 2**31, 2**31)
    with pytest.raises(RuntimeError, match="too large to address"):
        F.max_pool2d(huge, 2)
    with pytest.raises(RuntimeError):  # the output cannot be allocated
        F.max_pool2d(torch.zeros(1).expand(1, 1, 2**60 - 1), 1)
    long = torch.ones(1).expand(1, 1, 2**40)
    assert torch.equal(F.max_pool2d(long, 1, 2**31 - 1), torch.ones(1, 1, 513))
    indices = torch.zeros(0, 1, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="too large to address"):
        ops.max_unpool2d(torch.zeros(0, 1, 1), indices, [2**62, 2**62])


# --- sweeps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_threads_share_large_problems_without_a_trace(
    memory_format: torch.memory_format, dtype: torch.dtype, isa: str
) -> None:
    image = torch.randn(4, 70, 40, 41).to(dtype).contiguous(memory_format=memory_format)
    grad = torch.randn(4, 70, 20, 21).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = image.clone().requires_grad_()
            output, indices = F.max_pool2d(leaf, 3, 2, 1, return_indices=True)
            (by_index,) = torch.autograd.grad(output, leaf, grad)
            output = F.max_pool2d(leaf, 3, 2, 1)
            (by_offset,) = torch.autograd.grad(output, leaf, grad)
            unpooled = F.max_unpool2d(output.detach(), indices, 3, 2, 1, output_size=(40, 41))
            results.append((output.detach(), indices, by_index, by_offset, unpooled))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert torch.equal(actual, expected)
    output, indices, by_index, by_offset, _ = results[0]
    assert torch.equal(by_index, by_offset)
    leaf = image.double().requires_grad_()
    exact, places = torch_functional.max_pool2d(leaf, 3, 2, 1, return_indices=True)
    assert torch.equal(output.double(), exact)
    assert torch.equal(indices, places)
    (expected,) = torch.autograd.grad(exact, leaf, grad.double())
    torch.testing.assert_close(by_offset, expected.to(dtype))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, tuple[Any, ...]]:
    """An input in one of many layouts, and max_pool2d's other arguments."""

    def axis() -> tuple[int, int, int, int, int]:
        size, kernel = draw(st.integers(1, 12)), draw(st.integers(1, 5))
        padding, dilation = draw(st.integers(0, kernel // 2)), draw(st.integers(1, 3))
        return size, kernel, draw(st.integers(1, 5)), padding, dilation

    (h, *rows), (w, *columns) = axis(), axis()
    window = tuple(zip(rows, columns, strict=True))
    channels = draw(st.sampled_from([1, 2, 3, 17]))
    batch = draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    integers = torch.randint(-4, 5, (batch, channels, h, w), generator=generator)
    image = integers.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))
    layout = draw(st.sampled_from(["rows", "channels_last", "strided", "swapped", "3-D", "cut"]))
    if layout == "channels_last":
        image = image.contiguous(memory_format=CHANNELS_LAST)
    elif layout == "strided":
        image = torch.stack([image, image], -1)[..., 0]
    elif layout == "swapped":
        image = image.transpose(0, 3).contiguous().transpose(0, 3)
    elif layout == "3-D":
        assume(batch > 0)
        image = image[0]
    elif layout == "cut":
        wide = torch.cat([image, image], 1).contiguous(memory_format=CHANNELS_LAST)
        image = wide[:, :channels]
    return image, (*window, draw(st.booleans()))


def real_and_fake(function: Callable[..., Any], *arguments: Any) -> Any:
    """The real result, after its sizes, strides and dtypes were compared with the fake one's."""
    real = function(*arguments)
    with FakeTensorMode() as mode:
        fake = function(
            *(mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in arguments)
        )
    pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
    for actual, predicted in pairs:
        assert predicted.shape == actual.shape
        assert predicted.stride() == actual.stride()
        assert predicted.dtype == actual.dtype
    return real


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_any_geometry(problem: tuple[Tensor, tuple[Any, ...]]) -> None:
    image, (*window, ceil_mode) = problem
    try:
        expected, places = torch_functional.max_pool2d(
            image, *window, ceil_mode, return_indices=True
        )
    except RuntimeError:
        for form in (ops.max_pool2d, ops.max_pool2d_with_offsets, ops.max_pool2d_with_indices):
            with pytest.raises(RuntimeError, match="must fit into the padded input"):
                form(image, *window, ceil_mode)
            with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="must fit"):
                form(mode.from_tensor(image), *window, ceil_mode)
        return
    output = real_and_fake(ops.max_pool2d, image, *window, ceil_mode)
    assert output.stride() == expected.stride()
    assert_equal(output, expected, "max_pool2d")
    by_offset, offsets = real_and_fake(ops.max_pool2d_with_offsets, image, *window, ceil_mode)
    by_index, indices = real_and_fake(ops.max_pool2d_with_indices, image, *window, ceil_mode)
    assert torch.equal(by_offset, output)
    assert torch.equal(by_index, output)
    found = indices >= 0
    assert torch.equal(indices[found], places[found])
    assert torch.equal(offsets != 255, found)

    size = list(image.shape[-2:])
    grad = torch.randint(-3, 4, output.shape).to(output.dtype)
    by_offset = real_and_fake(ops.max_pool2d_backward, grad, offsets, size, *window)
    by_index = real_and_fake(ops.max_pool2d_with_indices_backward, grad, indices, size)
    scattered = torch.zeros(*image.shape[:-2], size[0] * size[1], dtype=torch.float64)
    kept = torch.where(found, grad, 0).double().flatten(-2)
    scattered.scatter_add_(-1, indices.clamp(min=0).flatten(-2), kept)
    assert torch.equal(by_offset.double(), scattered.view(image.shape))
    assert torch.equal(by_index, by_offset)

    gathered = real_and_fake(ops.max_pool2d_gather, image, offsets, *window)
    assert torch.equal(gathered, torch.where(found, output, 0))
    assert torch.equal(real_and_fake(ops.max_unpool2d_backward, image, indices), gathered)
    if found.all():
        unpooled = real_and_fake(ops.max_unpool2d, output, indices, size)
        expected = torch._C._nn.max_unpool2d(expected, places, size)
        assert torch.equal(unpooled, expected)
        assert unpooled.stride() == expected.stride() or output.numel() == 0
