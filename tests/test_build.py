"""The build and the process it lives in: one OpenMP runtime, ISA choice, threads, fork, errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import nnops.nn.functional as F
from nnops import _C, _library, _openmp

ROOT = Path(__file__).parent.parent
GATE = ROOT / "cmake" / "check_isa_objects.py"

# Large enough for more than one thread.
RUN_RELU = "F.relu(torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)))"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, after the usual imports; it must not fail or hang."""
    prelude = "import torch\nimport nnops.nn.functional as F\nfrom nnops import _C\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result


def test_one_openmp_runtime_and_it_is_torchs() -> None:
    report = "import runpy; print(*runpy.run_path(PATH)['loaded_openmp_runtimes'](), sep='\\n')"
    report = report.replace("PATH", repr(str(Path(_openmp.__file__))))
    code = f"import torch; torch.randn(1 << 20).exp(); {report}"
    torch_alone = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    with_nnops = python(
        f"torch.set_num_threads(2); {RUN_RELU}; torch.randn(1 << 20).exp(); {report}"
    ).stdout.split()
    assert with_nnops == torch_alone
    assert len(with_nnops) == 1


def test_nnops_may_be_imported_before_torch() -> None:
    code = "import nnops.nn.functional as F, torch; print(F.relu(torch.tensor([-1.0, 2.0])).sum())"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def compiled(folder: Path, name: str, source: str) -> str:
    """Path of the object file that `source` compiles to."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    (folder / f"{name}.cpp").write_text(source)
    target = folder / f"{name}.o"
    subprocess.run([compiler, "-O0", "-c", folder / f"{name}.cpp", "-o", target], check=True)
    return str(target)


def gate(*objects: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GATE), "--nm", "nm", *objects]
    return subprocess.run(command, capture_output=True, text=True)


CLEAN = """
namespace nnops::cpu_avx2 {
namespace { int twice(int x) { return 2 * x; } }
extern const int kernels;
const int kernels = twice(3);
int run(int x) { return twice(x); }
}
"""


@pytest.mark.parametrize(
    "leak, symbol",
    [
        ("inline int shared(int x) { return x + 1; } int (*use)(int) = shared;", "shared"),
        ("template <class T> T any(T x) { return x; } template int any<int>(int);", "any<int>"),
        ("int foreign(int x) { return x; }", "foreign"),
        ("struct S { S(); }; static S at_load_time; S::S() {}", "GLOBAL__sub_I"),
    ],
)
def test_isa_gate_finds_a_planted_leak(tmp_path: Path, leak: str, symbol: str) -> None:
    leaking = compiled(tmp_path, "leaking", leak)
    result = gate(compiled(tmp_path, "clean", CLEAN.replace("twice(3)", "6")), leaking)
    assert result.returncode == 1
    assert symbol in result.stderr
    assert f"{leaking}:" in result.stderr
    assert "clean.o" not in result.stderr


def test_isa_gate_passes_a_clean_object(tmp_path: Path) -> None:
    result = gate(compiled(tmp_path, "clean", CLEAN.replace("twice(3)", "6")))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("variable", ["NNOPS_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY"])
@pytest.mark.parametrize("level", _C.available_isas())
def test_isa_level_from_the_environment(variable: str, level: str) -> None:
    unset = {"NNOPS_CPU_CAPABILITY": "", "ATEN_CPU_CAPABILITY": ""}
    result = python(
        f"{RUN_RELU}; print(_C.active_isa(), _C.last_choice()[2])", **{**unset, variable: level}
    )
    assert result.stdout.split() == [level, level]


def test_set_active_isa_refuses_an_unknown_level() -> None:
    with pytest.raises(ValueError, match=r"nnops::set_isa: .* but got 'sse9'"):
        _C.set_active_isa("sse9")


def test_verbose_dispatch_prints_what_ran() -> None:
    result = python(RUN_RELU, NNOPS_VERBOSE="dispatch")
    assert f"nnops: relu: runs vector ({_C.active_isa()})" in result.stderr
    assert python(RUN_RELU, NNOPS_VERBOSE="").stderr == ""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads of /proc")
def test_set_num_threads_is_respected() -> None:
    result = python(f"""
        import os
        before = len(os.listdir("/proc/self/task"))
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            {RUN_RELU}
            print(len(os.listdir("/proc/self/task")) - before)
    """)
    assert result.stdout.split() == ["0", "1", "2"]


def test_operators_run_in_a_forked_child() -> None:
    """GNU OpenMP's threads do not survive fork: the child must not wait for them."""
    python(f"""
        import os
        import hashlib
        from nnops.testing.opdb import CASES
        from nnops.testing.samples import Maker, detached

        def digest():
            # Of the bytes: torch's own comparison would start threads, and hang in the child.
            results = [{RUN_RELU}]
            for case in CASES:
                for sample in case.gradcheck_samples(Maker(torch.float32)):
                    result = case.ours(detached(sample))
                    results += result if isinstance(result, tuple) else [result]
            content = b"".join(result.numpy().tobytes() for result in results)
            return hashlib.sha256(content).digest()

        torch.set_num_threads(2)
        expected = digest()
        child = os.fork()
        if child == 0:
            os._exit(0 if digest() == expected else 1)
        _, status = os.waitpid(child, 0)
        raise SystemExit(os.waitstatus_to_exitcode(status))
    """)


def test_eight_python_threads_get_the_same_result() -> None:
    image = torch.randn(4, 3, 64, 64)
    weight = torch.randn(8, 3, 3, 3)
    target = torch.randint(8, (4, 31, 31))

    def work(_: int) -> list[torch.Tensor]:
        leaf = weight.clone().requires_grad_()
        hidden = F.max_pool2d(F.relu(F.conv2d(image, leaf)), 2)
        loss = F.cross_entropy(hidden, target)
        loss.backward()
        return [hidden.detach(), loss.detach(), leaf.grad]

    expected = work(0)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(work, range(64)):
            for actual, wanted in zip(result, expected, strict=True):
                assert torch.equal(actual, wanted)


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117", "2.9.0a0+git1234", "unknown"])
def test_a_torch_that_is_too_old_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError) as raised:
        _library._check_torch_version()
    message = str(raised.value)
    assert message.startswith(f"nnops needs torch 2.10 or later, but this is torch {version}:")
    assert "\n" not in message


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.0a0+git1234", "3.0"])
def test_a_torch_that_is_new_enough_is_accepted(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    _library._check_torch_version()


def test_huge_pages_change_no_result() -> None:
    input = torch.randn(3 << 20)
    was_enabled = _C.huge_pages()
    results = []
    try:
        for enabled in (True, False):
            _C.set_huge_pages(enabled)
            assert _C.huge_pages() is enabled
            results.append(torch.ops.nnops.relu(input))
    finally:
        _C.set_huge_pages(was_enabled)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_huge_pages_can_be_switched_off_by_the_environment() -> None:
    script = "import nnops._library as library; print(library._C.huge_pages())"
    for value, expected in (("0", "False"), ("1", "True")):
        environment = {**os.environ, "NNOPS_HUGE_PAGES": value}
        output = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
        assert output.strip() == expected
