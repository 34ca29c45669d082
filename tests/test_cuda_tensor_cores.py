"""conv2d on tensor cores: float16, bfloat16, and float32 in TF32 where torch's switch allows it.

Runs on the emulated extension (`make test-cuda-emulated`) and on CUDA devices (`pytest -m cuda`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import nnops
import nnops.nn.functional as F
from nnops import _C
from nnops.testing.tolerances import assert_accurate

EMULATED = _C.build_info()["cuda"] in ("emulated", "checked")
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = (
    []
    if EMULATED
    else [
        pytest.mark.cuda,
        pytest.mark.skipif(
            not _C.cuda_algorithms() or not torch.cuda.is_available(), reason="no CUDA device"
        ),
    ]
)

HALVES = (torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

# name, input, weight, parameters. The emulated device has 4 multiprocessors: a pass that has that
# many blocks takes the larger tiles.
PROBLEMS = (
    ("one by one", (1, 16, 5, 5), (8, 16, 1, 1), {}),
    ("odd sizes", (2, 13, 7, 9), (11, 13, 3, 2), {"padding": 1}),
    ("few channels", (1, 3, 9, 10), (16, 3, 5, 5), {"padding": 2}),
    ("images that share tiles", (7, 24, 3, 3), (40, 24, 2, 2), {}),
    ("medium tiles", (2, 32, 16, 15), (48, 32, 3, 3), {"padding": 1}),
    ("large tiles", (2, 72, 18, 19), (136, 72, 1, 1), {}),
    ("many chains", (1, 130, 5, 5), (70, 130, 3, 3), {"padding": 1}),
    ("many pixels", (3, 8, 31, 33), (9, 8, 2, 2), {}),
    ("groups", (2, 48, 5, 6), (72, 16, 3, 3), {"groups": 3, "padding": 1}),
    ("dilated", (1, 16, 13, 14), (24, 16, 3, 3), {"dilation": (2, 3), "padding": 2}),
    ("strided", (2, 16, 11, 12), (24, 16, 3, 3), {"stride": 2, "padding": 1}),
    ("stride beyond kernel", (1, 17, 13, 14), (18, 17, 2, 1), {"stride": (3, 2)}),
    ("stride and dilation", (1, 16, 15, 17), (17, 16, 3, 4), {"stride": (2, 3), "dilation": 2}),
)
BY_PROBLEM = [pytest.param(*problem[1:], id=problem[0].replace(" ", "-")) for problem in PROBLEMS]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def random_operands(input, weight, parameters, dtype, layout) -> list[Tensor]:
    """Input, weight, bias and a gradient of the output."""
    output = torch_functional.conv2d(torch.empty(input), torch.empty(weight), **parameters).shape
    images = [torch.randn(size).to(dtype) for size in (input, weight, output)]
    images = [image.to(memory_format=layout) for image in images]
    return [images[0], images[1], torch.randn(weight[0]).to(dtype), images[2]]


def forward_and_gradients(function, operands, parameters) -> list[Tensor]:
    *leaves, seed = [operand.detach().clone() for operand in operands]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = function(*leaves, **parameters)
    gradients = torch.autograd.grad(output, leaves, seed)
    return [each.detach().cpu() for each in (output, *gradients)]


def on_tensor_cores(operands, parameters) -> list[Tensor]:
    name = "tensor_cores_tf32" if operands[0].dtype == torch.float32 else "tensor_cores"
    with ExitStack() as stack:
        stack.enter_context(nnops.conv_algorithm(name))
        if operands[0].dtype == torch.float32:
            stack.enter_context(tf32(True))
        return forward_and_gradients(F.conv2d, [each.to(DEVICE) for each in operands], parameters)


def rounded_to_tf32(tensor: Tensor) -> Tensor:
    """The nearest numbers with ten bits of mantissa, ties away from zero."""
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=("row-major", "channels-last"))
@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("input", "weight", "parameters"), BY_PROBLEM)
def test_halves_are_as_accurate_as_torch(input, weight, parameters, dtype, layout) -> None:
    operands = random_operands(input, weight, parameters, dtype, layout)
    ours = on_tensor_cores(operands, parameters)
    theirs = forward_and_gradients(torch_functional.conv2d, operands, parameters)
    exact = [each.double() for each in operands]
    reference = forward_and_gradients(torch_functional.conv2d, exact, parameters)
    names = ("output", "input", "weight", "bias")
    for name, *values in zip(names, ours, theirs, reference, strict=True):
        assert_accurate(*values, name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=("row-major", "channels-last"))
@pytest.mark.parametrize(("input", "weight", "parameters"), BY_PROBLEM)
def test_tf32_rounds_the_operands_and_nothing_else(input, weight, parameters, layout) -> None:
    operands = random_operands(input, weight, parameters, torch.float32, layout)
    ours = on_tensor_cores(operands, parameters)
    rounded = [rounded_to_tf32(each).double() for each in operands]
    rounded[2] = operands[2].double()  # the bias is added to the sums
    expected = forward_and_gradients(torch_functional.conv2d, rounded, parameters)
    magnitudes = forward_and_gradients(
        torch_functional.conv2d, [each.abs() for each in rounded], parameters
    )
    names = ("output", "input", "weight")
    for name, value, sums, bound in zip(names, ours[:3], expected[:3], magnitudes[:3], strict=True):
        # Far less than half of TF32's last bit, 2^-11, and more than one chain of float32 loses.
        assert ((value.double() - sums).abs() <= 2.0**-16 * bound).all(), name


@pytest.mark.parametrize("dtype", (*HALVES, torch.float32), ids=lambda dtype: str(dtype)[6:])
def test_bits_do_not_depend_on_the_batch_nor_on_the_tile(dtype) -> None:
    """Batches of 1 and 9 take different tiles."""
    parameters = {"padding": 1}
    operands = random_operands((9, 19, 9, 8), (70, 19, 3, 3), parameters, dtype, LAYOUTS[0])
    whole = on_tensor_cores(operands, parameters)
    for image in (0, 8):
        part = slice(image, image + 1)
        alone = [operands[0][part], *operands[1:3], operands[3][part]]
        single = on_tensor_cores(alone, parameters)
        assert torch.equal(whole[0][part], single[0])
        assert torch.equal(whole[1][part], single[1])


def reasons(*operands: Tensor) -> dict[str, str]:
    """Why a forward pass does not take an algorithm."""
    (call,) = nnops.explain(F.conv2d, *[each.to(DEVICE) for each in operands])
    return {each.algorithm: each.reason for each in call.candidates}


def test_the_choice_and_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    images, filters = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    for dtype in HALVES:
        assert reasons(images.to(dtype), filters.to(dtype))["tensor_cores"] == ""
    told = reasons(images.double(), filters.double())
    assert "bfloat16 and float16 only" in told["tensor_cores"]
    assert "float32 only" in told["tensor_cores_tf32"]
    one_each = [torch.randn(1, 16, 8, 8).half(), torch.randn(16, 1, 3, 3).half()]
    (call,) = nnops.explain(F.conv2d, *[each.to(DEVICE) for each in one_each], groups=16)
    assert call.algorithm != "tensor_cores"
    if not EMULATED:
        return
    monkeypatch.setenv("NNOPS_CUDA_EMULATED_CAPABILITY", "75")
    assert reasons(images.half(), filters.half())["tensor_cores"] == ""
    told = reasons(images.bfloat16(), filters.bfloat16())
    assert told["tensor_cores"] == "tensor cores of sm_75 do not multiply bfloat16"
    with tf32(True):
        told = reasons(images, filters)
    assert told["tensor_cores_tf32"] == "tensor cores of sm_75 do not multiply TF32"


def test_torchs_switch_decides_about_tf32() -> None:
    images, filters = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)

    def is_taken() -> bool:
        return reasons(images, filters)["tensor_cores_tf32"] == ""

    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert is_taken()
        torch.backends.cudnn.allow_tf32 = False
        assert not is_taken()
        assert "fp32_precision" in reasons(images, filters)["tensor_cores_tf32"]
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        assert is_taken()
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert not is_taken()
        with nnops.conv_algorithm("tensor_cores_tf32"), pytest.raises(RuntimeError, match="forced"):
            F.conv2d(images.to(DEVICE), filters.to(DEVICE))
    finally:
        torch.backends.cudnn.allow_tf32 = before
