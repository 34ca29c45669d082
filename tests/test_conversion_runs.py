"""Layers in a row as one call: in inference with few images, and nowhere else."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor, nn

import nnops
from nnops.conversion import _runs
from nnops.conversion._fused import plan_of

# torch's own, when it traces.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


class LeNet(nn.Module):
    """As tutorials write it: functions in forward, and a view that names its size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = TF.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = TF.max_pool2d(TF.relu(self.conv2(x)), (2, 2))
        x = x.view(-1, 400)
        x = self.dropout(TF.relu(self.fc1(x)))
        return self.fc2(x)


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.MaxPool2d(2),
        nn.Identity(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 5),
    )


class Calls:
    """Counts the calls of the operator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        operator = _runs.layer_chain

        def counted(*arguments: Any) -> Any:
            result = operator(*arguments)  # or an error, and the layers run one by one
            self.count += 1
            return result

        monkeypatch.setattr(_runs, "layer_chain", counted)

    def during(self, call: Any) -> tuple[Any, int]:
        before = self.count
        result = call()
        return result, self.count - before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


MODELS = [(LeNet, (1, 32, 32)), (sequential, (3, 16, 16))]


def converted(make: Any, shape: tuple[int, ...]) -> tuple[nn.Module, Any, Tensor]:
    """The model, its converted form, which has seen an image of that size, and two images."""
    model = make().eval()
    ours: Any = nnops.convert(model)
    x = torch.randn(2, *shape)
    ours(x)
    return model, ours, x


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "shape"), MODELS)
@pytest.mark.parametrize("images", [0, 1, 8])
def test_one_call_gives_the_models_numbers(
    make: Any, shape: tuple[int, ...], images: int, calls: Calls
) -> None:
    model, ours, _ = converted(make, shape)
    x = torch.randn(images, *shape)
    output, count = calls.during(lambda: ours(x))
    assert count == 1
    assert_same(output, model(x))
    channels_last = x.to(memory_format=torch.channels_last)
    assert_same(ours(channels_last), model(x))
    assert_same(ours.double()(x.double()).float(), model(x.double()).float())
    assert_same(ours(x.double()).float(), model(x.double()).float())


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_where_layers_run_one_by_one(make: Any, shape: tuple[int, ...], calls: Calls) -> None:
    model, ours, x = converted(make, shape)

    def runs_one_by_one(call: Any) -> Tensor:
        output, count = calls.during(call)
        assert count == 0
        assert isinstance(output, Tensor)
        return output

    many = torch.randn(9, *shape)
    assert_same(runs_one_by_one(lambda: ours(many)), model(many))
    with torch.enable_grad():
        runs_one_by_one(lambda: ours(x)).sum().backward()
        model(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        runs_one_by_one(lambda: ours(x))
    runs_one_by_one(lambda: ours.train()(x))
    ours.eval()
    frozen = nnops.convert(model.requires_grad_(False))
    with torch.enable_grad():
        frozen(x)
        assert calls.during(lambda: frozen(x))[1] == 1
        image = x.clone().requires_grad_()
        runs_one_by_one(lambda: frozen(image)).sum().backward()
        assert image.grad is not None


def test_gradients_are_those_of_the_layers() -> None:
    model, ours, x = converted(*MODELS[0])
    gradients = []
    with torch.enable_grad():
        for net in (model, ours):
            net.zero_grad()
            net(x).square().sum().backward()
            gradients.append([each.grad.clone() for each in net.parameters()])
    for ours_, theirs in zip(*reversed(gradients), strict=True):
        assert_same(ours_, theirs)


def test_changes_are_seen(calls: Calls) -> None:
    model, ours, x = converted(*MODELS[1])
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for net in (ours, reference):  # the parameters of `model` are those of `ours`
            net[3].weight.mul_(2)
            net[6].bias.data.add_(1)
    assert_same(ours(x), reference(x))
    state = {name: value + 0.5 for name, value in reference.state_dict().items()}
    ours.load_state_dict(state)
    reference.load_state_dict(state)
    assert_same(ours(x), reference(x))
    for net in (ours, reference):
        net[3].stride = (1, 1)
        net[5] = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    assert_same(ours(x), reference(x))
    seen: list[Any] = []
    ours[7].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    output, count = calls.during(lambda: ours(x))
    assert count == 0 and len(seen) == 1
    assert_same(output, reference(x))


def test_precision_of_the_layers() -> None:
    model, ours, x = converted(LeNet, (1, 32, 32))
    with nnops.conv_precision("highest"):
        expected = ours(x)
    ours.conv1.precision = ours.conv2.precision = "highest"
    ours(x)
    assert torch.equal(ours(x), expected)
    ours.conv2.precision = "high"  # not the same: the layers run one by one
    assert_same(ours(x), model(x))


def test_images_that_a_view_joins(calls: Calls) -> None:
    """view(-1, 400) of images of 800 elements makes two rows of each: no run may say otherwise."""
    model, ours, _ = converted(LeNet, (1, 32, 32))
    x = torch.randn(2, 1, 32, 52)  # 16 channels of 5x10
    for _ in range(2):
        output, count = calls.during(lambda: ours(x))
        assert count == 0
        assert output.shape == (4, 10)
        assert_same(output, model(x))


def test_wrong_sizes_raise_what_the_layers_raise() -> None:
    _, ours, x = converted(*MODELS[1])
    for wrong in (x[:, :2], torch.randn(2, 3, 20, 16), x.double()):
        with pytest.raises(RuntimeError):
            ours(wrong)


def test_copies_and_pickles(calls: Calls) -> None:
    model, ours, x = converted(LeNet, (1, 32, 32))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        copied(x)
        output, count = calls.during(lambda copied=copied: copied(x))
        assert count == 1
        assert_same(output, model(x))


def test_runs_need_two_layers_that_compute() -> None:
    for model in (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 2)),
    ):
        plan = plan_of(nnops.convert(model.eval()))
        assert plan is None or all(
            not isinstance(value, _runs.LayerRun)
            for variant in plan.variants
            for value in variant.scope.values()
        )


def classifier() -> nn.Sequential:
    """The end of AlexNet, as torchvision has it."""
    layers = [nn.Dropout(), nn.Linear(36, 33), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(33, 5, bias=False))


@pytest.mark.parametrize("images", [0, 1, 2, 4, 5, 8])
def test_linear_layers_alone_are_one_call(images: int, calls: Calls) -> None:
    model, ours, _ = converted(classifier, (36,))
    for x in (torch.randn(images, 36), torch.randn(36, images).t()):
        output, count = calls.during(lambda x=x: ours(x))
        assert count == 1
        assert_same(output, model(x))
    weight = model[1].weight
    weight.data = weight.t().contiguous().t()
    assert_same(ours(x), model(x))


def test_where_linear_layers_run_one_by_one(calls: Calls) -> None:
    model, ours, x = converted(classifier, (36,))
    for input in (torch.randn(9, 36), torch.randn(36), torch.randn(2, 3, 36)):
        output, count = calls.during(lambda input=input: ours(input))
        assert count == 0
        assert_same(output, model(input))
    with torch.enable_grad():
        output, count = calls.during(lambda: ours(x))
    assert count == 0 and output.requires_grad
    assert calls.during(lambda: ours.train()(x))[1] == 0
    with pytest.raises(RuntimeError):
        ours.eval()(torch.randn(2, 35))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_runs_one_by_one(calls: Calls) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).eval()
    nested = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(4, 6)])
    ours: Any = nnops.convert(model)
    output, count = calls.during(lambda: ours(nested))
    assert count == 0
    for actual, expected in zip(output.unbind(), model(nested).unbind(), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.randn(4, 3, 5, 5))),
        lambda net: net[2].stride.__setitem__(0, 1),
        lambda net: setattr(net[3], "dilation", [2, 1]),
        lambda net: setattr(net[0], "bias", None),
    ],
    ids=["kernel size under padding='same'", "list", "a list for a tuple", "no bias"],
)
def test_what_the_numbers_depend_on_is_seen(change: Any, calls: Calls) -> None:
    def make() -> nn.Sequential:
        first = nn.Conv2d(3, 4, 3, padding="same")
        pool = nn.MaxPool2d([2, 2], [2, 2])  # type: ignore[arg-type]
        return nn.Sequential(first, nn.ReLU(), pool, nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU())

    model, ours, x = converted(make, (3, 8, 8))
    assert calls.during(lambda: ours(x))[1] == 1
    reference = copy.deepcopy(model)
    torch.manual_seed(1)
    change(ours)
    torch.manual_seed(1)
    change(reference)
    for _ in range(3):
        assert_same(ours(x), reference(x))


def test_a_weight_that_is_no_parameter_runs_one_by_one(calls: Calls) -> None:
    model, ours, x = converted(classifier, (36,))
    weight = model[1].weight.detach().clone()
    del ours[1].weight
    ours[1].weight = weight
    output, count = calls.during(lambda: ours(x))
    assert count == 0
    assert_same(output, nn.Sequential(*ours)(x))


def test_the_report_names_the_linear_layers_of_a_run() -> None:
    when = "up to 8 images without gradients,"
    for make, notes in (
        (classifier, {"1": f"{when} with 4", "4": f"{when} into 1"}),
        (LeNet, {"fc1": f"{when} into conv1", "fc2": f"{when} into conv1"}),
    ):
        rows = {row.name: row for row in nnops.conversion_report(nnops.convert(make())).rows}
        for name, note in notes.items():
            assert (rows[name].state, rows[name].note) == ("fused", note)


def test_threads_infer_and_differentiate_one_net() -> None:
    """Images of two sizes, of which runs remember different things, and gradients, at once."""
    model = LeNet().eval()
    fused, plain = nnops.convert(model), nnops.convert(model, fuse=False)
    # Of the larger ones the view makes four rows each: they are no run.
    images = [torch.randn(2, 1, size, size) for size in (32, 52)]

    def results(net: nn.Module, number: int) -> list[Tensor]:
        scores = net(images[number % 2])
        if not torch.is_grad_enabled():
            return [scores]
        return [scores, *torch.autograd.grad(scores.square().sum(), [*net.parameters()])]

    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(60):
                with torch.set_grad_enabled(number >= 2):
                    actual, expected = results(fused, number), results(plain, number)
                for one, other in zip(actual, expected, strict=True):
                    torch.testing.assert_close(one, other)
        except BaseException as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet everywhere
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(before)
    assert not failed, failed[0]


# ---- in the graphs of torch.compile


class Graphs:
    """A backend that runs graphs as they are, and keeps the names of what they call."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        self.called.append([name for name in calls if name.startswith("nnops.")])
        return graph

    @property
    def are_runs(self) -> list[bool]:
        """Of each graph: whether it is one call; not a single layer of the run then is another."""
        runs = [[name.startswith("nnops._layer_chain") for name in names] for names in self.called]
        assert all(run == [True] or not any(run) for run in runs)
        return [run == [True] for run in runs]


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


def compiled(ours: Any, graphs: Graphs, **options: Any) -> Any:
    return torch.compile(ours, backend=graphs, fullgraph=True, **options)


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_a_graph_of_few_images_is_one_call(
    make: Any, shape: tuple[int, ...], graphs: Graphs
) -> None:
    model, ours, _ = converted(make, shape)
    net = compiled(ours, graphs, dynamic=False)
    for images in (0, 1, 8, 9):
        x = torch.randn(images, *shape)
        ours(x)
        assert torch.equal(net(x), ours(x))
        assert_same(net(x), model(x))
    assert graphs.are_runs == [True, True, True, False]


def test_a_graph_of_any_number_of_images_has_the_layers(graphs: Graphs) -> None:
    _, ours, _ = converted(*MODELS[0])
    net = compiled(ours, graphs)
    for images in (2, 3, 7, 9, 12):
        net(torch.randn(images, *MODELS[0][1]))
    assert graphs.are_runs == [True, False]


def test_a_graph_sees_changes(graphs: Graphs) -> None:
    model, ours, x = converted(*MODELS[1])
    net = compiled(ours, graphs)
    reference = copy.deepcopy(model)

    def step(change: Any) -> None:
        for each in (ours, reference):
            change(each)
        assert_same(net(x), reference(x))

    step(lambda each: None)
    step(lambda each: each[3].weight.mul_(2))
    step(lambda each: each[6].bias.data.add_(1))
    state = {name: value + 0.5 for name, value in reference.state_dict().items()}
    step(lambda each: each.load_state_dict(state))
    assert graphs.are_runs == [True], "parameters are inputs of the graph"
    step(lambda each: setattr(each[9], "bias", nn.Parameter(torch.ones(5))))
    step(lambda each: setattr(each[3], "padding", (0, 0)) or setattr(each[1], "padding", 1))
    assert graphs.are_runs == [True, True]
    ours[0].precision = "highest"
    with nnops.conv_precision("highest"):
        ours[3].precision = "high"  # not the same: the layers run one by one
        assert_same(net(x), reference(x))
    assert graphs.are_runs == [True, True, False]
    ours[0].precision = ours[3].precision = None
    step(lambda each: each.__setitem__(7, nn.Tanh()))
    assert graphs.are_runs == [True, True, False, False]


def test_where_a_graph_has_the_layers(graphs: Graphs) -> None:
    model, ours, x = converted(*MODELS[0])
    joined = torch.randn(2, 1, 32, 52)  # whose view makes two rows of each
    assert_same(compiled(ours, graphs)(joined), model(joined))
    with torch.enable_grad():
        compiled(ours, graphs)(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        compiled(ours, graphs)(x)
    frozen = copy.deepcopy(ours).requires_grad_(False)
    tangent = torch.randn_like(x)

    def transformed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, change = torch.func.jvp(frozen, (x,), (tangent,))
        slope = torch.func.grad(lambda x: frozen(x).sum())(x)
        return change, slope, torch.func.vmap(lambda x: frozen(x))(torch.stack([x, 2 * x]))

    for actual, expected in zip(compiled(transformed, graphs)(x), transformed(x), strict=True):
        assert_same(actual, expected)
        assert expected.abs().sum() > 0
    assert not any(graphs.are_runs) and len(graphs.called) == 4
    with torch.enable_grad():
        nothing_to_differentiate = nnops.convert(model.requires_grad_(False))
        compiled(nothing_to_differentiate, graphs)(x)
    assert graphs.are_runs[-1]


def test_a_graph_refuses_wrong_sizes(graphs: Graphs) -> None:
    _, ours, x = converted(*MODELS[1])
    for wrong in (x[:, :2], torch.randn(2, 3, 20, 16), torch.randn(2, 3, 1, 1), x.double()):
        torch.compiler.reset()
        with pytest.raises(RuntimeError) as raised:
            compiled(ours, graphs)(wrong)
        assert not isinstance(raised.value, torch._dynamo.exc.InternalTorchDynamoError)
