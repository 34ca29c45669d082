"""Weights that stay the same are packed once; a changed weight is never taken for the old one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import nnops
import nnops.nn as nn
import nnops.nn.functional as F
from nnops import _C


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    limit = nnops.packed_weight_cache().limit
    nnops.clear_packed_weight_cache()
    nnops.set_packed_weight_cache(64 << 20)
    yield
    nnops.set_packed_weight_cache(limit)
    nnops.clear_packed_weight_cache()


def image(channels: int = 20, size: int = 7) -> Tensor:
    return torch.randn(1, channels, size, size)


def weights(filters: int = 40, channels: int = 20) -> Tensor:
    return torch.randn(filters, channels, 3, 3)


def reuses(function: Callable[[], Tensor], calls: int = 1) -> int:
    """How many of some calls found their weights packed."""
    before = nnops.packed_weight_cache().reused
    for _ in range(calls):
        function()
    return nnops.packed_weight_cache().reused - before


def check_fresh(call: Callable[[Tensor], Tensor], weight: Tensor) -> None:
    """Whether the result is that of the weight as it is now, however often asked."""
    gaps = weight.detach().new_empty((2 * len(weight), *weight.shape[1:]))[::2].copy_(weight)
    expected = call(gaps)  # packed at every call
    before = nnops.packed_weight_cache().reused
    for _ in range(4):
        assert torch.equal(call(weight), expected)
    assert nnops.packed_weight_cache().reused >= before + 2, "or this test shows nothing"


@torch.no_grad()
def test_the_third_call_with_a_weight_packs_nothing(isa: str) -> None:
    x, w = image(), weights()
    assert reuses(lambda: F.conv2d(x, w), 2) == 0
    assert nnops.packed_weight_cache().weights == 1
    assert reuses(lambda: F.conv2d(x, w), 3) == 3
    # Neither the image nor the batch nor where the window goes matters.
    assert reuses(lambda: F.conv2d(torch.randn(3, 20, 8, 7), w, padding=2, dilation=2)) == 1
    nnops.clear_packed_weight_cache()
    assert nnops.packed_weight_cache().weights == nnops.packed_weight_cache().bytes == 0


PROBLEMS = (
    {},
    {"padding": 2},
    {"stride": 2},
    {"stride": (3, 2), "padding": 1},
    {"dilation": 2},
    {"stride": 2, "dilation": (1, 2)},
    {"groups": 4},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_kept_weights_give_the_same_bits(isa: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Several problems take turns, of both passes, on one weight."""
    w = weights().to(dtype)
    grouped = w[:, :5].contiguous()
    if channels_last:
        w = w.contiguous(memory_format=torch.channels_last)

    def results() -> list[Tensor]:
        found = []
        generator = torch.Generator().manual_seed(0)
        for size in (7, 8, 5) * 3:
            x = torch.randn(1, 20, size, size, generator=generator).to(dtype)
            for parameters in PROBLEMS:
                leaf = x.clone().requires_grad_()
                output = F.conv2d(leaf, grouped if "groups" in parameters else w, **parameters)
                found += [output, *torch.autograd.grad(output, leaf, torch.ones_like(output))]
        return found

    choices = [{"algorithm": "pixel_rows"}, {"algorithm": "expanded_planes"}]
    if dtype == torch.bfloat16 and isa == "avx512" and _C.cpu_has_bfloat16_dots():
        choices.append({"algorithm": "pair_rows"})
    if dtype == torch.float32 and not channels_last:
        choices.append({"forward": "image_lanes"})
    for choice in choices:
        with nnops.conv_algorithm(**choice):
            before = nnops.packed_weight_cache().reused
            kept = results()
            assert nnops.packed_weight_cache().reused > before + len(kept) // 2
            nnops.set_packed_weight_cache(0)
            for index, (actual, expected) in enumerate(zip(kept, results(), strict=True)):
                assert torch.equal(actual, expected), index
            nnops.set_packed_weight_cache(64 << 20)


def write_in_place(w: Tensor) -> None:
    w.mul_(1.5)


def write_one_element(w: Tensor) -> None:
    w[-1, -1, -1, -1] += 1


def write_through_data(w: Tensor) -> None:
    version = w._version
    w.data.add_(1)
    assert w._version == version, "which is what makes version counters useless here"


def copy_through_data(w: Tensor) -> None:
    w.data.copy_(torch.randn_like(w))


def assign_data(w: Tensor) -> None:
    w.data = torch.randn_like(w)


def write_through_detached(w: Tensor) -> None:
    w.detach().neg_()


def write_through_numpy(w: Tensor) -> None:
    w.detach().numpy()[3, 2, 1, 0] = 7


def swap_filters(w: Tensor) -> None:
    w.data.copy_(w.data.flip(0))


def change_the_sign_of_zeros(w: Tensor) -> None:
    w.data.zero_().neg_()


WRITES = (
    write_in_place,
    write_one_element,
    write_through_data,
    copy_through_data,
    assign_data,
    write_through_detached,
    write_through_numpy,
    swap_filters,
    change_the_sign_of_zeros,
)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_writes_are_seen(write: Callable[[Tensor], None], grad: bool) -> None:
    x = image()
    w = torch.nn.Parameter(weights())
    with torch.set_grad_enabled(grad):
        check_fresh(lambda w: F.conv2d(x, w).detach(), w)
        assert nnops.packed_weight_cache().weights == 1
        for _ in range(3):
            with torch.no_grad():
                write(w)
            check_fresh(lambda w: F.conv2d(x, w).detach(), w)


def test_optimizer_steps_are_seen() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 40, 3)
    x = image()
    for optimizer in (
        torch.optim.SGD(layer.parameters(), 0.1),
        torch.optim.Adam(layer.parameters(), foreach=True),
        torch.optim.Adam(layer.parameters(), fused=True),
    ):
        for _ in range(3):
            layer(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                check_fresh(lambda w: F.conv2d(x, w, layer.bias), layer.weight)
            assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_training_keeps_no_packed_weight() -> None:
    layer = nn.Conv2d(20, 40, 3)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    x = image().requires_grad_()
    for _ in range(4):
        layer(x).square().sum().backward()
        optimizer.step()
    assert nnops.packed_weight_cache().weights == 0


@torch.no_grad()
def test_weights_that_winograd_could_transform_itself_are_kept_where_they_stay(isa: str) -> None:
    x, w = image(64, 12), weights(64, 64)
    expected = F.conv2d(x, w.repeat(1, 1, 1, 2)[..., ::2].copy_(w))  # gaps: never kept
    assert nnops.packed_weight_cache().weights == 0
    first = w.clone()
    for _ in range(40):
        F.conv2d(x, w.mul_(1.01))
    assert nnops.packed_weight_cache().weights == 0, "packed although it changes"
    w.copy_(first)
    calls = 0
    while nnops.packed_weight_cache().weights == 0:
        calls += 1
        assert calls < 20, "not asked again"
        assert torch.equal(F.conv2d(x, w), expected)
    for _ in range(3):
        assert reuses(lambda: F.conv2d(x, w)) == 1
        assert torch.equal(F.conv2d(x, w), expected)
    assert torch.equal(F.conv2d(x, w.neg_()), -expected)
    # Where many pixels pay for packing it, nobody asks.
    assert reuses(lambda: F.conv2d(image(64, 12).expand(64, -1, -1, -1), w), 4) == 0


@torch.no_grad()
def test_large_weights_that_winograd_can_transform_itself_are_not_kept() -> None:
    x, w = image(512), weights(512, 512)
    assert reuses(lambda: F.conv2d(x, w, padding=1), 4) == 0
    assert nnops.packed_weight_cache().weights == 0


@torch.no_grad()
def test_load_state_dict_is_seen() -> None:
    layer, other = nn.Conv2d(20, 40, 3), nn.Conv2d(20, 40, 3)
    x = image()
    check_fresh(lambda w: F.conv2d(x, w, layer.bias), layer.weight)
    for assign in (False, True):
        layer.load_state_dict(other.state_dict(), assign=assign)
        check_fresh(lambda w: F.conv2d(x, w, layer.bias), layer.weight)
        assert torch.equal(layer(x), other(x))


@torch.no_grad()
def test_another_tensor_at_the_same_address_is_seen() -> None:
    x = image()
    memory = torch.empty(40 * 20 * 9)
    for shape in ((40, 20, 3, 3), (360, 20, 1, 1), (40, 20, 9, 1), (20, 20, 6, 3)):
        for _ in range(2):
            memory.normal_()
            w = memory.view(shape)
            check_fresh(lambda w: F.conv2d(x, w, stride=2, padding=4), w)
    # The same bytes at the same address in the other order of dimensions.
    w = memory.view(40, 20, 3, 3)
    check_fresh(lambda w: F.conv2d(x, w), w)
    last = memory.view(40, 3, 3, 20).permute(0, 3, 1, 2)
    check_fresh(lambda w: F.conv2d(x, w), last)
    # What malloc gives out again.
    for _ in range(20):
        w = weights()
        check_fresh(lambda w: F.conv2d(x, w), w)
        del w


@torch.no_grad()
def test_weights_with_gaps_are_packed_at_every_call() -> None:
    x = image()
    for w in (weights()[::2], weights(channels=1).expand(40, 20, 3, 3)):
        assert reuses(lambda w=w: F.conv2d(x, w), 4) == 0
        assert torch.equal(F.conv2d(x, w), F.conv2d(x, w.clone()))


@torch.no_grad()
def test_memory_is_bounded_and_the_least_recently_used_go_first() -> None:
    # In a thread of its own: packed weights may lie in a larger block that a thread has kept.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(check_that_memory_is_bounded).result()


def check_that_memory_is_bounded() -> None:
    x = image()
    ws = [weights() for _ in range(6)]
    # A packed weight takes a little more than a weight: padding, the fingerprint.
    F.conv2d(x, ws[0])
    F.conv2d(x, ws[0])
    room = int(nnops.packed_weight_cache().bytes * 3.5)
    nnops.set_packed_weight_cache(room)
    for w in ws[:3] * 3:
        F.conv2d(x, w)
        assert nnops.packed_weight_cache().bytes <= room
    assert reuses(lambda: [F.conv2d(x, w) for w in ws[:3]]) == 3
    for w in (ws[3], ws[3]):
        F.conv2d(x, w)
        assert nnops.packed_weight_cache().bytes <= room
    assert reuses(lambda: F.conv2d(x, ws[2])) == 1
    assert reuses(lambda: F.conv2d(x, ws[3])) == 1
    assert reuses(lambda: F.conv2d(x, ws[0])) == 0, "it was the least recently used"
    nnops.set_packed_weight_cache(1000)
    assert nnops.packed_weight_cache().bytes <= 1000
    expected = torch.nn.functional.conv2d(x, ws[0])
    torch.testing.assert_close(F.conv2d(x, ws[0]), expected, atol=1e-4, rtol=1e-4)
    nnops.set_packed_weight_cache(0)
    assert reuses(lambda: F.conv2d(x, ws[0]), 4) == 0
    assert nnops.packed_weight_cache().bytes == 0
    with pytest.raises(ValueError, match="set_packed_weight_cache: bytes must not be negative"):
        nnops.set_packed_weight_cache(-1)


@pytest.mark.skipif(len(_C.available_isas()) < 2, reason="needs two ISA levels")
@torch.no_grad()
def test_every_isa_has_its_own() -> None:
    x, w = image(), weights()
    before = _C.active_isa()
    try:
        for _ in range(3):
            for level in _C.available_isas():
                _C.set_active_isa(level)
                for _ in range(2):
                    F.conv2d(x, w)
        for level in _C.available_isas():
            _C.set_active_isa(level)
            check_fresh(lambda w: F.conv2d(x, w), w)
    finally:
        _C.set_active_isa(before)
    assert nnops.packed_weight_cache().weights == len(_C.available_isas())


def test_many_threads() -> None:
    """Calls, writes by the thread that owns a weight, clearing and bounds, all at once."""
    shared, x = weights(), image()
    expected = F.conv2d(x, shared)
    failures: list[str] = []
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            nnops.clear_packed_weight_cache()
            nnops.set_packed_weight_cache(100_000)
            nnops.set_packed_weight_cache(64 << 20)

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        own = weights()
        for step in range(60):
            if step % 4 == 0:
                own.data.copy_(torch.randn(own.shape, generator=generator))
            if not torch.equal(F.conv2d(x, shared), expected):
                failures.append("shared")
            theirs = torch.nn.functional.conv2d(x.double(), own.double())
            if not torch.allclose(F.conv2d(x, own).double(), theirs, atol=1e-3):
                failures.append("own")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    disturber = threading.Thread(target=disturb)
    for thread in (disturber, *workers):
        thread.start()
    for worker in workers:
        worker.join()
    stop.set()
    disturber.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_and_writes_for_itself() -> None:
    x, w = image(), weights()
    for _ in range(3):
        expected = F.conv2d(x, w)
    child = os.fork()
    if child == 0:
        same = torch.equal(F.conv2d(x, w), expected)
        w.data.add_(1)
        changed = not torch.equal(F.conv2d(x, w), expected)
        os._exit(0 if same and changed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(F.conv2d(x, w), expected)


def test_the_environment_sets_the_limit() -> None:
    program = "import nnops; print(nnops.packed_weight_cache().limit)"
    for value, limit in (("0", 0), ("12345", 12345), ("much", 256 << 20)):
        result = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NNOPS_PACKED_WEIGHTS": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(result.stdout) == limit
