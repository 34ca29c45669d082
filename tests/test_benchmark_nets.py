"""Whole nets in the benchmark: built, checked, weighed and drawn. No assertion on a time."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module
from typer.testing import CliRunner

import nnops
from nnops import _C
from nnops.__main__ import app
from nnops.benchmark import goals, report, results
from nnops.benchmark.nets import calls, engine, layers, memory, zoo
from nnops.benchmark.results import Bytes, Row

FACTORIES = """
import torch
from torch import nn

def tiny():
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, 10)]
    return nn.Sequential(*layers, *head), torch.zeros(4, 1, 8, 8)

def nothing():
    return "a string"

def integers():
    return nn.Identity(), torch.zeros(4, 1, 8, 8, dtype=torch.int64)

def images_out():
    return nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 8, 8), "more"

def model_alone():
    return nn.Identity()
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of FACTORIES, that the processes begun here find too."""
    (tmp_path / "factories_of_nets.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    root = Path(nnops.__file__).parent.parent
    paths = (str(tmp_path), str(root), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return "factories_of_nets"


def small() -> Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 2, 3, padding=1),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear=nn.Linear(32, 10),
        )
    )


SMALL = zoo.Net("small", small, (zoo.Size((1, 8, 8), 4, 4),))


def plan(*modes: str, **changes: object) -> engine.NetPlan:
    base = engine.NetPlan((SMALL,), modes, (1,), (_C.active_isa(),), seconds=0.0)
    return dataclasses.replace(base, **changes)


# --- the nets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Of AlexNet, VGG and ResNet as torchvision documents them.
    [
        *(("lenet", 61_706), ("cifar", 145_578), ("alexnet", 61_100_840)),
        *(("vgg11", 132_863_336), ("vgg16", 138_357_544), ("resnet18", 11_689_512)),
    ],
)
def test_the_nets_have_the_usual_parameters_and_scores(name: str, parameters: int) -> None:
    net = zoo.NETS[name]
    with torch.device("meta"):
        model = net.build()
    assert sum(each.numel() for each in model.parameters()) == parameters
    for size in net.sizes:
        scores = model(torch.empty(2, *size.image, device="meta"))
        assert scores.shape == (2, 10 if name in ("lenet", "cifar") else zoo.CLASSES)


def test_prepared_is_the_same_every_time_and_in_its_mode() -> None:
    (model, images, labels), (again, same_images, same_labels) = (
        zoo.prepared(SMALL, SMALL.sizes[0], 3, "NCHW", True) for _ in range(2)
    )
    assert model.training and torch.equal(images, same_images)
    assert labels is not None and same_labels is not None and torch.equal(labels, same_labels)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    model, images, labels = zoo.prepared(SMALL, SMALL.sizes[0], 3, "channels_last", False)
    assert not model.training and labels is None
    wide = zoo.prepared(zoo.NETS["cifar"], zoo.NETS["cifar"].sizes[0], 2, "channels_last", True)
    assert wide[1].is_contiguous(memory_format=torch.channels_last)
    weight = next(wide[0].parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_batch_norm_has_seen_images(factories: str) -> None:
    net = zoo.find(f"{factories}:tiny")
    model, _, _ = zoo.prepared(net, net.sizes[0], 1, "NCHW", False)
    assert model[1].running_mean.abs().min() > 0


def test_module_and_function(factories: str) -> None:
    net = zoo.find(f"{factories}:tiny")
    assert net.sizes == (zoo.Size((1, 8, 8), 4, 4),)
    assert isinstance(net.model(), nn.Sequential)
    assert zoo.find(f"{factories}:model_alone").sizes[0].image == (3, 224, 224)
    for name in ("googlenet", "no_such_module:f", f"{factories}:no_such_function", ":f", "m:"):
        with pytest.raises(ValueError, match=name):
            zoo.find(name)
    for name in ("nothing", "integers", "images_out"):
        with pytest.raises(TypeError, match=name):
            zoo.find(f"{factories}:{name}")


# --- what is timed --------------------------------------------------------------------------------


def test_subjects_are_one_image_and_many_each_with_its_modes() -> None:
    found = engine.subjects(plan(*engine.MODES, nets=(zoo.NETS["alexnet"],)))
    assert [(each.direction, each.batch, each.modes) for each in found] == [
        ("train", 1, ("train",)),
        ("train", 16, ("train", "memory", "layers")),
        ("infer", 1, ("infer", "layers")),
        ("infer", 4, ("infer", "memory")),
    ]
    only = list(engine.subjects(plan(*engine.MODES, batch=1)))
    assert [each.modes for each in only] == [
        ("train", "memory", "layers"),
        ("infer", "memory", "layers"),
    ]
    assert engine.row_count(plan(*engine.MODES)) == 6


@pytest.mark.parametrize("make", [calls.eager, calls.ours])
def test_a_training_step_leaves_gradients_and_the_weights(
    make: Callable[[Module, Tensor], calls.Runner],
) -> None:
    model, images, labels = zoo.prepared(SMALL, SMALL.sizes[0], 4, "NCHW", True)
    before = [each.detach().clone() for each in model.parameters()]
    versions = [each._version for each in model.parameters()]
    timed = calls.contestant("", make(model, images), labels, 0.001, 0.001)
    with timed.around():
        timed.call()
    for parameter, weight, version in zip(model.parameters(), before, versions, strict=True):
        assert torch.equal(parameter, weight)
        # Written all the same: what was derived from it must not be kept.
        assert parameter._version > version
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_a_forward_records_no_graph() -> None:
    model, images, labels = zoo.prepared(SMALL, SMALL.sizes[0], 4, "NCHW", False)
    timed = calls.contestant("", calls.ours(model, images), labels)
    with timed.around():
        scores = timed.call()
    assert isinstance(scores, Tensor) and not scores.requires_grad


@pytest.mark.parametrize("name", calls.NET_PEERS)
def test_peers_give_torchs_scores(name: str) -> None:
    peer = calls.NET_PEERS[name]
    if not peer.installed:
        pytest.skip(f"{name} is not installed")
    if name == "compile":
        pytest.skip("takes a minute; bench measures it")
    subject = engine.Subject(SMALL, SMALL.sizes[0], 4, "NCHW", False, ())
    engine._ready(peer, subject, calls.REST, calls.WARMING)


def test_peers_that_fail_are_left_out_and_named() -> None:
    def raising(net: Module, images: Tensor) -> calls.Runner:
        raise RuntimeError("cannot export\nat all")

    def wrong(net: Module, images: Tensor) -> calls.Runner:
        return calls.Runner(lambda: [net(images).numpy() * 1.001])

    peers = tuple(
        calls.NetPeer(name, prepare, trains=False, foreign=True)
        for name, prepare in (("raising", raising), ("wrong", wrong))
    )
    rows = list(engine.run(plan("infer", "train", peers=peers, batch=1)))
    assert [(each.mode, set(each.peers), set(each.absent)) for each in rows] == [
        ("train", {"torch"}, set()),
        ("infer", {"torch"}, {"raising", "wrong"}),
    ]
    lines = report.absent_peers(rows)
    assert lines[0] == "raising did not run: RuntimeError: cannot export (small infer b1 NCHW)"
    assert "away from torch's" in lines[1]


# --- wrong numbers --------------------------------------------------------------------------------


class Scaled(nn.Conv2d):
    """A convolution whose output is off by one in ten thousand."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 1.0001


class WrongGradient(nn.Conv2d):
    """A convolution whose weight's gradient is off by one in a million."""

    def forward(self, input: Tensor) -> Tensor:
        held = self.weight.detach()
        return self._conv_forward(input, held + (self.weight - held) * (1 + 1e-6), self.bias)


class WrongWithoutGradient(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1 if torch.is_grad_enabled() else 2)


def with_class(kind: type[Module]) -> Callable[[Module], Module]:
    def convert(model: Module) -> Module:
        converted = nnops_convert(model)
        for module in converted.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = kind
        return converted

    return convert


def unshared(model: Module) -> Module:
    """Right scores, but parameters of its own, which no optimizer of the model would train."""
    converted = nnops_convert(model)
    for module in converted.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return converted


nnops_convert = nnops.convert


@pytest.mark.parametrize(
    ("convert", "modes", "message"),
    [
        (with_class(Scaled), {"train", "infer"}, "scores"),
        (with_class(WrongGradient), {"train"}, "gradient of conv.weight"),
        (with_class(WrongWithoutGradient), {"infer"}, "scores"),
        (unshared, {"train"}, "gradient of conv.weight: one of the two is None"),
    ],
    ids=["scores", "gradient", "without gradient", "unshared"],
)
def test_a_wrong_layer_is_reported_and_not_timed(
    monkeypatch: pytest.MonkeyPatch,
    convert: Callable[[Module], Module],
    modes: set[str],
    message: str,
) -> None:
    monkeypatch.setattr(nnops, "convert", convert)
    rows = list(engine.run(plan("train", "infer", batch=1)))
    assert {each.mode for each in rows} == {"train", "infer"}
    for each in rows:
        if each.mode in modes:
            assert message in each.error and each.lost
            assert each.ours_us is None and not each.peers
        else:
            assert not each.error and each.ours_us


def test_a_net_without_scores_is_an_error_row() -> None:
    net = zoo.Net("pair", lambda: Pair(), (zoo.Size((1, 8, 8), 1, 1),))
    (each,) = engine.run(plan("infer", nets=(net,)))
    assert "must return a tensor of scores" in each.error


class Pair(Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


# --- memory ---------------------------------------------------------------------------------------


def test_saved_bytes_of_a_net() -> None:
    model, images, labels = zoo.prepared(SMALL, SMALL.sizes[0], 4, "NCHW", True)
    assert labels is not None
    theirs = memory.saved_by_step(calls.eager(model, images), model, images, labels)
    maps, pooled, scores = 4 * 2 * 8 * 8, 4 * 2 * 4 * 4, 4 * 10
    # Neither weights nor the batch count; what the ReLU and the pool save is one tensor.
    # The pool's maxima, which the linear layer wants, and their indices; log-probabilities and the
    # sum of the class weights.
    others = 4 * maps + (4 + 8) * pooled + 4 * scores + 4
    assert theirs == Bytes(0, 0, others, None)
    ours = memory.saved_by_step(calls.ours(model, images), model, images, labels)
    assert ours.saved < theirs.saved


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_bytes_of_a_users_net_in_a_fresh_process(factories: str) -> None:
    net = zoo.find(f"{factories}:tiny")
    model, images, labels = zoo.prepared(net, net.sizes[0], 4, "NCHW", True)
    assert labels is not None
    measured = memory.measure_in_fresh_process(
        *(net.name, "", 4, "NCHW", _C.active_isa(), 1, "torch", "train")
    )
    here = memory.saved_by_step(calls.eager(model, images), model, images, labels)
    assert measured.peak is not None
    assert dataclasses.replace(measured, peak=None) == here


# --- layers ---------------------------------------------------------------------------------------


class Reusing(Module):
    """One ReLU in two places, and a layer within a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.block(self.relu(x + 1)) - 1)


def test_layers_are_recorded_with_their_inputs() -> None:
    images = torch.randn(1, 1, 8, 8)
    lines = layers.lines_of(Reusing(), images)
    # The last ReLU follows a sum.
    assert [each.name for each in lines] == ["relu", "block.0 + block.1", "relu (2)"]
    assert [each.types for each in lines] == ["ReLU", "Conv2d + MaxPool2d", "ReLU"]
    # As it was before the layer wrote over it.
    assert torch.equal(lines[0].input, images + 1)
    assert [each.input.requires_grad for each in lines] == [False, False, True]
    for line in lines:
        assert torch.allclose(line.ours(line.input.clone()), line.torchs(line.input.clone()))


def test_what_follows_a_convolution_is_converted_with_it() -> None:
    images = torch.randn(2, 1, 8, 8)
    first, flatten, linear = layers.lines_of(small(), images)
    assert (first.name, flatten.name, linear.name) == ("conv + relu + pool", "flatten", "linear")
    whole = nnops.convert(nn.Sequential(*first.torchs.children()))
    sources = ([each.source for each in net._nnops_plan.variants] for net in (first.ours, whole))
    assert next(sources) == next(sources)
    for line, gradients in ((first, 2), (flatten, 1), (linear, 3)):
        for who in ("ours", "torch"):
            timed = line.forward(who)
            with timed.around():
                assert timed.call().grad_fn is None  # type: ignore[attr-defined]
            timed = line.backward(who)
            assert timed is not None
            with timed.around():
                # The images need no gradient.
                assert len(timed.call()) == gradients  # type: ignore[arg-type]
    (only,) = layers.lines_of(nn.Flatten(), images)
    assert only.backward("ours") is None


def test_layers_have_rows_and_a_table_that_sums_them_up() -> None:
    rows = list(engine.run(plan("layers")))
    assert not [each.error for each in rows if each.error]
    assert {(each.op, each.mode) for each in rows} == {
        *(("small b4", "train fwd"), ("small b4", "train bwd"), ("small b1", "infer fwd")),
    }
    assert all(each.family == results.LAYERS and each.ours_us and each.ratio for each in rows)
    assert not goals.summary(rows)
    training, inference = report.layer_tables(rows)
    assert list(training.columns[0].cells)[-1] == "sum of the layers"
    assert len(training.columns) == 2 + 3 + 3 + 1 and len(inference.columns) == 2 + 3 + 1


# --- goals and the command line -------------------------------------------------------------------


def row_of(op: str, mode: str, sample: str, **changes: object) -> Row:
    row = Row(
        **{"family": results.NETS, "op": op, "mode": mode, "sample": sample},  # type: ignore[arg-type]
        **{"kernel_class": "net", "shapes": [], "dtype": "float32", "layout": "NCHW"},
        **{"isa": "avx2", "isa_forced": False, "threads": 1, "torch": "2", "nnops": "0"},
        **{"commit": "", "cpu": ""},
    )
    return dataclasses.replace(row, **changes)


def test_every_goal_of_a_net_is_about_one_batch_of_each_size() -> None:
    found = [goal for goal in goals.goals() if goal.op in zoo.NETS]
    assert {goal.op for goal in found} == {"lenet", "cifar", "alexnet", "vgg11", "vgg16"}
    for goal in found:
        covered = set()
        for subject in engine.subjects(plan(*engine.MODES, nets=(zoo.NETS[goal.op],))):
            for mode in subject.modes:
                named = "memory-infer" if (mode, subject.training) == ("memory", False) else mode
                if goal.covers(row_of(goal.op, named, subject.sample)):
                    covered.add((subject.size.name, subject.batch))
        assert len(covered) == len(zoo.NETS[goal.op].sizes), goal
        assert all((batch == 1) == (goal.mode == "infer") for _, batch in covered), goal


def test_goals_of_bytes_are_the_same_on_every_isa() -> None:
    weighed = {"memory": {"ours": Bytes(0, 0, 1, None)}}
    versus = results.Versus(4.0, 4.0, 4.0)
    rows = [
        row_of("lenet", "memory", "b64", peers={"torch": versus}, **weighed),
        row_of("lenet", "train", "b64", peers={"torch": results.Versus(2.1, 2.1, 2.1)}),
    ]
    met = {line.mode: line.met for line in goals.summary(rows)}
    assert met == {"memory": False, "train": True}


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_bench_measures_a_users_net_and_the_report_reads_it(
    factories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes take seconds each; the test above has one.
    weights = {"ours": Bytes(0, 0, 10, 300), "torch": Bytes(0, 0, 40, 900)}
    monkeypatch.setattr(engine, "measure_in_fresh_process", lambda *where: weights[where[6]])
    out = tmp_path / "nets.jsonl"
    name = f"{factories}:tiny"
    output = run(
        *("bench", "--model", name, "--threads", "1", "--seconds", "0", "--out", str(out)),
        *("--peer", "channels_last", "--layout", "NCHW", "--isa", _C.active_isa()),
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"row"}
    rows = results.read([out]).rows
    assert len(rows) == len(lines)
    nets = [each for each in rows if each.family == results.NETS]
    assert [(each.mode, each.sample) for each in nets] == [
        *(("train", "b1"), ("train", "b4"), ("memory", "b4")),
        *(("infer", "b1"), ("infer", "b4"), ("memory-infer", "b4")),
    ]
    assert not [each.error for each in rows if each.error]
    assert all(each.commit is not None and each.cpu and each.isa_forced for each in rows)
    assert all(set(each.peers) == {"torch", "channels_last"} for each in nets if not each.memory)
    weighed = [(each.mode, each.ratio) for each in nets if each.memory == weights]
    assert weighed == [("memory", 4.0), ("memory-infer", 3.0)]
    for words in ("layer by layer", "sum of the layers", "channels_last/ours", "peak MB"):
        assert words in output
    drawn = {path.name for path in (tmp_path / "nets").iterdir()}
    assert len(drawn) == 3 and f"nets-float32-{_C.active_isa()}-1.ratio.png" in drawn
    assert "layer by layer" in run("bench-report", str(out))


def test_bench_says_which_peers_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("openvino", "onnx") else found(name, *rest),
    )
    monkeypatch.setattr(engine, "run", lambda plan: iter(()))
    output = run("bench", "--model", "lenet", "--out", str(tmp_path / "rows.jsonl"), "--no-plot")
    assert "not installed: onnxruntime, openvino (pip install 'nnops[peers]')" in output
    run("bench", "--model", "lenet", "--peer", "openvino", code=2)


def test_bench_refuses_what_does_not_fit_nets() -> None:
    run("bench", "--model", "googlenet", code=2)
    run("bench", "--model", "no_such_module:function", code=2)
    for option, value in (
        *(("--op", "relu"), ("--shapes", "vgg16"), ("--filter", "b1"), ("--dtype", "float64")),
        *(("--mode", "fwd"), ("--peer", "no-mkldnn"), ("--layout", "NHCW"), ("--batch", "0")),
    ):
        run("bench", "--model", "lenet", option, value, code=2)
    run("bench", "--op", "relu", "--batch", "2", code=2)
    run("bench", "--op", "relu", "--mode", "train", code=2)
