"""Whole converted nets under torch.compile: graphs, numbers, and the code that Inductor writes."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.nn import Module

import nnops
from nnops.benchmark.nets import zoo
from nnops.testing.recorder import OperatorCalls
from nnops.testing.tolerances import assert_equal, assert_net_gradients, assert_net_scores

# [C, H, W]. ResNet-18 halves the image five times.
IMAGES = {"lenet": (1, 32, 32), "cifar": (3, 32, 32), "resnet18": (3, 40, 72)}
# Sizes that no other dimension of the nets' inputs has: equal ones would count as related. Up to
# MOST_IMAGES and above.
BATCHES = (5, 4, 13)

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def images_of(name: str, batch: int, layout: torch.memory_format) -> Tensor:
    return torch.randn(batch, *IMAGES[name]).contiguous(memory_format=layout)


def net_of(name: str, training: bool, layout: torch.memory_format) -> Module:
    """A net whose BatchNorms have seen images, so that they are no identities in eval mode."""
    model: Any = zoo.NETS[name].model()
    with torch.no_grad():
        model.train()(images_of(name, 4, torch.contiguous_format))
    return model.train(training).to(memory_format=layout)


def results(net: Callable[[Tensor], Tensor], model: Module, images: Tensor) -> list[Tensor]:
    """The scores; in training mode the parameters' gradients too."""
    if not model.training:
        with torch.no_grad():
            return [net(images)]
    scores = net(images)
    return [scores.detach(), *torch.autograd.grad(scores.square().sum(), [*model.parameters()])]


HEAVY = [pytest.param("resnet18", marks=pytest.mark.slow)]
NETS = ["lenet", "cifar", *HEAVY]
LAYOUTS = [
    pytest.param(torch.contiguous_format, id="contiguous"),
    pytest.param(torch.channels_last, id="channels_last"),
]
MODES = [pytest.param(False, id="inference"), pytest.param(True, id="training")]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETS)
def test_one_graph_with_eagers_bits(
    name: str, layout: torch.memory_format, training: bool, dynamic: bool
) -> None:
    model = net_of(name, training, layout)
    converted = nnops.convert(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(converted, fullgraph=True, backend=counter)
    # A BatchNorm that eager folds, and layers that it runs in one call, have sums of their own. For
    # a batch of one size a graph has that call too.
    is_eagers = not (training or dynamic or name == "resnet18")
    expected = converted if is_eagers else nnops.convert(model, fuse=False)
    graphs = []
    for batch in BATCHES if dynamic else BATCHES[:1]:
        images = images_of(name, batch, layout)
        if is_eagers:
            results(expected, model, images)  # the first of a size run layer by layer
        if dynamic:
            torch._dynamo.mark_dynamic(images, 0)  # an error if it becomes a constant
        state = {key: value.clone() for key, value in model.state_dict().items()}
        actual = results(compiled, model, images)
        model.load_state_dict(state)  # the running statistics: both share them
        for one, other in zip(actual, results(expected, model, images), strict=True):
            assert_equal(one, other, f"{name}, {batch} images")
        graphs.append(counter.frame_count)
    assert graphs == [1] * len(graphs)


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.slow) for each in IMAGES])
def test_inductor_copies_nothing_for_our_operators(
    name: str, layout: torch.memory_format, training: bool
) -> None:
    """What Inductor writes hands our operators the very tensors that others computed."""
    model = net_of(name, training, layout)
    compiled = torch.compile(nnops.convert(model), fullgraph=True)
    images = images_of(name, 4, layout)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch._inductor.config.patch(force_disable_caches=True):  # it keeps no source
        actual, sources = run_and_get_code(results, compiled, model, images)
    model.load_state_dict(state)
    exact = copy.deepcopy(model).double()
    scores, *gradients = results(exact, exact, images.double())
    assert_net_scores(actual[0], scores, name)
    if training:
        names = [name for name, _ in model.named_parameters()]
        assert_net_gradients(
            dict(zip(names, actual[1:], strict=True)), dict(zip(names, gradients, strict=True))
        )
    # Lines that are calls; forward and backward are one source each.
    calls = re.findall(r"= torch\.ops\.nnops\.(\w+)\.default\(", "".join(sources))
    assert calls and len(sources) == 1 + training
    is_run = not training and name != "resnet18" and layout is torch.contiguous_format
    assert (calls == ["_layer_chain"]) == is_run
    assert all(call.startswith("_") for call in calls), "no autograd in what Inductor writes"
    # Kernels that do nothing else: BatchNorm's statistics are copied by kernels that compute them.
    alone = r"^ +cpp_fused_(?:(?:clone|copy|contiguous|_to_copy|view|permute)_)+\d+\("
    copies = re.findall(alone, "".join(sources), re.M)
    # The flatten of a channels_last image, in front of the linear layers.
    flattened = layout is torch.channels_last and name != "resnet18"
    assert len(copies) == flattened, copies


def exported(net: Module, name: str, strict: bool) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=1 << 12)
    images = images_of(name, BATCHES[0], torch.contiguous_format)
    with torch.no_grad():
        return torch.export.export(net, (images,), dynamic_shapes=({0: batch},), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_export_for_any_batch(name: str, strict: bool) -> None:
    model = net_of(name, False, torch.contiguous_format)
    file = io.BytesIO()
    torch.export.save(exported(nnops.convert(model), name, strict), file)
    file.seek(0)
    program = torch.export.load(file)
    for each in (program, program.run_decompositions()):
        called = [str(node.target) for node in each.graph.nodes if node.op == "call_function"]
        assert any(name.startswith("nnops.conv2d") for name in called)
        # The private ones could not be differentiated by who loads the program.
        assert not [name for name in called if name.startswith("nnops._")]
    for batch in BATCHES:
        images = images_of(name, batch, torch.contiguous_format)
        with torch.no_grad():
            expected = nnops.convert(model, fuse=False)(images)
            assert_equal(program.module()(images), expected, f"{name}, {batch} images")


@pytest.mark.slow
def test_aot_inductor(tmp_path: Path) -> None:
    """A package whose C++ calls our operators, for any batch."""
    model = net_of("lenet", False, torch.contiguous_format)
    with torch.no_grad():
        program = exported(nnops.convert(model), "lenet", strict=False)
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "lenet.pt2")
        )
    loaded = torch._inductor.aoti_load_package(package)
    exact = copy.deepcopy(model).double()
    for batch in BATCHES:
        images = images_of("lenet", batch, torch.contiguous_format)
        with OperatorCalls() as calls:
            scores = loaded(images)
        assert [name for name, _ in calls.recorded].count("conv2d_max_pool2d") == 2
        with torch.no_grad():
            assert_net_scores(scores, exact(images.double()), f"{batch} images")
