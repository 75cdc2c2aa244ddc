"""Models with a given expert–attention ratio at equal FLOPs, and at equal parameters too."""

import math
from dataclasses import replace

import pytest

from isoflop.errors import InputError
from isoflop.planner import ratio_sweep, realise
from isoflop.spec import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec, count

SMALL = DecoderSpec(
    vocab_size=257,
    context=128,
    n_layers=4,
    d_model=64,
    attention=AttentionSpec(n_heads=4, head_dim=16),
    feed_forward=FeedForwardSpec(d_ff=192),
    experts=ExpertsSpec(granularity=4, expansion_rate=8),
)
LARGE = DecoderSpec(
    vocab_size=50257,
    context=2048,
    n_layers=24,
    d_model=1536,
    attention=AttentionSpec(n_heads=24, head_dim=64, n_kv_heads=6),
    feed_forward=FeedForwardSpec(d_ff=4096),
    experts=ExpertsSpec(granularity=8, expansion_rate=16, shared_experts=1, skip_first=1),
)
DENSE = replace(LARGE, experts=None)
BASES = {"small": SMALL, "large": LARGE, "dense": DENSE}


def flops(spec, convention="exact"):
    return count(spec, convention=convention).flops_per_token["total"]


@pytest.mark.parametrize("convention", ["exact", "exact-full", "expert-attention", "expert-attention-printed"])
@pytest.mark.parametrize("spec", BASES.values(), ids=BASES)
def test_parts_and_ratio_add_up(spec, convention):
    counted = count(spec, convention=convention)
    parts = {name: value for name, value in counted.flops_per_token.items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(counted.flops_per_token["total"], rel=1e-12)
    experts = parts["experts"] + parts["feed_forward"]
    ratios = counted.expert_attention_ratios
    assert ratios["without_router"] * parts["attention"] == pytest.approx(experts, rel=1e-12)
    assert ratios["with_router"] * parts["attention"] == pytest.approx(experts + parts["router"], rel=1e-12)
    own = "with_router" if convention.startswith("expert-attention") else "without_router"
    assert counted.expert_attention_ratio == ratios[own]
    assert counted.to_dict()["expert_attention_ratios"] == dict(ratios)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("spec", BASES.values(), ids=BASES)
def test_width_meets_the_ratio_at_equal_flops(spec, ratio):
    found = realise(spec, ratio=ratio)
    assert found.expert_attention_ratio == pytest.approx(ratio, rel=0.0202)
    assert flops(found.spec) == pytest.approx(flops(spec), rel=0.0101)
    assert found.spec.n_layers == spec.n_layers
    assert found.spec.attention.n_heads == spec.attention.n_heads
    assert found.spec.context == spec.context
    if spec.experts is not None:
        assert found.spec.experts.sparsity == spec.experts.sparsity


@pytest.mark.parametrize("move", ["heads", "depth", "context"])
@pytest.mark.parametrize("ratio", [0.8, 1.5])
def test_other_moves_meet_it_too(move, ratio):
    found = realise(SMALL, ratio=ratio, move=move, convention="exact-full")
    assert count(found.spec, convention="exact-full").expert_attention_ratio == pytest.approx(ratio, rel=0.0202)
    assert flops(found.spec, "exact-full") == pytest.approx(flops(SMALL, "exact-full"), rel=0.0101)
    kept = {
        "heads": ("n_layers", "context"),
        "depth": ("context",),
        "context": ("n_layers", "d_model", "attention"),
    }[move]
    for name in kept:
        assert getattr(found.spec, name) == getattr(SMALL, name)


GROUPED = {f"{n}/{k}": (n, k) for n, k in ((12, 4), (24, 8), (20, 4), (36, 4), (8, 8))}


@pytest.mark.parametrize("move", ["width", "heads", "kv_heads", "depth", "context"])
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPED.values(), ids=GROUPED)
@pytest.mark.parametrize("skip_first", [0, 3])
def test_the_base_stands_at_its_own_ratio_whatever_moves(move, heads, kv_heads, skip_first):
    base = replace(
        LARGE,
        n_layers=12,
        d_model=64 * heads,
        attention=AttentionSpec(n_heads=heads, head_dim=64, n_kv_heads=kv_heads),
        experts=replace(LARGE.experts, skip_first=skip_first),
    )
    assert realise(base, ratio=count(base).expert_attention_ratio, move=move).spec == base


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_heads_and_depth_move_in_steps_that_exist(factor):
    """A place that cannot be (a third of a group of heads, no block with experts) is no sign of a ratio too small."""
    base = replace(LARGE, n_layers=6, experts=replace(LARGE.experts, skip_first=4))
    for move in ("heads", "depth"):
        ratio = factor * count(base).expert_attention_ratio
        found = realise(base, ratio=ratio, move=move)
        assert found.expert_attention_ratio == pytest.approx(ratio, rel=0.0202)
        assert found.flops_per_token == pytest.approx(flops(base), rel=0.0101)
        assert found.spec.attention.n_heads / found.spec.attention.kv_heads == 4


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_heads_keep_their_size_and_widths_are_multiples_where_that_is_asked(ratio):
    found = realise(LARGE, ratio=ratio, keep_heads=True, multiple=16)
    assert found.spec.attention.head_dim == 64
    assert found.spec.d_model % 16 == 0 == found.spec.d_expert % 16
    assert found.expert_attention_ratio == pytest.approx(ratio, rel=0.0202)
    assert found.flops_per_token == pytest.approx(flops(LARGE), rel=0.0101)
    assert found.spec.attention.n_heads != LARGE.attention.n_heads


def test_a_ratio_out_of_reach_is_told_what_is_within():
    with pytest.raises(InputError, match=r"ratio is 1e\+09 .*; models like this one reach ratios from 0\.\d+ to \d+"):
        realise(SMALL, ratio=1e9)


def test_fewer_key_and_value_heads_raise_the_ratio():
    own = count(LARGE).expert_attention_ratio
    found = realise(LARGE, ratio=own * 1.15, move="kv_heads")
    assert found.spec.attention.kv_heads < 6
    with pytest.raises(InputError, match=r"ratio is 9 .* no model with move kv_heads comes within 2%"):
        realise(LARGE, ratio=9, move="kv_heads")


def test_a_larger_ratio_buys_parameters_unless_they_are_held():
    low, high = (realise(SMALL, ratio=ratio) for ratio in (0.5, 2.0))
    assert high.counted.params_active > 1.02 * low.counted.params_active
    assert high.counted.params_total > 1.3 * low.counted.params_total
    own = replace(
        SMALL,
        n_layers=8,
        d_model=256,
        attention=AttentionSpec(n_heads=8, head_dim=32),
        feed_forward=FeedForwardSpec(d_ff=768),
    )
    base = count(own)
    for ratio in (1.0, 1.6, 2.4):
        active = realise(own, ratio=ratio, hold=("params_active",))
        assert active.counted.params_active == pytest.approx(base.params_active, rel=0.0101)
        both = realise(own, ratio=ratio, hold=("params_active", "params_total"))
        assert both.counted.params_active == pytest.approx(base.params_active, rel=0.0101)
        assert both.counted.params_total == pytest.approx(base.params_total, rel=0.0101)
        total = realise(own, ratio=ratio, hold=("params_total",))
        assert total.counted.params_total == pytest.approx(base.params_total, rel=0.0101)
        assert total.spec.experts.n_experts > own.experts.n_experts or ratio >= base.expert_attention_ratio
        for each in (both, total):
            assert each.expert_attention_ratio == pytest.approx(ratio, rel=0.0202)
            assert each.flops_per_token == pytest.approx(flops(own), rel=0.0101)


def test_moved_and_sentence_say_what_went_along():
    found = realise(SMALL, ratio=3.0)
    base = count(SMALL)
    assert found.moved["params_total"] == found.counted.params_total / base.params_total
    assert found.moved["flops_per_token"] == pytest.approx(1, rel=0.0101)
    assert f"d_model 64 → {found.spec.d_model}" in found.sentence
    assert f"params_total ×{found.moved['params_total']:.3f}" in found.sentence
    document = found.to_dict()
    assert document["d_expert"] == found.spec.d_expert
    assert document["sparsity"] == SMALL.experts.sparsity


GRIDS = {8: ((352, 450), (368, 380), (384, 320), (400, 260), (416, 208)), 10: ((600, 766), (640, 640), (680, 528))}


@pytest.mark.parametrize(("layers", "cells"), GRIDS.items(), ids=map(str, GRIDS))
def test_the_published_sweep(layers, cells):
    """d_model / d_expert at equal FLOPs per token, E = 64 + 1, two routed and one shared expert (arXiv 2603.10379)."""
    heads = {8: 8, 10: 10}[layers]
    specs = [
        DecoderSpec(
            vocab_size=50257,
            context=4096,
            n_layers=layers,
            d_model=d_model,
            attention=AttentionSpec(n_heads=heads, head_dim=d_model // heads),
            feed_forward=FeedForwardSpec(d_ff=2 * d_expert),
            experts=ExpertsSpec(granularity=2, expansion_rate=32, shared_experts=1),
        )
        for d_model, d_expert in cells
    ]
    middle = specs[len(specs) // 2]
    assert middle.experts.sparsity == pytest.approx(1 - 3 / 65)
    for spec in specs:
        own = count(spec, convention="expert-attention")
        found = realise(
            middle,
            ratio=own.expert_attention_ratio,
            flops_per_token=own.flops_per_token["total"],
            convention="expert-attention",
        )
        assert (found.spec.d_model, found.spec.d_expert) == (spec.d_model, spec.d_expert)
        total = count(middle, convention="expert-attention").flops_per_token["total"]
        assert own.flops_per_token["total"] == pytest.approx(total, rel=0.02)


def test_a_sweep_is_one_model_for_each_ratio():
    ratios = [0.4, 0.8, 1.6]
    found = ratio_sweep(SMALL, ratios)
    assert [each.asked_ratio for each in found] == ratios
    widths = [each.spec.d_model for each in found]
    assert widths == sorted(widths, reverse=True)


def test_ratio_falls_with_context_and_heads_and_rises_with_what_experts_a_token_uses():
    def ratio(spec, **how):
        return count(spec, **how).expert_attention_ratio

    assert ratio(LARGE, context=8192) < ratio(LARGE) < ratio(LARGE, context=512)
    more = replace(LARGE, attention=replace(LARGE.attention, n_heads=30))
    assert ratio(more) < ratio(LARGE)
    double = replace(LARGE, experts=replace(LARGE.experts, activation_multiplier=2.0))
    assert ratio(double) > 1.8 * ratio(LARGE)
    finer = replace(LARGE, experts=replace(LARGE.experts, granularity=32, shared_experts=0))
    coarser = replace(LARGE, experts=replace(LARGE.experts, shared_experts=0))
    assert ratio(finer) == pytest.approx(ratio(coarser))
    assert ratio(finer, convention="expert-attention") > ratio(coarser, convention="expert-attention")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"ratio": 0}, "ratio is 0; it must be positive and finite"),
        ({"ratio": math.nan}, "ratio is nan"),
        ({"flops_per_token": -1.0}, "flops_per_token is -1"),
        ({"move": "depths"}, "move is 'depths'; allowed: width, heads, kv_heads, depth, context"),
        ({"hold": ("tokens",)}, "hold is 'tokens'; allowed: params_active, params_total"),
        ({"hold": ("params_active",), "move": "depth"}, "parameters can be held with move width alone"),
        ({"multiple": 0}, "multiple is 0"),
        ({"keep_heads": True, "hold": ("params_active",)}, "keep_heads is given with hold params_active"),
        ({"flops_per_token": 10.0}, "no model with move width"),
    ],
)
def test_what_cannot_be_is_one_sentence(how, sentence):
    with pytest.raises(InputError, match=sentence):
        realise(SMALL, **{"ratio": 1.0} | how)
