"""The decoder: causality, caching, recomputation, determinism, accounting, errors."""

import copy
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F

from isoflop.errors import InputError
from isoflop.nn import Attention, Decoder, KVCache, calibrate_thresholds, dispatch, keep_freed_memory
from isoflop.spec import (
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    RouterSpec,
    count,
    kv_cache_bytes,
)

VOCABULARY, CONTEXT = 37, 24


def make_spec(kind=None, *, qk_norm=False, n_kv_heads=2, activation="swiglu", tied_head=False, **experts):
    router = {key: experts.pop(key) for key in ("balance", "z_loss_weight", "bias_rate") if key in experts}
    moe = {"granularity": 2, "expansion_rate": 4} | experts
    return DecoderSpec(
        vocab_size=VOCABULARY,
        context=CONTEXT,
        n_layers=3,
        d_model=32,
        attention=AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=n_kv_heads, qk_norm=qk_norm),
        feed_forward=FeedForwardSpec(d_ff=64, activation=activation),
        experts=None if kind is None else ExpertsSpec(router=RouterSpec(kind=kind, **router), **moe),
        tied_head=tied_head,
    )


def random_tokens(batch, length=CONTEXT, seed=0):
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


SPECS = {
    "dense": make_spec(),
    "dense-mha-qknorm-tied": make_spec(qk_norm=True, n_kv_heads=None, tied_head=True),
    "dense-relu": make_spec(activation="relu"),
    "token-choice": make_spec("token_choice"),
    "token-choice-G1": make_spec("token_choice", granularity=1),
    "token-choice-bias-shared": make_spec("token_choice", balance="bias", shared_experts=2, every=2),
    "token-choice-no-norm": make_spec("token_choice", output_norm=False, skip_first=1, activation="gelu"),
    "expert-choice": make_spec("expert_choice"),
    "expert-choice-G1": make_spec("expert_choice", granularity=1, shared_experts=1),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_later_tokens_change_no_earlier_logit(spec):
    model = Decoder(spec, seed=1)
    tokens_BT = random_tokens(8)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 10:] = random_tokens(8, CONTEXT - 10, seed=5)  # of all sequences at once
    with torch.no_grad():
        before, after = model(tokens_BT).logits_BTV, model(changed_BT).logits_BTV
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-6)
    assert (before[:, 10:] - after[:, 10:]).abs().max() > 0.01


def test_noncausal_expert_choice_leaks():
    spec = make_spec("expert_choice_noncausal")
    assert not spec.is_causal
    model = Decoder(spec, seed=1)
    tokens_BT = random_tokens(4)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 10:] = random_tokens(4, CONTEXT - 10, seed=5)
    with torch.no_grad():
        before, after = model(tokens_BT).logits_BTV, model(changed_BT).logits_BTV
    assert (before[:, :10] - after[:, :10]).abs().max() > 1e-3


@pytest.mark.parametrize("spec", [*SPECS.values(), make_spec("expert_choice_noncausal")])
def test_parameters_equal_the_accounting(spec):
    counted = count(spec)
    model = Decoder(spec)
    assert sum(p.numel() for p in model.parameters()) == counted.params_total + counted.params_embedding
    assert sum(layer.router.w_XD.numel() for layer in model.moe_layers) == counted.params_router


@pytest.mark.parametrize("name", ["dense", "dense-mha-qknorm-tied", "token-choice", "token-choice-bias-shared"])
@pytest.mark.parametrize("steps", [[CONTEXT], [7, 1, 1, 9, 6], [1] * CONTEXT])
def test_cached_logits_equal_uncached_ones(name, steps):
    model = Decoder(SPECS[name], seed=2)
    tokens_BT = random_tokens(3)
    cache = KVCache(model.spec, 3, CONTEXT)
    with torch.no_grad():
        expected = model(tokens_BT).logits_BTV
        pieces = [model(piece, cache=cache).logits_BTV for piece in tokens_BT.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)


def test_the_last_position_alone_has_the_logits_of_the_last_of_all():
    model = Decoder(make_spec("token_choice"), dtype=torch.float64)
    tokens_BT = torch.randint(0, VOCABULARY, (3, 7))
    every, last = model(tokens_BT).logits_BTV, model(tokens_BT, last_only=True).logits_BTV
    assert last.shape == (3, 1, VOCABULARY)
    torch.testing.assert_close(last, every[:, -1:], rtol=1e-12, atol=1e-12)


def test_cache_takes_the_bytes_that_the_accounting_says():
    spec = SPECS["dense"]
    cache = KVCache(spec, 1, CONTEXT)
    held = cache.bytes
    assert held == kv_cache_bytes(spec, tokens=CONTEXT)


def test_padded_cache_equals_each_sequence_alone():
    model = Decoder(SPECS["token-choice"], seed=2)
    tokens_BT = random_tokens(3, 9)
    padding_B = torch.tensor([0, 3, 7])
    cache = KVCache(model.spec, 3, 12, padding_B=padding_B)
    with torch.no_grad():
        first = model(tokens_BT, cache=cache).logits_BTV
        second = model(random_tokens(3, 2, seed=9), cache=cache).logits_BTV
        for row, padding in enumerate(padding_B.tolist()):
            alone_BT = torch.cat((tokens_BT[row, padding:], random_tokens(3, 2, seed=9)[row]))[None]
            expected = model(alone_BT).logits_BTV[0]
            torch.testing.assert_close(first[row, padding:], expected[:-2], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(second[row], expected[-2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "token-choice-bias-shared", "token-choice", "expert-choice"])
def test_recomputation_changes_neither_gradients_nor_statistics(name):
    tokens_BT = random_tokens(8)
    results = []
    for recompute in (False, True):
        model = Decoder(SPECS[name], seed=3)
        model.activation_checkpointing = recompute
        output = model(tokens_BT)
        (F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT.flatten()) + output.auxiliary_loss).backward()
        model.update_router_bias(output.experts)
        results.append((model, output))
    (plain, plain_output), (recomputed, recomputed_output) = results
    for (parameter_name, expected), actual in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda m, n=parameter_name: f"{n}: {m}")
    assert len(plain_output.experts) == len(recomputed_output.experts) == plain.spec.n_expert_layers
    for expected, actual in zip(plain_output.experts, recomputed_output.experts, strict=True):
        torch.testing.assert_close(actual.load_X, expected.load_X)
        assert actual.load_X.sum().item() == pytest.approx(1)
    torch.testing.assert_close(recomputed_output.auxiliary_loss, plain_output.auxiliary_loss)
    for expected, actual in zip(plain.moe_layers, recomputed.moe_layers, strict=True):
        torch.testing.assert_close(dict(actual.named_buffers()), dict(expected.named_buffers()), equal_nan=True)


def test_recomputation_keeps_less():
    kept = {}
    for recompute in (False, True):
        model = Decoder(SPECS["token-choice"], seed=3)
        model.activation_checkpointing = recompute
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model(random_tokens(4))
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 3


def test_same_seed_same_weights():
    a, b, c = (Decoder(SPECS["token-choice"], seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["embedding_VD"], c["embedding_VD"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Decoder(SPECS["token-choice"], seed=4)
    assert torch.equal(torch.rand(1), expected)


def test_init_has_the_stated_spread():
    spec = DecoderSpec(
        vocab_size=500,
        context=8,
        n_layers=2,
        d_model=128,
        attention=AttentionSpec(n_heads=4, head_dim=32),
        feed_forward=FeedForwardSpec(d_ff=512),
        experts=ExpertsSpec(granularity=4, expansion_rate=4),
        init_scale=0.1,
    )
    model = Decoder(spec)
    moe, attention = model.moe_layers[0], model.blocks[0].attention
    stated = {
        model.embedding_VD: math.sqrt(0.1),
        model.head_VD: math.sqrt(0.1 / 128),
        attention.w_qkv: math.sqrt(0.1 / 128),
        attention.w_out: math.sqrt(0.1 / 128) / 2,
        moe.w_up: math.sqrt(0.1 / 128),
        moe.w_down: math.sqrt(0.1 / 512) / 2,
        moe.router.w_XD: math.sqrt(0.1 / 128),
    }
    for weight, std in stated.items():
        assert weight.std().item() == pytest.approx(std, rel=0.04)
        assert weight.abs().max().item() <= 2 * std / 0.8796 * 1.001
    assert Decoder(make_spec(tied_head=True)).embedding_VD.std().item() == pytest.approx(32**-0.5, rel=0.05)


def test_auxiliary_loss_is_zero_for_dense_and_summed_for_moe():
    tokens_BT = random_tokens(2)
    assert Decoder(SPECS["dense"])(tokens_BT).auxiliary_loss.item() == 0
    output = Decoder(SPECS["token-choice"])(tokens_BT)
    assert output.auxiliary_loss.shape == ()
    total = sum(block.auxiliary_loss.item() for block in output.experts)
    assert output.auxiliary_loss.item() == pytest.approx(total)


def test_router_bias_moves_only_with_bias_balance():
    model = Decoder(make_spec("token_choice", balance="bias", bias_rate=0.5))
    output = model(random_tokens(2))
    model.update_router_bias(output.experts)
    for layer, statistics in zip(model.moe_layers, output.experts, strict=True):
        expected = 0.5 * torch.sign(statistics.load_X.mean() - statistics.load_X)
        torch.testing.assert_close(layer.router.bias_X, expected)
    other = Decoder(SPECS["token-choice"])
    before = copy.deepcopy(other.state_dict())
    other.update_router_bias(other(random_tokens(2)).experts)
    torch.testing.assert_close(other.state_dict(), before)


def test_bf16_autocast_trains():
    for spec in SPECS.values():
        model = Decoder(spec)
        tokens_BT = random_tokens(8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(tokens_BT)
            loss = F.cross_entropy(output.logits_BTV.flatten(0, 1).float(), tokens_BT.flatten())
        (loss + output.auxiliary_loss).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        with torch.no_grad():
            full = model(tokens_BT).logits_BTV
        # A router's near-ties may fall the other way, so compare on average.
        assert (output.logits_BTV.float() - full).abs().mean() < 0.1 * full.abs().mean()


@pytest.mark.filterwarnings("ignore")  # torch warns about itself while it traces
@pytest.mark.parametrize("name", ["dense", "token-choice", "expert-choice"])
def test_survives_graph_capture(name):
    """Captured by torch.compile's front end and differentiated ahead of time; code generation is torch's own matter."""
    model = Decoder(SPECS[name])
    tokens_BT = random_tokens(8)
    tokens_BT[:, 0] = torch.arange(8)  # equal contexts tie, and which of them an expert takes is open
    expected = model(tokens_BT)
    actual = torch.compile(model, backend="aot_eager")(tokens_BT)
    torch.testing.assert_close(actual.logits_BTV, expected.logits_BTV, rtol=1e-5, atol=1e-5)
    gradients = []
    for output in (expected, actual):
        model.zero_grad()
        (output.logits_BTV.square().mean() + output.auxiliary_loss).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_learns_a_sequence():
    for name in ("dense", "token-choice", "expert-choice"):
        model = Decoder(SPECS[name])
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        tokens_BT = random_tokens(8)
        for _ in range(60):
            output = model(tokens_BT[:, :-1])
            loss = F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
            optimiser.zero_grad()
            (loss + output.auxiliary_loss).backward()
            optimiser.step()
        assert loss.item() < 1.0, name


def test_thresholds_give_every_expert_its_share_and_are_causal():
    model = Decoder(SPECS["expert-choice"], seed=1)
    with pytest.raises(InputError, match="thresholds are unset"):
        model.expert_choice = "threshold"
    with pytest.raises(InputError, match="'grouped'"):
        model(random_tokens(1), cache=KVCache(model.spec, 1, CONTEXT))
    batches = [random_tokens(16, seed=seed) for seed in range(8)]
    calibrate_thresholds(model, batches)
    assert model.expert_choice == "grouped"
    model.expert_choice = "threshold"
    with torch.no_grad():
        outputs = [model(tokens_BT) for tokens_BT in batches]
    for layer in range(model.spec.n_layers):
        load_X = torch.stack([output.experts[layer].load_X for output in outputs]).mean(0)
        torch.testing.assert_close(load_X, torch.full((8,), 1 / 8), rtol=0.05, atol=0)
        rows = [output.experts[layer].dropped_share.item() for output in outputs]
        assert 0 <= sum(rows) / len(rows) < 0.2
    # One sequence alone, cached, equals the same sequence in company.
    cache = KVCache(model.spec, 1, CONTEXT)
    with torch.no_grad():
        pieces = [model(piece, cache=cache).logits_BTV for piece in batches[0][:1].split(1, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1)[0], outputs[0].logits_BTV[0], rtol=1e-4, atol=1e-5)
    restored = Decoder(SPECS["expert-choice"], seed=9)
    restored.load_state_dict(model.state_dict())
    restored.expert_choice = "threshold"
    model.expert_choice = "grouped"
    assert not model.moe_layers[0].router.by_threshold


def test_thresholds_need_expert_choice_and_enough_tokens():
    with pytest.raises(InputError, match="no expert-choice layer"):
        calibrate_thresholds(Decoder(SPECS["dense"]), [random_tokens(1)])
    with pytest.raises(InputError, match="batches hold 1 tokens"):
        calibrate_thresholds(Decoder(SPECS["expert-choice"]), [random_tokens(1, 1)])
    with pytest.raises(InputError, match="allowed: grouped, threshold"):
        Decoder(SPECS["expert-choice"]).expert_choice = "best"


def test_sequence_longer_than_context_or_cache_is_refused():
    model = Decoder(SPECS["dense"])
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens a sequence; the model's context is {CONTEXT}"):
        model(random_tokens(1, CONTEXT + 1))
    with pytest.raises(InputError, match="brings 5 tokens; the cache holds 0 of at most 4"):
        model(random_tokens(1, 5), cache=KVCache(model.spec, 1, 4))
    with pytest.raises(InputError, match="has 2 sequences; the cache was made for 1"):
        model(random_tokens(2, 2), cache=KVCache(model.spec, 1, 4))
    with pytest.raises(InputError, match="capacity is 25"):
        KVCache(model.spec, 1, CONTEXT + 1)


def test_attention_works_alone():
    attention = Attention(32, AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=1))
    x_BTD = torch.randn(2, 5, 32)
    y_BTD = attention(x_BTD)
    torch.testing.assert_close(attention(x_BTD[:, :3]), y_BTD[:, :3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputation_keeps_no_assignment_alive(recompute, monkeypatch):
    original, kept = dispatch.assign_choices, []

    def watched(*arguments, **settings):
        assignment, choices_M = original(*arguments, **settings)
        for name in ("tokens_M", "rows_M", "starts_N"):
            kept.append(weakref.ref(getattr(assignment, name).untyped_storage()))
        return assignment, choices_M

    monkeypatch.setattr("isoflop.nn.router.assign_choices", watched)
    model = Decoder(make_spec("token_choice"))
    model.activation_checkpointing = recompute
    output = model(torch.arange(CONTEXT)[None] % VOCABULARY)
    gc.collect()
    alive = [reference() for reference in kept if reference() is not None]
    assert kept
    assert bool(alive) != recompute
    del alive
    output.logits_BTV.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_first_used_in_inference_mode_can_be_trained():
    model, untouched = Decoder(make_spec("token_choice")), Decoder(make_spec("token_choice"))
    tokens = torch.arange(CONTEXT)[None] % VOCABULARY
    with torch.inference_mode():
        model(tokens)
        model(tokens[:, :3], cache=KVCache(model.spec, 1, 8))
    for each in (model, untouched):
        each(tokens).logits_BTV.square().sum().backward()
    for one, other in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_allocator_is_told_once_and_only_what_the_environment_leaves_open(monkeypatch):
    told = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda parameter, value: told.append((parameter, value))

    monkeypatch.setattr("isoflop.nn._memory.ctypes.CDLL", Library)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    keep_freed_memory.cache_clear()
    keep_freed_memory()
    keep_freed_memory()
    assert dict(told) == {-4: 0, -1: 2**31 - 1, -2: 2**26}
    assert len(told) == 3
    keep_freed_memory.cache_clear()
    told.clear()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    keep_freed_memory()
    assert set(dict(told)) == {-4, -2}
