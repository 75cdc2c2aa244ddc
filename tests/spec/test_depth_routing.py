"""Depth routing in the spec: validation, and its FLOPs, parameters and memory by hand."""

from dataclasses import replace

import pytest

from isoflop import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, InputError, count
from isoflop.spec import CONVENTIONS, kv_cache_bytes, load_spec, memory, save_spec


def decoder(**changes) -> DecoderSpec:
    fields = {
        "vocab_size": 257,
        "context": 64,
        "n_layers": 4,
        "d_model": 32,
        "attention": AttentionSpec(n_heads=4, head_dim=8),
        "feed_forward": FeedForwardSpec(d_ff=96),
    }
    return DecoderSpec(**fields | changes)


DENSE = decoder()
EXPERTS = ExpertsSpec(granularity=2, expansion_rate=4)


def routed(capacity=0.125, experts=None, **routing) -> DecoderSpec:
    return decoder(experts=experts, depth_routing=DepthRoutingSpec(capacity=capacity, **routing))


def test_flops_by_hand():
    """Two of four blocks compute 8 of 64 tokens: an eighth of the products, and scores over (8+1)/2 keys."""
    counted = count(routed())
    attention, feed_forward = 8 * 32 * 32, 6 * 32 * 96
    assert counted.attention_flops["projections"] == 2 * attention + 2 * attention / 8
    assert counted.attention_flops["scores"] == 2 * 2 * 65 * 32 + 2 * (2 * 9 * 32) / 8
    assert counted.flops_per_token["feed_forward"] == 2 * feed_forward + 2 * feed_forward / 8
    assert counted.flops_per_token["depth_router"] == 2 * 2 * 32
    full = count(routed(), convention="exact-full")
    assert full.attention_flops["scores"] == 2 * 4 * 64 * 32 + 2 * (4 * 8 * 32) / 8
    assert counted.training_flops_per_token == 3 * counted.flops_per_token["total"]


def test_attention_scores_are_quadratic_in_the_capacity():
    scores = {c: count(routed(c, every=1), convention="exact-full").attention_flops["scores"] for c in (0.25, 0.5, 1.0)}
    assert scores[0.5] == scores[1.0] / 4 == scores[0.25] * 4
    assert scores[1.0] == count(DENSE, convention="exact-full").attention_flops["scores"]


def test_routing_only_the_feed_forward_leaves_attention():
    counted, dense = count(routed(part="feed_forward")), count(DENSE)
    assert counted.attention_flops == dense.attention_flops
    assert counted.flops_per_token["feed_forward"] == dense.flops_per_token["feed_forward"] * (2 + 2 / 8) / 4
    assert kv_cache_bytes(routed(part="feed_forward"), tokens=64) == kv_cache_bytes(DENSE, tokens=64)


def test_staged_experts_cost_their_share():
    counted, plain = count(routed(0.25, EXPERTS)), count(decoder(experts=EXPERTS))
    for part in ("experts", "router", "dispatch"):
        assert counted.flops_per_token[part] == plain.flops_per_token[part] * (2 + 2 / 4) / 4


def test_integrated_noops_cost_their_share():
    counted, plain = count(decoder(experts=replace(EXPERTS, noop_experts=8))), count(decoder(experts=EXPERTS))
    for part in ("experts", "dispatch"):
        assert counted.flops_per_token[part] == plain.flops_per_token[part] / 2
    assert counted.flops_per_token["router"] == plain.flops_per_token["router"] * 2
    assert counted.params_by_part["experts"] == plain.params_by_part["experts"]
    assert counted.params_active < plain.params_active


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("every", [1, 2])
def test_capacity_one_costs_the_dense_model_and_its_routers(convention, every):
    for spec, plain in (
        (routed(1.0, every=every), DENSE),
        (routed(1.0, EXPERTS, every=every), decoder(experts=EXPERTS)),
    ):
        counted, dense = count(spec, convention=convention), count(plain, convention=convention)
        router = counted.flops_per_token["depth_router"]
        assert router == len(spec.routed_layers) * 2 * 32
        assert counted.flops_per_token["total"] - router == pytest.approx(dense.flops_per_token["total"])
        assert counted.params_active - len(spec.routed_layers) * 32 == dense.params_active


def test_every_part_falls_with_the_capacity():
    totals = [count(routed(c)).flops_per_token["total"] for c in (0.125, 0.25, 0.5, 0.75, 1.0)]
    actives = [count(routed(c)).params_active for c in (0.125, 0.25, 0.5, 0.75, 1.0)]
    kept = [memory(routed(c), batch_tokens=64).activations for c in (0.125, 0.25, 0.5, 0.75, 1.0)]
    caches = [kv_cache_bytes(routed(c), tokens=64) for c in (0.125, 0.25, 0.5, 0.75, 1.0)]
    for values in (totals, actives, kept, caches):
        assert values == sorted(set(values))
    assert len({count(routed(c)).params_total for c in (0.125, 0.5, 1.0)}) == 1


def test_6nd_is_six_times_active():
    for spec in (routed(), routed(0.25, EXPERTS), routed(0.5, sampled_by="predictor")):
        counted = count(spec, convention="6ND")
        assert counted.training_flops_per_token == pytest.approx(6 * counted.params_active, abs=6)


def test_a_predictor_passes_no_gradient_on():
    plain, counted = count(routed()), count(routed(sampled_by="predictor", predictor_width=16))
    extra = 2 * (2 * 32 * 16 + 2 * 16)
    assert counted.flops_per_token["depth_router"] - plain.flops_per_token["depth_router"] == extra
    training = counted.training_flops_per_token - plain.training_flops_per_token
    assert training == 2 * (2 * 2 * 32 * 16 + 3 * 2 * 16)
    assert counted.params_by_part["depth_router"] == 2 * (32 + 32 * 16 + 16)


def test_routers_without_weights_cost_nothing():
    for kind in ("fixed", "stochastic"):
        assert count(routed(router=kind)).flops_per_token["depth_router"] == 0
        assert count(routed(router=kind)).params_total == count(DENSE).params_total


@pytest.mark.parametrize(
    ("capacity", "length", "kept"), [(0.125, 64, 8), (0.1, 30, 3), (0.3, 7, 3), (0.01, 5, 1), (1, 9, 9)]
)
def test_kept_tokens_are_rounded_up(capacity, length, kept):
    assert DepthRoutingSpec(capacity=capacity).n_kept(length) == kept


def test_a_round_trip_is_the_identity(tmp_path):
    spec = routed(0.25, EXPERTS, every=3, gate="sigmoid", sampled_by="auxiliary")
    for name in ("spec.yaml", "spec.json"):
        save_spec(spec, tmp_path / name)
        assert load_spec(tmp_path / name) == spec


def test_routed_first_and_last_blocks_are_allowed_and_warned_about():
    assert routed().routed_layers == (1, 3)
    (last,) = routed().warnings
    assert last == (
        "depth_routing routes the last of 4 blocks (block 3, from 0); what it skips leaves the model without it; "
        "n_layers, every and skip_first decide."
    )
    assert len(routed(every=1).warnings) == 2
    assert routed(skip_first=1).routed_layers == (2,)
    assert routed(skip_first=1).warnings == DENSE.warnings == ()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"capacity": 0.5, "router": "fixed", "sampled_by": "predictor"},
            "depth_routing.sampled_by is 'predictor', for which a fixed router has no use; leave it out, or make the "
            "router learned.",
        ),
        (
            {"capacity": 0.5, "router": "stochastic", "gate": "sigmoid"},
            "depth_routing.gate is 'sigmoid', for which a stochastic router has no use; leave it out, or make the "
            "router learned.",
        ),
        (
            {"capacity": 0.5, "predictor_width": 8},
            "depth_routing.predictor_width is 8, but there is no predictor; set sampled_by to predictor (with a "
            "learned router), or leave it out.",
        ),
        ({"capacity": 0}, "depth_routing.capacity is 0; it must be greater than 0 and at most 1."),
        ({"capacity": 1.01}, "depth_routing.capacity is 1.01; it must be greater than 0 and at most 1."),
        ({"capacity": float("nan")}, "depth_routing.capacity is nan; it must be greater than 0 and at most 1."),
        ({"capacity": "0.5"}, "depth_routing.capacity is '0.5'; it must be greater than 0 and at most 1."),
        ({"capacity": True}, "depth_routing.capacity is True; it must be greater than 0 and at most 1."),
        ({"capacity": 0.5, "every": 0}, "depth_routing.every is 0; it must be finite and greater than 0."),
        ({"capacity": 0.5, "router": "best"}, "depth_routing.router is 'best'; allowed: learned, stochastic, fixed."),
        ({"capacity": 0.5, "gate": "x"}, "depth_routing.gate is 'x'; allowed: raw, sigmoid."),
        ({"capacity": 0.5, "part": "x"}, "depth_routing.part is 'x'; allowed: block, feed_forward."),
        ({"capacity": 0.5, "sampled_by": "x"}, "sampled_by is 'x'; allowed: threshold, auxiliary, predictor."),
        ({"capacity": 0.01}, "depth_routing.capacity is 0.01, which keeps no token of a context of 64; it must be at"),
        ({"capacity": 0.5, "skip_first": 4}, "with n_layers=4 no block would be routed"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(fields, sentence):
    with pytest.raises(InputError) as error:
        decoder(depth_routing=DepthRoutingSpec(**fields))
    assert sentence in str(error.value)
