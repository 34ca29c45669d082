"""nnops.convert(fuse=True): which layers run in one call, when, and that numbers stay."""

from __future__ import annotations

import copy
import io
import pickle
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nnops
import nnops.nn
import nnops.nn.functional
from nnops.conversion._chains import Chain


class Ran(list[str]):
    """Names of the chains that ran, since last asked; those not fused have a minus in front."""

    def __call__(self) -> list[str]:
        names = list(self)
        self.clear()
        return names


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    calls = Ran()
    call, one_by_one = Chain.__call__, Chain._one_by_one

    def noted_call(self: Chain, *args: Any) -> Any:
        calls.append(self.__name__)
        return call(self, *args)

    def noted_one_by_one(self: Chain, *args: Any) -> Any:
        calls[-1] = "-" + calls[-1]
        return one_by_one(self, *args)

    monkeypatch.setattr(Chain, "__call__", noted_call)
    monkeypatch.setattr(Chain, "_one_by_one", noted_one_by_one)
    return calls


def conv(inputs: int = 3, outputs: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})


class Forward(nn.Module):
    """Layers by name; see `with_forward`."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def with_forward(function: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    """A module of a class of its own with this forward."""
    return type("Own", (Forward,), {"forward": function})(layers)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5 * 2 * 2, 4)
        self.rate = 0.4

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(self.conv2(x), (2, 2)).relu()
        x = x.view(x.size(0), -1)
        if self.training:
            x = F.dropout(x, self.rate)
        return F.relu(self.head(x))


class Residual(nn.Module):
    """As in ResNet: one ReLU, in place, called after every sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = conv(bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Dense(nn.Module):
    """Every layer reads all maps so far, handed over as a list."""

    class Layer(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.conv1, self.norm, self.conv2 = conv(inputs, 4), nn.BatchNorm2d(4), conv(4, 2)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, maps: Tensor | list[Tensor]) -> Tensor:
            maps = [maps] if isinstance(maps, Tensor) else maps
            return self.conv2(self.relu(self.norm(self.conv1(torch.cat(maps, 1)))))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"one": self.Layer(3), "two": self.Layer(5)})

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def squeeze_excite(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    scale = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)), inplace=True))
    return F.relu(x * torch.sigmoid(scale))


def drop_control_flow(self: Any, x: Tensor) -> Tensor:
    x = self.drop(self.conv1(x)) if self.training else self.conv1(x)
    return F.relu(self.conv2(F.relu(x)))


def functional_conv(self: Any, x: Tensor) -> Tensor:
    x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
    return torch.max_pool2d(torch.relu_(x), 2, ceil_mode=True)


BLOCK = nn.Sequential
# Name: (model, chains that run in training, chains that run in eval mode without gradients).
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], list[str]]] = {
    "conv relu": (lambda: BLOCK(conv(), nn.ReLU()), ["conv_relu"], ["conv_relu"]),
    "conv pool": (lambda: BLOCK(conv(), nn.MaxPool2d(2)), ["conv_pool"], ["conv_pool"]),
    "conv relu pool": (
        lambda: BLOCK(conv(), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), conv(), nn.ReLU()),
        ["conv_relu_pool", "conv_relu"],
        ["conv_relu_pool", "conv_relu"],
    ),
    # relu(-0.0) is -0.0, so that the order shows.
    "conv pool relu": (
        lambda: BLOCK(conv(), nn.MaxPool2d(2), nn.ReLU()),
        ["conv_pool"],
        ["conv_pool"],
    ),
    "identities between": (
        lambda: BLOCK(conv(), nn.Identity(), nn.ReLU(), nn.Identity(), nn.MaxPool2d(2)),
        ["conv_relu_pool"],
        ["conv_relu_pool"],
    ),
    "norm": (
        lambda: BLOCK(conv(bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        ["-conv_norm_relu_pool"],
        ["conv_norm_relu_pool"],
    ),
    "norm alone": (
        lambda: BLOCK(conv(groups=3), nn.BatchNorm2d(3, affine=False), nn.Sigmoid()),
        ["-conv_norm"],
        ["conv_norm"],
    ),
    "norm without statistics": (
        lambda: BLOCK(conv(), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()),
        ["-conv_norm_relu"],
        ["-conv_norm_relu"],
    ),
    "nested": (
        lambda: BLOCK(BLOCK(conv(), nn.ReLU()), nn.MaxPool2d(2), BLOCK(BLOCK(conv())), nn.ReLU()),
        ["conv_relu_pool", "conv_relu"],
        ["conv_relu_pool", "conv_relu"],
    ),
    "same": (lambda: BLOCK(conv(padding="same"), nn.ReLU()), ["conv_relu"], ["conv_relu"]),
    "reflect": (
        lambda: BLOCK(conv(padding_mode="reflect"), nn.ReLU()),
        ["conv_relu"],
        ["conv_relu"],
    ),
    "LeNet": (LeNet, ["conv_relu_pool", "conv_pool"], ["conv_relu_pool", "conv_pool"]),
    "residual": (Residual, ["-conv_norm_relu", "-conv_norm"], ["conv_norm_relu", "conv_norm"]),
    "dense": (Dense, ["-conv_norm_relu"] * 2, ["conv_norm_relu"] * 2),
    "squeeze-excite": (
        lambda: with_forward(
            squeeze_excite, conv=conv(), down=nn.Conv2d(3, 2, 1), up=nn.Conv2d(2, 3, 1)
        ),
        ["conv_relu"],
        ["conv_relu"],
    ),
    "dropout": (
        lambda: with_forward(drop_control_flow, conv1=conv(), conv2=conv(), drop=nn.Dropout()),
        ["conv_relu"],
        ["conv_relu", "conv_relu"],
    ),
    "functions": (
        lambda: with_forward(functional_conv, conv=conv()),
        ["conv_relu_pool"],
        ["conv_relu_pool"],
    ),
    "methods": (
        lambda: with_forward(lambda self, x: self.conv(x).relu_().mul(2).relu(), conv=conv()),
        ["conv_relu"],
        ["conv_relu"],
    ),
    "output used twice": (
        lambda: with_forward(lambda self, x: F.relu(y := self.conv(x)) + y, conv=conv()),
        [],
        [],
    ),
    "written over, then read": (
        lambda: with_forward(
            lambda self, x: (self.act(y := self.conv(x)), y)[1],
            conv=conv(),
            act=nn.ReLU(inplace=True),
        ),
        [],
        [],
    ),
    "output returned": (
        lambda: with_forward(lambda self, x: (y := self.conv(x), y.relu())[1] + y, conv=conv()),
        [],
        [],
    ),
    "a layer called twice": (
        lambda: with_forward(
            lambda self, x: self.act(self.conv(self.act(self.conv(x)))), conv=conv(), act=nn.ReLU()
        ),
        ["conv_relu"] * 2,
        ["conv_relu"] * 2,
    ),
    "dropout between": (lambda: BLOCK(conv(), nn.Dropout(0.3), nn.ReLU()), [], []),
    "wide window": (
        lambda: BLOCK(conv(), nn.ReLU(), nn.MaxPool2d(16, 1, 8)),
        ["conv_relu"],
        ["conv_relu"],
    ),
}


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs in training mode, gradients, and buffers; the model's state is left as it was."""
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    output = model.train()(x)
    weight = torch.randn(output.shape, dtype=torch.float64).to(output)
    gradients = torch.autograd.grad((output * weight).sum(), [x, *model.parameters()])
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.load_state_dict(state)
    return [output.detach(), *gradients, *buffers]


def is_same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Bit for bit, signs of zeros too."""
    return all(
        torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
        for a, b in zip(one, other, strict=True)
    )


def settled(model: nn.Module) -> nn.Module:
    """With running statistics that are not those of a new model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_numbers_and_calls(name: str, ran: Ran) -> None:
    make, in_training, in_eval = MODELS[name]
    model = settled(make())
    x = torch.randn(2, 3, 10, 10)
    fused, unfused = nnops.convert(model), nnops.convert(model, fuse=False)
    ours = results(fused, x)
    assert ran() == in_training
    if name != "functions":  # which are torch's in the model that is not fused
        assert is_same(ours, results(unfused, x))
    assert not ran()
    torch.testing.assert_close(ours, results(model, x), rtol=1e-4, atol=1e-4)

    model.double()
    x, fused = x.double(), nnops.convert(model)
    torch.testing.assert_close(results(fused, x), results(model, x), rtol=1e-10, atol=1e-10)
    ran()
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    assert ran() == in_eval
    assert list(fused.state_dict()) == list(model.state_dict())
    reverted = nnops.revert(fused)
    assert [type(each) for each in reverted.modules()] == [type(each) for each in model.modules()]
    assert torch.equal(reverted(x), model(x))


def test_input_written_over_between(ran: Ran) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        x.mul_(3)
        return y.relu() + x

    model = with_forward(forward, conv=conv())
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(nnops.convert(model)(x.clone()), model(x))
    assert ran() == ["conv_relu"]


def test_float32_folding_within_rounding() -> None:
    model = settled(nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU())).eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(nnops.convert(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_ties_zeros_and_nan(ran: Ran) -> None:
    """Ties, -0.0 and NaN in the maps: the same bits, in both orders of ReLU and pool."""
    x = torch.tensor([-1.0, -0.0, 0.0, 1.0, float("nan"), float("inf")])
    x = x[torch.randint(6, (2, 1, 8, 8))]
    x[torch.rand(x.shape) < 0.5] = -0.0
    for links in ([nn.ReLU(), nn.MaxPool2d(2)], [nn.MaxPool2d(2), nn.ReLU()]):
        model = nn.Sequential(nn.Conv2d(1, 1, 1), *links)
        nn.init.ones_(model[0].weight)
        nn.init.constant_(model[0].bias, -0.0)
        with torch.no_grad():
            ours, theirs = nnops.convert(model)(x), nnops.convert(model, fuse=False)(x)
        assert ran()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours.signbit(), theirs.signbit())


# --- folding ----------------------------------------------------------------------------------


def folding() -> tuple[nn.Module, nn.Module, Tensor]:
    model = settled(nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU())).double().eval()
    return model, nnops.convert(model), torch.randn(2, 3, 6, 6, dtype=torch.float64)


def assert_equal_in_eval(fused: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def write(model: Any, how: str) -> None:
    conv, norm, _ = model
    if how == "in place":
        conv.weight.mul_(2)
    elif how == "running statistics":
        norm.running_var.add_(1)
    elif how == "load_state_dict":
        state = {name: each + 1 for name, each in model.state_dict().items()}
        model.load_state_dict(state)
    elif how == "data assigned":
        norm.bias.data = norm.bias.data + 3
    elif how == "eps":
        norm.eps = 0.5


@pytest.mark.parametrize(
    "how", ["in place", "running statistics", "load_state_dict", "data assigned", "eps"]
)
def test_a_fold_is_never_stale(how: str, ran: Ran) -> None:
    model, fused, x = folding()
    assert_equal_in_eval(fused, model, x)
    write(model, how)
    if how == "eps":
        write(fused, how)
    assert_equal_in_eval(fused, model, x)
    assert ran() == ["conv_norm_relu"] * 2


def test_a_fold_is_kept_and_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnops.conversion import _chains

    model, fused, x = folding()
    folds = []
    fold = _chains._folded
    monkeypatch.setattr(_chains, "_folded", lambda *args: folds.append(1) or fold(*args))
    for _ in range(3):
        assert_equal_in_eval(fused, model, x)
    assert len(folds) == 1
    fused[0].weight = nn.Parameter(torch.zeros_like(fused[0].weight))
    model[0].weight = fused[0].weight
    assert_equal_in_eval(fused, model, x)
    assert len(folds) == 2
    fused.train()(x)
    chains = (*fused._nnops_plan.variants[0].scope.values(),)
    assert [each._folded for each in chains if isinstance(each, Chain)] == [None]


def test_training_between_calls_in_eval_mode(ran: Ran) -> None:
    model, fused, x = folding()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    for _ in range(3):
        fused.train()
        fused(x).square().mean().backward()
        optimizer.step()
        fused.eval()
        assert_equal_in_eval(fused, model, x)
    assert ran() == ["-conv_norm_relu", "conv_norm_relu"] * 3


def test_gradients_in_eval_mode_are_of_layers_one_by_one(ran: Ran) -> None:
    model, fused, x = folding()
    gradients = []
    for each in (fused, model):
        each.zero_grad()
        each(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in each.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    assert ran() == ["-conv_norm_relu"]
    fused.requires_grad_(False)
    fused(x)
    assert ran() == ["conv_norm_relu"]
    fused(x.clone().requires_grad_()).sum().backward()
    assert ran() == ["-conv_norm_relu"]


def test_where_a_fold_is_not_possible(ran: Ran) -> None:
    model, fused, x = folding()
    with torch.no_grad():
        expected = model(x)
        with torch.inference_mode():
            parameters = {name: each.clone() for name, each in fused.named_parameters()}
        # Inference tensors do not tell when they are written to.
        torch.func.functional_call(fused, parameters, x)
        assert ran() == ["-conv_norm_relu"]
        torch.testing.assert_close(torch.vmap(fused)(x[None])[0], expected)
        assert ran() == ["-conv_norm_relu"]
        # The factor of a channel without any variance overflows.
        fused[1].running_var.fill_(0)
        fused[1].eps = 0.0
        fused(x)
        assert ran() == ["-conv_norm_relu"]
        half = copy.deepcopy(model).bfloat16()
        half[1].float()
        half, image = nnops.convert(half), x.bfloat16()
        assert torch.equal(half(image), nnops.convert(half, fuse=False)(image))
        assert ran() == ["-conv_norm_relu"]
    with torch.inference_mode():
        fused(x)


# --- what happens after conversion ------------------------------------------------------------


def test_layers_work_on_their_own() -> None:
    """Perceptual losses slice a net; feature extractors walk through it."""
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU())
    fused = nnops.convert(model)
    x = torch.randn(1, 3, 8, 8)
    for end in range(1, 6):
        torch.testing.assert_close(fused[:end](x), model[:end](x))
    ours, theirs = x, x
    for one, other in zip(fused, model, strict=True):
        ours, theirs = one(ours), other(theirs)
        torch.testing.assert_close(ours, theirs)


def test_hooks_registered_later_fire(ran: Ran) -> None:
    fused = nnops.convert(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.randn(1, 3, 8, 8)
    expected = fused(x)
    assert ran() == ["conv_relu_pool"]
    seen: list[Any] = []
    for layer in fused:
        handle = layer.register_forward_hook(lambda *args: seen.append(args[2].shape))
        assert torch.equal(fused(x), expected)
        handle.remove()
    assert ran() == ["-conv_relu_pool"] * 3
    assert seen == [(1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 4, 4)]
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(0))
    fused(x)
    handle.remove()
    assert len(seen) == 3 + 4
    assert ran() == ["-conv_relu_pool"]
    fused(x)
    assert ran() == ["conv_relu_pool"]


def test_layers_replaced_later_count(ran: Ran) -> None:
    fused = nnops.convert(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.randn(1, 3, 8, 8)
    fused[1] = nn.Tanh()
    assert torch.equal(fused(x), fused[2](fused[0](x).tanh()))
    assert ran() == ["-conv_relu_pool"]
    fused.append(nn.Sigmoid())
    assert torch.equal(fused(x), fused[2](fused[0](x).tanh()).sigmoid())
    assert not ran()
    del fused[1]
    assert torch.equal(fused(x), fused[1](fused[0](x)).sigmoid())
    fused[1].return_indices = True
    assert isinstance(nnops.convert(nn.Sequential(*fused[:2]))(x), tuple)


def test_attributes_changed_later_count(ran: Ran) -> None:
    model = LeNet()
    fused = nnops.convert(model)
    x = torch.randn(2, 3, 10, 10)
    fused.rate = 0.0
    assert torch.equal(fused.train()(x), fused.eval()(x))
    # The forward of the old rate did not run.
    assert ran() == ["conv_relu_pool", "conv_pool"]
    block = nnops.convert(Residual())
    block.downsample = nn.Conv2d(3, 3, 1)
    y = block.eval()(x)
    block.downsample = None
    assert not torch.equal(block(x), y)


def test_attributes_that_were_missing_count(ran: Ran) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return x + 1 if hasattr(self, "late") else x

    fused = nnops.convert(with_forward(forward, conv=conv()))
    x = torch.randn(1, 3, 4, 4)
    expected = fused(x)
    assert ran() == ["conv_relu"]
    fused.late = True
    assert torch.equal(fused(x), expected + 1)


def test_hooks_of_containers_fire(ran: Ran) -> None:
    fused = nnops.convert(nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.MaxPool2d(2)))
    x = torch.randn(1, 3, 4, 4)
    expected = fused(x)
    assert ran() == ["conv_relu_pool"]
    seen: list[Any] = []
    for register in (
        fused[0].register_forward_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        handle = register(lambda *args: seen.append(type(args[0]).__name__))
        assert torch.equal(fused(x), expected)
        handle.remove()
    assert seen == ["Sequential", "Conv2d", "ReLU", "Sequential", "MaxPool2d", "Sequential"]
    # The inner container has a forward of its own.
    assert ran() == ["conv_relu", "-conv_relu"]


def test_called_in_other_ways(ran: Ran) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            x = F.relu(self.conv(x))
            return x if mask is None else x * mask

    model = Masked()
    fused = nnops.convert(model)
    x, mask = torch.randn(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(fused(x), model(x))
    assert ran() == ["conv_relu"]
    torch.testing.assert_close(fused(x, mask), model(x, mask))
    torch.testing.assert_close(fused(x=x), model(x))
    assert not ran()
    with pytest.raises(TypeError, match="forward"):
        fused()


# --- forwards that are left -------------------------------------------------------------------

SCALE = torch.tensor(2.0)


def asks_shape(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return F.relu(y) if x.shape[0] > 1 else y


def asserts(self: Any, x: Tensor) -> Tensor:
    assert x.dim() == 4
    return F.relu(self.conv(x))


def draws(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.conv(x)) * (1 if random.random() < 2 else 0)


def asks_gradients(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return F.relu(y) if torch.is_grad_enabled() else y


def stops_gradients(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.relu(self.conv(x))


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.relu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


flipped = Flipped.apply


def own_gradients(self: Any, x: Tensor) -> Tensor:
    return F.relu(flipped(self.conv(x)))


def checkpoints(self: Any, x: Tensor) -> Tensor:
    return F.relu(checkpoint(self.conv, x, use_reentrant=False))


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return x * 2


def decorated(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.conv(x)) + without_gradients(x)


def sets_precision(x: Tensor, conv: nn.Module) -> Tensor:
    with nnops.conv_precision("highest"):
        return conv(x)


def has_context(self: Any, x: Tensor) -> Tensor:
    return F.relu(sets_precision(x, self.conv))


def prints(self: Any, x: Tensor) -> Tensor:
    print("called")
    return F.relu(self.conv(x))


def remembers(self: Any, x: Tensor) -> Tensor:
    self.last = self.conv(x)
    return F.relu(self.last)


def foreign_tensor(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.conv(x * SCALE))


def makes_tensor(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.conv(x + torch.ones(1)))


def asks_type(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return F.relu(y) if isinstance(y, Tensor) else y


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (asks_shape, "TraceError"),
        (asserts, "TraceError"),
        (draws, "random"),
        (asks_gradients, "grad mode"),
        (stops_gradients, "with statement"),
        (decorated, "with statement"),
        (own_gradients, "autograd Function"),
        (checkpoints, "grad mode|checkpoints"),
        (has_context, "sets_precision has a with statement"),
        (prints, "prints prints"),
        (remembers, "writes its attribute last"),
        (foreign_tensor, "neither parameter nor buffer"),
        (makes_tensor, "calls ones"),
        (asks_type, "type of a value"),
    ],
)
def test_forwards_that_cannot_be_written(
    function: Callable[..., Any], reason: str, ran: Ran
) -> None:
    model = with_forward(function, conv=conv())
    attributes = set(vars(model))
    fused = nnops.convert(model)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fused(x), model(x))
    assert not ran()
    assert type(fused) is type(model)
    rows = {row.name: row for row in nnops.conversion_report(model).rows}
    assert rows[""].state == "left" and re.search(reason, rows[""].note)
    assert rows["conv"].state == "swapped"
    assert set(vars(model)) - {"last"} == attributes


def test_children_of_a_forward_that_is_left(ran: Ran) -> None:
    inner = nn.Sequential(conv(), nn.ReLU())
    model = with_forward(lambda self, x: self.inner(x) if x.sum() < 1e9 else x, inner=inner)
    nnops.convert(model)(torch.randn(1, 3, 4, 4))
    assert ran() == ["conv_relu"]


class OwnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


def test_layers_that_are_left(ran: Ran) -> None:
    x = torch.randn(1, 3, 8, 8)
    normed = torch.nn.utils.parametrizations.weight_norm(conv())
    hooked = conv()
    hooked.register_forward_hook(lambda *args: None)
    replaced = conv()
    replaced.forward = lambda input: input * 2
    for first in (OwnConv(3, 3, 3), normed, hooked, replaced):
        model = nn.Sequential(first, nn.ReLU())
        torch.testing.assert_close(nnops.convert(model)(x), model(x))
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    assert nnops.convert(lazy)(x).shape == (1, 4, 6, 6)
    replaced_forward = nn.Sequential(conv(), nn.ReLU())
    replaced_forward.forward = lambda input: input * 2
    assert torch.equal(nnops.convert(replaced_forward)(x), x * 2)
    assert not ran()


class Final(nn.Module):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no subclasses")

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def test_a_class_that_is_final_is_left() -> None:
    fused = nnops.convert(Final())
    assert type(fused) is Final
    reason = nnops.conversion_report(fused).rows[0].note
    assert reason == "forward: its class cannot be derived from: no subclasses"


def test_a_wrapper_stays_and_what_it_wraps_is_fused(ran: Ran) -> None:
    model = nn.DataParallel(nn.Sequential(conv(), nn.ReLU()))
    fused = nnops.convert(model)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fused(x), model(x))
    assert type(fused) is nn.DataParallel
    assert ran() == ["conv_relu"]
    # As DataParallel copies its module for each device.
    replica = fused.module._replicate_for_data_parallel()
    assert type(replica) is type(fused.module)
    assert len(replica._nnops_plan.variants) == 1


def test_a_compiled_part_is_not_touched() -> None:
    inner = nn.Sequential(conv(), nn.ReLU())
    nnops.convert(nn.Sequential(torch.compile(inner, backend="eager")))
    assert type(inner) is nn.Sequential


def test_torch_compiles_as_many_models_as_there_are() -> None:
    """Not the eight graphs that it keeps of one code; and no size counts as changing."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    for size in range(4, 13):
        fused = nnops.convert(nn.Sequential(conv(), nn.ReLU()))
        x = torch.randn(1, 3, size, size)
        compiled = torch.compile(fused, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x), fused(x))
        copied = torch.compile(copy.deepcopy(fused), backend=backend, fullgraph=True)
        assert type(copied._orig_mod) is type(fused)
    assert len(graphs) == 9
    for graph in graphs:
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        assert not any(isinstance(node.meta["example_value"], torch.SymInt) for node in inputs)
    torch.compiler.reset()


# --- whole models -----------------------------------------------------------------------------


def test_functions_of_torch_become_ours() -> None:
    def loss(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(x).flatten(1)
        return F.cross_entropy(self.head(x), x.argmax(1) % 4) + F.mse_loss(x, x * 2)

    model = with_forward(loss, head=nn.Linear(48, 4))
    fused = nnops.convert(model)
    source = fused._nnops_plan.variants[0].source
    for name in ("relu", "cross_entropy", "mse_loss"):
        assert f"_{name}(" in source
    assert "torch.nn.functional" not in source and "torch.relu" not in source
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(fused(x), model(x))


def test_a_forward_of_nnops_functions(ran: Ran) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return nnops.nn.functional.max_pool2d(nnops.nn.functional.relu(self.conv(x)), 2)

    model = with_forward(forward, conv=nnops.nn.Conv2d(3, 4, 3))
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(nnops.convert(model)(x), model(x))
    assert ran() == ["conv_relu_pool"]


def test_identity_of_the_model() -> None:
    model = LeNet()
    model.note = "kept"
    fused = nnops.convert(model)
    assert isinstance(fused, LeNet) and fused.note == "kept"
    assert repr(fused) == repr(model)
    assert [name for name, _ in fused.named_modules()] == [
        name for name, _ in model.named_modules()
    ]
    assert type(model) is LeNet and type(nnops.revert(fused)) is LeNet
    assert "_nnops_plan" not in vars(nnops.revert(fused))
    again = nnops.convert(fused)
    assert type(again).__mro__[1:] == type(fused).__mro__[1:] == LeNet.__mro__
    assert [each.source for each in again._nnops_plan.variants] == [
        each.source for each in fused._nnops_plan.variants
    ]


def test_inplace(ran: Ran) -> None:
    model = Residual().eval()
    assert nnops.convert(model, inplace=True) is model
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        model(x)
        assert ran() == ["conv_norm_relu", "conv_norm"]
        nnops.convert(model, inplace=True)(x)
        assert ran() == ["conv_norm_relu", "conv_norm"]
        assert nnops.revert(model, inplace=True) is model
        model(x)
    assert not ran()
    assert type(model) is Residual and type(model.conv1) is nn.Conv2d


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]
)
@pytest.mark.parametrize("make", [LeNet, Residual, Dense])
def test_copies(
    make: Callable[[], nn.Module], clone: Callable[[nn.Module], nn.Module], ran: Ran
) -> None:
    fused = nnops.convert(make())
    x = torch.randn(9, 3, 10, 10)  # too many images for a run of layers as one call
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.01)
    fused(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        expected = fused.eval()(x)
        ran()
        fused(x)
        calls = ran()
        other = clone(fused)
        assert torch.equal(other(x), expected)
        assert calls and ran() == calls
        # Nothing is shared: what happens to the copy stays there.
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert not torch.equal(other(x), expected)
        assert torch.equal(fused(x), expected)
    assert isinstance(other, make)
    assert type(nnops.revert(other)) is make
    results(other, x)


def test_state_dicts_load_both_ways() -> None:
    for make in (LeNet, Residual):
        model, fused = make(), nnops.convert(make())
        fused.load_state_dict(model.state_dict())
        x = torch.randn(2, 3, 10, 10)
        torch.testing.assert_close(fused.eval()(x), model.eval()(x))
        other = make()
        other.load_state_dict(fused.state_dict())
        assert torch.equal(other.eval()(x), model(x))


@pytest.mark.parametrize("make", [LeNet, Residual])
def test_compile_and_export(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    if isinstance(model, Residual):
        model.relu.inplace = False
    fused = nnops.convert(model)
    x = torch.randn(2, 3, 10, 10)
    with torch.no_grad():
        expected = nnops.convert(fused, fuse=False)(x)
        compiled = torch.compile(fused, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(fused, (x,))
        torch.testing.assert_close(exported.module()(x), expected)
        assert "nnops.conv2d" in exported.graph_module.code
    torch._dynamo.reset()


def test_channels_last_stays(ran: Ran) -> None:
    model = Residual().to(memory_format=torch.channels_last).eval()
    fused = nnops.convert(model)
    x = torch.randn(2, 3, 6, 8).to(memory_format=torch.channels_last)
    assert fused.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert fused(x).is_contiguous(memory_format=torch.channels_last)
    assert fused.train()(x).is_contiguous(memory_format=torch.channels_last)
    assert ran() == ["conv_norm_relu", "conv_norm", "-conv_norm_relu", "-conv_norm"]


def test_precision_of_a_layer_is_kept() -> None:
    fused = nnops.convert(nn.Sequential(conv(), nn.ReLU()))
    fused[0].precision = "lowest"
    with pytest.raises(ValueError, match="precision"):
        fused(torch.randn(1, 3, 4, 4))


# --- the report -------------------------------------------------------------------------------


def test_report() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2))
            self.block = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU())
            self.own = OwnConv(4, 4, 1)
            self.last = conv(4, 4)
            self.act = nn.GELU()
            self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
            self.lazy = nn.LazyConv2d(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.own(self.block(self.stem(x)))
            return self.lazy(self.normed(self.act(self.last(torch.relu(x)))))

    model = Mixed()
    x = torch.randn(2, 3, 8, 6)
    model(x)
    model.lazy = nn.LazyConv2d(4, 1)
    report = nnops.conversion_report(model)
    rows = {row.name: (row.state, row.note) for row in report.rows}
    assert rows["stem.0"] == ("fused", "with stem.1, stem.2")
    assert rows["stem.1"] == rows["stem.2"] == ("fused", "into stem.0")
    assert rows["block.0"] == ("fused", "in eval mode without gradients, with block.1, block.2")
    assert rows["block.1"] == ("folded", "in eval mode without gradients, into block.0")
    assert rows["own"] == ("left", "a class derived from Conv2d")
    assert rows["last"] == ("swapped", "not fused: followed by act")
    assert rows["act"] == ("left", "nnops has no such layer")
    assert rows["normed"] == ("left", "parametrized")
    assert rows["lazy"] == ("left", "lazy: its sizes are not known yet")
    assert rows["relu()"] == ("swapped", "")
    assert report.counts() == {"fused": 5, "folded": 1, "left": 5, "swapped": 2}
    assert "a class derived from Conv2d" in str(report)
    assert str(nnops.conversion_report(nnops.convert(model))) == str(report)


def test_report_on_hooks() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    for layer in model[1:3]:
        layer.register_forward_hook(lambda *args: None)
    notes = [row.note for row in nnops.conversion_report(model).rows]
    assert notes == [
        "not fused: followed by 1, which has hooks or another forward",
        "",
        "not fused: it has hooks or another forward",
        "",
    ]


def test_report_on_one_mode() -> None:
    layers = {"conv1": conv(), "conv2": conv(), "drop": nn.Dropout()}
    rows = nnops.conversion_report(with_forward(drop_control_flow, **layers)).rows
    notes = {row.name: row.note for row in rows}
    assert notes["conv1"] == "in eval mode, with relu()"
    assert notes["conv2"] == "with relu()"


def test_report_on_a_layer_called_twice() -> None:
    notes = {row.name: row.note for row in nnops.conversion_report(Residual()).rows}
    assert notes["relu"] == "in one of 2 calls, in eval mode without gradients, into conv1"


def test_report_with_an_example() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 4), nn.BatchNorm2d(4))
    report = nnops.conversion_report(model, example=torch.randn(2, 3, 8, 6))
    saved = {row.name: row.saved for row in report.rows}
    # A map of 4 channels of 8 x 6 float32 less a byte for each of 4 x 3 in 4 channels.
    assert saved == {"0": 4 * 8 * 6 * 4 - 4 * 4 * 3, "1": None, "2": None, "3": None, "4": None}
    assert report.saved == 720
    assert "720 B" in str(report)
    assert not model[1].training or model.training
    function = nnops.conversion_report(LeNet(), (torch.randn(1, 3, 10, 10),))
    assert {row.name: row.saved for row in function.rows}["conv1"] == 4 * 100 * 4 - 4 * 25


def test_report_is_rich() -> None:
    from rich.console import Console

    console = Console(width=120, file=io.StringIO())
    console.print(nnops.conversion_report(LeNet()))
    text = console.file.getvalue()
    assert "conv1" in text and "with relu(), max_pool2d()" in text
