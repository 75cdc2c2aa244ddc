"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split pairing of GPT-NeoX and Llama.

Shapes: T tokens, h head size; x is [..., T, heads, h].
"""

from typing import Any

import torch
from torch import Tensor


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin of position × theta^(−2i/head_dim), each [*positions.shape, head_dim].

    Both halves hold the same angles, and the first half of sin is negative: so x·cos + swapped(x)·sin turns x.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    # float64 where it is asked for: the angles are then as exact as the rest of the model.
    wide = torch.promote_types(dtype, torch.float32)
    angles = positions[..., None].to(wide) * (1.0 / theta ** exponents.to(wide))
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + h/2) of x [..., T, heads, h] by its position's angle; cos, sin [..., T, 1, h]."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return turn(x, cos, sin)
    turned: Tensor = _Rotate.apply(x, cos, sin)
    return turned


def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float = 1.0) -> Tensor:
    """`rotate` outside autograd; `sign` −1 turns back."""
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, swapped, sin, value=sign)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the opposite rotation, so nothing but the tables is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(gradients[0], cos, sin, -1.0), None, None
