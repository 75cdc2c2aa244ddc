"""Dense feed-forward layer.

Shapes: D d_model, F hidden width.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.nn._init import truncated_normal
from isoflop.nn.linear import linear
from isoflop.spec.feed_forward import Activation

ALIGNED: Final = 32
"""Elements that silu takes at a time on the CPU; what is left of a strided row takes ten times as long an element."""


class FeedForward(nn.Module):
    """Feed-forward layer without biases, [..., D] → [..., D].

    swiglu: (silu(x·W_gate) ⊙ (x·W_up))·W_down (Shazeer 2020, arXiv 2002.05202, eq. 6); gelu (exact) and relu:
    act(x·W_up)·W_down. `w_up` is [F, D], or [2F, D] with the gate's rows first; `w_down` is [D, F].
    `fan_in_down` is the fan-in that w_down's init assumes (default F).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Activation = "swiglu",
        *,
        fan_in_down: int | None = None,
        init_scale: float = 1.0,
        output_scale: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.activation = activation
        rows = 2 * d_ff if activation == "swiglu" else d_ff
        std_down = math.sqrt(init_scale / (fan_in_down or d_ff)) * output_scale
        self.w_up = truncated_normal(
            rows,
            d_model,
            std=math.sqrt(init_scale / d_model),
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.w_down = truncated_normal(d_model, d_ff, std=std_down, generator=generator, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to every row of x."""
        return linear(activate(linear(x, self.w_up), self.activation), self.w_down)


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """Return act(hidden); for swiglu hidden is [gate | up] and the result half as wide."""
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        if gate.shape[-1] % ALIGNED and gate.shape[-1] < 32 * ALIGNED:
            gate = gate.contiguous()
        return F.silu(gate) * up
    return F.gelu(hidden) if activation == "gelu" else F.relu(hidden)
