"""One Transformer block, dense or MoE, of every token or depth-routed.

Shapes: B batch, T tokens in a sequence, D d_model, h head size; in a depth-routed block A sequences with C kept tokens
each, M = A·C.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.nn._init import gain
from isoflop.nn.attention import Attention
from isoflop.nn.cache import CompactCache, KVCache
from isoflop.nn.depth import DepthRouter, Kept, through
from isoflop.nn.feed_forward import FeedForward
from isoflop.nn.moe import MoE
from isoflop.nn.statistics import DepthStatistics, ExpertStatistics
from isoflop.spec import DecoderSpec


@dataclass(frozen=True)
class Place:
    """Where the tokens of a forward pass stand."""

    rotary: tuple[Tensor, Tensor]
    """cos and sin of their positions, [T, 1, h] or [B, T, 1, h]."""
    cache: KVCache | None = None
    """Keys and values of earlier tokens."""
    mask: Tensor | None = None
    """What `cache.mask` returned."""
    draws_BT: Tensor | None = None
    """position · V + token id; for stochastic depth routing alone."""
    positions: Tensor | None = None
    """With a cache: [T] or [B, T]; for fixed depth routing alone."""
    real_BT: Tensor | None = None
    """With a cache: False for padding."""


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then + feed-forward or MoE of norm of that.

    A depth-routed block does so for the tokens that its router keeps, which attend to each other alone, at their
    original positions; what it adds to them is multiplied by the gate, and the other tokens pass unchanged.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        layer: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm_eps = spec.norm_eps
        output_scale = 1 / math.sqrt(2 * spec.n_layers)
        self.attention_gain = gain(spec.d_model, 1.0, device, dtype)
        self.attention = Attention(
            spec.d_model,
            spec.attention,
            norm_eps=spec.norm_eps,
            init_scale=spec.init_scale,
            output_scale=output_scale,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.feed_forward_gain = gain(spec.d_model, 1.0, device, dtype)
        self.feed_forward: FeedForward | MoE
        if spec.experts is not None and spec.is_expert_layer(layer):
            self.feed_forward = MoE(
                d_model=spec.d_model,
                d_ff=spec.feed_forward.d_ff,
                experts=spec.experts,
                activation=spec.feed_forward.activation,
                norm_eps=spec.norm_eps,
                init_scale=spec.init_scale,
                output_scale=output_scale,
                generator=generator,
                device=device,
                dtype=dtype,
            )
        else:
            self.feed_forward = FeedForward(
                spec.d_model,
                spec.feed_forward.d_ff,
                spec.feed_forward.activation,
                init_scale=spec.init_scale,
                output_scale=output_scale,
                generator=generator,
                device=device,
                dtype=dtype,
            )
        self.depth_router = (
            DepthRouter(
                spec.d_model,
                spec.depth_routing,
                layer=layer,
                norm_eps=spec.norm_eps,
                init_scale=spec.init_scale,
                generator=generator,
                device=device,
                dtype=dtype,
            )
            if spec.depth_routing is not None and spec.is_routed_layer(layer)
            else None
        )

    def forward(self, x_BTD: Tensor, place: Place) -> tuple[Tensor, ExpertStatistics | None, DepthStatistics | None]:
        """Return the block's output and its statistics, if it is MoE and if it is depth-routed."""
        if self.depth_router is None or self.routes_feed_forward_only:
            x_BTD = x_BTD + self.attend(x_BTD, place.rotary, place.cache, place.mask)
            if self.depth_router is None:
                y_BTD, experts = self.feed(x_BTD, sampling=place.cache is not None)
                return x_BTD + y_BTD, experts, None
        kept = self.choose(x_BTD, place)
        if kept.rows_M.numel() == 0:
            return x_BTD, None, kept.statistics
        experts_of: list[ExpertStatistics | None] = []

        def update(x_ACD: Tensor) -> Tensor:
            update_ACD, statistics = self.update(x_ACD, kept, place)
            experts_of.append(statistics)
            return update_ACD

        return through(x_BTD, kept, update), experts_of[0], kept.statistics

    @property
    def routes_feed_forward_only(self) -> bool:
        """Whether every token attends and the router decides about the feed-forward alone."""
        return self.depth_router is not None and self.depth_router.spec.part == "feed_forward"

    def choose(self, x_BTD: Tensor, place: Place) -> Kept:
        """Which tokens a depth-routed block computes; `x_BTD` is what its router sees."""
        assert self.depth_router is not None
        kept: Kept = self.depth_router(
            x_BTD,
            draws_BT=place.draws_BT,
            positions=place.positions,
            real_BT=place.real_BT,
            ragged=place.cache is not None,
        )
        return kept

    def update(self, x_ACD: Tensor, kept: Kept, place: Place) -> tuple[Tensor, ExpertStatistics | None]:
        """What a depth-routed block adds to its kept tokens, before the gate."""
        attended_ACD = self.attend_kept(x_ACD, kept, place)
        if attended_ACD is None:
            return self.feed(x_ACD, sampling=place.cache is not None)
        y_ACD, experts = self.feed(x_ACD + attended_ACD, sampling=place.cache is not None)
        return attended_ACD + y_ACD, experts

    def attend_kept(self, x_ACD: Tensor, kept: Kept, place: Place) -> Tensor | None:
        """Attention of the kept tokens to each other; None if the router decides about the feed-forward alone."""
        if self.routes_feed_forward_only:
            return None
        cos, sin = (_at(table, kept) for table in place.rotary)
        if place.cache is None:
            return self.attend(x_ACD, (cos, sin), None, None)
        compact = place.cache.compact(self.layer, kept.sequences, kept.counts, x_ACD.shape[1])
        mask = None if x_ACD.shape[1] == 1 and compact.attends_apart else compact.mask(x_ACD.shape[1])
        return self.attend(x_ACD, (cos, sin), compact, mask)

    def attend(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | CompactCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What the attention layer adds to the residual stream."""
        normed_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self.attention_gain, self.norm_eps)
        y_BTD: Tensor = self.attention(normed_BTD, rotary=rotary, cache=cache, layer=self.layer, mask=mask)
        return y_BTD

    def feed(self, x_BTD: Tensor, *, sampling: bool = False) -> tuple[Tensor, ExpertStatistics | None]:
        """What the feed-forward layer or the experts add to the residual stream, and the experts' statistics.

        While sampling without gradients there are no statistics.
        """
        normed_BTD = self.feed_forward_input(x_BTD)
        if isinstance(self.feed_forward, MoE):
            if sampling and not torch.is_grad_enabled():
                return self.feed_forward.sample(normed_BTD), None
            y_BTD, statistics = self.feed_forward(normed_BTD)
            return y_BTD, statistics
        return self.feed_forward(normed_BTD), None

    def feed_forward_input(self, x_BTD: Tensor) -> Tensor:
        """Return the normed residual stream that the feed-forward layer and its router see."""
        return F.rms_norm(x_BTD, x_BTD.shape[-1:], self.feed_forward_gain, self.norm_eps)


def _at(table: Tensor, kept: Kept) -> Tensor:
    """Rows of a rotary table [T, 1, h] or [B, T, 1, h] at the kept tokens, [A, C, 1, h]."""
    if table.ndim == 3:
        if table.shape[0] == 1:
            return table
        return table[kept.places_AC]
    return table.flatten(0, 1)[kept.rows_M].view(*kept.places_AC.shape, *table.shape[2:])
