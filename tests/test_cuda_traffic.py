"""The traffic of the CUDA kernels (cuda_traffic.py) against what is allowed (cuda_bounds.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cuda_bounds import UNMEASURED, broken
from cuda_traffic import PROBLEMS, measured

from nnops import _C

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    _C.build_info()["cuda"] != "checked",
    reason="for the extension that sees every access: make test-cuda-emulated",
)


@pytest.mark.parametrize("name", PROBLEMS)
def test_traffic(name: str) -> None:
    assert len(measured(name)) >= 8
    complaints = (
        broken(measure, f"{kernel} {access} in {name}", ratio)
        for (kernel, measure, access), ratio in measured(name).items()
    )
    assert not list(filter(None, complaints))


def test_every_kernel_is_measured_or_says_why_not() -> None:
    bounds, comment = r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?", r"(?://.*\s*)?"
    kernels = {
        name
        for path in (ROOT / "csrc/cuda").rglob("*.cu*")
        for name in re.findall(rf"__global__\s+void\s+{bounds}{comment}(\w+)\(", path.read_text())
    }
    assert len(kernels) >= 39
    seen = {access.kernel for problem in PROBLEMS for access in measured(problem)}
    assert kernels - seen == UNMEASURED.keys()
