"""conv2d with a ReLU and a max-pool behind it: cases, against torch's functions one by one.

Gradients depend on which element of a window is the largest, so samples in low precision are whole
numbers, whose sums are exact, with ties in plenty; float32 and float64 have others too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnops.testing.opdb.conv2d_layers import Layer
from nnops.testing.samples import (
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

Reference = Callable[..., Tensor]

# name, input, weight, bias?, parameters of the convolution, of the pool. Images that are cut into
# bands of rows stand in tests/test_fused_conv2d.py.
Geometry = tuple[str, tuple[int, ...], tuple[int, ...], bool, dict[str, Any], dict[str, Any]]
GEOMETRIES: tuple[Geometry, ...] = (
    ("plain", (2, 3, 9, 11), (4, 3, 3, 3), True, {}, {"pool_kernel_size": 2}),
    ("lenet 1", (3, 1, 32, 32), (6, 1, 5, 5), True, {}, {"pool_kernel_size": 2}),
    ("no bias", (2, 3, 8, 7), (5, 3, 3, 3), False, {"padding": 1}, {"pool_kernel_size": 2}),
    ("unbatched", (3, 9, 8), (4, 3, 3, 3), True, {}, {"pool_kernel_size": (2, 3)}),
    (
        "padded pool",
        (2, 4, 13, 12),
        (6, 4, 3, 3),
        True,
        {"padding": 1, "stride": (2, 1)},
        {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    ),
    (
        "dilated pool, ceil mode",
        (1, 4, 14, 13),
        (6, 2, 3, 2),
        True,
        {"groups": 2, "dilation": (1, 2)},
        {"pool_kernel_size": 2, "pool_stride": (3, 2), "pool_dilation": 2, "ceil_mode": True},
    ),
    (
        "gaps between windows",
        (2, 2, 12, 12),
        (3, 2, 1, 1),
        True,
        {},
        {"pool_kernel_size": 2, "pool_stride": 5},
    ),
    ("depthwise", (2, 7, 9, 8), (7, 1, 3, 3), True, {"groups": 7}, {"pool_kernel_size": 2}),
    ("same", (2, 3, 8, 7), (4, 3, 2, 4), True, {"padding": "same"}, {"pool_kernel_size": 2}),
    ("empty batch", (0, 3, 8, 7), (4, 3, 3, 3), True, {}, {"pool_kernel_size": 2}),
)
# Only without a derivative: the place of the maximum does not fit into a byte.
LARGE_WINDOW: Geometry = (
    "window too large for offsets",
    (2, 2, 21, 20),
    (3, 2, 3, 3),
    True,
    {},
    {"pool_kernel_size": 16, "pool_stride": 2},
)


def conv2d_relu(*arguments: Any, **convolution: Any) -> Tensor:
    return F.relu(F.conv2d(*arguments, **convolution))


def conv2d_max_pool2d(
    *arguments: Any,
    pool_kernel_size: Any,
    pool_stride: Any = None,
    pool_padding: Any = 0,
    pool_dilation: Any = 1,
    ceil_mode: bool = False,
    convolve: Reference = F.conv2d,
    **convolution: Any,
) -> Tensor:
    image = convolve(*arguments, **convolution)
    return F.max_pool2d(
        image, pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode
    )


conv2d_relu_max_pool2d = partial(conv2d_max_pool2d, convolve=conv2d_relu)


def _tensors(
    make: Maker, input: tuple[int, ...], weight: tuple[int, ...], bias: bool, whole: bool
) -> tuple[Tensor | None, ...]:
    if whole:
        # Sums stay below 256, which every dtype counts up to.
        magnitude = 3 if math.prod(weight[1:]) < 64 else 1
        return (
            make.integer_valued(*input, magnitude=magnitude),
            make.integer_valued(*weight, magnitude=1),
            make.integer_valued(weight[0]) if bias else None,
        )
    bound = 1 / math.sqrt(math.prod(weight[1:]))
    return (
        make.tensor(*input),
        make.tensor(*weight, low=-bound, high=bound),
        make.tensor(weight[0]) if bias else None,
    )


def samples(pools: bool, make: Maker) -> Iterator[Sample]:
    geometries = (*GEOMETRIES, LARGE_WINDOW) if pools else GEOMETRIES
    for name, input, weight, bias, convolution, window in geometries:
        parameters = {**convolution, **(window if pools else {})}
        whole = _tensors(make, input, weight, bias, True)
        yield Sample(f"{name}, whole numbers", whole, parameters)
        if make.dtype in (torch.float32, torch.float64):
            yield Sample(name, _tensors(make, input, weight, bias, False), parameters)


def gradcheck_samples(pools: bool, make: Maker) -> Iterator[Sample]:
    for name, input, weight, convolution, window in (
        ("plain", (2, 2, 5, 6), (3, 2, 2, 3), {}, {"pool_kernel_size": 2}),
        (
            "all",
            (1, 4, 6, 5),
            (2, 2, 2, 2),
            {"padding": 1, "groups": 2, "dilation": (2, 1)},
            {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True},
        ),
    ):
        tensors = (make.tensor(*input), make.tensor(*weight), make.tensor(weight[0]))
        yield Sample(name, tensors, {**convolution, **(window if pools else {})})


def error_samples(name: str, pools: bool) -> Iterator[ErrorSample]:
    x, w, b = torch.zeros(2, 4, 7, 8), torch.zeros(6, 4, 3, 3), torch.zeros(6)
    window: dict[str, Any] = {"pool_kernel_size": 2} if pools else {}
    # The operator serves both pooling functions, and names itself in what it checks.
    op = "conv2d_max_pool2d" if pools else name

    def error(
        what: str,
        args: tuple[object, ...],
        match: str,
        error: type[Exception] = RuntimeError,
        **kwargs: object,
    ) -> ErrorSample:
        return ErrorSample(what, args, {**window, **kwargs}, error, match)

    yield error("2-D input", (x[0, 0], w), rf"{op}.*input.*\(7, 8\)")
    yield error("channels", (x[:, :3], w), rf"{op}.*channels.*\(2, 3, 7, 8\)")
    yield error("bias size", (x, w, b[:5]), rf"{op}.*bias.*6.*\(5\)")
    yield error("kernel too large", (x, torch.zeros(6, 4, 9, 9)), rf"{op}.*height.*9 over 7")
    yield error("mixed dtypes", (x, w.double()), rf"{op}.*weight.*float64.*float32")
    yield error("float stride", (x, w), f"{name}.*stride=1.5", TypeError, stride=1.5)
    yield error("bool", (x > 0, w > 0), f"{op}.*bool", NotImplementedError)
    yield error("no weight", (x, None), f"{name}.*weight.*NoneType", TypeError)
    if not pools:
        return
    yield error("window too large", (x, w), rf"{op}.*window must fit.*5, 6", pool_kernel_size=6)
    yield error("window 0", (x, w), rf"{op}.*kernel_size must be positive", pool_kernel_size=0)
    yield error("pool stride 0", (x, w), rf"{op}.*stride must be positive", pool_stride=0)
    yield error("pool padding", (x, w), rf"{op}.*padding must be at most half", pool_padding=2)
    yield error(
        "ceil_mode int", (x, w), f"{name}.*ceil_mode must be a bool", TypeError, ceil_mode=1
    )


# The blocks of LeNet, of the CIFAR-10 network, and of AlexNet and VGG-16 where they pool.
BLOCKS: tuple[tuple[Layer, int, int], ...] = (
    (Layer("lenet1 b64", 64, 1, 6, 32, 5, padding=0), 2, 2),
    (Layer("lenet2 b64", 64, 6, 16, 14, 5, padding=0, inner=True), 2, 2),
    (Layer("lenet1 b1", 1, 1, 6, 32, 5, padding=0), 2, 2),
    (Layer("cifar1 b64", 64, 3, 32, 32, 5), 2, 2),
    (Layer("cifar2 b64", 64, 32, 32, 16, 5), 2, 2),
    (Layer("cifar3 b64", 64, 32, 64, 8, 5), 2, 2),
    (Layer("alex1 b4", 4, 3, 64, 224, 11, 4, padding=2), 3, 2),
    (Layer("alex2 b4", 4, 64, 192, 27, 5), 3, 2),
    (Layer("alex5 b4", 4, 256, 256, 13, 3), 3, 2),
    (Layer("vgg1_2 b2", 2, 64, 64, 224, 3), 2, 2),
    (Layer("vgg2_2 b2", 2, 128, 128, 112, 3), 2, 2),
    (Layer("vgg3_3 b2", 2, 256, 256, 56, 3), 2, 2),
    (Layer("vgg5_3 b4", 4, 512, 512, 14, 3), 2, 2),
)
TINY = (Layer("tiny", 1, 4, 4, 8, 3), 2, 2)


def _build(layer: Layer, window: dict[str, Any], make: Maker, layout: str) -> Sample:
    sample = layer.build(make, layout=layout)
    return Sample(sample.name, sample.args, {**sample.kwargs, **window})


def benchmark_samples(pools: bool) -> Iterator[BenchmarkSample]:
    for layout in LAYOUTS:
        for layer, kernel, stride in (*BLOCKS, TINY):
            window = {"pool_kernel_size": kernel, "pool_stride": stride} if pools else {}
            kernel_class = OVERHEAD if layer is TINY[0] else layer.kernel_class
            build = partial(_build, layer, window, layout=layout)
            yield BenchmarkSample(layer.name, kernel_class, build, layout)


def _output(reference: Reference, sample: Sample) -> Tensor:
    input, weight = (tensor.detach().to("meta") for tensor in sample.args[:2])
    return reference(input, weight, **sample.kwargs)


def _products(sample: Sample) -> int:
    convolution = {
        name: value
        for name, value in sample.kwargs.items()
        if not name.startswith("pool_") and name != "ceil_mode"
    }
    pixels = _output(F.conv2d, Sample(sample.name, sample.args, convolution)).numel()
    return 2 * pixels * int(sample.args[1][0].numel())


def forward_work(reference: Reference, sample: Sample) -> Work:
    """The products of the convolution; its output is neither written nor read."""
    return Work(
        _products(sample), bytes_of(*tensors_of(sample)), bytes_of(_output(reference, sample))
    )


def backward_work(reference: Reference, sample: Sample) -> Work:
    """As many products for each of input and weight; an element of the output keeps a byte."""
    output = _output(reference, sample)
    input, weight = sample.args[:2]
    needed = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    others = [other for needs, other in ((input, weight), (weight, input)) if needs.requires_grad]
    return Work(
        _products(sample) * len(others),
        bytes_of(output, *others) + output.numel(),
        bytes_of(*needed),
    )


def _case(name: str, reference: Reference, pools: bool, operators: tuple[str, ...]) -> OpCase:
    return OpCase(
        name=name,
        operators=(
            *operators,
            "conv2d",
            "conv2d_backward_bias",
            "conv2d_backward_input",
            "conv2d_backward_weight",
        ),
        dtypes=(*FLOATING, torch.int64),
        samples=partial(samples, pools),
        gradcheck_samples=partial(gradcheck_samples, pools),
        error_samples=partial(error_samples, name, pools),
        error_share=1e-5,
        reference=reference,
        benchmark_samples=tuple(benchmark_samples(pools)),
        forward_work=partial(forward_work, reference),
        backward_work=partial(backward_work, reference),
    )


POOLING = (
    "conv2d_max_pool2d",
    "conv2d_max_pool2d_with_offsets",
    "max_pool2d_backward",
    "max_pool2d_gather",
)
LARGE_POOLING = (
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool2d_with_indices_backward",
    "max_unpool2d_backward",
)

CASES = (
    _case("conv2d_relu", conv2d_relu, False, ("conv2d_relu", "relu_backward")),
    _case("conv2d_max_pool2d", conv2d_max_pool2d, True, POOLING),
    _case("conv2d_relu_max_pool2d", conv2d_relu_max_pool2d, True, POOLING),
)
