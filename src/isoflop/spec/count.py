"""The one accounting of parameters and FLOPs, by part and by convention.

Symbols: d d_model, L layers, H query heads, K key/value heads, h head size, n context, V vocabulary, X routed experts,
k routed experts that a token uses, s shared experts, f width of an expert, m matrices in a feed-forward (3 if gated,
else 2). Two FLOPs per multiply-add. A depth-routed block computes C = ceil(capacity·n) tokens of a sequence, so that
its projections, feed-forward and experts cost C/n per token and its attention scores (C/n)·(C+1)/2 keys.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

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
    """Of params_total, those that a token uses (the mean over tokens where blocks or experts are skipped)."""
    params_embedding: int
    """Embedding matrix, and the head matrix if it is not tied."""
    params_router: int
    """Of params_total, the matrices of the experts' routers."""
    params_by_part: Mapping[str, int]
    """attention, feed_forward, experts, router, depth_router (with its predictor), norms, embedding, head; the sum is
    every parameter."""
    flops_per_token: Mapping[str, float]
    """Forward FLOPs per token: attention, feed_forward, experts, router, depth_router, dispatch, head, under 6ND also
    norms, and their sum total."""
    attention_flops: Mapping[str, float]
    """Forward FLOPs per token of attention: projections, and scores with the weighted sum of values."""
    training_flops_per_token: float
    """Forward and backward FLOPs per token."""
    expert_attention_ratio: float
    """Feed-forward and expert FLOPs / attention FLOPs; the expert-attention conventions add the router, as their paper
    does."""

    @property
    def expert_attention_ratios(self) -> Mapping[str, float]:
        """The ratio `without_router` and `with_router` FLOPs beside those of the experts."""
        flops = self.flops_per_token
        experts = flops["feed_forward"] + flops["experts"]
        attention = flops["attention"]
        return {"without_router": experts / attention, "with_router": (experts + flops["router"]) / attention}

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self).items()}
        return {**values, "expert_attention_ratios": dict(self.expert_attention_ratios)}


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
    attention, parts, training = _flops(spec, context, convention)
    by_part = dict(vars(parameters))
    embedding = parameters.embedding + parameters.head
    return Count(
        convention=convention,
        context=context,
        params_total=sum(by_part.values()) - embedding,
        params_active=round(_active_parameters(spec)),
        params_embedding=embedding,
        params_router=parameters.router,
        params_by_part=MappingProxyType(by_part),
        flops_per_token=MappingProxyType({**parts, "total": sum(parts.values())}),
        attention_flops=MappingProxyType(attention),
        training_flops_per_token=training,
        expert_attention_ratio=_ratio(parts, convention),
    )


def flops_and_ratio(spec: DecoderSpec, *, convention: str = "exact") -> tuple[float, float]:
    """Forward FLOPs per token and the expert–attention ratio, as `count` has them but faster, for searches.

    Args:
        spec: the model, at its own context.
        convention: a key of CONVENTIONS.

    Raises:
        InputError: if the convention is unknown.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"convention is {convention!r}; allowed: {', '.join(CONVENTIONS)}.")
    _, parts, _ = _flops(spec, spec.context, convention)
    return sum(parts.values()), _ratio(parts, convention)


def _ratio(parts: Mapping[str, float], convention: str) -> float:
    feed_forward = parts["feed_forward"] + parts["experts"]
    if convention.startswith("expert-attention"):
        feed_forward += parts["router"]
    return feed_forward / parts["attention"]


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    attention: int
    feed_forward: int
    experts: int
    router: int
    depth_router: int
    norms: int
    embedding: int
    head: int

    @classmethod
    def of(cls, spec: DecoderSpec) -> "_Parameters":
        d, experts = spec.d_model, spec.experts
        moe_layers = spec.n_expert_layers
        routed = shared = 0
        if experts is not None:
            routed, shared = experts.n_experts, experts.shared_experts
        return cls(
            attention=spec.n_layers * _attention_matrices(spec),
            feed_forward=(spec.n_layers - moe_layers) * spec.feed_forward.n_matrices * d * spec.feed_forward.d_ff,
            experts=moe_layers * _expert_matrices(spec) * (routed + shared),
            router=moe_layers * d * (experts.n_choices if experts else 0),
            depth_router=len(spec.routed_layers) * sum(_depth_router_matrices(spec)),
            norms=sum(kind.layers * sum(_norms(spec, kind)) for kind in _kinds(spec)) + d,
            embedding=spec.vocab_size * d,
            head=0 if spec.tied_head else spec.vocab_size * d,
        )


def _attention_matrices(spec: DecoderSpec) -> int:
    """Parameters of one attention layer's matrices."""
    attention = spec.attention
    return 2 * spec.d_model * attention.head_dim * (attention.n_heads + attention.kv_heads)


def _expert_matrices(spec: DecoderSpec) -> int:
    """Parameters of one expert."""
    return spec.feed_forward.n_matrices * spec.d_model * spec.d_expert


def _depth_router_matrices(spec: DecoderSpec) -> tuple[int, int, int]:
    """Parameters of one depth router: its vector, and the first and second matrix of its predictor."""
    routing = spec.depth_routing
    if routing is None or routing.router != "learned":
        return 0, 0, 0
    hidden = routing.hidden_width(spec.d_model) if routing.has_predictor else 0
    return spec.d_model, hidden * spec.d_model, hidden


class _Kind(NamedTuple):
    """Blocks that are alike."""

    layers: int
    is_expert: bool
    is_routed: bool


def _kinds(spec: DecoderSpec) -> list[_Kind]:
    """The blocks of a model by kind, with how many there are of each."""
    if spec.depth_routing is None:
        moe = spec.n_expert_layers
        return [_Kind(moe, True, False), _Kind(spec.n_layers - moe, False, False)]
    kinds = Counter((spec.is_expert_layer(layer), spec.is_routed_layer(layer)) for layer in range(spec.n_layers))
    return [_Kind(layers, *kind) for kind, layers in kinds.items()]


def _shares(spec: DecoderSpec, kind: _Kind, context: int) -> tuple[float, float]:
    """Share of the tokens whose attention, and whose feed-forward or experts, a block of this kind computes."""
    share = spec.kept_share(context) if kind.is_routed else 1.0
    whole = spec.depth_routing is None or spec.depth_routing.part == "block"
    return share if whole else 1.0, share


def _norms(spec: DecoderSpec, kind: _Kind) -> tuple[int, int]:
    """Parameters of a block's norms: before and in attention, and before and after feed-forward or experts."""
    output = spec.d_model if kind.is_expert and spec.experts and spec.experts.output_norm else 0
    return spec.d_model + (2 * spec.attention.head_dim if spec.attention.qk_norm else 0), spec.d_model + output


def _active_parameters(spec: DecoderSpec) -> float:
    """Mean number of non-embedding parameters that a token meets, at the spec's own context."""
    experts, total = spec.experts, float(spec.d_model)
    for kind in _kinds(spec):
        attends, feeds = _shares(spec, kind, spec.context)
        attention_norms, feed_forward = map(float, _norms(spec, kind))
        if kind.is_expert and experts is not None:
            used = experts.top_k * experts.computed_share + experts.shared_experts
            feed_forward += _expert_matrices(spec) * used + spec.d_model * experts.n_choices
        else:
            feed_forward += spec.feed_forward.n_matrices * spec.d_model * spec.feed_forward.d_ff
        block = attends * (_attention_matrices(spec) + attention_norms) + feeds * feed_forward
        total += kind.layers * (block + (sum(_depth_router_matrices(spec)) if kind.is_routed else 0))
    return total


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
        "experts": 2.0 * per_expert * (experts.top_k * experts.computed_share + experts.shared_experts),
        "router": 2.0 * d_model * experts.n_choices,
        "dispatch": 2.0 * experts.top_k * experts.computed_share * d_model,
    }


def _expert_flops(spec: DecoderSpec, context: int) -> dict[str, float]:
    """The same of all MoE layers of a model."""
    if spec.experts is None:
        return {"experts": 0.0, "router": 0.0, "dispatch": 0.0}
    feed_forward = spec.feed_forward
    one = expert_layer_flops(
        spec.experts, d_model=spec.d_model, d_ff=feed_forward.d_ff, n_matrices=feed_forward.n_matrices
    )
    layers = sum(kind.layers * _shares(spec, kind, context)[1] for kind in _kinds(spec) if kind.is_expert)
    return {part: layers * flops for part, flops in one.items()}


def _flops(spec: DecoderSpec, context: int, convention: str) -> tuple[dict[str, float], dict[str, float], float]:
    """Attention in detail, forward FLOPs by part, training FLOPs; all per token."""
    d, width, kinds = spec.d_model, spec.attention.width, _kinds(spec)
    attends = [(kind.layers, _shares(spec, kind, context)[0]) for kind in kinds]
    feeds = sum(kind.layers * _shares(spec, kind, context)[1] for kind in kinds if not kind.is_expert)
    projections = 2.0 * _attention_matrices(spec) * sum(layers * share for layers, share in attends)
    scores = sum(layers * 4.0 * share * (share * context) * width for layers, share in attends)
    vector, first, second = _depth_router_matrices(spec)
    routed = len(spec.routed_layers)
    parts = {
        "feed_forward": 2.0 * spec.feed_forward.n_matrices * d * spec.feed_forward.d_ff * feeds,
        **_expert_flops(spec, context),
        "depth_router": 2.0 * routed * (vector + first + second),
        "head": 2.0 * spec.vocab_size * d,
    }
    dispatch_training = 3 * parts["dispatch"]
    # the predictor's input is detached, so its first matrix has no gradient to pass on
    saved = 2.0 * routed * first
    if convention == "exact":
        scores = sum(layers * 2.0 * share * (share * context + 1) * width for layers, share in attends)
    elif convention == "6ND":
        scores = saved = 0.0
        counted = projections + sum(parts[part] for part in ("feed_forward", "experts", "router", "depth_router"))
        parts |= {"dispatch": 0.0, "head": 0.0, "norms": 2.0 * _active_parameters(spec) - counted}
        dispatch_training = 0.0
    elif convention == "krajewski":
        # per router weight: logits 2 forward and 4 backward, dispatch 2 and 2, combine 2 and 2 (14 in all)
        scores = 0.0
        parts |= {"dispatch": 2.0 * parts["router"], "head": 0.0}
        dispatch_training = 4.0 * parts["router"]
    elif convention.startswith("expert-attention"):
        parts |= {"dispatch": 0.0, "head": 0.0}
        dispatch_training = 0.0
        if convention.endswith("printed"):
            scores = sum(layers * 2.0 * share * (share * context * width + width * d) for layers, share in attends)
    attention = {"projections": projections, "scores": scores}
    parts = {"attention": projections + scores, **parts}
    training = 3 * (sum(parts.values()) - parts["dispatch"]) + dispatch_training - saved
    return attention, parts, training
