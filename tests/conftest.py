from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
import torch

from nnops import _C


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Every test draws from a seed of its own name."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per ISA level; fails if another level ran than the one asked for."""
    before = _C.active_isa()
    _C.set_active_isa(request.param)
    yield request.param
    ran = _C.last_choice()[2]
    _C.set_active_isa(before)
    assert ran == request.param, f"asked for {request.param}, but {ran} ran"


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
