"""The cases nnops grew from: six networks and a table of operator calls, with torch's numbers.

A network is trained from the same weights and data with nnops and with torch, in float64 and in
float32. In float64 the two agree to FLOAT64_LIMIT. In float32 our losses and weights may stray from
the float64 run as far as torch's do, with oneDNN or without, times a factor: float32 runs round
differently, and Adam turns a rounding that decides the sign of a tiny gradient into a whole step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import nnops.nn
import nnops.nn.functional
from nnops.testing.claims import function_is_ours

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")

FLOAT64_LIMIT = 1e-9
# How much farther than torch's own float32 run ours may stray from the float64 run.
STRAY_RATIO = 4.0
# Below this relative difference both runs count as exact.
STRAY_FLOOR = 2e-6

BOTH = pytest.mark.parametrize("nn", [torch.nn, nnops.nn], ids=["torch", "nnops"])


def cifar_named(nn: Any) -> torch.nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 5, padding=2),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(1024, 64),
            linear2=nn.Linear(64, 10),
        )
    )


def cifar_plain(nn: Any) -> torch.nn.Module:
    return nn.Sequential(*cifar_named(nn).children())


def lenet5(nn: Any) -> torch.nn.Module:
    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 6, 5)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * 5 * 5, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x: Tensor) -> Tensor:
            F = nn.functional
            x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
            x = F.max_pool2d(F.relu(self.conv2(x)), 2)
            x = x.view(-1, 16 * 5 * 5)
            return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    return LeNet()


def lenet3(nn: Any) -> torch.nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 6, 3)
            self.conv2 = nn.Conv2d(6, 16, 3)
            self.pool = nn.MaxPool2d(2, 2)
            self.fc1 = nn.Linear(16 * 6 * 6, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x: Tensor) -> Tensor:
            F = nn.functional
            x = self.pool(F.relu(self.conv1(x)))
            x = self.pool(F.relu(self.conv2(x)))
            x = x.view(-1, 576)
            return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    return Net()


def no_pooling(nn: Any) -> torch.nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 6, 3)
            self.relu1 = nn.ReLU()
            self.conv2 = nn.Conv2d(6, 16, 3)
            self.relu2 = nn.ReLU()
            self.fc1 = nn.Linear(12544, 512)
            self.fc2 = nn.Linear(512, 64)
            self.fc3 = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
            return self.fc3(self.fc2(self.fc1(x.view(-1, 12544))))

    return Net()


def two_convolutions(nn: Any) -> torch.nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 20, 5)
            self.conv2 = nn.Conv2d(20, 20, 5)

        def forward(self, x: Tensor) -> Tensor:
            F = nn.functional
            return F.relu(self.conv2(F.relu(self.conv1(x))))

    return Model()


def alexnet(nn: Any, width: int = 128) -> torch.nn.Module:
    features = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
    )
    classifier = nn.Sequential(
        nn.AdaptiveAvgPool2d((6, 6)),
        nn.Flatten(),
        nn.Linear(256 * 6 * 6, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, 10),
    )
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


Build = Callable[[Any], torch.nn.Module]
Step = tuple[Tensor, Tensor]
NETWORKS: dict[str, Build] = {
    "N1": cifar_named,
    "N1 plain": cifar_plain,
    "N2": lenet5,
    "N3": lenet3,
    "N4": no_pooling,
    "N5": two_convolutions,
    "N6": alexnet,
}


def make(nn: Any, build: Build) -> torch.nn.Module:
    torch.manual_seed(7)
    return build(nn)


def train(
    nn: Any,
    build: Build,
    loss_name: str,
    make_optimizer: Callable[[Iterator[Any]], torch.optim.Optimizer],
    steps: list[Step],
    dtype: torch.dtype = torch.float32,
) -> tuple[list[float], Tensor]:
    """(loss of every step, all parameters after the last one in a row)."""
    model = make(nn, build).to(dtype)
    criterion = getattr(nn, loss_name)()
    optimizer = make_optimizer(model.parameters())
    losses = []
    for x, target in steps:
        optimizer.zero_grad()
        target = target.to(dtype) if target.is_floating_point() else target
        loss = criterion(model(x.to(dtype)), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    flat = torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])
    return losses, flat


def largest_relative(losses: list[float], exact: list[float]) -> float:
    pairs = zip(losses, exact, strict=True)
    return max(abs(loss - truth) / abs(truth) for loss, truth in pairs)


def assert_same_training(
    build: Build, loss_name: str, make_optimizer: Callable[..., Any], steps: list[Step]
) -> None:
    arguments = (build, loss_name, make_optimizer, steps)
    ours, our_weights = train(nnops.nn, *arguments)
    theirs, their_weights = train(torch.nn, *arguments)
    with torch.backends.mkldnn.flags(enabled=False):
        other, other_weights = train(torch.nn, *arguments)
    exact, exact_weights = train(torch.nn, *arguments, dtype=torch.float64)
    ours_exact, our_exact_weights = train(nnops.nn, *arguments, dtype=torch.float64)
    assert largest_relative(ours_exact, exact) <= FLOAT64_LIMIT
    ours_stray = largest_relative(ours, exact)
    theirs_stray = max(largest_relative(theirs, exact), largest_relative(other, exact))
    assert ours_stray <= STRAY_RATIO * theirs_stray + STRAY_FLOOR, (
        f"losses stray by {ours_stray:.2g} from float64, torch's by {theirs_stray:.2g}; "
        f"{largest_relative(ours, theirs):.2g} between the two"
    )
    scale = float(exact_weights.norm())
    ours_stray = float((our_weights - exact_weights).norm()) / scale
    assert float((our_exact_weights - exact_weights).norm()) <= FLOAT64_LIMIT * scale
    theirs_stray = max(
        float((weights - exact_weights).norm()) / scale
        for weights in (their_weights, other_weights)
    )
    assert ours_stray <= STRAY_RATIO * theirs_stray + STRAY_FLOOR, (
        f"weights stray by {ours_stray:.2g} from float64, torch's by {theirs_stray:.2g}"
    )


def images(batch: int, channels: int, size: int, classes: int, count: int) -> list[Step]:
    generator = torch.Generator().manual_seed(11)
    return [
        (
            torch.randn(batch, channels, size, size, generator=generator),
            torch.randint(classes, (batch,), generator=generator),
        )
        for _ in range(count)
    ]


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
}


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_n1_trains_as_torch(optimizer: str, batch: int) -> None:
    steps = images(batch, 3, 32, 10, 4 if batch == 1 else 2)
    assert_same_training(cifar_named, "CrossEntropyLoss", OPTIMIZERS[optimizer], steps)


def test_n1_plain_trains_as_torch() -> None:
    steps = images(2, 3, 32, 10, 3)
    assert_same_training(cifar_plain, "CrossEntropyLoss", OPTIMIZERS["sgd"], steps)


def test_n1_runs_whole_epochs_over_a_data_loader() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    ((x, target),) = images(24, 3, 32, 10, 1)
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(x, target), batch_size=8, shuffle=True, generator=generator)
    steps = [(images, target) for _ in range(2) for images, target in loader]
    assert len(steps) == 6
    assert_same_training(cifar_named, "CrossEntropyLoss", OPTIMIZERS["momentum"], steps)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_n2_trains_as_torch(optimizer: str) -> None:
    steps = [(x, torch.randn(1, 10)) for x, _ in images(1, 1, 32, 10, 5)]
    assert_same_training(lenet5, "MSELoss", OPTIMIZERS[optimizer], steps)


def test_n3_trains_as_torch() -> None:
    steps = [(x, torch.randn(1, 10)) for x, _ in images(1, 1, 32, 10, 5)]
    assert_same_training(lenet3, "MSELoss", OPTIMIZERS["sgd"], steps)


def test_n4_learns_and_trains_as_torch() -> None:
    ((x, _),) = images(1, 1, 32, 2, 1)
    steps = [(x, torch.tensor([[1.0, -1.0]]))] * 2
    losses, _ = train(nnops.nn, no_pooling, "L1Loss", OPTIMIZERS["sgd"], steps)
    assert losses[1] < losses[0]
    assert_same_training(no_pooling, "L1Loss", OPTIMIZERS["sgd"], steps)


@pytest.mark.parametrize("size", [9, 16, 28])
def test_n5_trains_as_torch(size: int) -> None:
    steps = [(x, torch.zeros(2, 20, size - 8, size - 8)) for x, _ in images(2, 1, size, 2, 3)]
    assert_same_training(two_convolutions, "MSELoss", OPTIMIZERS["sgd"], steps)


def test_n6_trains_as_torch() -> None:
    """With narrow linear layers, which are torch's own in both networks."""
    steps = images(1, 3, 224, 10, 1)
    assert_same_training(alexnet, "CrossEntropyLoss", OPTIMIZERS["sgd"], steps)


@pytest.mark.slow
def test_n6_at_full_width_trains_as_torch() -> None:
    steps = images(2, 3, 224, 10, 1)
    full = partial(alexnet, width=4096)
    assert_same_training(full, "CrossEntropyLoss", OPTIMIZERS["sgd"], steps)


@pytest.mark.parametrize("name", NETWORKS)
def test_prints_and_counts_as_torch(name: str) -> None:
    ours, theirs = make(nnops.nn, NETWORKS[name]), make(torch.nn, NETWORKS[name])
    assert repr(ours) == repr(theirs)
    sizes = [[tuple(p.shape) for p in net.parameters()] for net in (ours, theirs)]
    assert sizes[0] == sizes[1]
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other), "same seed, same initial weights"


@BOTH
def test_n3_parameters(nn: ModuleType) -> None:
    net = lenet3(nn)
    parameters = list(net.parameters())
    assert len(parameters) == 10
    assert parameters[0].size() == (6, 1, 3, 3)
    text = str(net).splitlines()
    assert text[0] == "Net("
    assert text[1] == "  (conv1): Conv2d(1, 6, kernel_size=(3, 3), stride=(1, 1))"
    assert text[3].startswith("  (pool): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1")


@BOTH
def test_n2_gradients_from_a_random_output_gradient(nn: ModuleType) -> None:
    net = make(nn, lenet5)
    net.zero_grad()
    assert net.conv1.bias.grad is None
    x = torch.randn(1, 1, 32, 32)
    net(x).backward(torch.randn(1, 10))
    assert net.conv1.bias.grad.shape == (6,)
    assert net.conv1.bias.grad.abs().sum() > 0


def one_backward(nn: Any) -> tuple[torch.nn.Module, Tensor]:
    net = make(nn, lenet5)
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(1, 1, 32, 32, generator=generator)
    target = torch.randn(1, 10, generator=generator)
    loss = nn.MSELoss()(net(x), target)
    loss.backward()
    return net, loss


def test_n2_bias_gradient_and_hand_written_update() -> None:
    updated = []
    for nn in (nnops.nn, torch.nn):
        net, loss = one_backward(nn)
        rate = 0.01
        for f in net.parameters():
            f.data.sub_(f.grad.data * rate)
        updated.append((net, loss))
    (ours, our_loss), (theirs, their_loss) = updated
    torch.testing.assert_close(our_loss, their_loss)
    torch.testing.assert_close(ours.conv1.bias.grad, theirs.conv1.bias.grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


# The beginning of an autograd node's name, in torch's words and in ours, to the step it stands for.
NODES = {
    "mse": "mse_loss",
    "addmm": "linear",
    "relu": "relu",
    "view": "view",
    "maxpool2d": "max_pool2d",
    "convolution": "conv2d",
    "conv2d": "conv2d",
    "accumulategrad": "weight",
    "tbackward": "transpose",
}


def step_of(node: Any) -> str:
    name = node.name().split("::")[-1].lower()
    for beginning, step in NODES.items():
        if name.startswith(beginning):
            return step
    raise AssertionError(f"{node.name()} is not a step of this network")


def walk(loss: Tensor) -> list[Any]:
    """The nodes from the loss to the first convolution, each through its last tensor operand.

    linear's operands are (bias, input, weight); every other node's first one is its input.
    """
    nodes, node = [], loss.grad_fn
    while node is not None:
        nodes.append(node)
        position = 1 if step_of(node) == "linear" else 0
        following = node.next_functions
        node = following[position][0] if following else None
    return nodes


def test_n2_graph_has_our_functions_in_torchs_order() -> None:
    x, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)
    walks = [walk(nn.MSELoss()(make(nn, lenet5)(x), target)) for nn in (nnops.nn, torch.nn)]
    ours, theirs = ([step_of(node) for node in nodes] for nodes in walks)
    assert ours == theirs
    block = ["max_pool2d", "relu", "conv2d"]
    assert theirs == ["mse_loss", "linear", "relu", "linear", "relu", "linear", "view"] + block * 2
    for node, step in zip(walks[0], ours, strict=True):
        if hasattr(nnops.nn.functional, step) and step != "linear":
            assert function_is_ours(step)
            assert node.name().endswith("FunctionBackward"), node.name()


def test_relu_node_is_named_after_our_function() -> None:
    x = torch.randn(3, requires_grad=True)
    assert nnops.nn.functional.relu(x).grad_fn.name() == "ReluFunctionBackward"


# ---- the operator table

GRID = torch.tensor(
    [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]
)
KERNEL = torch.tensor([[1, 2, 1], [0, 1, 0], [2, 1, 0]])
CONVOLVED = {
    (1, 0): [[10, 12, 12], [18, 16, 16], [13, 9, 3]],
    (2, 0): [[10, 12], [13, 3]],
    (1, 1): [
        [1, 3, 4, 10, 8],
        [5, 10, 12, 12, 6],
        [7, 18, 16, 16, 8],
        [11, 13, 9, 3, 4],
        [14, 13, 9, 7, 4],
    ],
}


@BOTH
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("stride, padding", CONVOLVED)
def test_conv2d_of_the_grid(nn: ModuleType, stride: int, padding: int, dtype: torch.dtype) -> None:
    image, kernel = (values.to(dtype).reshape(1, 1, *values.shape) for values in (GRID, KERNEL))
    output = nn.functional.conv2d(image, kernel, stride=stride, padding=padding)
    assert output.dtype == dtype
    assert output[0, 0].tolist() == CONVOLVED[stride, padding]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_max_pool2d_of_the_grid(nn: ModuleType, dtype: torch.dtype) -> None:
    image = GRID.to(dtype).reshape(1, 5, 5)
    assert nn.MaxPool2d(3, ceil_mode=True)(image).tolist() == [[[2, 3], [5, 1]]]
    assert nn.MaxPool2d(3, ceil_mode=False)(image).tolist() == [[[2]]]
    assert nn.MaxPool2d(3)(image).dtype == dtype


@BOTH
def test_max_pool2d_and_max_unpool2d_of_the_grid(nn: ModuleType) -> None:
    image = GRID.float().reshape(1, 1, 5, 5)
    output, indices = nn.functional.max_pool2d(image, 2, return_indices=True)
    assert output.tolist() == [[[[2, 3], [5, 3]]]]
    assert indices.tolist() == [[[[1, 3], [15, 17]]]]
    assert indices.dtype == torch.int64
    back = nn.MaxUnpool2d(2)(output, indices, output_size=(5, 5))
    expected = torch.zeros(1, 1, 5, 5)
    for place, value in ((1, 2), (3, 3), (15, 5), (17, 3)):
        expected.view(-1)[place] = value
    assert torch.equal(back, expected)


@BOTH
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_of_whole_numbers(nn: ModuleType, inplace: bool) -> None:
    values = torch.tensor([[-1, 2, 3], [-4, -5, -6]])
    input = values.clone()
    output = nn.ReLU(inplace=inplace)(input)
    assert output.tolist() == [[0, 2, 3], [0, 0, 0]]
    assert (output is input) == inplace
    assert torch.equal(input, output if inplace else values)


@BOTH
def test_losses_of_three_numbers(nn: ModuleType) -> None:
    input, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 5.0])
    assert abs(nn.MSELoss()(input, target).item() - 1.3333) < 1e-4
    assert abs(nn.L1Loss()(input, target).item() - 0.6667) < 1e-4
    assert nn.MSELoss(reduction="sum")(input, target).item() == 4
    assert nn.L1Loss(reduction="none")(input, target).tolist() == [0, 0, 2]


SCORES = torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]])
CLASSES = torch.tensor([1, 2])
PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
LOSS_OPTIONS: list[tuple[str, dict[str, Any], tuple[Tensor, Tensor]]] = [
    ("CrossEntropyLoss", {}, (SCORES, CLASSES)),
    ("CrossEntropyLoss", {"weight": torch.tensor([1.0, 2.0, 0.5])}, (SCORES, CLASSES)),
    ("CrossEntropyLoss", {"ignore_index": 2}, (SCORES, CLASSES)),
    ("CrossEntropyLoss", {"label_smoothing": 0.1}, (SCORES, CLASSES)),
    ("CrossEntropyLoss", {}, (SCORES, PROBABILITIES)),
    ("KLDivLoss", {"log_target": True}, (SCORES.log_softmax(1), PROBABILITIES.log())),
    ("KLDivLoss", {}, (SCORES.log_softmax(1), PROBABILITIES)),
    ("NLLLoss", {"weight": torch.tensor([1.0, 2.0, 0.5])}, (SCORES.log_softmax(1), CLASSES)),
    ("BCELoss", {"weight": torch.tensor([1.0, 2.0, 0.5])}, (SCORES.sigmoid(), PROBABILITIES)),
    ("BCEWithLogitsLoss", {}, (SCORES, PROBABILITIES)),
    ("BCEWithLogitsLoss", {"pos_weight": torch.tensor([1.0, 2.0, 0.5])}, (SCORES, PROBABILITIES)),
    ("SmoothL1Loss", {"beta": 0.3}, (SCORES, PROBABILITIES)),
    ("SmoothL1Loss", {"beta": 0.0}, (SCORES, PROBABILITIES)),
    ("HuberLoss", {"delta": 0.3}, (SCORES, PROBABILITIES)),
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name, options, values", LOSS_OPTIONS)
def test_loss_options(name: str, options: dict[str, Any], values: tuple[Tensor, Tensor]) -> None:
    reductions = ["none", "mean", "sum"] + ["batchmean"] * (name == "KLDivLoss")
    for reduction in reductions:
        ours = getattr(nnops.nn, name)(**options, reduction=reduction)(*values)
        theirs = getattr(torch.nn, name)(**options, reduction=reduction)(*values)
        torch.testing.assert_close(ours, theirs)
