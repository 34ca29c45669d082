"""Scratch memory is kept for the next call, within a bound, and does not outlive what it serves."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor

import nnops.nn.functional as F
from nnops import _C


def inputs(size: int, channels: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(1, channels, size, size, generator=generator)
    return x, torch.randn(channels, channels, 3, 3, generator=generator)


def convolve(size: int) -> Tensor:
    return F.conv2d(*inputs(size), padding=1)


@torch.no_grad()
def test_what_a_thread_keeps_is_bounded() -> None:
    for size in (4, 64, 8, 128, 16, 256, 32):
        convolve(size)
        assert 0 < _C.kept_workspace_bytes() <= _C.most_kept_workspace_bytes


@torch.no_grad()
def test_a_call_that_repeats_asks_for_no_more() -> None:
    convolve(48)
    kept = _C.kept_workspace_bytes()
    for _ in range(3):
        convolve(48)
        assert _C.kept_workspace_bytes() == kept


@torch.no_grad()
def test_threads_do_not_share_their_memory() -> None:
    sizes = (9, 17, 33, 65)
    expected = [convolve(size) for size in sizes]
    wrong: list[int] = []

    def work(first: int) -> None:
        with torch.no_grad():
            for i in range(first, first + 24):
                if not torch.equal(convolve(sizes[i % 4]), expected[i % 4]):
                    wrong.append(sizes[i % 4])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@torch.no_grad()
def test_a_forked_child_computes_with_what_its_thread_kept() -> None:
    x, weight = inputs(40)
    expected = F.conv2d(x, weight, padding=1)
    pid = os.fork()
    if pid == 0:  # where torch's own operators may wait for threads that are gone
        equal = F.conv2d(x, weight, padding=1).tolist() == expected.tolist()
        os._exit(0 if equal else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
