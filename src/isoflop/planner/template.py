"""What the models of one family share whatever their size."""

import math
from dataclasses import dataclass, replace
from typing import Final

from isoflop.errors import InputError
from isoflop.spec import DecoderSpec, DepthRoutingSpec, ExpertsSpec
from isoflop.spec.feed_forward import Activation

_MOST: Final = {"vocab_size": 10**9, "context": 10**8}
"""Largest values: counts beyond them describe no model."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What the models of one family share whatever their size."""

    name: str = "dense"
    """Name of the family, as it stands in tables."""
    vocab_size: int
    """V, number of token ids."""
    context: int
    """n, tokens in a training sequence."""
    experts: ExpertsSpec | None = None
    """The experts of every model of the family; none: dense."""
    depth_routing: DepthRoutingSpec | None = None
    """Depth routing of every model of the family; none: every block computes every token."""
    granularities: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Every G that the family will be compared at; d_ff is rounded so that each divides it into experts whose width is
    a multiple of `expert_multiple`."""
    activation: Activation = "swiglu"
    """swiglu: d_ff is near 8/3·d_model; gelu, relu: d_ff is near 4·d_model (equal parameters)."""
    head_dim: int | None = None
    """Size of a head; d_model is then a multiple of it. Default: 16 below d_model 128, 32 below 256, 64 from there."""
    multiple: int | None = None
    """d_model, d_ff and d_expert are multiples of this, as GPUs like (64; or 8, 128); from 64 on heads have 64, or 128
    from d_model 2048. Default: experts are multiples of 4, d_model of 16, 32 or 64 as it grows."""
    depth: float = 1.0
    """Factor on the depth that the aspect rule gives; 2 makes models twice as deep."""
    queries_per_kv: int = 1
    """Query heads that share a key/value head; the largest number that divides both this and the heads is used."""
    qk_norm: bool = False
    """RMSNorm on queries and keys."""
    rope_theta: float = 10000.0
    """See AttentionSpec.rope_theta."""
    tied_head: bool = False
    """Whether the output head shares the embedding matrix."""
    norm_eps: float = 1e-6
    """See DecoderSpec.norm_eps."""
    init_scale: float = 1.0
    """See DecoderSpec.init_scale."""

    def __post_init__(self) -> None:
        if not self.granularities or any(g < 1 or g != int(g) for g in self.granularities):
            raise InputError(f"granularities is {self.granularities}; give whole numbers from 1.")
        for name in ("vocab_size", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
            if getattr(self, name) > _MOST[name]:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at most {_MOST[name]:,}.")
        if not self.depth > 0:
            raise InputError(f"depth is {self.depth}; it must be greater than 0.")
        if self.head_dim is not None and (self.head_dim < 2 or self.head_dim % 2):
            raise InputError(f"head_dim is {self.head_dim}; it must be even and at least 2.")
        if self.multiple is not None and (self.multiple < 1 or self.multiple != int(self.multiple)):
            raise InputError(f"multiple is {self.multiple}; it must be a whole number from 1, such as 64.")
        if self.queries_per_kv < 1:
            raise InputError(f"queries_per_kv is {self.queries_per_kv}; it must be at least 1.")

    @classmethod
    def like(cls, spec: DecoderSpec, name: str) -> "Template":
        """The family of a model: everything but its width, depth and d_ff."""
        attention, experts = spec.attention, spec.experts
        return cls(
            name=name,
            vocab_size=spec.vocab_size,
            context=spec.context,
            experts=experts,
            depth_routing=spec.depth_routing,
            granularities=(experts.granularity if experts else 1,),
            activation=spec.feed_forward.activation,
            head_dim=attention.head_dim,
            queries_per_kv=attention.n_heads // attention.kv_heads,
            qk_norm=attention.qk_norm,
            rope_theta=attention.rope_theta,
            tied_head=spec.tied_head,
            norm_eps=spec.norm_eps,
            init_scale=spec.init_scale,
        )

    @property
    def expert_multiple(self) -> int:
        """d_expert is a multiple of this."""
        return self.multiple or 4

    @property
    def width_multiple(self) -> int:
        """d_ff is a multiple of this."""
        g = self.experts.granularity if self.experts else 1
        return self.expert_multiple * math.lcm(*self.granularities, g)

    def aligned(self, multiple: int | None, head_dim: int | None) -> "Template":
        """The family with widths of this multiple and heads of this size, where they are given.

        Its d_ff is then divisible by its own granularity alone: the multiple times every G that it could be compared
        at would leave few widths.
        """
        found = self if head_dim is None else replace(self, head_dim=head_dim)
        if multiple is None:
            return found
        return replace(found, multiple=multiple, granularities=(self.experts.granularity if self.experts else 1,))

    @property
    def family(self) -> str:
        """`dense`, or `moe-e8` for an expansion rate of 8: models that one law of N, D and G can describe.

        With depth routing `-mod.125` for a capacity of .125 follows, and with no-op experts `-noop8`.
        """
        name = "dense" if self.experts is None else f"moe-e{self.experts.expansion_rate:g}"
        if self.experts is not None and self.experts.noop_experts:
            name += f"-noop{self.experts.noop_experts}"
        return (
            name
            if self.depth_routing is None
            else f"{name}-mod{self.depth_routing.capacity:g}".replace("mod0.", "mod.")
        )

    def with_experts(self, name: str, *, granularity: int, expansion_rate: float) -> "Template":
        """The same family with these experts; other properties of its experts are kept."""
        granularities = tuple(sorted({*self.granularities, granularity}))
        if self.experts is None:
            experts = ExpertsSpec(granularity=granularity, expansion_rate=expansion_rate)
        else:
            experts = replace(self.experts, granularity=granularity, expansion_rate=expansion_rate)
        return replace(self, name=name, experts=experts, granularities=granularities)
