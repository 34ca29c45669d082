"""The scripts under examples/ run, on a few digits; `make demo` runs the first in full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnops

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str) -> str:
    # nnops as this process found it, installed or in the source tree.
    environment = {**os.environ, "PYTHONPATH": str(Path(nnops.__path__[0]).parent)}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_demo(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    output = run("demo.py", "--epochs", "1", "--limit", "200", "--picture", str(picture))
    assert output.splitlines()[-1].startswith("nnops gave torch's numbers:")
    assert picture.stat().st_size > 0


def test_lenet() -> None:
    output = run("lenet.py", "--epochs", "1", "--limit", "100")
    assert "MseLoss" in output
    assert "test accuracy" in output


@pytest.mark.parametrize(
    "arguments", [("--optimizer", "adam"), ("--optimizer", "sgd", "--no-named", "--batch", "1")]
)
def test_cifar_net(arguments: tuple[str, ...]) -> None:
    assert "test accuracy" in run("cifar_net.py", "--epochs", "1", "--limit", "64", *arguments)


def test_precision() -> None:
    output = run("precision.py", "--epochs", "1", "--seeds", "1", "--limit", "64")
    assert output.count("nnops, highest") == output.count("nnops, high ") == 2
