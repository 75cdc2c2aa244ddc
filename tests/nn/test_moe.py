"""The fast MoE layer against the slow oracle, and what its routers promise."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tests.oracles.moe import moe as slow_moe

from isoflop.errors import InputError
from isoflop.nn import MoE
from isoflop.spec import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec, RouterSpec, count

D_MODEL = 6


def make(
    *,
    kind="token_choice",
    granularity=2,
    expansion_rate=3,
    activation="swiglu",
    shared_experts=0,
    output_norm=True,
    dtype=torch.float64,
    d_ff=48,
    d_model=D_MODEL,
    multiplier=1.0,
    **router,
):
    spec = ExpertsSpec(
        granularity=granularity,
        expansion_rate=expansion_rate,
        activation_multiplier=multiplier,
        shared_experts=shared_experts,
        output_norm=output_norm,
        router=RouterSpec(kind=kind, **router),
    )
    generator = torch.Generator().manual_seed(0)
    return MoE(d_model=d_model, d_ff=d_ff, experts=spec, activation=activation, generator=generator, dtype=dtype)


TOKEN_CHOICE = [
    {
        "score_order": order,
        "renormalise": renormalise,
        "balance": balance,
        "granularity": granularity,
        "shared_experts": shared,
        "output_norm": norm,
        "z_loss_weight": 0.1,
        "balance_weight": 0.5,
    }
    for (order, renormalise), balance, granularity, shared, norm in itertools.product(
        [("softmax_topk", True), ("softmax_topk", False), ("topk_softmax", True)],
        ["auxiliary", "bias", "none"],
        [1, 2],
        [0, 2],
        [False, True],
    )
]
EXPERT_CHOICE = [
    {
        "kind": kind,
        "granularity": granularity,
        "shared_experts": shared,
        "output_norm": norm,
        "z_loss_weight": 0.1,
    }
    for kind, granularity, shared, norm in itertools.product(
        ["expert_choice", "expert_choice_noncausal"], [1, 2], [0, 2], [False, True]
    )
]
ACTIVATIONS = [
    {"activation": activation, "shared_experts": shared}
    for activation, shared in itertools.product(["gelu", "relu"], [0, 2])
]


def assert_equals_oracle(layer, x_BTD):
    results = []
    for compute in ("fast", "slow"):
        x = x_BTD.clone().requires_grad_()
        layer.zero_grad()
        if compute == "fast":
            y, statistics = layer(x)
            auxiliary, load, dropped = (
                statistics.auxiliary_loss,
                statistics.load_X,
                statistics.dropped_share,
            )
        else:
            y, auxiliary, load, dropped = slow_moe(layer, x)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
        ((y * weights).sum() + auxiliary).backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in layer.named_parameters()
        }
        results.append({"y": y, "aux": auxiliary, "load": load, "dropped": dropped, "x": x.grad} | gradients)
    fast, slow = results
    for name in slow:
        torch.testing.assert_close(
            fast[name], slow[name].to(fast[name].dtype), rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("options", TOKEN_CHOICE + EXPERT_CHOICE + ACTIVATIONS, ids=str)
def test_equals_slow_oracle_in_values_and_gradients(options):
    layer = make(**options)
    generator = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(4, 5, D_MODEL, generator=generator, dtype=torch.float64)
    if options.get("balance") == "bias":
        layer.router.bias_X.copy_(torch.linspace(-0.2, 0.2, layer.experts.n_experts))
    with torch.no_grad():
        layer.router.w_XD.mul_(3)  # clearly unequal scores
    assert_equals_oracle(layer, x_BTD)


@pytest.mark.parametrize("granularity", [1, 2])
def test_empty_and_overloaded_experts_equal_oracle(granularity):
    layer = make(granularity=granularity, balance="bias", multiplier=1)
    n_experts = layer.experts.n_experts
    layer.router.bias_X.copy_(torch.arange(n_experts, 0, -1) * 10.0)  # everything goes to the first experts
    x_BTD = torch.randn(3, 4, D_MODEL, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, statistics = layer(x_BTD)
    assert (statistics.load_X[granularity:] == 0).all()
    assert_equals_oracle(layer, x_BTD)


def test_threshold_routing_equals_oracle_with_dropped_tokens():
    layer = make(kind="expert_choice", granularity=2)
    layer.router.threshold_X.fill_(0.2)
    layer.router.by_threshold = True
    x_BTD = torch.randn(3, 4, D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        layer.router.w_XD.mul_(3)
    _, statistics = layer(x_BTD)
    assert 0 <= statistics.dropped_share < 1
    assert_equals_oracle(layer, x_BTD)


def test_no_expert_takes_any_token():
    layer = make(kind="expert_choice")
    layer.router.threshold_X.fill_(2.0)
    layer.router.by_threshold = True
    x_BTD = torch.randn(1, 3, D_MODEL, dtype=torch.float64, requires_grad=True)
    y_BTD, statistics = layer(x_BTD)
    assert (y_BTD == 0).all()
    assert statistics.dropped_share == 1
    y_BTD.sum().backward()
    assert (layer.w_up.grad == 0).all()


@pytest.mark.parametrize("kind", ["token_choice", "expert_choice", "expert_choice_noncausal"])
def test_backward_adds_nothing_by_index(kind):
    layer = make(kind=kind, dtype=torch.float32, z_loss_weight=0.1, shared_experts=1)
    x_BTD = torch.randn(4, 8, D_MODEL, requires_grad=True)
    y_BTD, statistics = layer(x_BTD)
    loss = y_BTD.square().sum() + statistics.auxiliary_loss
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    ran = {event.key for event in profile.key_averages()}
    assert any("mm" in name for name in ran)
    assert not [
        name for name in ran if any(bad in name for bad in ("scatter_add", "scatter_reduce", "index_add", "index_put"))
    ]


def test_uniform_load_costs_exactly_the_balance_weight():
    layer = make(granularity=2, expansion_rate=3, balance_weight=0.25, d_model=6)
    # Token i prefers experts i and i+1 of 6, so every expert is taken equally often and the mean score is uniform.
    with torch.no_grad():
        layer.router.w_XD.copy_(torch.eye(6, dtype=torch.float64) + torch.eye(6, dtype=torch.float64).roll(1, 0))
    _, statistics = layer(torch.eye(6, dtype=torch.float64)[None])
    assert statistics.load_X.tolist() == pytest.approx([1 / 6] * 6)
    assert statistics.auxiliary_loss.item() == pytest.approx(0.25, rel=1e-12)
    assert statistics.entropy.item() == pytest.approx(math.log(6), rel=1e-12)


def test_unequal_load_costs_more():
    layer = make(granularity=2, expansion_rate=3, balance_weight=1.0, d_model=6)
    with torch.no_grad():
        layer.router.w_XD.zero_()
        layer.router.w_XD[:2] = 1.0
    _, statistics = layer(torch.ones(1, 4, 6, dtype=torch.float64))
    assert statistics.auxiliary_loss.item() > 2.5  # two of six experts take all: at most 3


def test_bias_moves_load_towards_uniform():
    layer = make(granularity=2, expansion_rate=4, balance="bias", bias_rate=0.002, dtype=torch.float32)
    x_BTD = torch.randn(8, 64, D_MODEL, generator=torch.Generator().manual_seed(0)) + 1.0
    with torch.no_grad():
        _, before = layer(x_BTD)
        for _ in range(300):
            _, statistics = layer(x_BTD)
            layer.router.update_bias(statistics.load_X)
        _, after = layer(x_BTD)
    assert before.load_X.max() > 2 / 8
    assert after.load_X.max() < 1.2 / 8
    assert after.load_X.min() > 0.8 / 8


def test_bias_selects_but_does_not_scale():
    layer = make(granularity=1, expansion_rate=4, balance="bias", output_norm=False)
    x_BTD = torch.randn(1, 1, D_MODEL, dtype=torch.float64)
    layer.router.bias_X[2] = 5.0
    routing = layer.router(x_BTD)
    assert routing.assignment.experts_M.tolist() == [2]
    _, probabilities_NX = layer.router.scores(x_BTD)
    torch.testing.assert_close(routing.gates_M, probabilities_NX[0, 2:3])


@pytest.mark.parametrize("order", ["softmax_topk", "topk_softmax"])
@pytest.mark.parametrize("output_norm", [False, True])
def test_single_expert_per_token_still_teaches_the_router(order, output_norm):
    layer = make(granularity=1, expansion_rate=4, score_order=order, output_norm=output_norm, balance="none")
    x_BTD = torch.randn(2, 3, D_MODEL, dtype=torch.float64)
    y_BTD, _ = layer(x_BTD)
    (y_BTD * torch.randn_like(y_BTD)).sum().backward()
    assert layer.router.w_XD.grad.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("batch", "granularity", "expected"), [(16, 1, 2), (12, 1, 2), (11, 1, 1), (2, 1, 1), (16, 4, 2)]
)
def test_share_of_an_expert_is_rounded_and_at_least_one(batch, granularity, expected):
    layer = make(kind="expert_choice", granularity=granularity, expansion_rate=8, dtype=torch.float32)
    routing = layer.router(torch.randn(batch, 3, D_MODEL))
    assert routing.assignment.counts_X.tolist() == [3 * expected] * layer.experts.n_experts
    assert routing.gates_M.shape[0] == 3 * expected * layer.experts.n_experts


def test_router_is_float32_under_bf16_autocast():
    layer = make(dtype=torch.float32)
    x_BTD = torch.randn(2, 8, D_MODEL)
    expected, _ = layer.router.scores(x_BTD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_NX, probabilities_NX = layer.router.scores(x_BTD)
        y_BTD, statistics = layer(x_BTD)
    assert logits_NX.dtype == probabilities_NX.dtype == torch.float32
    torch.testing.assert_close(logits_NX, expected, rtol=0, atol=0)
    y_BTD.float().sum().backward()
    assert layer.router.w_XD.grad.dtype == torch.float32
    reference, _ = layer(x_BTD)
    assert (y_BTD.float() - reference).abs().max() < 0.1 * reference.abs().max()
    assert statistics.auxiliary_loss.dtype == torch.float32


def test_bfloat16_layer_keeps_a_float32_router():
    layer = make(dtype=torch.bfloat16)
    assert layer.w_up.dtype == torch.bfloat16
    assert layer.router.w_XD.dtype == torch.float32
    y_BTD, statistics = layer(torch.randn(2, 8, D_MODEL, dtype=torch.bfloat16))
    assert y_BTD.dtype == torch.bfloat16
    y_BTD.sum().backward()
    assert torch.isfinite(layer.w_up.grad).all()
    assert statistics.load_X.dtype == torch.float32


def test_extreme_granularity_warns():
    with pytest.warns(UserWarning, match="router and dispatch take"):
        make(granularity=48, expansion_rate=8)


def test_granularity_must_divide_d_ff():
    with pytest.raises(InputError, match=r"experts.granularity is 5; it must divide d_ff=48"):
        make(granularity=5)


def test_threshold_without_calibration_is_refused():
    layer = make(kind="expert_choice")
    layer.router.by_threshold = True
    with pytest.raises(InputError, match="calibrate_thresholds"):
        layer(torch.randn(1, 2, D_MODEL, dtype=torch.float64))


def test_float32_is_close_to_float64():
    wide, narrow = make(dtype=torch.float64), make(dtype=torch.float32)
    narrow.load_state_dict(wide.state_dict())
    x_BTD = torch.randn(2, 8, D_MODEL, dtype=torch.float64)
    torch.testing.assert_close(narrow(x_BTD.float())[0], wide(x_BTD)[0].float(), rtol=1e-4, atol=1e-5)
    assert F.mse_loss(narrow(x_BTD.float())[0], wide(x_BTD)[0].float()) > 0


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("expansion_rate", [3, 6, 7, 16])
def test_the_warning_goes_by_the_accounting_of_the_spec_room(expansion_rate, recwarn):
    d_ff, granularity = 64, 16
    experts = ExpertsSpec(granularity=granularity, expansion_rate=expansion_rate)
    spec = DecoderSpec(
        vocab_size=8,
        context=4,
        n_layers=1,
        d_model=D_MODEL,
        attention=AttentionSpec(n_heads=1, head_dim=2),
        feed_forward=FeedForwardSpec(d_ff=d_ff),
        experts=experts,
    )
    flops = count(spec).flops_per_token
    MoE(d_model=D_MODEL, d_ff=d_ff, experts=experts)
    assert bool(recwarn.list) == (flops["router"] + flops["dispatch"] > flops["experts"])
    for warning in recwarn.list:
        assert f"take {flops['router'] + flops['dispatch']:,.0f} FLOPs" in str(warning.message)
