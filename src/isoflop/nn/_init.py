"""Parameter initialisation: truncated normal, drawn on the host so that every device starts from the same weights."""

import math

import torch
from torch import Tensor, nn

_CUT = 2.0
# Standard deviation of N(0, 1) after it is cut at ±2: sqrt(1 − 2·2·φ(2) / (2Φ(2) − 1)).
_STD_AFTER_CUT = math.sqrt(
    1 - 2 * _CUT * math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi) / math.erf(_CUT / math.sqrt(2))
)


def truncated_normal(
    *shape: int,
    std: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Parameter:
    """Return a parameter of `shape`, normal, cut at two standard deviations of the uncut normal.

    `std` is the standard deviation after the cut, so the variance is exactly the one that fan-in scaling asks for.
    Values are drawn in float32 on the host and then moved, so they do not depend on the device.
    """
    uncut = std / _STD_AFTER_CUT
    values = torch.empty(shape, dtype=torch.float32)
    nn.init.trunc_normal_(values, std=uncut, a=-_CUT * uncut, b=_CUT * uncut, generator=generator)
    return nn.Parameter(values.to(device=device, dtype=dtype))


def gain(size: int, value: float, device: torch.device | str | None, dtype: torch.dtype) -> nn.Parameter:
    """Return an RMSNorm gain of `size` that starts at `value`."""
    return nn.Parameter(torch.full((size,), value, device=device, dtype=dtype))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which matrix products of `x` run: autocast's if that is on, else x's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
