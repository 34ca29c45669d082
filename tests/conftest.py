from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


def _load_extension(path: Path) -> None:
    """Makes the file, or the one in the folder, `nnops._C`; before anything imports nnops."""
    if "nnops" in sys.modules:
        raise RuntimeError("NNOPS_EXTENSION: nnops was imported too early")
    if path.is_dir():
        path = path / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("nnops._C", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"NNOPS_EXTENSION: {path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nnops._C"] = module
    spec.loader.exec_module(module)


# Another build of the compiled part, such as the one that emulates CUDA.
if extension := os.environ.get("NNOPS_EXTENSION"):
    _load_extension(Path(extension).resolve())

from nnops import _C  # noqa: E402

# On CUDA, float32 convolutions round their operands to TF32 unless torch is told otherwise; the
# tests' tolerances are those of float32.
torch.backends.cudnn.allow_tf32 = False


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says aloud that the tests for a CUDA device did not run."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        # A file that was skipped as a whole has no keywords.
        if "cuda" in getattr(report, "keywords", ())
    ]
    if skipped:
        reason = str(skipped[0].longrepr[2]).removeprefix("Skipped: ")
        terminalreporter.write_line(
            f"NOT RUN ON CUDA: {len(skipped)} tests need a CUDA device: {reason}", yellow=True
        )


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
