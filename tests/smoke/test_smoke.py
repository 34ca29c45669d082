"""A few seconds that tell whether an installed nnops works at all.

Part of the default suite, a pre-commit hook, and what a wheel built with one torch must pass under
a later one (`make smoke-later-torch`): so it needs nothing but nnops, torch and pytest.
"""

from __future__ import annotations

import warnings
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

import nnops
import nnops.nn.functional as F
from nnops import _C
from nnops._library import OLDEST_TORCH
from nnops._openmp import loaded_openmp_runtimes
from nnops.testing.opdb import CASES
from nnops.testing.samples import Maker, OpCase, Sample, detached, tensors_of
from nnops.testing.tolerances import assert_accurate

BY_CASE = [pytest.param(case, id=case.name) for case in CASES]


def outputs_and_gradients(case: OpCase, sample: Sample, side: str) -> list[Tensor]:
    result = getattr(case, side)(sample)
    outputs = list(result) if isinstance(result, tuple) else [result]
    inputs = [tensor for tensor in tensors_of(sample) if tensor.requires_grad]
    scalar = sum((output.sum() for output in outputs if output.requires_grad), torch.zeros(()))
    if scalar.requires_grad:
        found = torch.autograd.grad(scalar, inputs, allow_unused=True)
        outputs += [gradient for gradient in found if gradient is not None]
    return outputs


@pytest.mark.parametrize("case", BY_CASE)
def test_forward_and_backward_against_torch(case: OpCase) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in islice(case.gradcheck_samples(Maker(torch.float32, requires_grad=True)), 6):
            ours = outputs_and_gradients(case, detached(sample), "ours")
            torchs = outputs_and_gradients(case, detached(sample), "torchs")
            exact = outputs_and_gradients(case, detached(sample, torch.float64), "torchs")
            for actual, expected, reference in zip(ours, torchs, exact, strict=True):
                assert_accurate(actual, expected, reference, f"{case.name}({sample.name})")


def test_errors_arrive_in_python_as_their_own_class() -> None:
    """C++ exceptions cross libtorch: their class must survive it."""
    with pytest.raises(NotImplementedError, match="nnops::relu"):
        torch.ops.nnops.relu(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(IndexError):
        F.nll_loss(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="nnops::template_op: scale must be finite"):
        torch.ops.nnops.template_op(torch.zeros(3), float("inf"))


def test_compiled_part() -> None:
    assert nnops.__version__ == _C.build_info()["version"]
    assert _C.active_isa() in _C.available_isas()


def test_one_openmp_runtime() -> None:
    F.relu(torch.randn(1 << 20))
    assert len(loaded_openmp_runtimes()) == 1


def test_a_converted_net_compiled() -> None:
    """Leans on names that are private to torch: a later torch may have changed them."""
    torch.compiler.reset()
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    net = nnops.convert(nn.Sequential(*layers, nn.Conv2d(3, 4, 3), nn.ReLU()))
    layer_by_layer = nnops.convert(net, fuse=False)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for training in (True, False):
        net.train(training)
        layer_by_layer.train(training)
        for batch in (5, 13):
            images = torch.randn(batch, 2, 12, 12)
            results = []
            for each in (compiled, layer_by_layer):
                loss = each(images).square().sum()
                results.append([loss, *torch.autograd.grad(loss, [*net.parameters()])])
            torch.testing.assert_close(*results)


def test_a_run_of_layers_compiled() -> None:
    torch.compiler.reset()
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 4)
    net = nnops.convert(nn.Sequential(*layers))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    images = torch.randn(3, 2, 12, 12)
    with torch.no_grad():
        net(images)
        torch.testing.assert_close(compiled(images), net(images))
    # torch 2.10 says in every trace that it exports: its graphs have the layers.
    if tuple(map(int, torch.__version__.split(".")[:2])) > OLDEST_TORCH:
        assert "nnops._layer_chain" in called


def test_public_operators_keep_tangents_and_gradients() -> None:
    x, tangent = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    output = torch.ops.nnops.relu(x)
    assert torch.equal(torch.autograd.grad(output.sum(), x)[0], (x > 0).float())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), tangent)
        unpacked = torch.autograd.forward_ad.unpack_dual(torch.ops.nnops.relu(dual))
    assert torch.equal(unpacked.tangent, tangent * (x > 0))
    _, change = torch.func.jvp(torch.ops.nnops.relu, (x.detach(),), (tangent,))
    assert torch.equal(change, unpacked.tangent)
