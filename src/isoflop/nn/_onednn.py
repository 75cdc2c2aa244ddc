"""oneDNN's matrix product, where it is the faster one.

torch multiplies float32 matrices on x86 by MKL, which leaves AVX-512 alone on processors that are not Intel's. oneDNN,
which torch holds as well, uses it, and is twice as fast there.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor


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


def product(x_ND: Tensor, w_FD: Tensor) -> Tensor:
    """x·Wᵀ in float32, [N, F], outside autograd; either may be transposed.

    Each shape has a kernel of its own, made when it is first met (half a millisecond), and the last thousand are kept.
    """
    y_NF: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, w_FD, None, "none", [], "")
    return y_NF
