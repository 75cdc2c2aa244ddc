"""Depth routing: against the slow oracle, causal where it says so, cached, counted, with every rule of sampling."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.oracles import depth as oracle

from isoflop.errors import InputError
from isoflop.nn import Decoder, KVCache, calibrate_thresholds
from isoflop.nn import cache as cache_module
from isoflop.spec import (
    AttentionSpec,
    DecoderSpec,
    DepthRoutingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    RouterSpec,
    kv_cache_bytes,
)

VOCABULARY, CONTEXT = 37, 24


def make_spec(experts=None, *, n_layers=4, **routing):
    return DecoderSpec(
        vocab_size=VOCABULARY,
        context=CONTEXT,
        n_layers=n_layers,
        d_model=32,
        attention=AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2),
        feed_forward=FeedForwardSpec(d_ff=64),
        experts=experts,
        depth_routing=DepthRoutingSpec(**{"capacity": 0.375} | routing),
    )


TOKEN_CHOICE = ExpertsSpec(granularity=2, expansion_rate=4)
EXPERT_CHOICE = replace(TOKEN_CHOICE, router=RouterSpec(kind="expert_choice"))
SPECS = {
    "learned": make_spec(),
    "sigmoid": make_spec(gate="sigmoid"),
    "all but the first": make_spec(every=1, skip_first=1, capacity=0.5),
    "feed-forward": make_spec(part="feed_forward"),
    "auxiliary": make_spec(sampled_by="auxiliary"),
    "predictor": make_spec(sampled_by="predictor"),
    "stochastic": make_spec(router="stochastic"),
    "fixed": make_spec(router="fixed"),
    "fixed .7": make_spec(router="fixed", capacity=0.7),
    "staged": make_spec(TOKEN_CHOICE),
    "staged, experts choose": make_spec(EXPERT_CHOICE, capacity=0.5),
    "staged, feed-forward, experts choose": make_spec(EXPERT_CHOICE, part="feed_forward"),
}
DENSE = {name: spec for name, spec in SPECS.items() if spec.experts is None}


def tokens(batch, length=CONTEXT, seed=0):
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def make(spec, *, seed=1, dtype=torch.float32, sampled=False):
    model = Decoder(spec, seed=seed, dtype=dtype)
    if sampled:
        if model.needs_calibration:
            calibrate_thresholds(model, [tokens(16, seed=100 + i) for i in range(4)])
        model.decisions = "sampled"
    return model


@pytest.mark.parametrize("sampled", [False, True], ids=["as trained", "as sampled"])
@pytest.mark.parametrize("name", [name for name in DENSE if name != "stochastic"])
def test_values_and_gradients_equal_the_oracles(name, sampled):
    model = make(SPECS[name], dtype=torch.float64, sampled=sampled)
    tokens_BT = tokens(3, 17)
    target_BTV = torch.randn(3, 17, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def gradients(logits_BTV):
        model.zero_grad()
        (logits_BTV * target_BTV).sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    fast = model(tokens_BT).logits_BTV
    fast_gradients = gradients(fast)
    slow = torch.stack([oracle.logits(model, row_T) for row_T in tokens_BT])
    slow_gradients = gradients(slow)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    assert fast_gradients.keys() >= slow_gradients.keys()
    for weight, expected in slow_gradients.items():
        torch.testing.assert_close(
            fast_gradients[weight], expected, rtol=1e-7, atol=1e-9, msg=lambda m, n=weight: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", SPECS)
def test_exactly_the_capacity_takes_part_as_trained(name):
    spec = SPECS[name]
    with torch.no_grad():
        for length in (24, 17, 5, 1):
            output = make(spec)(tokens(8, length))
            assert len(output.depth) == len(spec.routed_layers)
            for block in output.depth:
                assert block.kept_share == pytest.approx(spec.depth_routing.n_kept(length) / length)


@pytest.mark.parametrize("name", SPECS)
def test_a_token_that_is_passed_by_is_unchanged(name):
    model = make(SPECS[name])
    block = model.blocks[model.spec.routed_layers[0]]
    seen = []
    block.depth_router.register_forward_hook(lambda module, args, kept: seen.append((args[0].detach(), kept)))
    outputs = []
    block.register_forward_hook(lambda module, args, result: outputs.append(result[0].detach()))
    model(tokens(8))
    (x_BTD, kept), (y_BTD,) = seen[0], outputs
    rows = torch.ones(x_BTD.shape[0] * x_BTD.shape[1], dtype=torch.bool)
    rows[kept.rows_M] = False
    x_ND, y_ND = x_BTD.flatten(0, 1), y_BTD.flatten(0, 1)
    assert torch.equal(x_ND[rows], y_ND[rows])
    if "experts choose" not in name:  # where they do, none may choose a kept token
        assert ((x_ND - y_ND).abs().amax(-1) > 0)[~rows].all()


def change_the_future(model, at=10):
    tokens_BT = tokens(8)
    changed_BT = tokens_BT.clone()
    changed_BT[:, at:] = tokens(8, CONTEXT - at, seed=5)
    with torch.no_grad():
        return model(tokens_BT).logits_BTV - model(changed_BT).logits_BTV


@pytest.mark.parametrize("name", [name for name in SPECS if "experts choose" not in name])
def test_as_sampled_later_tokens_change_no_earlier_logit(name):
    difference_BTV = change_the_future(make(SPECS[name], sampled=True))
    assert difference_BTV[:, :10].abs().max() < 1e-5
    assert difference_BTV[:, 10:].abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name in SPECS if "experts choose" not in name])
def test_as_trained_the_top_k_looks_ahead_and_the_spec_says_so(name):
    model = make(SPECS[name])
    leak = change_the_future(model)[:, :10].abs().max()
    assert (leak > 1e-3) == (not model.spec.is_causal)
    assert model.spec.is_causal == name.startswith("fixed")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("steps", "apart"), [([CONTEXT], 32), ([7, 1, 1, 9, 6], 32), ([1] * CONTEXT, 32), ([1] * CONTEXT, 0)]
)
def test_cached_logits_equal_uncached_ones(name, steps, apart, monkeypatch):
    """With one new token also where more sequences take part than are attended to one after the other."""
    monkeypatch.setattr(cache_module, "FEW_SEQUENCES", apart)
    model = make(SPECS[name], sampled=True)
    tokens_BT = tokens(5)
    cache = KVCache(model.spec, 5, CONTEXT)
    with torch.no_grad():
        expected = model(tokens_BT).logits_BTV
        pieces = [model(piece, cache=cache).logits_BTV for piece in tokens_BT.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_padded_cache_equals_each_sequence_alone(name):
    model = make(SPECS[name], sampled=True)
    tokens_BT, later_BT = tokens(3, 9), tokens(3, 6, seed=9)
    padding_B = torch.tensor([0, 3, 7])
    cache = KVCache(model.spec, 3, 16, padding_B=padding_B)
    with torch.no_grad():
        first = model(tokens_BT, cache=cache).logits_BTV
        rest = [model(piece, cache=cache).logits_BTV for piece in later_BT.split([3, 1, 2], dim=1)]
        for row, padding in enumerate(padding_B.tolist()):
            expected = model(torch.cat((tokens_BT[row, padding:], later_BT[row]))[None]).logits_BTV[0]
            torch.testing.assert_close(first[row, padding:], expected[:-6], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(torch.cat(rest, 1)[row], expected[-6:], rtol=1e-5, atol=1e-5)


def test_cache_holds_the_processed_tokens_alone():
    spec = make_spec(router="fixed", capacity=0.25)
    model = make(spec, sampled=True)
    cache = KVCache(spec, 2, CONTEXT)
    with torch.no_grad():
        for piece in tokens(2).split(1, dim=1):
            model(piece, cache=cache)
    assert cache.bytes == kv_cache_bytes(spec, tokens=CONTEXT, batch=2)
    assert cache.bytes == kv_cache_bytes(replace(spec, depth_routing=None), tokens=CONTEXT, batch=2) * (2 + 2 / 4) / 4
    feed_forward = make_spec(router="fixed", capacity=0.25, part="feed_forward")
    assert KVCache(feed_forward, 2, CONTEXT).bytes == kv_cache_bytes(feed_forward, tokens=CONTEXT, batch=2)


def test_a_cache_grows_when_more_tokens_take_part_than_expected():
    model = make(make_spec(capacity=0.25), sampled=True)
    cache = KVCache(model.spec, 4, CONTEXT)
    before = cache.bytes
    model.set_depth_capacity(1.0)
    tokens_BT = tokens(4)
    with torch.no_grad():
        expected = model(tokens_BT).logits_BTV
        pieces = [model(piece, cache=cache).logits_BTV for piece in tokens_BT.split([2, 1, 20, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)
    assert cache.bytes > before


@pytest.mark.parametrize("name", ["learned", "predictor", "staged", "staged, experts choose", "feed-forward"])
def test_recomputation_changes_neither_gradients_nor_statistics(name):
    tokens_BT = tokens(8)
    results = []
    for recompute in (False, True):
        model = make(SPECS[name])
        model.activation_checkpointing = recompute
        output = model(tokens_BT)
        (F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT.flatten()) + output.auxiliary_loss).backward()
        results.append((model, output))
    (plain, plain_output), (again, again_output) = results
    for (weight, expected), actual in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda m, n=weight: f"{n}: {m}")
    for expected, actual in zip(plain_output.depth, again_output.depth, strict=True):
        torch.testing.assert_close(vars(actual), vars(expected), equal_nan=True)


@pytest.mark.parametrize("name", ["learned", "sigmoid", "auxiliary", "predictor"])
def test_the_language_loss_reaches_the_router_and_never_the_predictor(name):
    model = make(SPECS[name])
    tokens_BT = tokens(8)
    output = model(tokens_BT)
    F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT.flatten()).backward()
    for router in model.depth_routers:
        assert router.w_1D.grad.abs().max() > 0
        if router.spec.has_predictor:
            assert router.predictor_up_PD.grad is None
            assert router.predictor_down_1P.grad is None


def test_the_predictors_loss_touches_the_predictor_alone():
    model = make(SPECS["predictor"])
    model(tokens(8)).auxiliary_loss.backward()
    touched = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert touched == {
        f"blocks.{layer}.depth_router.predictor_{part}" for layer in (1, 3) for part in ("up_PD", "down_1P")
    }


@pytest.mark.parametrize("sampled_by", ["auxiliary", "predictor"])
def test_auxiliary_loss_is_the_bce_of_membership(sampled_by):
    weight = 0.3
    model = make(make_spec(sampled_by=sampled_by, auxiliary_weight=weight, n_layers=2), dtype=torch.float64)
    tokens_BT = tokens(3, 16)
    block = model.blocks[1]
    stream, _, _ = model.blocks[0](model.embedding_VD[tokens_BT], model._place(tokens_BT, None))
    losses = []
    for sequence in stream.unbind():
        members = oracle.chosen(block, list(sequence))
        for t, x_D in enumerate(sequence):
            share = oracle.decision(block, x_D).sigmoid()
            losses.append(-(share if t in members else 1 - share).log())
    expected = weight * torch.stack(losses).mean()
    torch.testing.assert_close(model(tokens_BT).auxiliary_loss, expected)


@pytest.mark.parametrize("name", [name for name in SPECS if not name.startswith(("auxiliary", "predictor"))])
def test_calibrated_rules_keep_the_capacity_on_average(name):
    spec = SPECS[name]
    model = make(spec, sampled=True)
    with torch.no_grad():
        blocks = model(tokens(256, seed=100)).depth
    for block in blocks:
        assert block.kept_share == pytest.approx(spec.depth_routing.n_kept(CONTEXT) / CONTEXT, abs=0.05)
        assert 0.5 < block.agreement <= 1


def test_the_rule_of_a_trained_router_agrees_with_top_k():
    """A few steps on the auxiliary loss alone make rule and top-k agree."""
    for sampled_by in ("auxiliary", "predictor"):
        model = make(make_spec(sampled_by=sampled_by, auxiliary_weight=1.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        tokens_BT = tokens(16)
        before = min(block.agreement.item() for block in model(tokens_BT).depth)
        for _ in range(150):
            optimizer.zero_grad()
            model(tokens_BT).auxiliary_loss.backward()
            optimizer.step()
        after = min(block.agreement.item() for block in model(tokens_BT).depth)
        assert before < 0.85 < 0.9 < after


def test_the_dial_moves_the_share_that_is_computed():
    model = make(SPECS["learned"], sampled=True)
    shares = []
    for capacity in (0.1, 0.25, 0.5, 0.75, 1.0):
        model.set_depth_capacity(capacity)
        with torch.no_grad():
            shares.append([block.kept_share.item() for block in model(tokens(256, seed=100)).depth])
        assert shares[-1][0] == pytest.approx(capacity, abs=0.04)
    assert shares[-1] == [1.0, 1.0]
    assert all(low[1] < high[1] for low, high in itertools.pairwise(shares))


def test_at_capacity_one_with_a_sigmoid_gate_of_zeros_it_is_the_dense_model():
    spec = make_spec(capacity=1.0, every=1, gate="sigmoid")
    routed, dense = make(spec), Decoder(replace(spec, depth_routing=None), seed=1)
    routed.load_state_dict(dense.state_dict(), strict=False)
    with torch.no_grad():
        for router in routed.depth_routers:
            router.w_1D.zero_()
        torch.testing.assert_close(routed(tokens(4)).logits_BTV, dense(tokens(4)).logits_BTV, rtol=1e-6, atol=1e-6)


def test_bfloat16_autocast_trains():
    model = make(make_spec(TOKEN_CHOICE, sampled_by="predictor"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tokens(4))
    (output.logits_BTV.float().square().mean() + output.auxiliary_loss).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    assert all(router.w_1D.dtype == torch.float32 for router in model.depth_routers)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model: setattr(model, "depth_choice", "causal"), "thresholds are unset; run calibrate_thresholds"),
        (lambda model: setattr(model, "depth_choice", "all"), "depth_choice is 'all'; allowed: top_k, causal"),
        (lambda model: setattr(model, "decisions", "x"), "decisions is 'x'; allowed: trained, sampled"),
        (lambda model: model(tokens(1, 4), cache=KVCache(model.spec, 1, 8)), "depth_choice is 'top_k', which needs"),
        (lambda model: model.set_depth_capacity(0.5), "needs a calibrated model"),
        (lambda model: model.set_depth_capacity(1.5), "depth capacity is 1.5; it must be a number greater than 0"),
        (lambda model: calibrate_thresholds(model, [tokens(1, 1)]), "batches hold 1 tokens; calibration needs more"),
        (lambda _: Decoder(replace(SPECS["learned"], depth_routing=None)).set_depth_capacity(0.5), "no depth routing"),
        (lambda _: calibrate_thresholds(make(SPECS["fixed"]), [tokens(2)]), "no learned depth routing"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(make(SPECS["learned"]))


INTEGRATED = {
    "token choice": replace(TOKEN_CHOICE, noop_experts=8),
    "token choice, bias": replace(TOKEN_CHOICE, noop_experts=5, router=RouterSpec(balance="bias")),
    "expert choice": replace(EXPERT_CHOICE, noop_experts=8),
}


@pytest.mark.parametrize("experts", INTEGRATED.values(), ids=INTEGRATED)
def test_noop_experts_add_nothing_and_cost_nothing(experts):
    """The same as experts whose output matrices are zero, that the router may choose."""
    spec = replace(make_spec(experts), depth_routing=None)
    wide = replace(spec, experts=replace(experts, noop_experts=0, expansion_rate=experts.n_choices / 2))
    model, reference = Decoder(spec, seed=3, dtype=torch.float64), Decoder(wide, seed=4, dtype=torch.float64)
    with torch.no_grad():
        for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
            if weight.shape == other.shape:
                other.copy_(weight)
            else:
                other.zero_()
                other[: experts.n_experts] = weight
            assert (weight.shape == other.shape) == (not name.endswith(("w_up", "w_down")) or weight.ndim == 2)
    tokens_BT = tokens(16)
    ours, theirs = model(tokens_BT), reference(tokens_BT)
    torch.testing.assert_close(ours.logits_BTV, theirs.logits_BTV)
    for layer, other in zip(ours.experts, theirs.experts, strict=True):
        torch.testing.assert_close(layer.load_X, other.load_X, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(layer.auxiliary_loss, other.auxiliary_loss)
    for output, owner in ((ours, model), (theirs, reference)):
        owner.zero_grad()
        (output.logits_BTV.square().sum() + output.auxiliary_loss).backward()
    for mine, other in zip(model.moe_layers, reference.moe_layers, strict=True):
        torch.testing.assert_close(mine.w_up.grad, other.w_up.grad[: experts.n_experts])
    with torch.no_grad():
        computed = [layer.router(torch.randn(16, 24, 32).double()).assignment for layer in model.moe_layers]
    assert all(assignment.tokens_M.shape[0] < 16 * 24 * experts.top_k for assignment in computed)


@pytest.mark.parametrize("capacity", [0.66666667, 1 / 6, 0.16666667, 0.1, 0.3, 0.55, 0.7, 0.9999, 1.0])
@pytest.mark.parametrize("context", [24, 48, 96])
def test_fixed_routing_keeps_the_capacity_inside_its_sequence(capacity, context):
    spec = replace(make_spec(router="fixed", capacity=capacity), context=context)
    model = make(spec, sampled=True)
    tokens_BT = tokens(2, context)
    with torch.no_grad():
        whole = model(tokens_BT)
        cache = KVCache(spec, 2, context)
        pieces = [model(piece, cache=cache).logits_BTV for piece in tokens_BT.split([5, 1, context - 6], dim=1)]
    assert whole.depth[0].kept_share == pytest.approx(spec.depth_routing.n_kept(context) / context)
    torch.testing.assert_close(torch.cat(pieces, 1), whole.logits_BTV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["learned", "predictor", "fixed"])
def test_the_dial_goes_back(name):
    model = make(SPECS[name], sampled=True)
    with torch.no_grad():
        before = model(tokens(4)).logits_BTV
        model.set_depth_capacity(0.9)
        assert (model(tokens(4)).logits_BTV - before).abs().max() > 1e-3
        model.set_depth_capacity(None)
        assert torch.equal(model(tokens(4)).logits_BTV, before)
