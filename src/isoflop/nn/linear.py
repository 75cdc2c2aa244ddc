"""Matrix product with a weight, also for very few rows.

Shapes: N rows, D columns of the weight, F its rows.
"""

from functools import cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.nn.grouped import is_watched

_FEW: Final = 8
"""Up to so many rows W·xᵀ is the faster product on x86 (MKL), with two rows 2.7 times as fast; for a wide W up to 3."""

_LARGE: Final = 2**18
"""Elements of a weight from which on reading it is what a product with few rows costs."""


def linear(x: Tensor, w_FD: Tensor) -> Tensor:
    """x·Wᵀ, [..., D] → [..., F].

    While sampling on the CPU a few rows meet each weight, and reading the weights is all that it costs. BLAS does so at
    full speed for W·xᵀ with two rows or more, and not for x·Wᵀ (with one row that holds for Intel's processors alone).
    """
    if w_FD.numel() < _LARGE or torch.is_grad_enabled() or x.device.type != "cpu" or is_watched():
        return F.linear(x, w_FD)
    n_rows = x.numel() // x.shape[-1]
    few = _FEW if w_FD.shape[0] >= w_FD.shape[1] else 3
    if n_rows == 0 or n_rows > few or (n_rows == 1 and not _is_intel()):
        return F.linear(x, w_FD)
    x_ND = x.reshape(n_rows, x.shape[-1])
    if n_rows == 1:
        x_ND = torch.cat((x_ND, x_ND))
    y_NF = torch.mm(w_FD, x_ND.t()).t()[:n_rows].contiguous()
    return y_NF.view(*x.shape[:-1], w_FD.shape[0])


@cache
def _is_intel() -> bool:
    """Whether the processor is one of Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")[:4096]
    except OSError:
        return False
