"""Mixture-of-Depths around any block of anybody's model.

Shapes: B batch, T tokens, D d_model, C kept tokens of a sequence.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from isoflop.errors import InputError
from isoflop.nn.depth import UNSET, DepthRouter, through
from isoflop.nn.statistics import DepthStatistics
from isoflop.spec import DepthRoutingSpec

_FEWEST: Final = 16  # kept tokens behind a threshold


class MoD(nn.Module):
    """Lets a block compute a part of each sequence's tokens (Raposo et al. 2024, arXiv 2404.02258), [B, T, D] → same.

    x_t ← x_t + gate_t · f(kept tokens)_t for the tokens that the router keeps, x_t ← x_t for the others. f is yours: it
    gets the kept tokens [B, C, D] in order of position and their positions [B, C] (for rotary embeddings), and
    returns what to add, **without the residual**; since kept tokens stand in their order, plain causal attention among
    them is right.

    As built, the ceil(capacity·T) best-scored tokens of a sequence are kept, which looks ahead. After `calibrate` (or
    training with `sampled_by` auxiliary or predictor) set `causal` to decide about each token alone; rows that only
    fill up a sequence then come last in it, so that causal attention never sees them, and what f gives for them is
    dropped. Give it whole sequences from their first token; it has no cache, so one token at a time is for `Decoder`
    alone. A stochastic router needs the token ids and exists in `Decoder` alone.

        mod = MoD(512, DepthRoutingSpec(capacity=0.125))
        x_BTD, statistics = mod(x_BTD, lambda x_BCD, places_BC: block(x_BCD, places_BC))
        loss = loss + statistics.auxiliary_loss
    """

    def __init__(
        self,
        d_model: int,
        spec: DepthRoutingSpec,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not isinstance(spec, DepthRoutingSpec):
            raise InputError(
                f"spec is {spec!r}; a MoD layer needs a DepthRoutingSpec, such as DepthRoutingSpec(capacity=0.5)."
            )
        for name, default in (("every", 2), ("skip_first", 0), ("part", "block")):
            if getattr(spec, name) != default:
                raise InputError(
                    f"depth_routing.{name} is {getattr(spec, name)!r}; it says which parts of a Decoder are routed and "
                    "has no use for a MoD layer: leave it out."
                )
        if spec.router == "stochastic":
            raise InputError("depth_routing.router is 'stochastic'; a MoD layer can be learned or fixed.")
        self.d_model = d_model
        self.router = DepthRouter(d_model, spec, layer=0, generator=generator, device=device, dtype=dtype)

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, DepthStatistics]:
        """Return the stream after the block, and statistics; add their `auxiliary_loss` to your loss."""
        if x_BTD.ndim != 3 or x_BTD.shape[1] < 1 or x_BTD.shape[2] != self.d_model:
            raise InputError(f"x_BTD has shape {list(x_BTD.shape)}; it must be [batch, tokens, {self.d_model}].")
        kept = self.router(x_BTD)

        def update(x_BCD: Tensor) -> Tensor:
            update_BCD = f(x_BCD, kept.places_AC)
            if not isinstance(update_BCD, Tensor) or update_BCD.shape != x_BCD.shape:
                shape = list(update_BCD.shape) if isinstance(update_BCD, Tensor) else type(update_BCD).__name__
                raise InputError(
                    f"f returned {shape}; it must return a tensor of its input's shape {list(x_BCD.shape)}."
                )
            return update_BCD

        return through(x_BTD, kept, update), kept.statistics

    @property
    def causal(self) -> bool:
        """Whether each token is decided about alone; setting it raises InputError where no threshold is set."""
        return self.router.by_threshold

    @causal.setter
    def causal(self, on: bool) -> None:
        if on and not self.router.is_calibrated():
            raise InputError(UNSET.replace("depth_choice is 'causal'", "causal is true").replace("_thresholds", ""))
        self.router.by_threshold = on

    @torch.no_grad()
    def calibrate(self, x_BTD: Tensor) -> None:
        """Set the threshold so that the capacity's share of these (held-out) inputs is kept; a few thousand suffice.

        Raises InputError if fewer than 16 of them would be kept.
        """
        if self.router.is_learned:
            count, capacity = x_BTD.shape[0] * x_BTD.shape[1], self.router.spec.capacity
            if count * capacity < _FEWEST:
                raise InputError(
                    f"x_BTD holds {count} tokens; to calibrate a capacity of {capacity:g} it must hold at least "
                    f"{math.ceil(_FEWEST / capacity)}, better a few thousand."
                )
            self.router.calibrate(self.router.scores(x_BTD, None)[1].reshape(-1))
