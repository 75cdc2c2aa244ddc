"""The accounting against the running model: parameters, and the FLOPs that torch's profiler counts."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from isoflop import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec, count
from isoflop.nn import Decoder

BATCH = 8
DENSE = DecoderSpec(
    vocab_size=61,
    context=16,
    n_layers=3,
    d_model=32,
    attention=AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2, qk_norm=True),
    feed_forward=FeedForwardSpec(d_ff=64),
)
TOKEN_CHOICE = ExpertsSpec(granularity=4, expansion_rate=4)
EXPERT_CHOICE = replace(TOKEN_CHOICE, router=RouterSpec(kind="expert_choice"))


def profiled(spec: DecoderSpec, *, backward: bool) -> int:
    """FLOPs that torch counts for one forward, or one forward and backward, per token."""
    model = Decoder(spec)
    tokens_BT = torch.randint(0, spec.vocab_size, (BATCH, spec.context), generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits_BTV = model(tokens_BT).logits_BTV
        if backward:
            cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten()).backward()
    return counter.get_total_flops() // tokens_BT.numel()


@pytest.mark.parametrize(
    "spec",
    [
        DENSE,
        replace(DENSE, tied_head=True),
        replace(DENSE, feed_forward=FeedForwardSpec(d_ff=64, activation="relu")),
        replace(DENSE, attention=AttentionSpec(n_heads=2, head_dim=24)),
        replace(DENSE, experts=TOKEN_CHOICE),
        replace(DENSE, experts=replace(TOKEN_CHOICE, shared_experts=2, output_norm=False, skip_first=1)),
        replace(DENSE, experts=replace(EXPERT_CHOICE, every=2)),
        replace(DENSE, experts=replace(TOKEN_CHOICE, noop_experts=3)),
        replace(DENSE, depth_routing=DepthRoutingSpec(capacity=0.25)),
        replace(DENSE, depth_routing=DepthRoutingSpec(capacity=0.25, every=1, sampled_by="predictor")),
        replace(DENSE, depth_routing=DepthRoutingSpec(capacity=0.25, router="fixed")),
    ],
)
def test_parameters_equal_those_of_the_built_model(spec: DecoderSpec) -> None:
    counted = count(spec)
    built = sum(parameter.numel() for parameter in Decoder(spec).parameters())
    assert counted.params_total + counted.params_embedding == built == sum(counted.params_by_part.values())


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("tied", [False, True])
def test_dense_flops_equal_the_profilers(activation: str, tied: bool) -> None:
    feed_forward = FeedForwardSpec(d_ff=64, activation=activation)  # type: ignore[arg-type]
    counted = count(replace(DENSE, feed_forward=feed_forward, tied_head=tied), convention="exact-full")
    spec = replace(DENSE, feed_forward=feed_forward, tied_head=tied)
    assert profiled(spec, backward=False) == counted.flops_per_token["total"]
    assert profiled(spec, backward=True) == counted.training_flops_per_token


@pytest.mark.parametrize("experts", [TOKEN_CHOICE, EXPERT_CHOICE, replace(TOKEN_CHOICE, shared_experts=1)])
def test_moe_flops_differ_from_the_profilers_by_the_dispatch(experts: ExpertsSpec) -> None:
    """A profiler counts matrix products; the weighted sum of the experts' outputs (`dispatch`) is none."""
    spec = replace(DENSE, experts=experts)
    counted = count(spec, convention="exact-full")
    dispatch = counted.flops_per_token["dispatch"]
    assert counted.flops_per_token["total"] - profiled(spec, backward=False) == dispatch > 0
    assert counted.training_flops_per_token - profiled(spec, backward=True) == 3 * dispatch


ROUTED = {
    "block": DepthRoutingSpec(capacity=0.25),
    "every block": DepthRoutingSpec(capacity=0.5, every=1, gate="sigmoid"),
    "uneven": DepthRoutingSpec(capacity=0.3),
    "feed-forward": DepthRoutingSpec(capacity=0.25, part="feed_forward"),
    "fixed": DepthRoutingSpec(capacity=0.25, router="fixed"),
    "stochastic": DepthRoutingSpec(capacity=0.25, router="stochastic"),
}


@pytest.mark.parametrize("routing", ROUTED.values(), ids=ROUTED)
def test_depth_routed_flops_equal_the_profilers(routing: DepthRoutingSpec) -> None:
    spec = replace(DENSE, depth_routing=routing)
    counted = count(spec, convention="exact-full")
    total = counted.flops_per_token["total"]
    assert profiled(spec, backward=False) == pytest.approx(total, rel=1e-9, abs=1)  # profiled() rounds down
    assert profiled(spec, backward=True) == pytest.approx(counted.training_flops_per_token, rel=1e-9, abs=1)


def test_a_predictors_flops_equal_the_profilers() -> None:
    spec = replace(DENSE, depth_routing=DepthRoutingSpec(capacity=0.25, sampled_by="predictor"))
    model = Decoder(spec)
    tokens_BT = torch.randint(0, spec.vocab_size, (BATCH, spec.context), generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(tokens_BT)
        (cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT.flatten()) + output.auxiliary_loss).backward()
    expected = count(spec, convention="exact-full").training_flops_per_token
    assert counter.get_total_flops() / tokens_BT.numel() == pytest.approx(expected)


def test_staged_flops_differ_from_the_profilers_by_the_dispatch() -> None:
    spec = replace(DENSE, experts=TOKEN_CHOICE, depth_routing=DepthRoutingSpec(capacity=0.25))
    counted = count(spec, convention="exact-full")
    without = counted.flops_per_token["total"] - counted.flops_per_token["dispatch"]
    assert profiled(spec, backward=False) == pytest.approx(without, abs=1)
