"""The accounting against hand computations from the papers' formulas."""

import pytest

from isoflop import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec, InputError, count
from isoflop.spec import CONVENTIONS, kv_cache_bytes, memory


def decoder(
    *, d: int = 64, layers: int = 2, activation: str = "swiglu", d_ff: int = 192, **changes: object
) -> DecoderSpec:
    fields: dict[str, object] = {
        "vocab_size": 257,
        "context": 32,
        "n_layers": layers,
        "d_model": d,
        "attention": AttentionSpec(n_heads=4, head_dim=d // 4),
        "feed_forward": FeedForwardSpec(d_ff=d_ff, activation=activation),  # type: ignore[arg-type]
        **changes,
    }
    return DecoderSpec(**fields)  # type: ignore[arg-type]


def test_krajewski_flops_are_the_papers_formula() -> None:
    d, layers, rate, granularity = 128, 2, 8, 4
    experts = ExpertsSpec(granularity=granularity, expansion_rate=rate)
    spec = decoder(d=d, layers=layers, d_ff=4 * d, activation="relu", experts=experts)
    counted = count(spec, convention="krajewski")
    assert counted.training_flops_per_token == (12 * d**2 * 6 + d * rate * granularity * 14) * layers
    matrices = counted.params_total - counted.params_router - counted.params_by_part["norms"]
    assert matrices == d**2 * (8 * rate + 4) * layers


def test_exact_flops_by_hand() -> None:
    spec = decoder(attention=AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=16))
    counted = count(spec)
    assert counted.attention_flops["projections"] == 2 * 2 * 64 * 16 * (2 * 4 + 2 * 2)
    assert counted.attention_flops["scores"] == 2 * 4 * (33 / 2) * 64
    assert counted.flops_per_token["feed_forward"] == 2 * 6 * 64 * 192
    assert counted.flops_per_token["head"] == 2 * 64 * 257
    assert count(spec, convention="exact-full").attention_flops["scores"] == 2 * 4 * 32 * 64
    assert counted.training_flops_per_token == 3 * counted.flops_per_token["total"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("granularity", [1, 2, 8])
def test_parts_sum_to_the_total_and_granularity_keeps_active_experts(convention: str, granularity: int) -> None:
    moe = decoder(experts=ExpertsSpec(granularity=granularity, expansion_rate=8, output_norm=False))
    counted, dense = count(moe, convention=convention), count(decoder(), convention=convention)
    parts = dict(counted.flops_per_token)
    assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert counted.params_active - counted.params_router == dense.params_active
    assert counted.flops_per_token["experts"] == dense.flops_per_token["feed_forward"]
    assert counted.params_by_part["experts"] == 8 * dense.params_by_part["feed_forward"]


def test_active_parameters_times_six_is_6nd() -> None:
    counted = count(decoder(experts=ExpertsSpec(granularity=2, expansion_rate=4)), convention="6ND")
    assert counted.training_flops_per_token == 6 * counted.params_active


def test_shared_experts_are_always_active() -> None:
    plain = count(decoder(experts=ExpertsSpec(granularity=4, expansion_rate=4)))
    shared = count(decoder(experts=ExpertsSpec(granularity=4, expansion_rate=4, shared_experts=2)))
    width = 2 * 3 * 64 * (192 // 4)
    assert shared.params_total - plain.params_total == 2 * width
    assert shared.params_active - plain.params_active == 2 * width


@pytest.mark.parametrize(("d_model", "d_expert"), [(352, 450), (384, 320), (416, 208)])
def test_expert_attention_ratio_by_the_papers_sequence_formula(d_model: int, d_expert: int) -> None:
    n, heads, total, used = 4096, 8, 64, 2
    spec = DecoderSpec(
        vocab_size=1000,
        context=n,
        n_layers=8,
        d_model=d_model,
        attention=AttentionSpec(n_heads=heads, head_dim=d_model // heads),
        feed_forward=FeedForwardSpec(d_ff=d_expert),
        experts=ExpertsSpec(granularity=1, expansion_rate=total, activation_multiplier=used, shared_experts=1),
    )
    attention = 2 * n * d_model**2 + 4 * n * d_model**2 + 2 * n**2 * d_model + 2 * n * d_model**2
    experts = n * (2 * d_model * total + 6 * d_model * d_expert * (used + 1))
    full = count(spec, convention="expert-attention").expert_attention_ratio
    printed = count(spec, convention="expert-attention-printed").expert_attention_ratio
    assert full == pytest.approx(experts / (attention + 2 * n**2 * d_model))
    assert printed == pytest.approx(experts / (attention + 2 * n * d_model**2))


def test_context_moves_only_the_scores() -> None:
    short, long = count(decoder(), context=16), count(decoder(), context=4096)
    for part in ("feed_forward", "experts", "router", "head"):
        assert short.flops_per_token[part] == long.flops_per_token[part]
    assert long.attention_flops["scores"] / short.attention_flops["scores"] == pytest.approx(4097 / 17)


def test_memory_and_cache() -> None:
    spec = decoder()
    parameters = sum(count(spec).params_by_part.values())
    plain = memory(spec, batch_tokens=64)
    assert plain.weights == plain.gradients == 4 * parameters
    assert plain.optimizer == 8 * parameters
    assert memory(spec, batch_tokens=128).activations == 2 * plain.activations
    assert memory(decoder(layers=8), batch_tokens=64, activation_checkpointing=True).activations < plain.activations * 4
    assert kv_cache_bytes(spec, tokens=10, batch=3, element_bytes=2) == 2 * 2 * 64 * 10 * 3 * 2


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(InputError, match=r"convention is 'flops'; allowed: exact"):
        count(decoder(), convention="flops")
    with pytest.raises(InputError, match="context is 0"):
        count(decoder(), context=0)
    with pytest.raises(InputError, match="batch_tokens is 0"):
        memory(decoder(), batch_tokens=0)
    with pytest.raises(InputError, match="batch is 0"):
        kv_cache_bytes(decoder(), tokens=1, batch=0)
