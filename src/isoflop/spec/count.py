"""The one accounting of parameters and FLOPs, by part and by convention.

Symbols: d d_model, L layers, H query heads, K key/value heads, h head size, n context, V vocabulary, X routed experts,
k routed experts that a token uses, s shared experts, f width of an expert, m matrices in a feed-forward (3 if gated,
else 2). Two FLOPs per multiply-add.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from isoflop.errors import InputError
from isoflop.spec.decoder import DecoderSpec
from isoflop.spec.experts import ExpertsSpec

CONVENTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "exact": "every matrix product of the model; a token attends to (n+1)/2 keys on average; the weighted sum of "
        "the experts' outputs counts as dispatch; training is three forwards",
        "exact-full": "as exact, but a token attends to all n keys, as papers and profilers count",
        "6ND": "6 × active non-embedding parameters a token (Kaplan et al. 2020, arXiv 2001.08361); no attention "
        "scores, no head",
        "krajewski": "6 × active matrix parameters + 14·d·X a token and MoE layer for routing and dispatch; no scores, "
        "no head (Krajewski et al. 2024, arXiv 2402.07871, sec. 5.2)",
        "expert-attention": "expert layer (router included) against attention, n keys; no head (Li et al. 2026, arXiv "
        "2603.10379, with attention × values as 2n²d)",
        "expert-attention-printed": "as expert-attention, with attention × values as the paper prints it, 2nd²",
    }
)
"""Named ways to count FLOPs, and what each means."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a model has and what a token costs. Parameters are exact; FLOPs follow `convention`."""

    convention: str
    """Key of CONVENTIONS."""
    context: int
    """n, tokens in a sequence that the FLOPs assume."""
    params_total: int
    """All parameters but the embedding and the head."""
    params_active: int
    """Of params_total, those that a token uses."""
    params_embedding: int
    """Embedding matrix, and the head matrix if it is not tied."""
    params_router: int
    """Of params_total, the routers' matrices."""
    params_by_part: Mapping[str, int]
    """attention, feed_forward, experts, router, norms, embedding, head; the sum is every parameter."""
    flops_per_token: Mapping[str, float]
    """Forward FLOPs per token: attention, feed_forward, experts, router, dispatch, head, and their sum total."""
    attention_flops: Mapping[str, float]
    """Forward FLOPs per token of attention: projections, and scores with the weighted sum of values."""
    training_flops_per_token: float
    """Forward and backward FLOPs per token."""
    expert_attention_ratio: float
    """Feed-forward and expert FLOPs / attention FLOPs; the expert-attention conventions add the router, as their paper
    does."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self).items()}


def count(spec: DecoderSpec, *, context: int | None = None, convention: str = "exact") -> Count:
    """Count parameters and FLOPs per token.

    Args:
        spec: the model.
        context: tokens in a sequence; default spec.context.
        convention: a key of CONVENTIONS.

    Raises:
        InputError: if the convention is unknown or the context is not positive.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"convention is {convention!r}; allowed: {', '.join(CONVENTIONS)}.")
    context = spec.context if context is None else context
    if context < 1:
        raise InputError(f"context is {context}; it must be at least 1.")
    parameters = _Parameters.of(spec)
    attention, parts, training = _flops(spec, parameters, context, convention)
    feed_forward = parts["feed_forward"] + parts["experts"]
    if convention.startswith("expert-attention"):
        feed_forward += parts["router"]
    by_part = asdict(parameters)
    active_experts = by_part.pop("active_experts")
    embedding = parameters.embedding + parameters.head
    total = sum(by_part.values()) - embedding
    return Count(
        convention=convention,
        context=context,
        params_total=total,
        params_active=total - parameters.experts + active_experts,
        params_embedding=embedding,
        params_router=parameters.router,
        params_by_part=MappingProxyType(by_part),
        flops_per_token=MappingProxyType({**parts, "total": sum(parts.values())}),
        attention_flops=MappingProxyType(attention),
        training_flops_per_token=training,
        expert_attention_ratio=feed_forward / parts["attention"],
    )


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    attention: int
    feed_forward: int
    experts: int
    active_experts: int
    router: int
    norms: int
    embedding: int
    head: int

    @classmethod
    def of(cls, spec: DecoderSpec) -> "_Parameters":
        d, attention, experts = spec.d_model, spec.attention, spec.experts
        moe_layers = spec.n_expert_layers
        dense_layers = spec.n_layers - moe_layers
        matrices = spec.feed_forward.n_matrices
        per_expert = matrices * d * spec.d_expert
        norms_per_layer = 2 * d + (2 * attention.head_dim if attention.qk_norm else 0)
        routed = shared = active = output_norm = 0
        if experts is not None:
            routed, shared, active = experts.n_experts, experts.shared_experts, experts.top_k
            output_norm = d if experts.output_norm else 0
        return cls(
            attention=spec.n_layers * 2 * d * attention.head_dim * (attention.n_heads + attention.kv_heads),
            feed_forward=dense_layers * matrices * d * spec.feed_forward.d_ff,
            experts=moe_layers * per_expert * (routed + shared),
            active_experts=moe_layers * per_expert * (active + shared),
            router=moe_layers * d * routed,
            norms=spec.n_layers * norms_per_layer + moe_layers * output_norm + d,
            embedding=spec.vocab_size * d,
            head=0 if spec.tied_head else spec.vocab_size * d,
        )


def expert_layer_flops(experts: ExpertsSpec, *, d_model: int, d_ff: int, n_matrices: int) -> dict[str, float]:
    """Forward FLOPs per token of one MoE layer under the `exact` convention: experts, router, dispatch.

    Args:
        experts: the experts.
        d_model: width of the residual stream.
        d_ff: width of the dense feed-forward that is cut into experts.
        n_matrices: matrices in an expert, 3 if gated, else 2.
    """
    per_expert = n_matrices * d_model * (d_ff // experts.granularity)
    return {
        "experts": 2.0 * per_expert * (experts.top_k + experts.shared_experts),
        "router": 2.0 * d_model * experts.n_experts,
        "dispatch": 2.0 * experts.top_k * d_model,
    }


def _expert_flops(spec: DecoderSpec) -> dict[str, float]:
    """The same of all MoE layers of a model."""
    if spec.experts is None:
        return {"experts": 0.0, "router": 0.0, "dispatch": 0.0}
    feed_forward = spec.feed_forward
    layer = expert_layer_flops(
        spec.experts, d_model=spec.d_model, d_ff=feed_forward.d_ff, n_matrices=feed_forward.n_matrices
    )
    return {part: spec.n_expert_layers * flops for part, flops in layer.items()}


def _flops(
    spec: DecoderSpec, parameters: _Parameters, context: int, convention: str
) -> tuple[dict[str, float], dict[str, float], float]:
    """Attention in detail, forward FLOPs by part, training FLOPs; all per token."""
    d, width = spec.d_model, spec.attention.width
    projections = 2.0 * parameters.attention
    scores = spec.n_layers * 4.0 * context * width
    parts = {
        "feed_forward": 2.0 * parameters.feed_forward,
        **_expert_flops(spec),
        "head": 2.0 * spec.vocab_size * d,
    }
    dispatch_training = 3 * parts["dispatch"]
    if convention == "exact":
        scores = spec.n_layers * 2.0 * (context + 1) * width
    elif convention == "6ND":
        scores = 0.0
        parts |= {"dispatch": 0.0, "head": 0.0, "norms": 2.0 * parameters.norms}
        dispatch_training = 0.0
    elif convention == "krajewski":
        # per router weight: logits 2 forward and 4 backward, dispatch 2 and 2, combine 2 and 2 (14 in all)
        scores = 0.0
        parts |= {"dispatch": 4.0 * parameters.router, "head": 0.0}
        dispatch_training = 8.0 * parameters.router
    elif convention.startswith("expert-attention"):
        parts |= {"dispatch": 0.0, "head": 0.0}
        dispatch_training = 0.0
        if convention.endswith("printed"):
            scores = spec.n_layers * (2.0 * context * width + 2.0 * width * d)
    attention = {"projections": projections, "scores": scores}
    parts = {"attention": projections + scores, **parts}
    training = 3 * (sum(parts.values()) - parts["dispatch"]) + dispatch_training
    return attention, parts, training
