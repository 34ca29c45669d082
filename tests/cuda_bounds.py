"""What is asked of the CUDA kernels without a GPU, and why: one table, BOUNDS.

What nvcc says of the compiled kernels is held against it by cuda_static/test_static.py, what check
mode counts of their accesses to memory by test_cuda_traffic.py. Of the rows of a measure the first
whose pattern is found decides, and everything that is measured must find one.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Bound(NamedTuple):
    measure: str
    pattern: str  # of what is measured: a kernel with its template arguments, or as below
    limit: float  # the least of AT_LEAST, of everything else the most
    reason: str


AT_LEAST = (
    "resident threads",
    "16-byte loads",
    "products in the main loop",
    "ldmatrix in the main loop",
    "asynchronous copies in the main loop",
)

SINGLE = r"^(finish_loss|loss_total_kernel|sum_weights|empty_kernel)\b"
PLAIN = r"^(reference_\w+_kernel|integer_bias)\b"
GEMM = r"^(pixel|weight)_gemm<"

# Resident threads: of a multiprocessor, from the registers, the shared memory and the threads of a
# block (kernels.py). Bank conflicts and sectors are ratios, of "kernel access in problem".
BOUNDS = (
    Bound(
        "spilled bytes",
        r"^reference_backward_input_kernel<|^nll_loss_forward_kernel<bfloat16>|^loss_sum_kernel<"
        r"LossInputs<float, Bce(Logits)?Loss",
        32,
        "on sm_100 and sm_120 nvcc 13.0 calls a function for the slow path of a division or a "
        "logarithm, and saves registers around it: once in a while, or in the last algorithm",
    ),
    Bound("spilled bytes", "", 0, "a spill is traffic that the algorithm did not ask for"),
    # --- what a block takes of a multiprocessor ---------------------------------------------------
    Bound("registers", GEMM, 255, "the sums of a thread's tile stay in registers: all there are"),
    Bound(
        "registers", r"^reference_forward_kernel<", 255, "unrolled far by nvcc for sm_100 and on"
    ),
    Bound("registers", "", 128, "two blocks of 256 threads on every multiprocessor"),
    Bound("declared shared bytes", GEMM, 8 << 10, "a launch may add 40 KiB without announcing it"),
    Bound("declared shared bytes", "", 33 * 32 * 8, "sums of warps, or a tile of 32 x 33 elements"),
    Bound("shared bytes", "", 56 << 10, "a block fits on sm_75, whose multiprocessors have 64 KiB"),
    Bound("resident threads", SINGLE, 1, "launched as a single block"),
    Bound(
        "resident threads",
        rf"{GEMM}.* on sm_75",
        128,
        "64 KiB of shared memory hold the three steps of one block of medium tiles, no second one",
    ),
    Bound(
        "resident threads",
        r"^reference_forward_kernel<",
        256,
        "the last algorithm, of which registers are all that nvcc for sm_100 and on wants",
    ),
    Bound(
        "resident threads",
        r"^weight_gemm<MmaMultiply<\w+, MmaShape<128, 128, ",
        128,
        "three steps and the table of columns take 51 KiB: two blocks, but one where a "
        "multiprocessor has 100 KiB (sm_86, sm_89, sm_120)",
    ),
    Bound(
        "resident threads",
        GEMM,
        256,
        "two warps for each of four schedulers: a warp has dozens of independent products between "
        "two loads, and copies of two more steps are under way",
    ),
    Bound(
        "resident threads",
        "",
        512,
        "by Little's law: 512 threads with 32 bytes each keep 16 KiB under way, about what the "
        "bandwidth of a multiprocessor of an H100, 3.35 TB/s / 132, needs over 600 ns",
    ),
    # --- instructions -----------------------------------------------------------------------------
    Bound("integer divisions in the main loop", PLAIN, 99, "plain loops for every type and layout"),
    Bound(
        "integer divisions in the main loop",
        r"^(pack|direct)_weights<",
        99,
        "the weights alone, once",
    ),
    Bound("integer divisions in the main loop", r"^nll_loss_scatter", 1, "once a row: its place"),
    Bound(
        "integer divisions in the main loop",
        r"^nll_loss_planes",
        8,
        "once a row: its place; where nvcc unrolls the loop over classes (sm_100 and on), the one "
        "over rows is the largest",
    ),
    Bound(
        "integer divisions in the main loop",
        "",
        0,
        "a division takes as long as dozens of additions",
    ),
    Bound("16-byte loads", r"^loss_sum_kernel<|^map_kernel<", 1, "operands that are aligned"),
    Bound("16-byte loads", GEMM, 2, "chunks of both operands"),
    Bound("16-byte loads", r"^pool_pairs<", 2, "two rows of whole vectors"),
    Bound("16-byte loads", r"^direct_pass<\w+, [248],", 2, "channels that are neighbours"),
    Bound("16-byte loads", r"^cross_entropy_\w+<.*true> on ", 1, "classes that are neighbours"),
    Bound("16-byte loads", "", 0, "elements one by one"),
    Bound("products in the main loop", r"MmaMultiply<", 8, "every fragment is used several times"),
    Bound("products in the main loop", r"SimtMultiply<", 64, "16 or more sums a thread, 4 steps"),
    Bound("products in the main loop", "", 0, "bound by memory"),
    Bound(
        "ldmatrix in the main loop",
        r"MmaMultiply<float, MmaShape<[\d, ]+>, 1, ",
        0,
        "it transposes 16-bit elements alone: TF32 along rows is read by elements",
    ),
    Bound("ldmatrix in the main loop", r"MmaMultiply<", 4, "squares of both operands"),
    Bound("ldmatrix in the main loop", "", 0, "no tensor cores"),
    Bound(
        "asynchronous copies in the main loop",
        rf"{GEMM}.*MmaMultiply.* on sm_80 or later",
        2,
        "16 bytes of both operands go to shared memory past the registers",
    ),
    Bound("asynchronous copies in the main loop", "", 0, "no tiles in shared memory, or sm_75"),
    # --- bank conflicts: wavefronts over the least ------------------------------------------------
    Bound(
        "bank conflicts",
        r"^weight_gemm write in implicit_gemm.* row-major",
        2,
        "16 lines of the tile, 4 banks apart, share 32 banks",
    ),
    Bound(
        "bank conflicts",
        r"^weight_gemm read .* channels_last",
        2,
        "the table of columns is read at the distance of a chunk, once a step",
    ),
    Bound(
        "bank conflicts",
        r"^pack_(weights read|image write) .*float16",
        1.5,
        "two halves share a word",
    ),
    Bound("bank conflicts", r"^cross_entropy_forward_kernel read", 1.5, "structs of three words"),
    Bound("bank conflicts", r"^weight_gemm read", 1.15, "the table of columns, now and then"),
    Bound("bank conflicts", "", 1, "no two lanes meet in a bank"),
    # --- sectors over the least -------------------------------------------------------------------
    Bound("sectors", r"^pack_weights read", 13, "across rows, whose rest the cache has"),
    Bound("sectors", r"^direct_weights read", 9, "across rows, whose rest the cache has"),
    Bound(
        "sectors",
        r"^weight_gemm write .* row-major",
        16,
        "a column's neighbour is the next channel, in this layout kh kw further; once at the end",
    ),
    Bound(
        "sectors",
        r"^add_splits write .* row-major",
        9,
        "an element's neighbour is the next channel, in this layout kh kw further; once at the end",
    ),
    Bound("sectors", r"^weight_gemm write", 4, "a thread's neighbouring columns one by one; once"),
    Bound(
        "sectors",
        r"^pixel_gemm write .* row-major",
        2.5,
        "4 floats or 8 halves of a channel are half a sector; rows of 14 pixels straddle some",
    ),
    Bound("sectors", r"^pixel_gemm read .*float16 row-major", 2.5, "8 pixels are half a sector"),
    Bound("sectors", r"^direct_weight_partials write .* channels_last", 8, "a row's 9 taps; once"),
    Bound(
        "sectors",
        r"^direct_pass read .* channels_last",
        1.2,
        "lanes past the last row read nothing",
    ),
    Bound(
        "sectors",
        r"^(pixel_gemm|weight_gemm|bias_along_pixels|pack_image) .* row-major"
        r"|^direct_(pass|weight_partials) ",
        2,
        "rows of 14 pixels begin anywhere in a sector",
    ),
    Bound("sectors", r"^pool_windows read in pooling row-major", 2.5, "every other element"),
    Bound("sectors", r"^pool_gather read", 4, "one element of each window"),
    Bound("sectors", r"^(gather_at|mark_last|take_last|chain|add_chains)\w* read", 2, "a gather"),
    Bound("sectors", r"^finish_loss read", 3, "a field of three"),
    Bound("sectors", r"^nll_loss_forward_kernel read", 4, "one class a row, beside the target"),
    Bound("sectors", r"^nll_loss_scatter_kernel write", 8, "one class a row"),
    Bound("sectors", r"^(nll_loss|cross_entropy)_forward_kernel write", 2, "24 bytes a block"),
    Bound("sectors", r"^cross_entropy_\w+ \w+ in narrow rows", 2, "rows of 40 bytes, by 8 lanes"),
    Bound("sectors", r"^cross_entropy_\w+ read in planes", 1.4, "classes' weights, and targets"),
    Bound("sectors", "", 1.05, "lanes side by side fill their sectors"),
)

# Kernels of which neither bank conflicts nor sectors are bounded, and why.
UNMEASURED = {
    "empty_kernel": "it touches no memory",
    "reference_forward_kernel": "plain loops for every type and layout, the last that is taken",
    "reference_backward_input_kernel": "as reference_forward_kernel",
    "reference_backward_weight_kernel": "as reference_forward_kernel",
    "integer_bias": "as reference_forward_kernel",
}


def bound(measure: str, subject: str) -> Bound:
    return next(b for b in BOUNDS if b.measure == measure and re.search(b.pattern, subject))


def broken(measure: str, subject: str, value: float) -> str:
    """What a measured value breaks, in words; empty if nothing."""
    row = bound(measure, subject)
    least = measure in AT_LEAST
    if value >= row.limit if least else value <= row.limit:
        return ""
    side = "at least" if least else "at most"
    return f"{subject}: {measure} {value:.4g}, must be {side} {row.limit:g} ({row.reason})"
