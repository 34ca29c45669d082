"""Loads the compiled operators, after checking that this torch can run them."""

from __future__ import annotations

import re

import torch

OLDEST_TORCH = (2, 10)


def _check_torch_version() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"nnops needs torch {oldest} or later, but this is torch {torch.__version__}: "
            f"upgrade it with 'pip install \"torch>={oldest}\"'"
        )


_check_torch_version()

try:
    from nnops import _C
except ImportError as error:
    raise ImportError(
        "nnops's compiled part could not be loaded: type 'make build' or 'pip install "
        f"--no-build-isolation -e .' in nnops's source folder ({error})"
    ) from error

__all__ = ["_C"]
