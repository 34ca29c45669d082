"""nnops.convert and nnops.revert: classes change, parameters, keys, hooks and sharing stay."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn
from nnops.conversion._chains import original_class
from nnops.conversion._exchange import our_classes


class Branches(torch.nn.Module):
    """A forward of its own, layers in every kind of container, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(
            OrderedDict(conv=torch.nn.Conv2d(3, 4, 3, padding=1), act=torch.nn.ReLU())
        )
        self.stages = torch.nn.ModuleList(
            [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ModuleList([torch.nn.ReLU()])]
        )
        self.by_name = torch.nn.ModuleDict({"pool": torch.nn.MaxPool2d(2)})
        self.act = self.stem.act
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4 * 4 * 4, 5)

    def forward(self, input: Tensor) -> Tensor:
        x = self.stem(input)
        x = self.stages[1][0](self.stages[0](x))
        x = self.act(self.norm(self.by_name["pool"](x)))
        return self.head(x.flatten(1))


INPUT = (2, 3, 8, 8)


def layers(model: torch.nn.Module) -> list[type]:
    return [original_class(module) for module in model.modules()]


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_every_module_of_ours_has_a_counterpart() -> None:
    pairs = our_classes()
    ours = {
        value
        for value in vars(nnops.nn).values()
        if isinstance(value, type) and value.__module__.startswith("nnops")
    }
    assert nnops.nn.ReLU in pairs
    # torch has no layers of several operators.
    assert set(pairs) == {kind for kind in ours if kind.__module__ != "nnops.nn.fused"}
    assert len(set(pairs.values())) == len(pairs)


@pytest.mark.parametrize("inplace", [False, True])
def test_classes_change_and_nothing_else(inplace: bool) -> None:
    model = Branches()
    before, text = layers(model), repr(model)
    keys = list(model.state_dict())
    converted = nnops.convert(model, inplace=inplace)
    classes = {theirs: ours for ours, theirs in our_classes().items()}
    assert layers(converted) == [classes.get(kind, kind) for kind in before]
    assert repr(converted) == text
    assert list(converted.state_dict()) == keys
    assert converted.training and isinstance(converted, Branches)
    assert (converted is model) == inplace
    assert layers(model) == (layers(converted) if inplace else before)
    back = nnops.revert(converted, inplace=inplace)
    assert layers(back) == before
    assert repr(back) == text


def test_same_numbers() -> None:
    model = Branches().double()
    converted = nnops.convert(model)
    x = torch.randn(INPUT, dtype=torch.float64)
    model.eval()
    converted.eval()
    torch.testing.assert_close(converted(x), model(x), rtol=1e-12, atol=1e-12)


def test_parameters_and_buffers_are_the_same_objects() -> None:
    model = Branches()
    converted = nnops.convert(model)
    theirs, ours = dict(model.named_parameters()), dict(converted.named_parameters())
    assert list(theirs) == list(ours)
    assert all(ours[name] is theirs[name] for name in theirs)
    buffers = dict(converted.named_buffers())
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())


def test_state_dict_loads_both_ways() -> None:
    model, converted = Branches(), nnops.convert(Branches())
    assert not torch.equal(model.head.weight, converted.head.weight)
    assert str(converted.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(model.head.weight, converted.head.weight)
    other = Branches()
    assert str(other.load_state_dict(converted.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(model.stem.conv.weight, other.stem.conv.weight)


def test_an_optimizer_made_before_trains_both() -> None:
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    converted = nnops.convert(model)
    x = torch.randn(INPUT)
    start = model.stem.conv.weight.detach().clone()
    losses = [float(train_step(converted, optimizer, x)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert not torch.equal(model.stem.conv.weight, start)
    assert model.stem.conv.weight is converted.stem.conv.weight


def test_model_itself_a_layer() -> None:
    for inplace in (False, True):
        layer = torch.nn.ReLU()
        converted = nnops.convert(layer, inplace=inplace)
        assert type(converted) is nnops.nn.ReLU
        assert type(nnops.revert(converted)) is torch.nn.ReLU
        assert type(layer) is (nnops.nn.ReLU if inplace else torch.nn.ReLU)


def test_twice_is_once() -> None:
    once = nnops.convert(Branches())
    assert layers(nnops.convert(once)) == layers(once)
    plain = Branches()
    assert layers(nnops.revert(plain)) == layers(plain)


def test_a_shared_layer_stays_one_layer() -> None:
    converted = nnops.convert(Branches())
    assert converted.act is converted.stem.act
    shared = torch.nn.Conv2d(4, 4, 1)
    tower = nnops.convert(torch.nn.Sequential(shared, torch.nn.ReLU(), shared))
    assert tower[0] is tower[2]
    assert len(list(tower.parameters())) == 2


def test_tied_weights_stay_tied() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1))
    model[1].weight = model[0].weight
    converted = nnops.convert(model)
    assert converted[1].weight is converted[0].weight is model[0].weight
    converted(torch.randn(1, 4, 3, 3)).sum().backward()
    assert model[0].weight.grad is not None


def test_hooks_fire_once_with_the_new_module() -> None:
    model = Branches()
    calls: list[tuple[str, torch.nn.Module]] = []

    def note(name: str) -> Any:
        return lambda module, *args: calls.append((name, module))

    model.act.register_forward_pre_hook(note("before"))
    model.act.register_forward_hook(note("after"))
    model.norm.register_full_backward_hook(note("backward"))
    model.register_state_dict_post_hook(note("state_dict"))
    model.register_forward_hook(note("root"), with_kwargs=True)
    converted = nnops.convert(model)
    converted(torch.randn(INPUT)).sum().backward()
    converted.state_dict()
    act, norm = converted.act, converted.norm
    expected = ["before", "after", "before", "after", "root", "backward", "state_dict"]
    assert [name for name, _ in calls] == expected
    owners = [act, act, act, act, converted, norm, converted]
    assert all(module is owner for (_, module), owner in zip(calls, owners, strict=True))


def test_hooks_registered_later_concern_one_model() -> None:
    model = Branches()
    converted = nnops.convert(model)
    fired = []
    handle = converted.act.register_forward_hook(lambda *args: fired.append(1))
    model(torch.randn(INPUT))
    assert not fired
    converted(torch.randn(INPUT))
    assert len(fired) == 2
    handle.remove()
    converted(torch.randn(INPUT))
    assert len(fired) == 2
    converted.register_buffer("extra", torch.zeros(1))
    converted.add_module("more", torch.nn.ReLU())
    assert not hasattr(model, "extra") and not hasattr(model, "more")


def test_hooks_that_remember_their_module_follow() -> None:
    class Versioned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = torch.nn.ReLU()
            self.loads = 0
            self._register_load_state_dict_pre_hook(self.count)
            self.register_load_state_dict_pre_hook(lambda module, *args: module.count())

        def count(self, *args: Any) -> None:
            self.loads += 1

    original = Versioned()
    converted = nnops.convert(original)
    converted.load_state_dict({})
    assert (converted.loads, original.loads) == (2, 0)
    converted = nnops.convert(Versioned())  # the original is gone
    converted.load_state_dict({})
    assert converted.loads == 2


def test_references_between_modules_follow() -> None:
    class Linked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = torch.nn.ReLU()
            self.plan = [("act", self.act), ("twice", {"again": self.act})]
            self.call = self.run
            self.loop: list[Any] = []
            self.loop.append(self.loop)
            object.__setattr__(self.act, "parent", self)

        def run(self, input: Tensor) -> Tensor:
            return self.plan[1][1]["again"](input)

        def forward(self, input: Tensor) -> Tensor:
            return self.call(input)

    original = Linked()
    converted = nnops.convert(original)
    assert converted.plan[0][1] is converted.act is converted.plan[1][1]["again"]
    assert converted.call.__self__ is converted
    assert converted.act.parent is converted
    assert original.plan[0][1] is original.act and original.act.parent is original
    assert torch.equal(converted(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_attributes_that_cannot_be_copied_are_shared() -> None:
    import threading

    model = Branches()
    model.lock = threading.Lock()
    model.derived = model.head.weight * 2  # not a leaf: copy.deepcopy refuses it
    converted = nnops.convert(model)
    assert converted.lock is model.lock and converted.derived is model.derived


class MyReLU(torch.nn.ReLU):
    pass


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_other_types_are_left_alone() -> None:
    parametrized = torch.nn.Conv2d(3, 3, 1)
    torch.nn.utils.parametrizations.weight_norm(parametrized)
    scripted = torch.jit.trace(torch.nn.Sequential(torch.nn.ReLU()), torch.randn(2))
    model = torch.nn.ModuleList(
        [MyReLU(), torch.nn.LazyConv2d(4, 3), parametrized, scripted, torch.nn.ReLU6()]
    )
    for inplace in (True, False):
        converted = nnops.convert(model, inplace=inplace)
        assert layers(converted) == layers(model)
        assert converted[3] is scripted
    assert torch.isfinite(converted[2](torch.randn(1, 3, 2, 2))).all()


def test_compiled_parts_are_left_alone() -> None:
    inner = torch.nn.Sequential(torch.nn.ReLU())
    wrapped = torch.compile(inner, backend="eager")
    called = torch.nn.Sequential(torch.nn.ReLU())
    called.compile(backend="eager")
    converted = nnops.convert(torch.nn.ModuleList([wrapped, called]))
    assert converted[0] is wrapped and converted[1] is called
    assert type(inner[0]) is type(called[0]) is torch.nn.ReLU


def test_hook_based_weight_norm_and_pruning_still_work() -> None:
    from torch.nn.utils import prune

    conv = torch.nn.Conv2d(2, 2, 1)
    prune.l1_unstructured(conv, "weight", amount=0.5)
    with pytest.warns(FutureWarning):
        normed = torch.nn.utils.weight_norm(torch.nn.Conv2d(2, 2, 1))
    model = torch.nn.Sequential(conv, normed)
    converted = nnops.convert(model)
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(converted(x), model(x))
    with torch.no_grad():
        normed.weight_g.mul_(3)
    torch.testing.assert_close(converted(x), model(x))
    prune.remove(converted[0], "weight")
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_pickle_and_deepcopy(inplace: bool) -> None:
    converted = nnops.convert(Branches(), inplace=inplace).eval()
    x = torch.randn(INPUT)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert layers(other) == layers(converted)
        assert torch.equal(other(x), converted(x))
        assert other.head.weight is not converted.head.weight


def test_train_and_eval_are_independent() -> None:
    model = Branches()
    model.norm.eval()
    converted = nnops.convert(model)
    assert not converted.norm.training and converted.training
    converted.eval()
    assert model.training
    converted.train()
    assert not model.norm.training


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"nnops\.convert.*model.*list"):
        nnops.convert([torch.nn.ReLU()])
    with pytest.raises(TypeError, match=r"nnops\.revert.*model.*Tensor"):
        nnops.revert(torch.zeros(1))
