"""Records which operators of torch.ops.nnops a computation calls, with their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCalls(TorchDispatchMode):
    """`with OperatorCalls() as calls:` then `calls.recorded`: (public name, args) per call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.recorded: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "nnops":
            name = func._schema.name.removeprefix("nnops::").removeprefix("_")
            self.recorded.append((name, args))
        return func(*args, **(kwargs or {}))


def public_operators() -> list[str]:
    """Names of the public operators under torch.ops.nnops (those without an underscore)."""
    schemas = torch._C._jit_get_all_schemas()
    names = (schema.name for schema in schemas)
    ours = {name.removeprefix("nnops::") for name in names if name.startswith("nnops::")}
    return sorted(name for name in ours if not name.startswith("_"))
