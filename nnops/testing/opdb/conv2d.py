"""conv2d: cases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from nnops.testing.opdb.conv2d_grid import GRID
from nnops.testing.opdb.conv2d_layers import LAYERS, TINY, Layer
from nnops.testing.opdb.conv2d_nets import NETS
from nnops.testing.samples import (
    DEFAULT_LIST,
    FLOATING,
    LAYOUTS,
    OVERHEAD,
    BenchmarkSample,
    ErrorSample,
    Maker,
    OpCase,
    Sample,
    Work,
    bytes_of,
    tensors_of,
)

# name, input, weight, bias?, parameters. Sizes straddle the tiles (2, 6 or 8 rows, 1 to 6 vectors)
# and the chains of additions (96 terms); tests/test_conv2d.py has those beyond a strip.
GEOMETRIES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], bool, dict[str, object]], ...] = (
    ("1x1 image", (1, 1, 1, 1), (1, 1, 1, 1), True, {}),
    ("one channel", (2, 1, 5, 7), (3, 1, 3, 3), True, {}),
    ("lenet 1", (2, 1, 32, 32), (6, 1, 5, 5), True, {}),
    ("lenet 2", (2, 6, 14, 14), (16, 6, 5, 5), True, {}),
    ("cifar 1", (2, 3, 32, 32), (32, 3, 5, 5), True, {"padding": 2}),
    ("many depth blocks", (1, 40, 9, 9), (9, 40, 3, 3), True, {"padding": 1}),
    ("pointwise", (2, 17, 6, 5), (5, 17, 1, 1), True, {}),
    ("unbatched", (3, 8, 7), (4, 3, 3, 3), True, {}),
    ("no bias", (2, 3, 8, 7), (4, 3, 3, 3), False, {}),
    ("stride", (2, 3, 11, 13), (5, 3, 3, 3), True, {"stride": 2}),
    ("stride pair", (2, 3, 11, 13), (5, 3, 3, 2), True, {"stride": (3, 2), "padding": (1, 0)}),
    ("stride beyond kernel", (1, 2, 13, 13), (3, 2, 2, 2), True, {"stride": 5}),
    ("alexnet 1", (1, 3, 35, 35), (8, 3, 11, 11), True, {"stride": 4, "padding": 2}),
    ("dilation", (2, 3, 13, 12), (4, 3, 3, 3), True, {"dilation": 2}),
    ("dilation pair", (2, 3, 13, 12), (4, 3, 3, 2), True, {"dilation": (3, 4), "padding": (2, 3)}),
    ("all three", (1, 2, 17, 19), (3, 2, 3, 3), True, {"stride": 2, "padding": 3, "dilation": 2}),
    ("wide padding", (1, 2, 3, 3), (3, 2, 3, 3), True, {"padding": 5}),
    ("groups", (2, 6, 7, 8), (9, 2, 3, 3), True, {"groups": 3, "padding": 1}),
    ("depthwise", (2, 7, 9, 8), (7, 1, 3, 3), True, {"groups": 7, "padding": 1}),
    ("depthwise multiplier", (1, 5, 9, 8), (10, 1, 3, 3), True, {"groups": 5, "stride": 2}),
    ("same", (2, 3, 8, 7), (4, 3, 3, 5), True, {"padding": "same"}),
    ("same, even", (2, 3, 8, 7), (4, 3, 2, 4), True, {"padding": "same"}),
    ("same, dilated", (2, 3, 8, 7), (4, 3, 4, 3), True, {"padding": "same", "dilation": (3, 2)}),
    ("valid", (2, 3, 8, 7), (4, 3, 3, 3), True, {"padding": "valid"}),
    ("empty batch", (0, 3, 8, 7), (4, 3, 3, 3), True, {}),
    ("two rows", (3, 4, 2, 50), (7, 4, 2, 3), True, {"padding": (0, 1)}),
)


def samples(make: Maker) -> Iterator[Sample]:
    for name, input, weight, bias, parameters in GEOMETRIES:
        shift = make.tensor(weight[0]) if bias else None
        # Filters of the size that initialisation gives, so that outputs are of order one.
        bound = 1 / math.sqrt(math.prod(weight[1:]))
        filters = (
            make.tensor(*weight, low=-bound, high=bound)
            if make.dtype.is_floating_point
            else make.integer_valued(*weight)
        )
        yield Sample(name, (make.tensor(*input), filters, shift), dict(parameters))
    exact = (make.integer_valued(2, 5, 9, 9), make.integer_valued(4, 5, 3, 3))
    yield Sample("whole numbers", exact)


def gradcheck_samples(make: Maker) -> Iterator[Sample]:
    for name, input, weight, parameters in (
        ("plain", (2, 2, 4, 5), (3, 2, 3, 2), {}),
        ("all", (1, 4, 6, 5), (2, 2, 2, 2), {"stride": (2, 1), "padding": 1, "groups": 2}),
        ("dilated", (1, 2, 5, 6), (2, 2, 2, 2), {"dilation": 2, "padding": (1, 2)}),
        ("same, even", (1, 1, 3, 4), (2, 1, 2, 2), {"padding": "same"}),
    ):
        filters = make.tensor(*weight)
        yield Sample(name, (make.tensor(*input), filters, make.tensor(weight[0])), parameters)


def error_samples() -> Iterator[ErrorSample]:
    x, w, b = torch.zeros(2, 4, 7, 8), torch.zeros(6, 4, 3, 3), torch.zeros(6)

    def error(
        name: str,
        args: tuple[object, ...],
        match: str,
        error: type[Exception] = RuntimeError,
        differs: str = "",
        **kwargs: object,
    ) -> ErrorSample:
        return ErrorSample(name, args, kwargs, error, f"conv2d.*{match}", differs)

    yield error("2-D input", (x[0, 0], w), r"input.*\(7, 8\)")
    yield error("5-D input", (x[None], w), r"input.*\(1, 2, 4, 7, 8\)")
    yield error("3-D weight", (x, w[0]), r"weight.*\(4, 3, 3\)")
    yield error("channels", (x[:, :3], w), r"channels.*\(2, 3, 7, 8\).*\(6, 4, 3, 3\)")
    yield error("groups of channels", (x, w), "groups=3", groups=3)
    yield error("zero groups", (x, w), "groups=0", groups=0)
    yield error("negative groups", (x, w), "groups=-1", groups=-1)
    yield error("groups of outputs", (torch.zeros(2, 16, 7, 8), w), "groups=4", groups=4)
    yield error("bias size", (x, w, torch.zeros(5)), r"bias.*6.*\(5\)")
    yield error("bias rank", (x, w, torch.zeros(6, 1)), r"bias.*6.*\(6, 1\)")
    yield error("zero stride", (x, w), r"stride=\(0, 1\)", stride=(0, 1))
    yield error("negative stride", (x, w), r"stride=\(-1, -1\)", stride=-1)
    yield error("three strides", (x, w), r"stride=\(1, 1, 1\)", stride=(1, 1, 1))
    yield error("no stride", (x, w), r"stride=\(\)", stride=())
    yield error("float stride", (x, w), "stride=1.5", TypeError, stride=1.5)
    yield error("bool stride", (x, w), "stride=True", TypeError, stride=True)
    yield error("negative padding", (x, w), r"padding=\(-1, 0\)", padding=(-1, 0))
    yield error("unknown padding", (x, w), "'full'", padding="full")
    yield error("strided same", (x, w), r"stride=\(2, 2\)", padding="same", stride=2)
    yield error("zero dilation", (x, w), r"dilation=\(0, 0\)", dilation=0)
    yield error("kernel too large", (x, torch.zeros(6, 4, 9, 9)), "height.*9 over 7")
    yield error("dilated too large", (x, w), "width.*9 over 8", dilation=(1, 4))
    yield error("no outputs", (x, w[:0], b[:0]), r"weight.*empty.*\(0, 4, 3, 3\)")
    yield error("no pixels", (x[:, :, :0], w), "height", padding=2)
    yield error("no taps", (x, w[:, :, :0]), r"weight.*empty.*\(6, 4, 0, 3\)")
    yield error(
        "no channels",
        (x[:, :0], w[:, :0]),
        r"weight.*empty.*\(6, 0, 3, 3\)",
        differs="torch returns an output of zero channels",
    )
    yield error("mixed dtypes", (x, w.double()), "weight.*float64.*float32")
    yield error("mixed bias", (x, w, b.double()), "bias.*float64.*float32")
    yield error(
        "mixed devices",
        (x, w.to("meta")),
        "same device.*cpu.*meta",
        differs="torch returns a tensor that was never computed",
    )
    yield error("huge padding", (x, w), "64 bits", padding=2**62)
    yield error("huge dilation", (x, w), "fit|64 bits", dilation=2**62)
    yield error("huge output", (x, w), "too large", padding=2**40)
    yield error("bool", (x > 0, w > 0), "bool", NotImplementedError)
    yield error(
        "complex",
        (x.to(torch.complex64), w.to(torch.complex64)),
        "complex64",
        NotImplementedError,
        differs="torch convolves complex tensors",
    )
    yield error("list input", ([1.0], w), "input.*list", TypeError)
    yield error("no weight", (x, None), "weight.*NoneType", TypeError)


SHAPE_LISTS: dict[str, tuple[Layer, ...]] = {DEFAULT_LIST: LAYERS, **NETS, "grid": GRID}


def benchmark_samples() -> Iterator[BenchmarkSample]:
    for layout in LAYOUTS:
        for shape_list, layers in SHAPE_LISTS.items():
            for layer in layers:
                build = partial(layer.build, layout=layout)
                yield BenchmarkSample(layer.name, layer.kernel_class, build, layout, shape_list)
        yield BenchmarkSample(TINY.name, OVERHEAD, partial(TINY.build, layout=layout), layout)


def _output(sample: Sample) -> torch.Tensor:
    input, weight = sample.args[:2]
    return torch.nn.functional.conv2d(
        input.detach().to("meta"), weight.detach().to("meta"), None, **sample.kwargs
    )


def forward_work(sample: Sample) -> Work:
    """Two operations per product."""
    output = _output(sample)
    flops = 2 * output.numel() * sample.args[1][0].numel()
    return Work(flops, bytes_of(*tensors_of(sample)), bytes_of(output))


def backward_work(sample: Sample) -> Work:
    """As many products as forward for each of input and weight; each reads the other one."""
    output = _output(sample)
    products = 2 * output.numel() * sample.args[1][0].numel()
    input, weight = sample.args[:2]
    needed = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    others = [other for needs, other in ((input, weight), (weight, input)) if needs.requires_grad]
    return Work(products * len(others), bytes_of(output, *others), bytes_of(*needed))


CASES = (
    OpCase(
        name="conv2d",
        operators=(
            "conv2d",
            "conv2d_backward_bias",
            "conv2d_backward_input",
            "conv2d_backward_weight",
        ),
        dtypes=(*FLOATING, torch.int64),
        samples=samples,
        gradcheck_samples=gradcheck_samples,
        error_samples=error_samples,
        # The bound of the default precision, "high".
        error_share=1e-5,
        benchmark_samples=tuple(benchmark_samples()),
        forward_work=forward_work,
        backward_work=backward_work,
        backward_parts=("input", "weight"),
    ),
)
