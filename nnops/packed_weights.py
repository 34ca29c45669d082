"""The memory in which conv2d keeps packed weights from call to call.

conv2d and its gradient by the input want their weights in an order of their own. Packing them costs
more than the convolution itself where there are many weights and few pixels (one small image, a
512-channel layer), so the packed form of a weight that stays the same is kept.

A kept form is never stale: every call asks all bytes of the weight whether they are still the same,
by a fingerprint of 128 bits for each 2 KB under keys that each process draws at random, which two
different pieces share with a probability of at most 2^-64. Optimizer steps, `load_state_dict`,
assignments to `.data`, writes through `.data` or through a numpy array, and another tensor at the
same address are all seen. The first call with new bytes packs them and keeps nothing but the
fingerprint, the second keeps the packed form too: training, which changes its weights at every
step, keeps none, and frozen layers need no announcement.

Where there are so many pixels that packing does not count (more than 2048 in the whole batch), for
the smallest weights, and for Winograd's forms, which transform a weight for few pixels, or a large
one, in the cache, nothing is asked and nothing is kept. The least recently used weights go first;
the environment variable NNOPS_PACKED_WEIGHTS sets the limit at the start, in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnops import _library


@dataclass(frozen=True)
class PackedWeightCache:
    """What the process keeps."""

    limit: int  # bytes
    bytes: int
    weights: int  # whose packed form is kept
    reused: int  # calls that packed nothing, since the process began


def packed_weight_cache() -> PackedWeightCache:
    """What is kept now."""
    return PackedWeightCache(
        _library._C.packed_weights_limit(), *_library._C.packed_weights_state()
    )


def set_packed_weight_cache(bytes: int) -> None:
    """Sets how much memory packed weights may take in this process, and evicts what is too much.

    Args:
        bytes: 256 MiB at the start; 0 keeps none, and every call packs its weights.

    Raises:
        ValueError: for a negative number.
    """
    _library._C.set_packed_weights_limit(bytes)


def clear_packed_weight_cache() -> None:
    """Gives the memory back; calls that are running keep what they use until they end."""
    _library._C.clear_packed_weights()
