"""The expert–attention ratio of many made-up models: parts add up, and each property moves it the way that it must."""

import random
from dataclasses import replace

import pytest

from isoflop.spec import CONVENTIONS, AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, count


def made_up(seed: int) -> DecoderSpec:
    rng = random.Random(seed)
    granularity = rng.choice([1, 2, 4, 8])
    n_layers, kv_heads = rng.randint(2, 30), rng.choice([1, 2, 4])
    experts = None
    if seed % 5:
        experts = ExpertsSpec(
            granularity=granularity,
            expansion_rate=rng.choice([2, 8, 32]),
            activation_multiplier=rng.choice([1.0, 2.0]),
            shared_experts=rng.randint(0, 2),
            noop_experts=rng.choice([0, 0, 8]),
            skip_first=rng.randint(0, 1),
        )
    return DecoderSpec(
        vocab_size=rng.choice([257, 32000]),
        context=rng.choice([64, 512, 4096, 32768]),
        n_layers=n_layers,
        d_model=32 * rng.randint(1, 60),
        attention=AttentionSpec(
            n_heads=kv_heads * rng.randint(1, 4), head_dim=rng.choice([16, 64, 128]), n_kv_heads=kv_heads
        ),
        feed_forward=FeedForwardSpec(
            d_ff=8 * granularity * rng.randint(1, 200), activation=rng.choice(["swiglu", "gelu"])
        ),
        experts=experts,
        depth_routing=DepthRoutingSpec(capacity=rng.choice([0.125, 0.5])) if seed % 3 == 0 else None,
    )


SPECS = [made_up(seed) for seed in range(120)]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_experts_attention_and_the_rest_are_the_total(convention):
    for spec in SPECS:
        counted = count(spec, convention=convention)
        flops = dict(counted.flops_per_token)
        total, attention = flops.pop("total"), flops.pop("attention")
        experts = flops.pop("experts") + flops.pop("feed_forward")
        assert experts + attention + sum(flops.values()) == pytest.approx(total, rel=1e-12)
        assert sum(counted.attention_flops.values()) == pytest.approx(attention, rel=1e-12)
        if convention.startswith("expert-attention"):
            experts += flops["router"]
        assert counted.expert_attention_ratio * attention == pytest.approx(experts, rel=1e-12)


@pytest.mark.parametrize("convention", ["exact", "exact-full", "expert-attention", "expert-attention-printed"])
def test_the_ratio_falls_with_context_and_heads(convention):
    for spec in SPECS:
        own = count(spec, convention=convention).expert_attention_ratio
        assert count(spec, context=2 * spec.context, convention=convention).expert_attention_ratio < own
        kv = spec.attention.kv_heads
        more = replace(spec.attention, n_heads=spec.attention.n_heads + kv)
        assert count(replace(spec, attention=more), convention=convention).expert_attention_ratio < own


@pytest.mark.parametrize("convention", ["6ND", "krajewski"])
def test_conventions_without_scores_do_not_see_the_context(convention):
    for spec in SPECS:
        if spec.depth_routing is None:
            own = count(spec, convention=convention).expert_attention_ratio
            assert count(spec, context=4 * spec.context, convention=convention).expert_attention_ratio == own


def test_granularity_moves_the_ratio_by_the_router_alone():
    for spec in SPECS:
        if spec.experts is None or spec.experts.shared_experts or spec.experts.noop_experts:
            continue
        finer = replace(spec, experts=replace(spec.experts, granularity=2 * spec.experts.granularity))
        assert count(finer).expert_attention_ratio == pytest.approx(count(spec).expert_attention_ratio, rel=1e-12)
        with_router = [count(each, convention="expert-attention").expert_attention_ratio for each in (spec, finer)]
        assert with_router[1] > with_router[0]
        if spec.experts.expansion_rate < 2 * spec.experts.activation_multiplier:
            continue
        more = replace(
            spec, experts=replace(spec.experts, activation_multiplier=2.0 * spec.experts.activation_multiplier)
        )
        assert count(more).expert_attention_ratio > count(spec).expert_attention_ratio
