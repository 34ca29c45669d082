"""Several processes: DistributedDataParallel, fully_shard, and workers after the parent's calls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import nnops
import nnops.nn.functional as F

EXAMPLES = Path(__file__).parent.parent / "examples"

SHARDED = """
import os, torch, torch.distributed as dist
import nnops.nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))

def losses(nn):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(1 + dist.get_rank())
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(net(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3)
        loss.backward()
        optimizer.step()
        yield loss.item()

for ours, theirs in zip([*losses(nnops.nn)], [*losses(torch.nn)], strict=True):
    assert abs(ours - theirs) < 1e-5, (ours, theirs)
dist.destroy_process_group()
# torch 2.13, on its own too, now and then ends in std::terminate after fully_shard.
os._exit(0)
"""


def torchrun(processes: int, *command: str) -> str:
    # nnops as this process found it, installed or in the source tree; a core for each process.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(nnops.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "OMP_NUM_THREADS": "1",
    }
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*start, "--nproc-per-node", str(processes), *command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60 * processes,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d{5}", output)]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_data_parallel_losses_are_torchs(processes: int) -> None:
    script = str(EXAMPLES / "distributed.py")
    ours, theirs = (
        losses(torchrun(processes, script, "--epochs", "1", "--limit", "640", *options))
        for options in ((), ("--torch",))
    )
    assert len(ours) == 10
    assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_fully_sharded_losses_are_torchs(processes: int, tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    torchrun(processes, str(script))


class Convolved(Dataset[Tensor]):
    """Items that are computed with the operators, in the worker."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        image = torch.arange(300.0).reshape(3, 10, 10) / 100 - index
        return F.conv2d_relu_max_pool2d(image, torch.ones(4, 3, 3, 3), pool_kernel_size=2)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_after_the_parent_has_used_the_operators(method: str) -> None:
    data = Convolved()
    F.conv2d(torch.randn(8, 16, 64, 64), torch.randn(16, 16, 3, 3))  # the parent's threads exist
    expected = torch.stack([data[index] for index in range(len(data))])
    loader = DataLoader(
        data, batch_size=2, num_workers=2, multiprocessing_context=method, timeout=60
    )
    assert torch.equal(torch.cat(list(loader)), expected)
