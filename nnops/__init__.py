"""nnops: conv2d, max_pool2d, ReLU and the losses for PyTorch, compiled, verified, drop-in.

Replace `import torch.nn as nn` by `import nnops.nn as nn`.
"""

from __future__ import annotations

from nnops import _library, nn
from nnops.algorithms import conv_algorithm, explain
from nnops.conversion import conversion_report, convert, revert
from nnops.packed_weights import (
    clear_packed_weight_cache,
    packed_weight_cache,
    set_packed_weight_cache,
)
from nnops.precision import conv_precision, set_conv_precision
from nnops.tuning import autotune, autotuning, set_autotune

__version__ = _library._C.build_info()["version"]
__all__ = [
    "autotune",
    "autotuning",
    "clear_packed_weight_cache",
    "conv_algorithm",
    "conv_precision",
    "conversion_report",
    "convert",
    "explain",
    "nn",
    "packed_weight_cache",
    "revert",
    "set_autotune",
    "set_conv_precision",
    "set_packed_weight_cache",
]
