"""A converted net as ONNX: nnops.revert() gives torch's layers back, which torch.onnx knows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import nnops
from nnops.benchmark.nets import zoo
from nnops.testing.tolerances import assert_net_scores

# What pip installs for `nnops[peers]`.
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# [C, H, W]
IMAGES = {"lenet": (1, 32, 32), "cifar": (3, 32, 32), "resnet18": (3, 64, 64)}

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


@pytest.mark.parametrize(
    "name", ["lenet", "cifar", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_a_converted_net_in_onnxruntime(name: str, tmp_path: Path) -> None:
    image = IMAGES[name]
    converted = nnops.convert(zoo.NETS[name].model())
    with torch.no_grad():
        converted.train()(torch.randn(4, *image))  # so that BatchNorms are no identities
    converted.eval()
    file = tmp_path / "net.onnx"
    torch.onnx.export(
        nnops.revert(converted),
        (torch.randn(3, *image),),
        file,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    exact_net = copy.deepcopy(converted).double()
    for batch in (2, 13):
        images = torch.randn(batch, *image)
        (scores,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            exact = exact_net(images.double())
            ours = converted(images)
        assert_net_scores(torch.from_numpy(scores), exact, f"onnxruntime, {batch} images")
        assert_net_scores(ours, exact, f"nnops, {batch} images")
