"""conv2d, beyond the operator database: algorithms, integers, invariances, geometry sweeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as torch_functional
from hypothesis import given, settings, strategies as st

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops import _C
from nnops.algorithms import forced_algorithm
from nnops.testing.opdb import case
from nnops.testing.samples import Maker
from nnops.testing.tolerances import assert_accurate, assert_equal

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
PASSES = ("conv2d", "conv2d_backward_input", "conv2d_backward_weight")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
ALGORITHMS = [(name, each) for name in PASSES for each in _C.algorithms()[name]]
# Of bfloat16 alone, by instructions that not every CPU has.
DOT_PRODUCTS = ("pair_rows", "pair_products")


@pytest.fixture(params=ALGORITHMS, ids=lambda param: "-".join(param))
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one algorithm of one pass.

    The other passes make their own choice, and are held to the same accuracy: Winograd's larger
    forms are for the tests of Winograd's forms.
    """
    name = request.param[1]
    level = request.node.callspec.params.get("isa", _C.active_isa())
    if name in DOT_PRODUCTS and (level, _C.cpu_has_bfloat16_dots()) != ("avx512", True):
        pytest.skip("this level has no dot products of bfloat16")
    precision = "high" if name.startswith("winograd") else "highest"
    with forced_algorithm(*request.param), nnops.conv_precision(precision):
        yield name


def dtype_of(algorithm: str) -> torch.dtype:
    return torch.bfloat16 if algorithm in DOT_PRODUCTS else torch.float32


def computable(args, kwargs) -> bool:
    """Whether the forced algorithm supports this problem, layout included."""
    try:
        forward_and_gradients(F.conv2d, args, kwargs)
    except RuntimeError as error:
        if "the forced algorithm" not in str(error):
            raise
        return False
    return True


def assert_as_accurate_as_it_claims(algorithm: str, actual, expected, reference, what: str) -> None:
    """Sums of products as torch's; the bound of Winograd's forms is in test_conv2d_winograd.py."""
    if algorithm.startswith("winograd") and actual.dtype == torch.float32:
        if not actual.numel():
            return
        error = (actual - reference).abs().max()
        assert error <= 1e-5 * reference.abs().max(), f"{what}: {error=}"
        return
    assert_accurate(actual, expected, reference, what)


def forward_and_gradients(function, args, kwargs) -> list[torch.Tensor]:
    leaves = [arg.detach().clone().requires_grad_() for arg in args if arg is not None]
    output = function(*leaves, **kwargs)
    values = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    seed = torch.empty_like(output).copy_(values)
    return [output.detach(), *torch.autograd.grad(output, leaves, seed)]


def test_every_algorithm_is_accurate(algorithm: str, isa: str) -> None:
    tested = dtype_of(algorithm)
    for sample in case("conv2d").samples(Maker(tested)):
        if not computable(sample.args, sample.kwargs):
            continue
        results = []
        for function, dtype in (
            (F.conv2d, tested),
            (torch_functional.conv2d, tested),
            (torch_functional.conv2d, torch.float64),
        ):
            args = [arg.to(dtype) if arg is not None else None for arg in sample.args]
            results.append(forward_and_gradients(function, args, sample.kwargs))
        for index, (actual, expected, reference) in enumerate(zip(*results, strict=True)):
            what = f"{sample.name} {index}"
            assert_as_accurate_as_it_claims(algorithm, actual, expected, reference, what)


# name, input, weight, parameters: what the cuts of the work meet that the database's small samples
# do not. Sizes are a few more than a strip, a chain, a tile or what stays in a cache.
AWKWARD = (
    ("wider than a strip", (1, 5, 3, 2100), (3, 5, 2, 3), {"padding": 1}),
    ("strips of rows", (1, 4, 70, 61), (9, 4, 3, 3), {"padding": 1}),
    ("many channels", (2, 307, 6, 5), (35, 307, 1, 1), {}),
    ("many chains", (1, 130, 7, 7), (70, 130, 3, 3), {"padding": 1}),
    ("more rows than stay", (1, 33, 6, 7), (530, 33, 3, 3), {"padding": 1}),
    ("small maps", (7, 20, 3, 3), (40, 20, 3, 3), {"padding": 1}),
    ("single pixels", (9, 18, 3, 3), (50, 18, 3, 3), {}),
    ("large kernel", (1, 2, 24, 23), (3, 2, 19, 17), {"padding": (9, 3)}),
    ("strided", (2, 19, 23, 22), (33, 19, 3, 3), {"stride": 2, "padding": 1}),
    ("stride beyond kernel", (2, 17, 23, 22), (18, 17, 2, 1), {"stride": (3, 2)}),
    (
        "stride and dilation",
        (1, 18, 25, 27),
        (17, 18, 3, 4),
        {"stride": (2, 3), "dilation": (3, 2)},
    ),
    (
        "stride and many filters",
        (3, 3, 17, 18),
        (260, 3, 5, 3),
        {"stride": (2, 3), "padding": (4, 1)},
    ),
    ("more residues than stay", (2, 5, 29, 31), (230, 5, 9, 9), {"stride": 9, "padding": 2}),
    ("dilation beyond the stride", (2, 7, 33, 35), (9, 7, 3, 3), {"stride": 2, "dilation": 9}),
    ("dilation beyond the map", (2, 17, 9, 9), (18, 17, 3, 3), {"padding": 12, "dilation": 12}),
    ("5x5", (3, 33, 14, 15), (20, 33, 5, 5), {"padding": 2}),
    ("more tiles than a strip", (1, 70, 45, 61), (35, 70, 3, 3), {"padding": (1, 0)}),
    ("more tiles than a strip, 5x5", (2, 18, 29, 37), (130, 18, 5, 5), {"padding": (1, 4)}),
    ("many images of few tiles", (19, 17, 6, 5), (33, 17, 3, 3), {"padding": 1}),
    ("images of two strips", (19, 5, 10, 7), (11, 5, 3, 3), {"padding": 1}),
    ("groups", (2, 54, 9, 9), (51, 18, 3, 3), {"groups": 3, "padding": 1}),
    ("small groups", (2, 24, 11, 37), (36, 4, 3, 3), {"groups": 6, "padding": 1}),
    (
        "small groups, strided",
        (2, 10, 9, 12),
        (15, 2, 5, 4),
        {"groups": 5, "padding": 2, "stride": 2},
    ),
    ("small groups, wide rows", (1, 8, 5, 530), (8, 4, 3, 3), {"groups": 2, "padding": (0, 1)}),
    ("depthwise", (2, 37, 15, 14), (74, 1, 3, 3), {"groups": 37, "padding": 1}),
    ("depthwise, one each", (2, 37, 15, 14), (37, 1, 3, 3), {"groups": 37, "padding": 1}),
    ("depthwise, bands", (1, 5, 130, 61), (5, 1, 5, 5), {"groups": 5, "padding": 2}),
    ("depthwise, 7x7", (2, 19, 9, 23), (19, 1, 7, 7), {"groups": 19, "padding": 3}),
    (
        "depthwise, wide kernel",
        (2, 37, 13, 29),
        (74, 1, 4, 11),
        {"groups": 37, "padding": (1, 5)},
    ),
    (
        "depthwise, dilated",
        (2, 21, 17, 26),
        (42, 1, 3, 6),
        {"groups": 21, "padding": (2, 4), "dilation": (2, 3)},
    ),
    (
        "depthwise, stride 3",
        (2, 35, 19, 31),
        (35, 1, 3, 8),
        {"groups": 35, "padding": 1, "stride": (3, 2)},
    ),
    ("small groups, stride 3", (2, 12, 17, 22), (18, 2, 3, 8), {"groups": 6, "stride": 3}),
    (
        "depthwise, strided",
        (2, 21, 33, 37),
        (21, 1, 3, 3),
        {"groups": 21, "padding": 1, "stride": 2},
    ),
    (
        "depthwise, strided 5x5",
        (2, 18, 14, 14),
        (18, 1, 5, 5),
        {"groups": 18, "padding": 2, "stride": 2},
    ),
    (
        "depthwise, dilated",
        (1, 9, 25, 22),
        (9, 1, 3, 4),
        {"groups": 9, "padding": 2, "dilation": (3, 2)},
    ),
)


def awkward_problems(
    algorithm: str, dtype: torch.dtype | None = None, channels_last: bool = False
) -> Iterator[tuple[str, list[torch.Tensor], dict[str, object]]]:
    """Those that the algorithm can compute."""
    dtype = dtype or dtype_of(algorithm)
    generator = torch.Generator().manual_seed(0)
    for name, input, weight, parameters in AWKWARD:
        x = torch.randn(input, generator=generator)
        w = torch.randn(weight, generator=generator) / weight[1] ** 0.5
        b = torch.randn(weight[0], generator=generator)
        args = [each.to(dtype) for each in (x, w, b)]
        if channels_last:
            args[0] = args[0].contiguous(memory_format=torch.channels_last)
        if computable(args, parameters):
            yield name, args, parameters


def test_every_algorithm_on_awkward_shapes(algorithm: str, isa: str) -> None:
    problems = [
        problem
        for channels_last in (False, True)
        for problem in awkward_problems(algorithm, channels_last=channels_last)
    ]
    assert problems, "no problem of the list is for this algorithm"
    for name, args, parameters in problems:
        actual = forward_and_gradients(F.conv2d, args, parameters)
        expected = forward_and_gradients(torch_functional.conv2d, args, parameters)
        doubles = [arg.double() for arg in args]
        reference = forward_and_gradients(torch_functional.conv2d, doubles, parameters)
        for index, each in enumerate(zip(actual, expected, reference, strict=True)):
            assert_as_accurate_as_it_claims(algorithm, *each, f"{name} {index}")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_on_awkward_shapes(
    algorithm: str, dtype: torch.dtype, channels_last: bool
) -> None:
    for name, args, parameters in awkward_problems(algorithm, dtype, channels_last=channels_last):
        actual = forward_and_gradients(F.conv2d, args, parameters)
        expected = forward_and_gradients(torch_functional.conv2d, args, parameters)
        if dtype == torch.float64:
            # torch is no better a reference: sums of thousands of terms that cancel.
            torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
            continue
        doubles = [arg.double() for arg in args]
        reference = forward_and_gradients(torch_functional.conv2d, doubles, parameters)
        for index, each in enumerate(zip(actual, expected, reference, strict=True)):
            assert_accurate(*each, f"{name} {index}")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_every_algorithm_has_the_same_bits_on_any_number_of_threads(
    algorithm: str, channels_last: bool
) -> None:
    before = torch.get_num_threads()
    try:
        for name, args, parameters in awkward_problems(algorithm, channels_last=channels_last):
            results = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                results.append(forward_and_gradients(F.conv2d, args, parameters))
            for other in results[1:]:
                for index, (a, b) in enumerate(zip(other, results[0], strict=True)):
                    assert torch.equal(a, b), f"{name} {index}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("cuda" in _C.available_isas(), reason="an algorithm of the CPU")
def test_strips_of_unlike_widths_are_computed_at_once(isa: str) -> None:
    """Of 259 columns a strip of grouped_channels has 130, the next 129: threads share no width."""
    x = torch.randn(2, 8, 24, 520).to(memory_format=torch.channels_last)
    w = torch.randn(16, 1, 3, 3)
    before = torch.get_num_threads()
    try:
        with forced_algorithm("conv2d", "grouped_channels"):
            torch.set_num_threads(1)
            expected = F.conv2d(x, w, stride=2, groups=8)
            torch.set_num_threads(4)
            for _ in range(40):
                assert torch.equal(F.conv2d(x, w, stride=2, groups=8), expected)
    finally:
        torch.set_num_threads(before)


def test_every_algorithm_computes_an_image_as_in_any_batch(algorithm: str) -> None:
    for name, args, parameters in awkward_problems(algorithm):
        x, w, b = args
        x = x.repeat(3, 1, 1, 1)[:5].contiguous()
        whole = F.conv2d(x, w, b, **parameters)
        seed = torch.linspace(-1, 1, whole.numel()).view_as(whole)
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.conv2d(leaf, w, b, **parameters), leaf, seed)
        for part in (slice(0, 1), slice(1, 3), slice(2, 5)):
            leaf = x[part].clone().requires_grad_()
            output = F.conv2d(leaf, w, b, **parameters)
            assert torch.equal(output, whole[part]), name
            (part_grad,) = torch.autograd.grad(output, leaf, seed[part])
            assert torch.equal(part_grad, grad[part]), name


@pytest.mark.skipif("cuda" in _C.available_isas(), reason="an algorithm of the CPU")
def test_depthwise_rows_of_images_whose_rows_lie_apart(isa: str) -> None:
    wide = torch.randn(2, 6, 70, 900)
    crops = [wide[..., 100:240], torch.randn(2, 70, 6, 140).transpose(1, 2)]
    w = torch.randn(6, 1, 3, 3)
    parameters = {"padding": 1, "groups": 6}
    for image, seed in itertools.product(crops, crops):
        with forced_algorithm("conv2d", "depthwise_rows"):
            output = F.conv2d(image, w, **parameters)
            expected = F.conv2d(image.contiguous(), w, **parameters)
        assert torch.equal(output, expected)
        leaf = torch.randn(2, 6, 70, 140, requires_grad=True)
        output = F.conv2d(leaf, w, **parameters)
        with forced_algorithm("conv2d_backward_input", "depthwise_rows"):
            (grad,) = torch.autograd.grad(output, leaf, seed, retain_graph=True)
            (expected,) = torch.autograd.grad(output, leaf, seed.contiguous())
        assert torch.equal(grad, expected)


def test_infinities_stay_where_they_are_multiplied(algorithm: str, isa: str) -> None:
    """Padding of the kernels' own (partial vectors, row ends) never meets an infinity."""
    computed = 0
    size = 5 if algorithm.endswith("5x5") else 3
    for groups, layout in itertools.product((1, 20), LAYOUTS):
        x, w = torch.randn(2, 20, 9, 21), torch.randn(20, 20 // groups, size, size)
        x[0, 3, 4, 0] = x[1, 7, 8, 20] = float("inf")
        x[1, 11, 0, 9] = float("nan")
        x = x.contiguous(memory_format=layout).to(dtype_of(algorithm))
        w = w.to(x.dtype)
        for stride in (1, 2):
            parameters = {"groups": groups, "stride": stride}
            if not computable((x, w), parameters):
                continue
            computed += 1
            actual = forward_and_gradients(F.conv2d, (x, w), parameters)
            # In bfloat16 torch's gradient of the weight has more of them.
            doubles = (x.double(), w.double())
            expected = forward_and_gradients(torch_functional.conv2d, doubles, parameters)
            for each in zip(actual, expected, strict=True):
                assert torch.equal(*(tensor.isfinite() for tensor in each)), (groups, stride)
    assert computed


@pytest.mark.skipif(
    "cuda" in _C.available_isas(), reason="CUDA's algorithms each sum in an order of their own"
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("operator", ["conv2d", "conv2d_backward_input"])
def test_the_algorithms_of_a_pass_give_the_same_bits(operator: str, channels_last: bool) -> None:
    """All that sum the products themselves, but the reference, which does so in another order."""
    for name, args, parameters in awkward_problems("any", channels_last=channels_last):
        results = {}
        for algorithm in _C.algorithms()[operator]:
            with forced_algorithm(operator, algorithm):
                if algorithm.startswith(("reference", "winograd")):
                    continue
                if computable(args, parameters):
                    results[algorithm] = forward_and_gradients(F.conv2d, args, parameters)
        expected = results.pop("expanded_planes")
        assert "pixel_rows" in results
        for algorithm, actual in results.items():
            for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
                assert torch.equal(a, b), f"{name} {algorithm} {index}"


# input, weight, parameters
OF_PLANE_DOTS = (
    ("whole vectors", (2, 3, 18, 34), (5, 3, 3, 3), {}),
    ("overlapping vectors", (3, 3, 30, 37), (9, 3, 3, 3), {"padding": 1}),
    ("short rows", (2, 2, 9, 15), (3, 2, 3, 1), {"padding": (1, 0)}),
    ("chunks", (7, 3, 61, 60), (4, 3, 3, 3), {"padding": 1}),
    ("strided", (2, 3, 43, 67), (6, 3, 3, 5), {"stride": (3, 2), "padding": 2}),
    ("dilated", (2, 2, 23, 40), (7, 2, 2, 3), {"dilation": (3, 2)}),
    ("groups", (2, 6, 20, 33), (10, 3, 3, 3), {"groups": 2, "padding": 1}),
    ("padding beyond the image", (1, 1, 3, 20), (2, 1, 5, 3), {"padding": (7, 2)}),
)


@pytest.mark.skipif("cuda" in _C.available_isas(), reason="an algorithm of the CPU")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("problem", OF_PLANE_DOTS, ids=[name for name, *_ in OF_PLANE_DOTS])
def test_plane_dots_of_any_gradient(problem, dtype: torch.dtype, isa: str) -> None:
    """Dense, with gaps between rows, and one number for all: against float64, on 1 to 5 threads."""
    _, input_size, weight_size, parameters = problem
    x = torch.randn(input_size).to(dtype)
    w = torch.randn(weight_size).to(dtype).requires_grad_()
    y = F.conv2d(x, w, **parameters)
    wide = torch.zeros(*y.shape[:2], 2 * y.shape[2], y.shape[3] + 3, dtype=dtype)
    gradients = {
        "dense": torch.randn(y.shape).to(dtype),
        "gaps": wide[:, :, ::2, 3:].copy_(torch.randn(y.shape)),
        "one": torch.randn(()).to(dtype).expand(y.shape),
    }
    exact = w.detach().double().requires_grad_()
    expected_of = torch_functional.conv2d(x.double(), exact, **parameters)
    for name, gradient in gradients.items():
        (expected,) = torch.autograd.grad(expected_of, exact, gradient.double(), retain_graph=True)
        results: list[torch.Tensor] = []
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                with nnops.conv_algorithm(backward_weight="plane_dots"):
                    results += torch.autograd.grad(y, w, gradient, retain_graph=True)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(result, results[0]) for result in results), name
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            results[0].double(), expected, rtol=tolerance, atol=tolerance * scale
        )


# input without the batch, weight, parameters
OF_LANES = (
    ("few channels", (6, 14, 14), (16, 6, 5, 5), {}),
    ("one pixel", (3, 2, 3), (2, 3, 2, 3), {}),
    ("much padding", (7, 9, 5), (11, 7, 3, 3), {"padding": (4, 3)}),
    ("strided", (3, 11, 12), (5, 3, 4, 3), {"stride": (2, 3), "padding": 1}),
    ("dilated", (4, 12, 10), (9, 4, 3, 2), {"dilation": (2, 3), "padding": 3}),
    ("dilation beyond the map", (2, 5, 5), (3, 2, 3, 3), {"padding": 7, "dilation": 7}),
    ("groups", (6, 7, 7), (10, 3, 3, 3), {"groups": 2, "padding": 1}),
    ("chains", (40, 5, 4), (17, 40, 3, 3), {"padding": 1}),
    ("bands", (20, 40, 41), (9, 20, 3, 3), {"padding": 1}),
)


def pair(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.skipif("cuda" in _C.available_isas(), reason="an algorithm of the CPU")
@pytest.mark.parametrize("problem", OF_LANES, ids=lambda problem: problem[0])
def test_images_as_lanes_change_no_bit(problem, isa: str, threads: int) -> None:
    """Strips with and without images missing; weights that make padding matter."""
    _, input, weight, parameters = problem
    once = all(each == 1 for each in pair(parameters.get("stride", 1)))
    passes = ("conv2d", "conv2d_backward_input") if once else ("conv2d",)
    for batch, odd in ((1, None), (15, None), (16, None), (33, None), (17, "inf"), (3, "nan")):
        args = [torch.randn(batch, *input), torch.randn(weight), torch.randn(weight[0])]
        if odd is not None:
            args[1][-1, -1, 0, 0] = float(odd)
        results = {}
        for algorithm in ("image_lanes", "expanded_planes"):
            with ExitStack() as stack:
                for each in passes:
                    stack.enter_context(forced_algorithm(each, algorithm))
                results[algorithm] = forward_and_gradients(F.conv2d, args, parameters)
        for a, b in zip(*results.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif("cuda" in _C.available_isas(), reason="an algorithm of the CPU")
def test_images_are_lanes_where_there_are_enough() -> None:
    """The one choice of a direct algorithm that sees the batch: it changes no bit."""
    w, b = torch.randn(16, 6, 5, 5), torch.randn(16)
    x = torch.randn(64, 6, 14, 14)

    def chosen(batch: int) -> dict[str, str]:
        args = [x[:batch], w, b]
        calls = nnops.explain(forward_and_gradients, F.conv2d, args, {})
        return {call.op: call.algorithm for call in calls}

    for op in ("conv2d", "conv2d_backward_input"):
        assert chosen(64)[op] == "image_lanes"
        assert chosen(1)[op] != "image_lanes"
    whole = forward_and_gradients(F.conv2d, [x, w, b], {})[0]
    assert torch.equal(F.conv2d(x[:1], w, b), whole[:1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_integers_wrap_around_like_a_wider_sum(dtype: torch.dtype, isa: str) -> None:
    """torch lacks some of these (dilated int8, ...); the low bits of an int64 result are exact."""
    for sample in case("conv2d").samples(Maker(torch.int64)):
        args = [arg.to(dtype) if arg is not None else None for arg in sample.args]
        wide = [arg.to(torch.int64) if arg is not None else None for arg in args]
        expected = torch_functional.conv2d(*wide, **sample.kwargs).to(dtype)
        assert_equal(F.conv2d(*args, **sample.kwargs), expected, f"{sample.name} {dtype}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_image_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    x = torch.randn(5, 7, 13, 12).to(dtype)
    w = torch.randn(9, 7, 3, 3).to(dtype).requires_grad_()
    x.requires_grad_()
    whole = F.conv2d(x, w, padding=1)
    (grad,) = torch.autograd.grad(whole.sum(), x)
    for index in range(5):
        alone = F.conv2d(x[index : index + 1], w, padding=1)
        assert torch.equal(alone[0], whole[index])
        (grad_alone,) = torch.autograd.grad(alone.sum(), x)
        assert torch.equal(grad_alone[index], grad[index])


def test_gradients_have_the_same_bits_on_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    args = [torch.randn(6, 5, 33, 31), torch.randn(70, 5, 3, 3), torch.randn(70)]
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(forward_and_gradients(F.conv2d, args, {"padding": 1}))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.skipif("avx512" not in _C.available_isas(), reason="this CPU has no AVX-512")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_avx2_and_avx512_give_the_same_bits(algorithm: str, channels_last: bool) -> None:
    if algorithm in DOT_PRODUCTS:
        pytest.skip("dot products of bfloat16 have bits of their own, and AVX2 has none of them")
    before = _C.active_isa()
    for name, args, parameters in awkward_problems(algorithm, channels_last=channels_last):
        results = []
        try:
            for level in ("avx2", "avx512"):
                _C.set_active_isa(level)
                results.append(forward_and_gradients(F.conv2d, args, parameters))
        finally:
            _C.set_active_isa(before)
        for index, (a, b) in enumerate(zip(*results, strict=True)):
            assert torch.equal(a, b), f"{name} {index}"


def test_saves_only_what_the_wanted_gradients_need() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for needs_x, needs_w, saved in ((False, True, (x, None)), (True, False, (None, w))):
        output = F.conv2d(x.requires_grad_(needs_x), w.requires_grad_(needs_w))
        for kept, expected in zip(output.grad_fn.saved_tensors, saved, strict=True):
            assert (kept is None) == (expected is None)
            if kept is not None:
                assert kept.data_ptr() == expected.data_ptr()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"], ids=str)
def test_module_padding_modes(mode: str, padding: object) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(3, 4, (3, 2), padding=padding, padding_mode=mode)
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 4, (3, 2), padding=padding, padding_mode=mode)
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation, padding = pair(1, 4), pair(1, 3), pair(0, 3)
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 14))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    input = (draw(st.integers(0, 3)), groups * draw(st.integers(1, 5)), *size)
    weight = (groups * draw(st.integers(1, 5)), input[1] // groups, *kernel)
    kwargs = {"stride": pair(1, 4), "padding": padding, "dilation": dilation, "groups": groups}
    return input, weight, kwargs


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans())
def test_random_geometry(problem, channels_last: bool) -> None:
    """Small whole numbers: every sum is exact, so results and gradients equal torch's."""
    input, weight, kwargs = problem
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=generator).double()

    x, w, b = whole(*input), whole(*weight), whole(weight[0])
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours = forward_with_whole_seed(F.conv2d, (x, w, b), kwargs)
    theirs = forward_with_whole_seed(torch_functional.conv2d, (x, w, b), kwargs)
    for index, (actual, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert_equal(actual, expected, f"{problem} {index}")


def forward_with_whole_seed(function, args, kwargs) -> list[torch.Tensor]:
    leaves = [arg.detach().clone().requires_grad_() for arg in args]
    output = function(*leaves, **kwargs)
    seed = (torch.arange(output.numel()) % 5 - 2).double().view_as(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, seed)]


@settings(max_examples=100, deadline=None)
@given(problems(), st.booleans(), st.booleans())
def test_fake_kernels_know_the_real_shapes_and_strides(problem, input_last, weight_last) -> None:
    input, weight, kwargs = problem
    x, w = torch.zeros(input), torch.zeros(weight)
    if input_last:
        x = x.contiguous(memory_format=torch.channels_last)
    if weight_last:
        w = w.contiguous(memory_format=torch.channels_last)
    parameters = [kwargs[key] for key in ("stride", "padding", "dilation", "groups")]
    real = torch.ops.nnops.conv2d(x, w, None, *parameters)
    fake = torch.ops.nnops.conv2d(x.to("meta"), w.to("meta"), None, *parameters)
    calls = (
        ("conv2d_backward_input", w, input[2:]),
        ("conv2d_backward_weight", x, weight[2:]),
    )
    pairs = [(real, fake)]
    for name, other, size in calls:
        operator = getattr(torch.ops.nnops, name)
        pairs.append(
            (
                operator(real, other, size, *parameters),
                operator(real.to("meta"), other.to("meta"), size, *parameters),
            )
        )
    for actual, predicted in pairs:
        assert actual.shape == predicted.shape
        assert actual.stride() == predicted.stride(), (problem, actual.shape)
