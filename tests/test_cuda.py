"""The operator database on CUDA.

* Everywhere: what the build says about CUDA, and that a machine without a device says so.
* On the emulated extension (`make test-cuda-emulated`): every operator of the database has CUDA
  kernels in every dtype. That their results are right is for test_opdb.py to show there.
* On a CUDA device (`pytest -m cuda`): the cases of test_opdb.py, on CUDA tensors; the expected
  values are those of torch on the CPU. Skipped where there is no device, which the summary tells.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_opdb import (
    BY_CASE,
    BY_DTYPE,
    BY_ERROR,
    BY_FLOATING_DTYPE,
    channels_last,
    compare_gradients,
    compare_outputs,
    grad_samples,
    offset,
    positional,
    recorded_calls,
    special_samples,
    strided,
    transposed,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import nnops
import nnops.nn.functional as F
from nnops import _C
from nnops.testing.compare import outputs_of
from nnops.testing.opdb import CASES
from nnops.testing.recorder import OperatorCalls, public_operators
from nnops.testing.samples import (
    FLOATING,
    Maker,
    OpCase,
    Sample,
    detached,
    map_tensors,
    tensors_of,
)
from nnops.testing.tolerances import assert_equal

BUILT = _C.build_info()["cuda"]
EMULATED = BUILT in ("emulated", "checked")
ROOT = Path(__file__).parent.parent


def missing_device() -> str:
    """Why nothing can run on CUDA here; empty where it can."""
    if EMULATED:
        return "the emulated extension takes CPU tensors"
    if BUILT == "not built":
        return "this nnops was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    try:
        _C.check_cuda()
    except RuntimeError as error:
        return str(error)
    return ""


MISSING = missing_device()
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a target size",
    "ignore:reduction. 'mean' divides",
    "ignore:Using padding='same' with even kernel",
)


def on_device(test: Callable[..., None]) -> Callable[..., None]:
    """For tests that need a CUDA device."""
    return pytest.mark.cuda(pytest.mark.skipif(bool(MISSING), reason=MISSING)(test))


# --- everywhere -----------------------------------------------------------------------------------


def test_the_build_tells_what_cuda_it_has() -> None:
    assert (
        EMULATED
        or BUILT == "not built"
        or re.fullmatch(r"nvcc \d+\.\d+\.\d+: (sm_\d+[a-z]? )+compute_\d+[a-z]?", BUILT)
    )


def test_the_lists_of_algorithms_for_cuda() -> None:
    lists = _C.cuda_algorithms()
    assert (not lists) == (BUILT == "not built")
    assert not lists or set(lists) == set(_C.algorithms())
    assert not EMULATED or lists == _C.algorithms()


def test_a_launch_that_cannot_run_is_a_runtime_error() -> None:
    if EMULATED or not MISSING:
        _C.check_cuda()
        return
    with pytest.raises(RuntimeError, match=r"nnops::cuda: .* failed: .*(driver|device|no CUDA)"):
        _C.check_cuda()
    # What failed there leaves the CPU's kernels as they were.
    assert F.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_every_operator_has_its_files_for_cuda() -> None:
    """One .cu (or a folder) for each contract of csrc/ops but the CPU's own (linear)."""
    contracts = {
        path.stem
        for path in (ROOT / "csrc/ops").glob("*.h")
        if "NNOPS_DECLARE_KERNELS" in path.read_text()
    }
    launchers = {path.stem for path in (ROOT / "csrc/cuda").glob("**/*.cu")}
    assert len(contracts) >= 8
    assert contracts <= launchers


# --- the emulated extension -----------------------------------------------------------------------


@pytest.mark.skipif(not EMULATED, reason="for the emulated extension: make test-cuda-emulated")
def test_every_operator_of_the_database_has_cuda_kernels_in_every_floating_dtype() -> None:
    wanted = {(name, dtype) for name in public_operators() for dtype in FLOATING}
    reached: set[tuple[str, torch.dtype]] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES:
            for dtype in FLOATING:
                # An operator without a kernel raises NotImplementedError.
                names = set(recorded_calls(case, dtype))
                with OperatorCalls() as recorder:
                    for sample in case.samples(Maker(dtype)):
                        case.ours(detached(sample))
                        assert _C.last_choice()[2] == "cuda"
                names |= {name for name, _ in recorder.recorded}
                reached |= {(name, dtype) for name in names}
    missing = sorted(f"{name} {dtype}" for name, dtype in wanted - reached)
    assert not missing
    assert len(wanted) == 4 * len(public_operators()) >= 4 * 30


# Larger samples take too long where every access to memory is checked.
MOST_ELEMENTS = 3000


@pytest.mark.skipif(not EMULATED, reason="for the emulated extension: make test-cuda-emulated")
@pytest.mark.parametrize("order", ["seq", "rev", "rand:1"])
@pytest.mark.parametrize("case", BY_CASE)
def test_small_problems_in_every_order_of_threads(
    case: OpCase, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right results; in the checked extension also no race and no access out of bounds."""
    monkeypatch.setenv("NNOPS_CUDA_ORDER", order)
    for dtype in (torch.float32, torch.bfloat16):
        for sample in case.samples(Maker(dtype, requires_grad=True)):
            if sum(tensor.numel() for tensor in tensors_of(sample)) > MOST_ELEMENTS:
                continue
            compare_outputs(case, sample, f" {order}")
            if any(tensor.requires_grad for tensor in tensors_of(sample)):
                compare_gradients(case, sample, f" {order}")


# --- a CUDA device --------------------------------------------------------------------------------


def on_cuda(tensor: Tensor) -> Tensor:
    """CPU tensors on the device; an error sample may have a meta or an expanded one on purpose."""
    if tensor.device.type != "cpu":
        return tensor
    once = [slice(None, 1 if stride == 0 else None) for stride in tensor.stride()]
    return tensor[tuple(once)].to("cuda").expand(tensor.shape)


@on_device
@pytest.mark.parametrize("case, dtype", BY_DTYPE)
def test_forward(case: OpCase, dtype: torch.dtype) -> None:
    for sample in case.samples(Maker(dtype)):
        compare_outputs(case, sample, device="cuda")
        assert _C.last_choice()[2] == "cuda"


@on_device
@pytest.mark.parametrize("case, dtype", BY_FLOATING_DTYPE)
def test_gradients(case: OpCase, dtype: torch.dtype) -> None:
    for sample in grad_samples(case, dtype):
        compare_gradients(case, sample, device="cuda")


@on_device
@pytest.mark.parametrize("layout", [channels_last, strided, transposed, offset])
@pytest.mark.parametrize("case", BY_CASE)
def test_layouts(case: OpCase, layout: Callable[[Tensor], Tensor]) -> None:
    def change(tensor: Tensor) -> Tensor:
        return layout(tensor.detach()).requires_grad_(tensor.requires_grad)

    for sample in case.samples(Maker(torch.float32)):
        compare_outputs(case, map_tensors(sample, change), f" {layout.__name__}", device="cuda")
    for sample in grad_samples(case, torch.float32):
        changed = map_tensors(sample, change)
        compare_gradients(case, changed, f" {layout.__name__}", plain=sample, device="cuda")


@on_device
@pytest.mark.parametrize("case", BY_CASE)
def test_special_values(case: OpCase) -> None:
    for special in special_samples(case):
        compare_outputs(case, special, device="cuda")


@on_device
@pytest.mark.parametrize("case", BY_CASE)
def test_gradcheck(case: OpCase) -> None:
    for sample in case.gradcheck_samples(Maker(torch.float64, requires_grad=True)):
        function, inputs = positional(case, detached(sample, device="cuda"))
        assert gradcheck(function, inputs, check_forward_ad=True), sample.name
        assert gradgradcheck(function, inputs), sample.name


@on_device
@pytest.mark.parametrize("case, sample", BY_ERROR)
def test_errors(case: OpCase, sample: Sample) -> None:
    """A Python exception, after which the device still works: no assertion inside of a kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(sample.error):
            case.ours(map_tensors(sample, on_cuda))
    torch.cuda.synchronize()
    assert F.relu(torch.tensor([-1.0, 2.0], device="cuda")).tolist() == [0.0, 2.0]


@on_device
@pytest.mark.parametrize("case", BY_CASE)
def test_same_bits_in_every_run(case: OpCase) -> None:
    def run(sample: Sample) -> list[Tensor]:
        copies = detached(sample, device="cuda")
        leaves = [each for each in copies.args if isinstance(each, Tensor) and each.requires_grad]
        outputs = outputs_of(case.ours(copies))
        differentiable = [each for each in outputs if each.requires_grad]
        if not differentiable:
            return [*outputs]
        seeds = [torch.ones_like(each) for each in differentiable]
        gradients = torch.autograd.grad(differentiable, leaves, seeds, allow_unused=True)
        return [*outputs, *(each for each in gradients if each is not None)]

    for sample in case.samples(Maker(torch.float32, requires_grad=True)):
        first = run(sample)
        for _ in range(3):
            for actual, expected in zip(run(sample), first, strict=True):
                assert_equal(actual, expected, f"{case.name}({sample.name})")


@on_device
@pytest.mark.parametrize("case", BY_CASE)
def test_the_current_stream_is_used(case: OpCase) -> None:
    """Behind a long wait on a stream of its own, the results are what they are without it."""
    stream = torch.cuda.Stream()
    for sample in case.gradcheck_samples(Maker(torch.float32)):
        values = detached(sample, device="cuda")
        expected = [each.clone() for each in outputs_of(case.ours(values))]
        first, *others = values.args
        late = torch.zeros_like(first)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late.copy_(first)
            actual = outputs_of(case.ours(Sample(sample.name, (late, *others), values.kwargs)))
        stream.synchronize()
        for ours, theirs in zip(actual, expected, strict=True):
            assert_equal(ours, theirs, f"{case.name}({sample.name})")


@on_device
def test_training_steps_can_be_captured_in_a_graph() -> None:
    """Where no operator has to report anything, none waits for the device."""
    image = torch.randn(4, 3, 16, 16, device="cuda")
    weight = torch.randn(8, 3, 3, 3, device="cuda", requires_grad=True)

    def step() -> Tensor:
        hidden = F.max_pool2d(F.relu(F.conv2d(image, weight)), 2)
        (gradient,) = torch.autograd.grad(F.mse_loss(hidden, torch.ones_like(hidden)), weight)
        return gradient

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert_equal(captured, expected, "captured step")


@on_device
def test_tensors_of_different_devices_are_refused() -> None:
    input = torch.randn(3, 5, device="cuda")
    target = torch.tensor([0, 1, 2])
    for call in (
        lambda: F.cross_entropy(input, target),
        lambda: F.nll_loss(input, target),
        lambda: F.mse_loss(input, input.cpu()),
        lambda: F.conv2d(torch.randn(1, 1, 3, 3, device="cuda"), torch.randn(1, 1, 2, 2)),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            call()


@on_device
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one() -> None:
    values = torch.randn(1000)
    with torch.cuda.device(0):
        assert torch.equal(F.relu(values.to("cuda:1")).cpu(), F.relu(values))
        assert torch.cuda.current_device() == 0


@on_device
def test_explain_names_cuda() -> None:
    call = nnops.explain(F.relu, torch.randn(10, device="cuda"))[0]
    assert (call.isa, call.threads) == ("cuda", 0)


@on_device
def test_rows_beyond_two_to_the_31_elements() -> None:
    """Positions are 64 bits wide where a tensor is that large; 9 GB of float16 and its result."""
    free, _ = torch.cuda.mem_get_info()
    if free < 12 << 30:
        pytest.skip(f"needs 12 GB of free device memory, but {free >> 30} GB are")
    input = torch.full(((1 << 31) + 1024,), -1.0, dtype=torch.float16, device="cuda")
    input[-1] = 2.0
    output = F.relu(input)
    assert output[-1].item() == 2.0
    assert output[:-1].count_nonzero().item() == 0
