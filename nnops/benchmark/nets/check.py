"""Refuses to time wrong numbers: our scores, and the gradients of all parameters, against torch's.

The limits stand in nnops/testing/tolerances.py. Both sides draw the same random numbers (dropout).
Gradients are asked for with respect to torch's own parameters, which nnops.convert() shares.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

import nnops
from nnops.benchmark.nets.calls import Runner
from nnops.testing.tolerances import assert_net_gradients, assert_net_scores

Gradients = dict[str, "Tensor | None"]


@dataclass(frozen=True)
class Expected:
    """torch's net, and what it gives, in float64."""

    net: Module
    images: Tensor
    scores: Tensor
    gradients: Gradients


def expected_of(net: Module, images: Tensor, labels: Tensor | None) -> Expected:
    """Gradients where there are labels. The mode is the net's."""
    net, images = copy.deepcopy(net).double(), images.double()
    return Expected(net, images, *_outcome(net, net, images, labels))


def check(net: Module, images: Tensor, labels: Tensor | None, expected: Expected) -> None:
    """AssertionError, with what is wrong, unless the converted net gives torch's numbers."""
    for theirs, inputs in ((net, images), (expected.net, expected.images)):
        scores, gradients = _outcome(nnops.convert(theirs), theirs, inputs, labels)
        assert_net_scores(scores, expected.scores, "scores")
        assert_net_gradients(gradients, expected.gradients)


def check_peer(runner: Runner, expected: Expected) -> None:
    """The same for the scores of someone who only infers."""
    with torch.no_grad():
        assert_net_scores(runner.scores(), expected.scores, "scores")


def _outcome(
    net: Module, owner: Module, images: Tensor, labels: Tensor | None
) -> tuple[Tensor, Gradients]:
    """Scores of `net`, and the gradients of the parameters of `owner`."""
    with torch.random.fork_rng(devices=()), torch.set_grad_enabled(labels is not None):
        torch.manual_seed(0)
        scores = net(images)
        if not isinstance(scores, Tensor) or scores.dim() < 2:
            raise TypeError("the net must return a tensor of scores [N, classes, ...]")
        if labels is None:
            return scores, {}
        named = {name: each for name, each in owner.named_parameters() if each.requires_grad}
        loss = cross_entropy(scores, labels)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return scores.detach(), dict(zip(named, gradients, strict=True))
