"""What the benchmark measures: samples of every function, and the lists of shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from nnops.benchmark import engine
from nnops.benchmark.calls import Mode, phases, sample_for
from nnops.testing.opdb import CASES, FAMILIES, case as case_named
from nnops.testing.opdb.conv2d_grid import CHANNELS, GRID, SIZES
from nnops.testing.opdb.conv2d_layers import Layer
from nnops.testing.opdb.conv2d_nets import NETS
from nnops.testing.samples import DEFAULT_LIST, LAYOUTS, OVERHEAD, Maker, OpCase, Work


class ShapeMaker(Maker):
    """Makes tensors without data, so that the largest samples cost nothing."""

    def tensor(
        self, *shape: int, low: float = -2.0, high: float = 2.0, grad: bool = True
    ) -> Tensor:
        empty = torch.empty(shape, dtype=self.dtype, device="meta")
        return empty.requires_grad_(self.requires_grad and grad)

    def indices(self, *shape: int, high: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_function_has_benchmark_samples_that_build(case: OpCase) -> None:
    keys = [(each.name, each.layout) for each in case.benchmark_samples]
    assert len(set(keys)) == len(keys)
    kinds = {each.kernel_class for each in case.benchmark_samples}
    assert OVERHEAD in kinds
    for benchmark in case.benchmark_samples:
        sample = benchmark.build(ShapeMaker(torch.float32, requires_grad=True))
        forward, backward = case.forward_work(sample), case.backward_work(sample)
        assert forward.read > 0 and forward.written > 0 and backward.written > 0, benchmark.name
        assert benchmark.layout in ("", "NCHW", "channels_last")
        if benchmark.layout == "channels_last":
            assert sample.args[0].is_contiguous(memory_format=torch.channels_last)


MB = 2**20
KNOWN_WORK = [
    # 2 * 8 * 256 * 56 * 56 * 64 products; images of 8 x 56 x 56 pixels, 64 and 256 channels.
    (
        "conv2d",
        "resnet 1x1 64->256 b8",
        Work(822083584, 6488064, 25690112),
        Work(2 * 822083584, 25690112 + 6488064, 6488064),
    ),
    ("max_pool2d", "cifar 64x32x32", Work(0, 8 * MB, 2 * MB), Work(0, 2 * MB + MB // 2, 8 * MB)),
    ("mse_loss", "2^20", Work(3 * MB, 8 * MB, 4), Work(2 * MB, 8 * MB, 4 * MB)),
    (
        "cross_entropy",
        "512x1000",
        Work(2048000, 2048000 + 4096, 4),
        Work(1536000, 2048000 + 4096 + 2048, 2048000),
    ),
    ("relu", "2^20", Work(MB, 4 * MB, 4 * MB), Work(MB, 4 * MB + MB // 8, 4 * MB)),
]


@pytest.mark.parametrize("op, name, forward, backward", KNOWN_WORK)
def test_work_of_known_shapes(op: str, name: str, forward: Work, backward: Work) -> None:
    case = case_named(op)
    benchmark = next(each for each in case.benchmark_samples if each.name == name)
    sample = benchmark.build(ShapeMaker(torch.float32, requires_grad=True))
    assert phases(case, sample, Mode.FORWARD) == (forward,)
    assert phases(case, sample, Mode.BACKWARD) == (backward,)
    assert phases(case, sample, Mode.FULL) == (forward, backward)


def test_the_parts_of_a_backward_share_its_products() -> None:
    case = case_named("conv2d")
    by_name = {each.name: each for each in case.benchmark_samples}
    make = ShapeMaker(torch.float32, requires_grad=True)
    sample = by_name["vgg3_2 b2"].build(make)
    parts = [sample_for(case, sample, mode) for mode in (Mode.BACKWARD_INPUT, Mode.BACKWARD_WEIGHT)]
    assert [[each.requires_grad for each in part.args] for part in parts if part] == [
        [True, False, False],
        [False, True, False],
    ]
    flops = [case.backward_work(part).flops for part in parts if part]
    assert sum(flops) == case.backward_work(sample).flops
    # The images of a first layer need no gradient.
    assert sample_for(case, by_name["vgg1_1 b1"].build(make), Mode.BACKWARD_INPUT) is None


def test_layers_of_numbers_and_of_pairs() -> None:
    square = Layer("square", 1, 8, 4, 14, 3, 2, dilation=2)
    pairs = Layer("pairs", 1, 8, 4, (14, 14), (3, 3), (2, 2), (2, 2), dilation=(2, 2))
    assert (square.padding_pair, square.output_size) == ((2, 2), (7, 7))
    assert (pairs.padding_pair, pairs.output_size) == ((2, 2), (7, 7))
    oblong = Layer("oblong", 2, 8, 4, (14, 9), (5, 1), (1, 3), groups=2)
    sample = oblong.build(ShapeMaker(torch.float32), "NCHW")
    output = case_named("conv2d").torchs(sample)
    assert output.shape[2:] == oblong.output_size == (14, 3)


def test_nets_have_each_of_their_convolutions_once() -> None:
    counts = {
        **{"lenet": 2, "cifar": 3, "alexnet": 5, "vgg16": 9},
        **{"resnet50": 23, "resnext50": 24, "mobilenet_v2": 30},
    }
    assert {net: len(layers) for net, layers in NETS.items()} == counts
    for net, layers in NETS.items():
        geometries = {dataclasses.replace(each, name="") for each in layers}
        assert len(geometries) == len({each.name for each in layers}) == len(layers)
        assert sum(each.first for each in layers) == 1, net


def test_the_grid_is_wide_and_the_same_everywhere() -> None:
    assert len(GRID) == 200
    assert (GRID[0].name, GRID[-1].name) == (
        "grid 4->192 14 2x2 b16",
        "grid 32->34 24 7x7 s4x3 g2 b16",
    )
    built = [each.build(ShapeMaker(torch.float32), "NCHW") for each in GRID]
    strides, dilations, kernels, paddings = (
        [pair_of(sample) for sample in built]
        for pair_of in (
            lambda sample: sample.kwargs["stride"],
            lambda sample: sample.kwargs["dilation"],
            lambda sample: sample.args[1].shape[2:],
            lambda sample: sample.kwargs["padding"],
        )
    )
    for pairs, values in (
        (kernels, {1, 2, 3, 5, 7, 11}),
        (strides, {1, 2, 3, 4}),
        (dilations, {1, 2, 3}),
        ([each.size_pair for each in GRID], set(SIZES)),
        ([(each.channels, each.filters) for each in GRID], set(CHANNELS)),
        (paddings, {0, 1}),
    ):
        assert values <= {value for pair in pairs for value in pair}
        assert any(first != second for first, second in pairs)
    kinds = {each.kernel_class for each in GRID}
    assert kinds == {"3x3s1", "5x5s1", "depthwise", "direct", "narrow"}
    assert any(1 < each.groups < each.channels for each in GRID)


def test_lists_of_shapes_and_layouts_are_chosen() -> None:
    plan = engine.Plan((Mode.FORWARD,), (1,), ("default",), ops=("conv2d", "relu"))

    def found(**changes: tuple[str, ...]) -> list[tuple[str, str]]:
        subjects = engine.subjects(dataclasses.replace(plan, **changes))
        return [(each.benchmark.shape_list, each.benchmark.layout) for each in subjects]

    assert set(found()) == {(DEFAULT_LIST, layout) for layout in (*LAYOUTS, "")}
    assert set(found(layouts=("NCHW",))) == {(DEFAULT_LIST, "NCHW"), (DEFAULT_LIST, "")}
    lists = ("lenet", "grid")
    assert len(found(shape_lists=lists, layouts=("channels_last",))) == len(NETS["lenet"]) + 200


def test_families_have_the_cases() -> None:
    assert [case for cases in FAMILIES.values() for case in cases] == list(CASES)
