"""The tolerance policy, all of it.

* Selection (max_pool2d, relu) and sums of small whole numbers are compared bit for bit.
* Everything else is held against torch's own function in float64: the largest error may be at most
  twice that of torch in the dtype under test, plus four units in the last place of the largest
  value (on small tensors torch's error is a matter of luck). In float64 torch's function is no
  better a reference than ours: the two may differ by 16 units in the last place of the largest
  value.
* torch's own samples (test_torch_*.py) are often tiny, or sums that cancel: results of at most
  FEW_ELEMENTS elements, and of float64, may instead be within LUCK_ULPS units in the last place of
  the largest operand.
* A function whose float32 algorithms have a published bound of their own (conv2d, see
  nnops/precision.py) may be off by `share` of the largest value.
* NaN and infinities must stand where torch's stand.
* A whole net is held against torch's in float64 by the 2-norm of the difference: its scores, and
  the gradient of each parameter. Rounding turns a few maxima and signs in front of a ReLU round, in
  torch as in nnops, which leaves the scores alone but moves gradients in the third digit (torch's
  own, in float32, by 0.7 % in VGG-11). So in float32 gradients are held to a coarse limit; and the
  same net is run in float64, where nothing turns, and held to a fine one.
"""

from __future__ import annotations

import torch
from torch import Tensor

ERROR_RATIO = 2.0
FLOOR_ULPS = 4.0
FLOAT64_ULPS = 16.0
# Below this many elements torch's error may be small by luck, and says little about ours.
FEW_ELEMENTS = 32
LUCK_ULPS = 16.0
NET_SCORES = {torch.float32: 3e-5, torch.float64: 1e-9}
NET_GRADIENTS = {torch.float32: 0.05, torch.float64: 1e-9}
# Of a net's longest gradient: shorter ones (of a bias before BatchNorm: 0) may be rounding alone.
NET_SHORT = 1e-3


def largest_error(actual: Tensor, reference: Tensor) -> float:
    """max |actual - reference| over the elements that are finite in both."""
    difference = (actual.detach().double() - reference.detach().double()).abs()
    finite = difference[difference.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def assert_same_non_finite(actual: Tensor, expected: Tensor, what: str) -> None:
    for name, test in (
        ("NaN", torch.isnan),
        ("+inf", torch.isposinf),
        ("-inf", torch.isneginf),
    ):
        ours, theirs = test(actual), test(expected)
        assert torch.equal(ours, theirs), (
            f"{what}: {name} at {ours.nonzero().tolist()[:5]}, "
            f"torch has it at {theirs.nonzero().tolist()[:5]}"
        )


def assert_same_type(actual: Tensor, expected: Tensor, what: str) -> None:
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype=}, torch {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape=}, torch {expected.shape}"


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Bit for bit the same values (any NaN equals any NaN)."""
    assert_same_type(actual, expected, what)
    same = (
        torch.equal(actual.nan_to_num(), expected.nan_to_num())
        if (actual.dtype.is_floating_point)
        else torch.equal(actual, expected)
    )
    assert same, f"{what}: not equal to torch's, {largest_error(actual, expected)=}"
    if actual.dtype.is_floating_point:
        assert_same_non_finite(actual, expected, what)


def assert_accurate(
    actual: Tensor, expected: Tensor, reference: Tensor, what: str, share: float = 0.0
) -> None:
    """`expected` is torch's result in the dtype under test, `reference` torch's in float64."""
    assert_same_type(actual, expected, what)
    if not actual.dtype.is_floating_point:
        assert torch.equal(actual, expected), f"{what}: integers differ from torch's"
        return
    assert_same_non_finite(actual, expected, what)
    if not actual.numel():
        return
    finite = reference[reference.isfinite()]
    scale = float(finite.detach().abs().max()) if finite.numel() else 0.0
    info = torch.finfo(actual.dtype)
    ulps = FLOAT64_ULPS if actual.dtype == torch.float64 else FLOOR_ULPS
    floor = ulps * max(info.eps * scale, info.smallest_normal)
    if actual.dtype == torch.float32:
        floor = max(floor, share * scale)
    ours, theirs = largest_error(actual, reference), largest_error(expected, reference)
    assert ours <= ERROR_RATIO * theirs + floor, (
        f"{what}: largest error {ours:.3g}, torch's {theirs:.3g}, {scale=:.3g}, {floor=:.3g}"
    )


def assert_within_operands(
    actual: Tensor,
    expected: Tensor,
    reference: Tensor,
    inputs: list[Tensor],
    what: str,
    share: float = 0.0,
) -> None:
    """assert_accurate, or within 16 units in the last place of the largest operand.

    The latter for results of a few elements, which may be sums that cancel, and for float64, where
    the reference is torch's own result and no better than ours.
    """
    few = actual.numel() <= FEW_ELEMENTS or actual.dtype == torch.float64
    if few and actual.dtype.is_floating_point and actual.shape == expected.shape:
        magnitudes = [
            float(each.detach().double().abs().nan_to_num(0, 0, 0).max())
            for each in (*inputs, reference)
            if each.numel() and each.dtype.is_floating_point
        ]
        bound = LUCK_ULPS * torch.finfo(actual.dtype).eps * max(magnitudes, default=0.0)
        if largest_error(actual, reference) <= bound:
            assert_same_type(actual, expected, what)
            assert_same_non_finite(actual, expected, what)
            return
    assert_accurate(actual, expected, reference, what, share)


def assert_net_scores(actual: Tensor, reference: Tensor, what: str) -> None:
    """`reference` is what torch's net gives in float64."""
    assert actual.shape == reference.shape, f"{what}: {actual.shape=}, torch {reference.shape}"
    _assert_near(actual, reference, NET_SCORES[actual.dtype] * _norm(reference), what)


def assert_net_gradients(
    actuals: dict[str, Tensor | None], references: dict[str, Tensor | None]
) -> None:
    """By parameters; None where the scores do not depend on one."""
    norms = {name: _norm(each) for name, each in references.items() if each is not None}
    short = NET_SHORT * max(norms.values(), default=0.0)
    for name, reference in references.items():
        actual = actuals[name]
        what = f"gradient of {name}"
        assert (actual is None) == (reference is None), f"{what}: one of the two is None"
        if actual is not None and reference is not None:
            limit = NET_GRADIENTS[actual.dtype] * max(norms[name], short)
            _assert_near(actual, reference, limit, what)


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _assert_near(actual: Tensor, reference: Tensor, limit: float, what: str) -> None:
    gap = _norm(actual.detach().double() - reference.detach())
    # A NaN is not below the limit.
    assert gap <= limit, f"{what}: {gap:.3g} away from torch's in float64, {limit=:.3g}"
