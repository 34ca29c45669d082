"""What is timed of a net: a training step and a forward, as nnops, torch and the peers run them.

train    gradients dropped, forward, cross-entropy, backward, a step of SGD
infer    forward, under no_grad, in eval mode

The learning rate is 0: every step then does the same work on the same weights, those that were
checked, and yet writes them, so that nothing derived from them can be kept from step to step.
ours is nnops.convert() of the net and of its loss.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss, Module, Parameter

import nnops
from nnops.benchmark.calls import changing_weights
from nnops.benchmark.timing import Contestant

# Seconds before a turn in which nothing is timed. The threads of one runtime look out for work for
# a while after a call, up to 50 ms measured; they must not meet the call of the next contestant,
# who brings threads of his own. After such a rest the first calls are slow: other threads sleep,
# and the clock is low. The first training step of a turn is slow too, three times in a virtual
# machine: the memory that the step before it freed, which it would get in training, was taken by
# others, or given back to the host.
REST = 0.1
WARMING = 0.02


@dataclass(frozen=True)
class Runner:
    """A net on its images, ready to run. Without parameters it can only infer."""

    forward: Callable[[], Any]
    parameters: tuple[Parameter, ...] = ()
    loss: Module | None = None

    def scores(self) -> Tensor:
        """What forward computes, whoever it belongs to."""
        result = self.forward()
        return result if isinstance(result, Tensor) else torch.from_numpy(result[0].copy())

    def loss_of(self, labels: Tensor) -> Tensor:
        assert self.loss is not None
        loss: Tensor = self.loss(self.forward(), labels)
        return loss


def eager(net: Module, images: Tensor) -> Runner:
    return Runner(partial(net, images), tuple(net.parameters()), CrossEntropyLoss())


def ours(net: Module, images: Tensor) -> Runner:
    loss = nnops.convert(CrossEntropyLoss())
    return replace(eager(nnops.convert(net), images), loss=loss)


def _channels_last(net: Module, images: Tensor) -> Runner:
    # A copy: the weights' layout changes too.
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return eager(net, images.contiguous(memory_format=torch.channels_last))


def _compiled(net: Module, images: Tensor) -> Runner:
    # What was compiled for another number of threads does not count.
    torch.compiler.reset()
    return replace(eager(net, images), forward=partial(torch.compile(net, dynamic=False), images))


def _onnxruntime(net: Module, images: Tensor) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        with _quiet():
            torch.onnx.export(net, (images,), file, input_names=["images"], verbose=False)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Runner(partial(session.run, None, {"images": images.numpy()}))


def _openvino(net: Module, images: Tensor) -> Runner:
    import openvino

    with _quiet():
        converted = openvino.convert_model(net, example_input=images, input=list(images.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    array = images.numpy()
    return Runner(partial(compiled, [array], share_inputs=True, share_outputs=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell their story on stdout and stderr, also past sys.stdout."""
    kept = os.dup(1), os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(sink, number)
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(sink)


CHANNELS_LAST = "channels_last"


@dataclass(frozen=True)
class NetPeer:
    """Another way to run torch's net."""

    name: str
    prepare: Callable[[Module, Tensor], Runner]
    trains: bool = True
    # What must be installed for it.
    modules: tuple[str, ...] = ()
    # Another runtime brings threads of its own.
    foreign: bool = False

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(module) for module in self.modules)

    def fits(self, training: bool, layout: str) -> bool:
        """Beside channels_last images eager itself is the channels_last peer."""
        return (self.trains or not training) and (self.name, layout) != (CHANNELS_LAST,) * 2


NET_PEERS = {
    peer.name: peer
    for peer in (
        NetPeer(CHANNELS_LAST, _channels_last),
        NetPeer("compile", _compiled),
        NetPeer(
            "onnxruntime",
            _onnxruntime,
            trains=False,
            modules=("onnx", "onnxruntime", "onnxscript"),
            foreign=True,
        ),
        NetPeer("openvino", _openvino, trains=False, modules=("openvino",), foreign=True),
    )
}


def training_step(runner: Runner, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(runner.parameters, lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        runner.loss_of(labels).backward()
        optimizer.step()

    return step


def contestant(
    name: str, runner: Runner, labels: Tensor | None, rest: float = 0.0, warming: float = 0.0
) -> Contestant:
    """A training step if there are labels, else a forward.

    Each turn begins with `rest` and `warming` seconds, of sleep and of calls.
    """
    training = labels is not None
    call = runner.forward if labels is None else training_step(runner, labels)

    @contextmanager
    def around() -> Iterator[None]:
        weights = changing_weights() if training else nullcontext()
        with torch.set_grad_enabled(training), weights:
            time.sleep(rest)
            end = time.perf_counter() + warming
            while time.perf_counter() < end:
                call()
            yield

    return Contestant(name, call, around)
