"""How conv2d shares its work over threads: nothing is lost, nobody has much more than the mean."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import nnops
import nnops.nn.functional as F
from nnops import _C
from nnops.algorithms import CONV_PASSES, forced_algorithm
from nnops.partition import Partition, conv2d_partition
from nnops.testing.opdb.conv2d import GEOMETRIES, SHAPE_LISTS
from nnops.testing.opdb.conv2d_layers import Layer
from nnops.testing.samples import LAYOUTS, Maker, Sample

THREADS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128)
ALGORITHMS = [(name, each) for name, op in CONV_PASSES.items() for each in _C.algorithms()[op]]


def pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value  # type: ignore[return-value]


def terms_along(
    axis: int, size: int, kernel: int, stride: int, pad: int, dilation: int, conv_pass: str
) -> int:
    """Products along one axis; with padding, as the sums are written: per element and tap."""
    grid = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    if conv_pass != "backward_input":
        return grid * kernel
    stride = 1 if grid == 1 else stride
    return sum(
        (position + pad - tap * dilation) % stride == 0
        for position in range(size)
        for tap in range(kernel)
    )


def products(
    input: torch.Tensor,
    weight: torch.Tensor,
    *,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    conv_pass: str,
    algorithm: str,
) -> int:
    n, c, *size = input.shape
    oc, _, *kernel = weight.shape
    if algorithm.startswith("winograd"):
        outputs, taps = (int(each.split("x")[0]) for each in algorithm.split("_")[1:])
        if conv_pass != "backward_input":
            size = [x + 2 * p - taps + 1 for x, p in zip(size, pair(padding), strict=True)]
        tiles = (-(-size[0] // outputs)) * (-(-size[1] // outputs))
        return n * oc * c // groups * tiles * (outputs + taps - 1) ** 2
    along = [
        terms_along(axis, size[axis], kernel[axis], *numbers, conv_pass)
        for axis, numbers in enumerate(
            zip(pair(stride), pair(padding), pair(dilation), strict=True)
        )
    ]
    return n * oc * c // groups * along[0] * along[1]


@pytest.fixture(params=_C.available_isas())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """An ISA level to be asked; nothing is computed."""
    before = _C.active_isa()
    _C.set_active_isa(request.param)
    yield request.param
    _C.set_active_isa(before)


def check(partition: Partition, expected: int) -> None:
    assert 1 <= partition.threads <= partition.asked
    assert partition.busy <= partition.threads
    assert partition.products == expected
    assert partition.imbalance >= 1
    for phase in partition.phases:
        assert len(phase.work) == partition.threads
        assert min(phase.work) >= 0
        assert max(phase.work) > 0
        assert max(phase.work) * partition.threads >= sum(phase.work)


def layers(shape_list: str) -> list[Layer]:
    return list(SHAPE_LISTS[shape_list])


@pytest.mark.parametrize("conv_pass", CONV_PASSES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape_list", SHAPE_LISTS)
def test_no_work_is_lost(shape_list: str, layout: str, conv_pass: str) -> None:
    for layer in layers(shape_list):
        tensors = layer.fake(torch.float32, layout)
        for threads in THREADS:
            partition = conv2d_partition(
                *tensors, **layer.parameters, conv_pass=conv_pass, threads=threads
            )
            expected = products(
                *tensors,
                **layer.parameters,
                conv_pass=conv_pass,
                algorithm=partition.algorithm,
            )
            check(partition, expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_algorithm_tells_all_its_work(
    algorithm: tuple[str, str], dtype: torch.dtype, level: str
) -> None:
    conv_pass, name = algorithm
    if name.startswith("winograd") and dtype == torch.float64:
        pytest.skip("float64 is computed directly")
    if name.startswith("pair"):
        if dtype != torch.bfloat16:
            pytest.skip("it computes bfloat16 only")
        if level != "avx512" or not _C.cpu_has_bfloat16_dots():
            pytest.skip("this level has no dot products of bfloat16")
    if name == "image_lanes" and dtype != torch.float32:
        pytest.skip("it computes float32 only")
    told = 0
    for _, input_size, weight_size, _, parameters in GEOMETRIES:
        if len(input_size) < 4 or isinstance(parameters.get("padding"), str) or not input_size[0]:
            continue
        for layout in (torch.contiguous_format, torch.channels_last):
            input = torch.empty(input_size, dtype=dtype, device="meta").contiguous(
                memory_format=layout
            )
            weight = torch.empty(weight_size, dtype=dtype, device="meta")
            expected = products(input, weight, **parameters, conv_pass=conv_pass, algorithm=name)
            for threads in range(1, 129, 9):
                with forced_algorithm(CONV_PASSES[conv_pass], name):
                    try:
                        partition = conv2d_partition(
                            input, weight, **parameters, conv_pass=conv_pass, threads=threads
                        )
                    except RuntimeError as error:
                        assert "the forced algorithm" in str(error)
                        break
                assert partition.algorithm == name
                check(partition, expected)
                told += 1
    assert told


def train(sample: Sample) -> None:
    output = F.conv2d(*sample.args, **sample.kwargs)
    output.backward(torch.ones_like(output))


def test_the_algorithm_and_the_threads_are_those_of_a_call(threads: int) -> None:
    for layer in (each for each in layers("goals") if each.batch <= 8 and each.size_pair[0] < 100):
        for layout in LAYOUTS:
            sample = layer.build(Maker(torch.float32, requires_grad=True), layout)
            input, weight, _ = sample.args
            calls = nnops.explain(train, sample)
            for call in calls:
                for conv_pass, op in CONV_PASSES.items():
                    if call.op == op:
                        partition = conv2d_partition(
                            input, weight, **sample.kwargs, conv_pass=conv_pass, threads=threads
                        )
                        assert (partition.algorithm, partition.threads) == (
                            call.algorithm,
                            call.threads,
                        )


def test_small_problems_stay_on_one_thread() -> None:
    input, weight = (torch.empty(size, device="meta") for size in ((1, 8, 8, 8), (8, 8, 3, 3)))
    for conv_pass in CONV_PASSES:
        partition = conv2d_partition(input, weight, padding=1, conv_pass=conv_pass, threads=128)
        assert partition.threads == 1
        assert partition.imbalance == 1


def test_an_empty_batch_has_no_phases() -> None:
    input, weight = (torch.empty(size, device="meta") for size in ((0, 8, 8, 8), (8, 8, 3, 3)))
    partition = conv2d_partition(input, weight, threads=4)
    assert partition.phases == ()
    assert (partition.products, partition.imbalance, partition.busy) == (0, 1.0, 0)


def test_wrong_arguments() -> None:
    input, weight = (torch.empty(size, device="meta") for size in ((1, 8, 8, 8), (8, 8, 3, 3)))
    with pytest.raises(ValueError, match=r"conv_pass must be one of forward, .*'sideways'"):
        conv2d_partition(input, weight, conv_pass="sideways", threads=2)
    with pytest.raises(ValueError, match="threads must be positive"):
        conv2d_partition(input, weight, threads=0)


# For each thread count: the busiest thread of any layer of the list over the mean, and their mean,
# with room for levels whose panels are wider. What 8 threads and more have beyond a tenth are rows
# of backward_weight, whose sums are cut into parts that may not depend on the threads: Winograd's
# forms have 16 at most, each with transformed sums of its own to write and to read.
@pytest.mark.parametrize(
    ("threads", "worst", "mean"),
    [
        (2, 1.25, 1.03),
        (3, 1.35, 1.1),
        (4, 1.35, 1.08),
        (8, 1.6, 1.12),
        (16, 2.6, 1.25),
        (32, 4.6, 1.6),
        (64, 9, 2.2),
        (128, 17, 3.2),
    ],
)
def test_layers_of_the_goals_are_shared_evenly(
    threads: int, worst: float, mean: float, level: str
) -> None:
    imbalances = [
        conv2d_partition(
            *layer.fake(torch.float32, layout),
            **layer.parameters,
            conv_pass=conv_pass,
            threads=threads,
        ).imbalance
        for layer in layers("goals")
        for layout in LAYOUTS
        for conv_pass in CONV_PASSES
        if not (layer.first and conv_pass == "backward_input")
    ]
    assert max(imbalances) <= worst
    assert sum(imbalances) / len(imbalances) <= mean


@pytest.mark.parametrize("conv_pass", CONV_PASSES)
@pytest.mark.parametrize("shape_list", SHAPE_LISTS)
def test_two_threads_both_have_work(shape_list: str, conv_pass: str) -> None:
    for layer in layers(shape_list):
        for layout in LAYOUTS:
            partition = conv2d_partition(
                *layer.fake(torch.float32, layout),
                **layer.parameters,
                conv_pass=conv_pass,
                threads=2,
            )
            assert partition.imbalance < 1.5, layer.name
