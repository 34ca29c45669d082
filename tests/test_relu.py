"""relu with a mask: the bits it records, who gets it, and what it computes at every size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nnops.nn.functional as F
from nnops.ops.relu import LEAST_MASKED
from nnops.testing.recorder import OperatorCalls

ops = torch.ops.nnops


def awkward(count: int, dtype: torch.dtype) -> Tensor:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0])
    return special[torch.randint(0, 7, (count,))].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_mask_tells_where_the_gradient_passes(dtype: torch.dtype, isa: str) -> None:
    for count in (*range(35), 16384, 16391, 70001):
        input = awkward(count, dtype)
        output, mask = ops.relu_with_mask(input)
        torch.testing.assert_close(output, torch.relu(input), rtol=0, atol=0, equal_nan=True)
        bits = (mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        expected = torch.zeros(mask.numel() * 8, dtype=torch.bool)
        expected[:count] = ~(input <= 0)
        assert torch.equal(bits.flatten().bool(), expected), count
        grad = torch.randn(count).to(dtype)
        result = ops.relu_mask_backward(grad, mask, [1])
        assert torch.equal(result, ops.relu_backward(grad, output)), count


def test_large_calls_save_one_bit_an_element() -> None:
    for count, saved_bytes in ((LEAST_MASKED - 1, 4 * (LEAST_MASKED - 1)), (LEAST_MASKED, 65536)):
        leaf = torch.randn(count, requires_grad=True)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor) or tensor, lambda tensor: tensor
        ):
            F.relu(leaf)
        assert sum(tensor.numel() * tensor.element_size() for tensor in saved) == saved_bytes


def test_nothing_is_recorded_without_a_gradient() -> None:
    with OperatorCalls() as calls:
        F.relu(torch.randn(LEAST_MASKED))
    assert [name for name, _ in calls.recorded] == ["relu"]


@pytest.mark.parametrize("permutation", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_gradients_of_any_layout(permutation: tuple[int, int, int]) -> None:
    base = torch.randn(64, 128, 65)
    leaf = base.permute(permutation).requires_grad_()
    grad = torch.randn(base.shape).permute(permutation).contiguous()
    (result,) = torch.autograd.grad(F.relu(leaf), leaf, grad)
    (expected,) = torch.autograd.grad(torch.relu(leaf), leaf, grad)
    assert leaf.numel() >= LEAST_MASKED
    assert torch.equal(result, expected)
    assert result.stride() == expected.stride()


def test_double_backward() -> None:
    leaf = torch.randn(LEAST_MASKED, requires_grad=True)
    grads = []
    for relu in (F.relu, torch.relu):
        (first,) = torch.autograd.grad((relu(leaf) ** 2).sum(), leaf, create_graph=True)
        grads.append(torch.autograd.grad((first**2).sum(), leaf)[0])
    torch.testing.assert_close(grads[0], grads[1])


def test_wrong_masks_raise() -> None:
    grad = torch.randn(3, 5)
    _, mask = ops.relu_with_mask(grad)
    wrong = {
        "one bit for each": (grad, mask[:1], [5, 1]),
        "contiguous uint8": (grad, mask.int(), [5, 1]),
        "one element for each dimension": (grad, mask, [1]),
        "dense tensor": (grad, mask, [5, 2]),
    }
    for match, arguments in wrong.items():
        with pytest.raises(RuntimeError, match=match):
            ops.relu_mask_backward(*arguments)


def test_inplace_where_it_is_traced_or_transformed() -> None:
    def loss(x: Tensor) -> Tensor:
        return F.relu(x * 1, inplace=True).square().sum()

    x = torch.randn(5, 7)
    expected = 2 * x.relu()
    assert torch.equal(torch.func.grad(loss)(x), expected)
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(x), expected)
    traced = x.clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(traced).backward()
    assert torch.equal(traced.grad, expected)
    written = x.clone()
    torch.compile(lambda x: F.relu_(x), backend="aot_eager", fullgraph=True)(written)
    assert torch.equal(written, x.relu())
