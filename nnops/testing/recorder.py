"""Records which operators of torch.ops.nnops a computation calls, with their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The tests of torch.library.opcheck: all that it has; by default it leaves the last one out.
OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
    "test_aot_dispatch_static",
)


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


def operators() -> list[str]:
    """Names of all operators under torch.ops.nnops."""
    names = (schema.name for schema in torch._C._jit_get_all_schemas())
    return sorted(name.removeprefix("nnops::") for name in names if name.startswith("nnops::"))


def public_operators() -> list[str]:
    """Names of those without an underscore in front."""
    return [name for name in operators() if not name.startswith("_")]
