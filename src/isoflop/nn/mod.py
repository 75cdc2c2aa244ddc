"""Mixture-of-Depths around any block of anybody's model.

Shapes: B batch, T tokens, D d_model, C kept tokens of a sequence.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isoflop.errors import InputError
from isoflop.nn.depth import UNSET, DepthRouter, through
from isoflop.nn.statistics import DepthStatistics
from isoflop.spec import DepthRoutingSpec


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
        if spec.router == "stochastic":
            raise InputError("depth_routing.router is 'stochastic'; a MoD layer can be learned or fixed.")
        self.router = DepthRouter(d_model, spec, layer=0, generator=generator, device=device, dtype=dtype)

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, DepthStatistics]:
        """Return the stream after the block, and statistics; add their `auxiliary_loss` to your loss."""
        if x_BTD.ndim != 3 or x_BTD.shape[1] < 1:
            raise InputError(f"x_BTD has shape {list(x_BTD.shape)}; it must be [batch, tokens, d_model].")
        kept = self.router(x_BTD)
        return through(x_BTD, kept, lambda x_BCD: f(x_BCD, kept.places_AC)), kept.statistics

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
        """Set the threshold so that the capacity's share of these (held-out) inputs is kept."""
        if self.router.is_learned:
            self.router.calibrate(self.router.scores(x_BTD, None)[1].reshape(-1))
