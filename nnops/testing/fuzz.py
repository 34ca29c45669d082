"""Hostile arguments for every operator under torch.ops.nnops: they must be refused, never crash.

`python -m nnops.testing.fuzz --seconds 10` finds the operators and their schemas at run time, so a
new one is fuzzed without a line here. Half of the calls are drawn from the schema alone; the other
half are calls that the operator database makes, with one to three arguments exchanged, so that
they get past the first check. Every call is written as a Python expression, and onto standard
error before it runs: after a crash, the last line there is the way to repeat it. A process limit on
memory turns absurd sizes into an exception.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import nnops  # noqa: F401  (loads torch.ops.nnops)

ACCEPTED = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
INTEGERS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 5, 17, 2**31 - 1, 2**32, 2**62, 2**63 - 1)
REALS = ("float('nan')", "float('inf')", "-1.0", "0.0", "0.5", "1.0", "1e308", "-100")
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 8, 17)
DTYPES = (
    *("float32", "float32", "float64", "bfloat16", "float16", "int64", "int64", "int32", "int16"),
    *("int8", "uint8", "bool", "complex64", "float8_e5m2"),
)
# Wrappers around a plain tensor expression `t`.
LAYOUTS = (
    "{t}.transpose(0, -1)",
    "{t}[..., ::2]",
    "{t}[..., 1:]",
    "{t}.to_sparse()",
    "{t}.to('meta')",
    "{t}.neg()",
    "{t}.unsqueeze(0)",
    "{t}.flatten()",
    "{t}.expand(3, *{t}.shape)",
    "{t}.as_strided({t}.shape, [0] * {t}.dim())",
    "{t}.requires_grad_()",
    "torch.quantize_per_tensor({t}.float(), 0.1, 0, torch.qint8)",
)
WRONG = ("None", "'text'", "1.5", "[]", "[None]", "(1, 2)", "torch.zeros(2, 2)", "object()", "{}")
# Beyond this much the process may not grow; an allocation fails then as any other does.
MEMORY = 3 << 30


def random_tensor(rng: random.Random) -> str:
    shape = tuple(rng.choice(SIZES) for _ in range(rng.choice((0, 1, 2, 3, 3, 4, 4, 5))))
    return tensor_like(rng, shape, rng.choice(DTYPES))


def tensor_like(rng: random.Random, shape: tuple[int, ...], dtype: str) -> str:
    """Values of all kinds; whole numbers small, or so large that no index may be that large."""
    if "float" in dtype or "complex" in dtype:
        kind = rng.random()
        if kind < 0.1:
            return f"torch.full({shape}, float('{rng.choice(('nan', 'inf'))}')).to(torch.{dtype})"
        return f"torch.randn({shape}).to(torch.{dtype})"
    high = rng.choice((2, 4, 9, 100))
    low = rng.choice((0, 0, 0, -3, -(2**62)))
    return f"torch.randint({low}, {high}, {shape}).to(torch.{dtype})"


def random_argument(rng: random.Random, kind: str) -> str:
    """An expression for one argument of the schema type `kind`, now and then of another type."""
    if rng.random() < 0.04:
        return rng.choice(WRONG)
    if kind.startswith("Optional["):
        return "None" if rng.random() < 0.4 else random_argument(rng, kind[9:-1])
    if kind.startswith("List["):
        length = rng.choice((0, 1, 2, 2, 2, 3, 4, 5))
        return "[" + ", ".join(random_argument(rng, kind[5:-1]) for _ in range(length)) + "]"
    if kind == "Tensor":
        tensor = random_tensor(rng)
        return changed_layout(rng, tensor) if rng.random() < 0.3 else tensor
    if kind in ("int", "SymInt", "number", "Scalar"):
        return str(rng.choice(INTEGERS) if rng.random() < 0.4 else rng.choice((0, 1, 1, 2, 3)))
    if kind == "bool":
        return rng.choice(("True", "False"))
    if kind == "float":
        return rng.choice(REALS)
    if kind == "str":
        return rng.choice(("''", "'same'", "'mean'", "'x' * 1000"))
    return rng.choice(WRONG)


def changed_layout(rng: random.Random, tensor: str) -> str:
    return rng.choice(LAYOUTS).replace("{t}", tensor)


def written_down(value: Any) -> str:
    """An expression that makes `value` again: tensors by shape, strides and dtype."""
    if not isinstance(value, Tensor):
        return repr(value)
    dtype, shape = str(value.dtype), tuple(value.shape)
    if not value.dtype.is_floating_point:
        if value.numel() <= 256:
            return f"torch.tensor({value.tolist()}, dtype={dtype}).reshape({shape})"
        return f"torch.randint(0, {max(int(value.max()), 1)}, {shape}).to({dtype})"
    text = f"torch.rand({shape}).to({dtype})"
    if value.dim() == 4 and value.numel() and not value.is_contiguous():
        text += ".contiguous(memory_format=torch.channels_last)"
    return text


def mutated(rng: random.Random, value: Any, kind: str) -> str:
    """Another argument near `value`: one size, element or property of it is changed."""
    if isinstance(value, Tensor) and rng.random() < 0.8:
        way = rng.random()
        if way < 0.4:
            shape = list(value.shape)
            if shape and rng.random() < 0.8:
                place = rng.randrange(len(shape))
                shape[place] = max(0, shape[place] + rng.choice((-2, -1, 1, 2, 5)))
            else:
                shape.append(rng.choice(SIZES))
            return tensor_like(rng, tuple(shape), str(value.dtype)[6:])
        if way < 0.6:
            return tensor_like(rng, tuple(value.shape), rng.choice(DTYPES))
        if way < 0.75 and not value.dtype.is_floating_point:
            return tensor_like(rng, tuple(value.shape), str(value.dtype)[6:])
        return changed_layout(rng, written_down(value))
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.8:
        elements = list(value)
        way, place = rng.random(), rng.randrange(len(elements))
        if way < 0.2:
            del elements[place]
        elif way < 0.4:
            elements.append(1)
        else:
            elements[place] = rng.choice(INTEGERS)
        return repr(elements)
    return random_argument(rng, kind)


def operators() -> dict[str, Any]:
    """Schema of each operator under torch.ops.nnops, private twins included."""
    schemas = {schema.name: schema for schema in torch._C._jit_get_all_schemas()}
    return {
        name.removeprefix("nnops::"): schema
        for name, schema in sorted(schemas.items())
        if name.startswith("nnops::")
    }


def recorded() -> dict[str, list[tuple[Any, ...]]]:
    """Valid calls of each operator: what the database's samples reach."""
    from nnops.testing.opdb import CASES
    from nnops.testing.recorder import OperatorCalls
    from nnops.testing.samples import Maker, detached, map_tensors, tensors_of

    with OperatorCalls() as calls:
        for case in CASES:
            for sample in case.gradcheck_samples(Maker(torch.float32, requires_grad=True)):
                copies = map_tensors(detached(sample), Tensor.clone)
                result = case.ours(copies)
                outputs = result if isinstance(result, tuple) else (result,)
                total = sum(output.sum() for output in outputs if output.requires_grad)
                if isinstance(total, Tensor):
                    total.backward()
            for sample in case.samples(Maker(case.dtypes[-1])):
                if sum(tensor.numel() for tensor in tensors_of(sample)) < 5000:
                    case.ours(detached(sample))
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name, args in calls.recorded:
        detached_args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        found.setdefault(name, []).append(detached_args)
    return found


def arguments(rng: random.Random, schema: Any, calls: list[tuple[Any, ...]]) -> str:
    """A tuple expression: all arguments of one call."""
    kinds = [str(argument.type) for argument in schema.arguments]
    usable = [call for call in calls if len(call) == len(kinds)]
    if usable and rng.random() < 0.6:
        call = rng.choice(usable)
        changed = set(rng.sample(range(len(call)), min(len(call), rng.choice((1, 1, 2, 3)))))
        texts = [
            mutated(rng, value, kinds[place]) if place in changed else written_down(value)
            for place, value in enumerate(call)
        ]
    else:
        texts = [random_argument(rng, kind) for kind in kinds]
    return f"({', '.join(texts)},)"


def call_and_read(operator: Any, values: tuple[Any, ...]) -> None:
    """Runs the call and reads every element of what it returns."""
    result = operator(*values)
    for output in result if isinstance(result, tuple) else (result,):
        if isinstance(output, Tensor) and output.layout == torch.strided and not output.is_meta:
            output.detach().clone()


def fault_of(name: str, text: str, error: Exception) -> str:
    """What is wrong with this refusal, or an empty string."""
    message = str(error)
    if "to('meta')" in text:  # fake kernels refuse in the words of the Python that they are
        return ""
    if not isinstance(error, ACCEPTED):
        return f"raises {type(error).__name__}: {message}"
    # An allocation that fails speaks for itself.
    allocator = re.search("alloc_cpu|not enough memory|Storage size calculation overflow", message)
    named = "nnops::" in message or name.strip("_") in message
    if named or allocator:
        return ""
    return f"does not name the operator: {type(error).__name__}: {message}"


def limit_memory() -> None:
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def run(seconds: float, seed: int, only: str, count: int) -> int:
    limit_memory()
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    rng = random.Random(seed)
    schemas = {name: schema for name, schema in operators().items() if only in name}
    valid = recorded()
    end = time.monotonic() + seconds
    calls = refused = 0
    faults: dict[str, str] = {}
    while time.monotonic() < end and calls < count:
        for name, schema in schemas.items():
            text = arguments(rng, schema, valid.get(name.removeprefix("_"), []))
            try:
                values = eval(text, {"torch": torch})
            except Exception:  # torch would not make these arguments
                continue
            sys.stderr.write(f"torch.ops.nnops.{name}{text}\n")
            sys.stderr.flush()
            calls += 1
            try:
                call_and_read(getattr(torch.ops.nnops, name), values)
            except Exception as error:
                refused += 1
                fault = fault_of(name, text, error)
                if fault:
                    repeat = f"torch.ops.nnops.{name}{text}\n    {fault[:400]}"
                    faults.setdefault(f"{name} {fault[:60]}", repeat)
    print(f"{len(schemas)} operators, {calls} calls, {refused} refused, {len(faults)} faults")
    for repeat in faults.values():
        print(repeat)
    return 1 if faults or not calls else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="operators with this in their name")
    options = parser.parse_args()
    return run(options.seconds, options.seed, options.only, options.calls)


if __name__ == "__main__":
    sys.exit(main())
