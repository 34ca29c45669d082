"""What may be asked of the compiled CUDA kernels without a GPU (kernels.py reads it).

Compiling all of them takes minutes, so this is for `make test-slow`, on machines with nvcc; what
needs the instructions is skipped where there is no nvdisasm.
"""

from __future__ import annotations

import re

import pytest
from kernels import (
    ARCHITECTURES,
    DIVISION,
    ROOT,
    Kernel,
    all_kernels,
    find_nvcc,
    find_nvdisasm,
    matches,
    parse,
)

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc to compile kernels with")
needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="no nvdisasm")

# A launch may add 40 KiB of dynamic shared memory before it must announce more (simt_nvcc.h).
MOST_STATIC_BYTES_BESIDE_DYNAMIC = 8 << 10


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda each: f"sm_{each}")
def kernels(request: pytest.FixtureRequest) -> list[Kernel]:
    return all_kernels(ROOT / "build" / "cuda-static", [request.param])


def on_tensor_cores(kernels: list[Kernel]) -> list[Kernel]:
    return [kernel for kernel in kernels if "MmaMultiply" in kernel.name]


@needs_nvcc
@pytest.mark.slow
def test_nothing_spills(kernels: list[Kernel]) -> None:
    assert len(kernels) > 50
    assert not [kernel for kernel in kernels if kernel.spilled_bytes and not is_trap(kernel)]


@needs_nvcc
@pytest.mark.slow
def test_shared_memory(kernels: list[Kernel]) -> None:
    gemms = [kernel for kernel in kernels if re.match(r"\w+_gemm<", kernel.name)]
    assert gemms
    for kernel in gemms:
        assert kernel.static_shared_bytes <= MOST_STATIC_BYTES_BESIDE_DYNAMIC
    assert all(kernel.static_shared_bytes <= 48 << 10 for kernel in kernels)


@needs_nvcc
@needs_nvdisasm
@pytest.mark.slow
def test_tensor_cores(kernels: list[Kernel]) -> None:
    """The loops along k: matrix instructions, fed by ldmatrix and asynchronous copies."""
    for kernel in on_tensor_cores(kernels):
        if is_trap(kernel):
            continue
        loop = kernel.main_loop
        assert matches(loop, "HMMA") >= 8, kernel.name
        assert matches(loop, DIVISION) == 0, kernel.name
        # TF32 along rows is read by elements: ldmatrix transposes 16-bit elements alone.
        if not re.search(r"MmaMultiply<float,.* 1>", kernel.name):
            assert matches(loop, r"LDSM\.16\.\w+\.4") >= 4, kernel.name
        if kernel.architecture >= 80:
            assert matches(loop, r"LDGSTS\S*\.128") >= 2, kernel.name
        resident = kernel.resident_threads(dynamic_shared_bytes=48 << 10)
        assert resident is not None and resident >= 256, kernel.name


@needs_nvcc
@needs_nvdisasm
@pytest.mark.slow
def test_no_division_in_main_loops(kernels: list[Kernel]) -> None:
    gemms = [kernel for kernel in kernels if re.match(r"\w+_gemm<", kernel.name)]
    assert not [kernel.name for kernel in gemms if matches(kernel.main_loop, DIVISION)]


def is_trap(kernel: Kernel) -> bool:
    """Not for this architecture, whose launchers take another kernel: tensor cores of sm_75 know
    float16 alone."""
    halves = "MmaMultiply<float16" in kernel.name
    return kernel.architecture < 80 and "MmaMultiply" in kernel.name and not halves


LOG = """
ptxas info    : Compiling entry function '_ZN5nnops4cuda3addIfEEvPfi' for 'sm_80'
ptxas info    : Function properties for _ZN5nnops4cuda3addIfEEvPfi
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 380 bytes cmem[0]
"""
LISTING = """
	.section	.nv.info._ZN5nnops4cuda3addIfEEvPfi,"",@"SHT_CUDA_INFO"
	//----- nvinfo : EIATTR_MAX_THREADS
        /*0072*/ 	.short	(.L_75 - .L_74)
        /*0074*/ 	.word	0x00000100
//--------------------- .text._ZN5nnops4cuda3addIfEEvPfi --------------------------
.text._ZN5nnops4cuda3addIfEEvPfi:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MUFU.RCP R3, R2 ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, [R2.64] ;
        /*0030*/                   FFMA R5, R4, R4, R5 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
"""


@pytest.mark.skipif(find_nvcc() is None, reason="c++filt comes with the tools that nvcc needs")
def test_what_the_tools_print_is_read_right() -> None:
    (kernel,) = parse("add.cu", 80, LOG, LISTING)
    assert kernel.name == "add<float>"
    assert (kernel.registers, kernel.static_shared_bytes) == (40, 2048)
    assert (kernel.spilled_bytes, kernel.stack_bytes, kernel.threads) == (12, 16, 256)
    assert kernel.count("LDG") == 1 and kernel.count("BRA") == 3
    assert kernel.main_loop == {"LDG.E.128": 1, "FFMA": 1, "BRA": 1}
    # 65536 registers, 8 warps of 40 * 32, rounded up to 1280 each: 6 blocks.
    assert kernel.resident_threads() == 6 * 256
    assert kernel.resident_threads(dynamic_shared_bytes=60 << 10) == 2 * 256
