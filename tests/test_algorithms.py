"""nnops.explain tells what ran and why; nnops.conv_algorithm chooses, thread by thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops import _C
from nnops.algorithms import CONV_PASSES


def layer_and_image() -> tuple[nn.Conv2d, torch.Tensor]:
    return nn.Conv2d(32, 32, 3, stride=2, padding=1), torch.randn(2, 32, 9, 8)


def chosen(function, *args) -> dict[str, str]:
    return {call.op: call.algorithm for call in nnops.explain(function, *args)}


def train(layer: nn.Conv2d, x: torch.Tensor) -> None:
    layer(x.requires_grad_()).sum().backward()


def train_with_dense_gradients(layer: nn.Conv2d, x: torch.Tensor) -> None:
    layer(x).square().sum().backward()


@pytest.mark.skipif("cuda" in _C.available_isas(), reason="algorithms of the CPU")
def test_weight_gradients_of_first_layers_are_plane_dots() -> None:
    def of(layer: nn.Conv2d, x: torch.Tensor) -> str:
        return chosen(train_with_dense_gradients, layer, x)["conv2d_backward_weight"]

    images = torch.randn(2, 3, 32, 32)
    assert of(nn.Conv2d(3, 8, 3, padding=1), images) == "plane_dots"
    assert of(nn.Conv2d(3, 8, 5, padding=2), images) == "outer_products"  # many numbers a filter
    assert of(nn.Conv2d(3, 8, 3), images[..., :18]) == "plane_dots"
    assert of(nn.Conv2d(3, 8, 3), images[..., :20]) == "outer_products"  # rows of 18 pixels
    last = images.to(memory_format=torch.channels_last)
    assert of(nn.Conv2d(3, 8, 3, padding=1), last) == "outer_products"


def test_explain_names_every_candidate_with_its_reason(isa: str) -> None:
    layer, x = layer_and_image()
    explanation = nnops.explain(layer, x)
    (call,) = explanation
    assert (call.op, call.dtype, call.isa) == ("conv2d", "float32", isa)
    assert call.threads >= 1
    assert call.geometry["input"] == "2x32x9x8"
    assert call.geometry["weight"] == "32x32x3x3"
    assert call.geometry["padding"] == "[1, 1]"
    assert [each.algorithm for each in call.candidates] == _C.algorithms()["conv2d"]
    assert call.algorithm == _C.last_choice()[1] == "pixel_rows"
    reasons = {each.algorithm: each.reason for each in call.candidates}
    assert reasons.pop("pixel_rows") == ""
    assert reasons.pop("expanded_planes") == reasons.pop("reference") == "after pixel_rows"
    assert all(reasons.values())
    text = str(explanation)
    for part in ("conv2d", "2x32x9x8", "runs", "after pixel_rows", isa):
        assert part in text

    (call,) = nnops.explain(F.conv2d, torch.randn(1, 30, 9, 9), torch.randn(8, 30, 3, 3))
    assert call.algorithm == "expanded_planes"
    reasons = {each.algorithm: each.reason for each in call.candidates}
    assert "would be padding" in reasons["pixel_rows"]


def test_groups_are_spread_out_only_where_a_strip_of_them_is_small() -> None:
    """Strides and dilations make a few rows as large as the image."""
    image = torch.randn(1, 8, 520, 520).contiguous(memory_format=torch.channels_last)
    for filters, kernel, parameters, chosen in (
        (16, 3, {"stride": 2}, "grouped_channels"),
        (16, 3, {"stride": 250}, "expanded_planes"),
        (16, 3, {"dilation": 250}, "expanded_planes"),
        (8, 7, {}, "grouped_channels"),
        (8, 7, {"dilation": 80}, "depthwise_channels"),
    ):
        weight = torch.randn(filters, 1, kernel, kernel)
        (call,) = nnops.explain(F.conv2d, image, weight, groups=8, **parameters)
        assert call.algorithm == chosen, parameters


def test_few_channels_in_channels_last_order_are_computed_along_pixels() -> None:
    """Half a vector of channels is empty otherwise; to transpose what is read costs less."""
    image = torch.randn(2, 64, 20, 20).contiguous(memory_format=torch.channels_last)
    for filters, stride, chosen in (
        (2, 1, "expanded_planes"),
        (5, 1, "expanded_planes"),
        (64, 2, "pixel_rows"),
    ):
        weight = torch.randn(filters, 64, 3, 3)
        (call,) = nnops.explain(F.conv2d, image, weight, stride=stride, padding=1)
        assert call.algorithm == chosen, filters


def test_dot_products_of_bfloat16_are_for_cpus_that_have_them(isa: str) -> None:
    layer, x = layer_and_image()
    calls = nnops.explain(train, layer.bfloat16(), x.bfloat16())
    names = {"conv2d": "pair_rows", "conv2d_backward_weight": "pair_products"}
    for call in calls:
        reasons = {each.algorithm: each.reason for each in call.candidates}
        if call.op in names:
            reason = reasons[names[call.op]]
            if isa != "avx512":
                assert reason == "the ISA level is not avx512"
            elif not _C.cpu_has_bfloat16_dots():
                assert reason == "this CPU has no AVX512_BF16"
            else:
                assert call.algorithm == names[call.op]


def test_explain_follows_backward_and_other_operators() -> None:
    layer, x = layer_and_image()
    net = torch.nn.Sequential(layer, nn.ReLU(), nn.MaxPool2d(2))
    ops = [call.op for call in nnops.explain(lambda: net(x.requires_grad_()).sum().backward())]
    assert ops[0] == "conv2d"
    assert {"conv2d_backward_input", "conv2d_backward_weight", "conv2d_backward_bias"} <= set(ops)
    assert any("relu" in op for op in ops)
    assert any("max_pool2d" in op for op in ops)
    assert nnops.explain(torch.relu, x) == ()
    assert "no call" in str(nnops.explain(torch.relu, x))


def test_explain_ends_with_its_call() -> None:
    layer, x = layer_and_image()
    with pytest.raises(RuntimeError):
        nnops.explain(layer, x[:, :5])
    layer(x)
    assert _C.stop_trace() == []


@pytest.mark.parametrize("name", ["reference", "pixel_rows", "expanded_planes"])
def test_a_name_is_for_every_pass_that_has_it(name: str) -> None:
    layer, x = layer_and_image()
    ordinary = chosen(train, layer, x)
    with nnops.conv_algorithm(name):
        forced = chosen(train, layer, x)
    for op in CONV_PASSES.values():
        assert forced[op] == (name if name in _C.algorithms()[op] else ordinary[op])
    assert chosen(train, layer, x) == ordinary


def test_passes_are_forced_apart_and_contexts_nest() -> None:
    layer, x = layer_and_image()
    ordinary = chosen(train, layer, x)
    with nnops.conv_algorithm("reference", backward_input="expanded_planes"):
        outer = {
            **ordinary,
            "conv2d": "reference",
            "conv2d_backward_input": "expanded_planes",
            "conv2d_backward_weight": "reference",
        }
        assert chosen(train, layer, x) == outer
        with pytest.raises(KeyError), nnops.conv_algorithm(forward="expanded_planes"):
            assert chosen(train, layer, x) == {**outer, "conv2d": "expanded_planes"}
            raise KeyError
        assert chosen(train, layer, x) == outer
        (call,) = nnops.explain(layer, x)
        assert call.candidates[0].reason == "reference is forced"
    assert chosen(train, layer, x) == ordinary


def test_unknown_names_are_answered_with_the_list() -> None:
    for arguments in ({"algorithm": "fastest"}, {"forward": "outer_products"}):
        with pytest.raises(ValueError, match=r"must be one of .*expanded_planes.*, but got"):
            nnops.conv_algorithm(**arguments).__enter__()
    with pytest.raises(ValueError, match="must be one of"):
        _C.force_algorithm("conv2d", "fastest")
    with pytest.raises(ValueError, match="no operator 'conv3d'"):
        _C.force_algorithm("conv3d", "reference")
    assert chosen(*layer_and_image())["conv2d"] == "pixel_rows"


def test_what_cannot_be_computed_is_an_error() -> None:
    layer, x = layer_and_image()
    with (
        nnops.conv_algorithm(backward_weight="depthwise_dots"),
        pytest.raises(RuntimeError, match="'depthwise_dots' cannot compute this problem"),
    ):
        train(layer, x)


def test_a_depthwise_kernel_of_very_many_columns_is_for_others() -> None:
    images = torch.randn(2, 3, 4, 400)
    layer = nn.Conv2d(3, 3, (1, 200), groups=3)
    assert chosen(train, layer, images)["conv2d_backward_weight"] == "outer_products"
    theirs = torch.nn.functional.conv2d(
        images, weight := layer.weight.detach().requires_grad_(), layer.bias, groups=3
    )
    (expected,) = torch.autograd.grad(theirs.sum(), weight)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_other_threads_choose_for_themselves() -> None:
    layer, x = layer_and_image()
    barrier = threading.Barrier(3)
    seen: dict[str, str] = {}

    def work(name: str) -> None:
        with nnops.conv_algorithm(forward=name):
            barrier.wait()
            seen[name] = chosen(layer, x)["conv2d"]
            barrier.wait()

    names = ("reference", "expanded_planes")
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    barrier.wait()
    assert chosen(layer, x)["conv2d"] == "pixel_rows"
    barrier.wait()
    for thread in threads:
        thread.join()
    assert seen == {name: name for name in names}


def test_verbose_dispatch_prints_the_same_reasons() -> None:
    program = (
        "import torch, nnops; import nnops.nn.functional as F\n"
        "call = nnops.explain(F.conv2d, torch.ones(1, 3, 9, 9), torch.ones(8, 3, 3, 3))[0]\n"
        "print({each.algorithm: each.reason for each in call.candidates}['pixel_rows'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NNOPS_VERBOSE": "dispatch"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"nnops: conv2d: not pixel_rows: {result.stdout.strip()}" in result.stderr
    assert "nnops: conv2d: runs expanded_planes (" in result.stderr
