"""What a decoder-only Transformer is."""

import math
from dataclasses import dataclass
from typing import Final

from isoflop.errors import InputError
from isoflop.spec._checks import STRICT_FIELDS, require_positive
from isoflop.spec.attention import AttentionSpec
from isoflop.spec.depth_routing import DepthRoutingSpec
from isoflop.spec.experts import ExpertsSpec
from isoflop.spec.feed_forward import FeedForwardSpec

MOST_LAYERS: Final = 2**16
"""More blocks than this are a slip of the keyboard, and would take long to count one by one."""


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A pre-norm decoder-only Transformer: dense or fine-grained MoE, with or without depth routing (MoD, MoDE)."""

    __pydantic_config__ = STRICT_FIELDS

    vocab_size: int
    """V, number of token ids."""
    context: int
    """n, tokens in a training sequence."""
    n_layers: int
    """L, number of blocks."""
    d_model: int
    """d, width of the residual stream."""
    attention: AttentionSpec
    """The attention layer of every block."""
    feed_forward: FeedForwardSpec
    """The dense feed-forward layer, and the reference width of the experts."""
    experts: ExpertsSpec | None = None
    """Mixture of experts in place of the dense feed-forward; none: a dense model."""
    depth_routing: DepthRoutingSpec | None = None
    """Mixture-of-Depths: blocks that compute a part of the tokens; none: every block computes all."""
    tied_head: bool = False
    """Whether the output head shares the embedding matrix."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    init_scale: float = 1.0
    """Truncated-normal init: std = sqrt(init_scale / fan_in), cut at 2 std (the fine-grained paper uses 0.1)."""

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "context", "n_layers", "d_model", "norm_eps", "init_scale")
        if self.n_layers > MOST_LAYERS:
            raise InputError(f"n_layers is {self.n_layers}; it can be at most {MOST_LAYERS}.")
        self._check_depth_routing()
        if self.experts is None:
            return
        d_ff, granularity = self.feed_forward.d_ff, self.experts.granularity
        if d_ff % granularity:
            low = d_ff // granularity * granularity
            near_ff = [width for width in (low, low + granularity) if width > 0]
            near = [f"d_ff {' or '.join(map(str, near_ff))} (multiples of {granularity})"]
            if near_g := _nearest_granularities(self.experts, d_ff):
                near.insert(0, f"granularity {' or '.join(map(str, near_g))}")
            raise InputError(
                f"experts.granularity is {granularity} but it must divide feed_forward.d_ff={d_ff}; nearest valid: "
                f"{', or '.join(near)}."
            )
        if not self.n_expert_layers:
            raise InputError(
                f"experts.skip_first is {self.experts.skip_first} and experts.every is {self.experts.every}; with "
                f"n_layers={self.n_layers} no block would be MoE: lower them, or leave experts out."
            )

    def _check_depth_routing(self) -> None:
        routing = self.depth_routing
        if routing is None:
            return
        if routing.capacity * self.context < 1:
            raise InputError(
                f"depth_routing.capacity is {routing.capacity}, which keeps no token of a context of {self.context}; "
                f"it must be at least {_upward(1 / self.context)}."
            )
        if not self.routed_layers:
            raise InputError(
                f"depth_routing.skip_first is {routing.skip_first} and depth_routing.every is {routing.every}; with "
                f"n_layers={self.n_layers} no block would be routed: lower them, or leave depth_routing out."
            )

    def is_expert_layer(self, layer: int) -> bool:
        """Whether block `layer` (from 0) is MoE."""
        return self.experts is not None and self.experts.is_expert_layer(layer)

    def is_routed_layer(self, layer: int) -> bool:
        """Whether block `layer` (from 0) computes a part of the tokens alone."""
        return self.depth_routing is not None and self.depth_routing.is_routed_layer(layer)

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """The depth-routed blocks, from 0."""
        return tuple(layer for layer in range(self.n_layers) if self.is_routed_layer(layer))

    def kept_share(self, context: int | None = None) -> float:
        """Share of a sequence's tokens that a routed block computes, ceil(capacity·n)/n; 1 without depth routing."""
        length = self.context if context is None else context
        return 1.0 if self.depth_routing is None else self.depth_routing.n_kept(length) / length

    @property
    def n_expert_layers(self) -> int:
        """Number of MoE blocks."""
        return 0 if self.experts is None else max(0, self.n_layers - self.experts.skip_first) // self.experts.every

    @property
    def d_expert(self) -> int:
        """Width of one expert, d_ff / G; d_ff for a dense model."""
        return self.feed_forward.d_ff // (self.experts.granularity if self.experts else 1)

    @property
    def is_causal(self) -> bool:
        """False if, as trained, a token's output may depend on later tokens of its own sequence."""
        experts_are = self.experts is None or self.experts.router.is_causal
        return experts_are and (self.depth_routing is None or self.depth_routing.is_causal)

    @property
    def is_causal_when_sampled(self) -> bool:
        """False if no rule lets the model decide token by token: experts that choose among all positions."""
        return self.experts is None or self.experts.router.is_causal

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but seldom meant, in sentences."""
        names = {0: "first", self.n_layers - 1: "last"}
        return tuple(
            f"depth_routing routes the {names[layer]} of {self.n_layers} blocks (block {layer}, from 0); what it "
            f"skips {'enters' if layer == 0 else 'leaves'} the model without it; n_layers, every and skip_first decide."
            for layer in self.routed_layers
            if layer in names and self.n_layers > 1
        )


_LARGEST_SUGGESTION: Final = 4096


def _upward(value: float) -> str:
    """A number to three digits that is no smaller."""
    short = f"{value:.3g}"
    return short if float(short) >= value else f"{float(short) + 10.0 ** (math.floor(math.log10(value)) - 2):.3g}"


def _nearest_granularities(experts: ExpertsSpec, d_ff: int) -> list[int]:
    """The two divisors of d_ff nearest to the granularity, of the first few thousand, that leave whole experts."""
    rates = (experts.expansion_rate, experts.activation_multiplier)
    valid = [
        g
        for g in range(1, min(d_ff, _LARGEST_SUGGESTION) + 1)
        if d_ff % g == 0 and all(g * rate >= 1 and abs(g * rate - round(g * rate)) <= 1e-9 for rate in rates)
    ]
    return sorted(sorted(valid, key=lambda g: (abs(g - experts.granularity), g))[:2])
