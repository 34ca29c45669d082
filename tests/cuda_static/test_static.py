"""What may be asked of the compiled CUDA kernels without a GPU: kernels.py reads it, cuda_bounds.py
says how much of what, and why.

Compiling all of them takes minutes, so this is for `make test-slow`, on machines with nvcc; what
needs the instructions is skipped where there is no nvdisasm.
"""

from __future__ import annotations

from collections import Counter

import pytest
from cuda_bounds import broken
from kernels import (
    ARCHITECTURES,
    ROOT,
    Kernel,
    all_kernels,
    find_nvcc,
    find_nvdisasm,
    measurements,
    parse,
)

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc to compile kernels with")
needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="no nvdisasm")


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda each: f"sm_{each}")
def kernels(request: pytest.FixtureRequest) -> list[Kernel]:
    return all_kernels(ROOT / "build" / "cuda-static", [request.param])


def complaints(kernels: list[Kernel], instructions: bool) -> list[str]:
    """What breaks a bound, of what needs the instructions to be known or does not."""
    found = []
    for kernel in kernels:
        if kernel.is_trap:
            continue
        for measure, value in measurements(kernel, instructions).items():
            if complaint := broken(measure, kernel.subject, value):
                found.append(complaint)
    return found


@needs_nvcc
@pytest.mark.slow
def test_what_a_block_takes_of_a_multiprocessor(kernels: list[Kernel]) -> None:
    """Registers, spills, shared memory and, where the block size is known, resident threads."""
    assert len(kernels) > 400
    assert not complaints(kernels, instructions=False)


@needs_nvcc
@needs_nvdisasm
@pytest.mark.slow
def test_instructions(kernels: list[Kernel]) -> None:
    assert sum("MmaMultiply" in kernel.name for kernel in kernels) > 10
    assert all(kernel.threads for kernel in kernels if "empty_kernel" not in kernel.name)
    assert not complaints(kernels, instructions=True)


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
    assert measurements(kernel, instructions=False)["spilled bytes"] == 12
    assert measurements(kernel, instructions=True)["resident threads"] == 6 * 256


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pixel_gemm<MmaMultiply<float16, MmaShape<128, 64, 64, 32>, 0>, A>", 3 * 192 * 64),
        ("weight_gemm<SimtMultiply<float, SimtShape<16, 8, 8, 8>, 1> >", 3 * 16 * (132 + 68) * 4),
        ("map_kernel<ReluForward<float> >", 0),
    ],
)
def test_shared_memory_of_launches(name: str, expected: int) -> None:
    """By the formula of conv2d/tile.cuh, written down a second time."""
    kernel = Kernel("", name, 80, 32, 0, 0, 0, 256, Counter(), ())
    assert kernel.dynamic_shared_bytes == expected
