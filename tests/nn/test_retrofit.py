"""Depth routing added to a model that was trained without it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from isoflop.errors import InputError
from isoflop.nn import Decoder, calibrate_thresholds, retrofit
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec

MOE = ExpertsSpec(granularity=2, expansion_rate=4, router=RouterSpec(balance="bias"))
EXPERT_CHOICE = ExpertsSpec(granularity=2, expansion_rate=4, router=RouterSpec(kind="expert_choice"))
KINDS = {
    "dense": {},
    "tied": {"tied_head": True},
    "qk norm, gelu": {
        "attention": AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2, qk_norm=True),
        "feed_forward": FeedForwardSpec(d_ff=48, activation="gelu"),
    },
    "moe": {"experts": MOE},
    "no-op experts": {"experts": replace(MOE, noop_experts=2)},
    "expert choice": {"experts": EXPERT_CHOICE},
}
WHOLE = DepthRoutingSpec(capacity=1.0, gate="sigmoid")


def model_of(kind, dtype=torch.float32):
    """A model whose gains and buffers are uneven, so that one that was not copied shows."""
    spec = DecoderSpec(
        **{
            "vocab_size": 61,
            "context": 24,
            "n_layers": 4,
            "d_model": 32,
            "attention": AttentionSpec(n_heads=4, head_dim=8),
            "feed_forward": FeedForwardSpec(d_ff=48),
            **KINDS[kind],
        }
    )
    model = Decoder(spec, seed=3, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "gain" in name or "bias" in name:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def tokens(batch=8, length=24, seed=0):
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("part", ["block", "feed_forward"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_capacity_one_the_function_is_the_same(kind, part, dtype, tolerance):
    model = model_of(kind, dtype)
    routed = retrofit(model, replace(WHOLE, part=part, every=1))
    assert routed.spec == replace(model.spec, depth_routing=replace(WHOLE, part=part, every=1))
    assert len(routed.depth_routers) == 4
    expected, actual = model(tokens()), routed(tokens())
    torch.testing.assert_close(actual.logits_BTV, expected.logits_BTV, rtol=tolerance, atol=tolerance)
    for there, here in zip(expected.experts, actual.experts, strict=True):
        torch.testing.assert_close(here.load_X, there.load_X)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_shared_weights_are_the_same(kind):
    model = model_of(kind, torch.float64)
    routed = retrofit(model, WHOLE)
    for one in (model, routed):
        F.cross_entropy(one(tokens()).logits_BTV.flatten(0, 1), tokens(seed=1).flatten()).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(routed.get_parameter(name).grad, weight.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("sampled_by", ["threshold", "auxiliary", "predictor"])
@pytest.mark.parametrize("capacity", [1.0, 0.25])
def test_the_loss_reaches_the_routers_and_a_step_moves_them(sampled_by, capacity):
    routed = retrofit(model_of("dense"), DepthRoutingSpec(capacity=capacity, gate="sigmoid", sampled_by=sampled_by))
    assert all(not router.w_1D.any() for router in routed.depth_routers)
    optimizer = torch.optim.AdamW(routed.parameters(), lr=1e-3)
    output = routed(tokens())
    (F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens(seed=1).flatten()) + output.auxiliary_loss).backward()
    missing = {name for name, weight in routed.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert not missing
    optimizer.step()
    assert all(router.w_1D.all() for router in routed.depth_routers)


def test_a_predictor_has_its_own_init():
    routing = replace(WHOLE, sampled_by="predictor")
    first, again, other = (retrofit(model_of("dense"), routing, seed=seed) for seed in (0, 0, 1))
    for router, same, different in zip(first.depth_routers, again.depth_routers, other.depth_routers, strict=True):
        assert router.predictor_up_PD.std() > 0.1
        assert torch.equal(router.predictor_up_PD, same.predictor_up_PD)
        assert not torch.equal(router.predictor_up_PD, different.predictor_up_PD)


def test_at_capacity_one_the_calibrated_model_keeps_every_token_as_sampled():
    model = model_of("dense")
    routed = retrofit(model, WHOLE)
    calibrate_thresholds(routed, [tokens(seed=2)])
    routed.decisions = "sampled"
    torch.testing.assert_close(routed(tokens()).logits_BTV, model(tokens()).logits_BTV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router", ["stochastic", "fixed"])
def test_routers_without_a_gate_need_none(router):
    model = model_of("dense")
    routed = retrofit(model, DepthRoutingSpec(capacity=1.0, router=router))
    torch.testing.assert_close(routed(tokens()).logits_BTV, model(tokens()).logits_BTV, rtol=1e-5, atol=1e-5)


def test_the_copy_is_independent_and_keeps_the_mode():
    model = model_of("dense").eval()
    model.activation_checkpointing = True
    routed = retrofit(model, WHOLE)
    assert not routed.training
    assert routed.activation_checkpointing
    with torch.no_grad():
        for weight in routed.parameters():
            weight.zero_()
    assert model.embedding_VD.any()


@pytest.mark.parametrize(
    ("model", "routing", "sentence"),
    [
        ("dense", DepthRoutingSpec(capacity=0.5), "depth_routing.gate is 'raw', which is 0 .* must be 'sigmoid'"),
        ("dense", replace(WHOLE, every=9), "no block would be routed"),
        ("routed", replace(WHOLE, capacity=0.5), "model has depth routing already"),
    ],
)
def test_what_cannot_be_retrofitted_is_refused_in_a_sentence(model, routing, sentence):
    dense = model_of("dense")
    source = dense if model == "dense" else retrofit(dense, replace(WHOLE, capacity=0.5))
    with pytest.raises(InputError, match=sentence):
        retrofit(source, routing)
