"""oneDNN's matrix product, where it is the faster one.

torch multiplies float32 matrices on x86 by MKL, which leaves AVX-512 alone on processors that are not Intel's. oneDNN,
which torch holds as well, uses it, and is twice as fast there.
"""

from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

WORTH: Final = 2**21
"""Multiplications of one product from which on oneDNN's faster kernels outweigh its dearer call."""


@cache
def is_preferred() -> bool:
    """Whether oneDNN has kernels for this processor that MKL does not use."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not is_intel()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@cache
def is_intel() -> bool:
    """Whether the processor is one of Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")[:4096]
    except OSError:
        return False


def can_reorder(w_FD: Tensor) -> bool:
    """Whether oneDNN can reorder such a weight for its products with few rows."""
    return (
        w_FD.dtype == torch.float32
        and w_FD.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def reordered(w_FD: Tensor, n_rows: int) -> Tensor:
    """A copy of a weight in the order in which oneDNN reads it for about `n_rows` rows; for `product` alone."""
    w: Tensor = torch.ops.mkldnn._reorder_linear_weight(w_FD, n_rows)
    return w


def product(x_ND: Tensor, w_FD: Tensor) -> Tensor:
    """x·Wᵀ in float32, [N, F], outside autograd; either may be transposed.

    Each shape has a kernel of its own, made when it is first met (half a millisecond), and the last thousand are kept.
    """
    y_NF: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, w_FD, None, "none", [], "")
    return y_NF
