"""Sampling's inner step gives the modules' logits, and stands aside where it cannot stand for them."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from isoflop.errors import InputError, RunError
from isoflop.nn import Decoder, KVCache, calibrate_thresholds, grouped, stepping
from isoflop.nn.experts import ExpertsOfFew
from isoflop.nn.stepping import Stepper
from isoflop.sample import generate
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec

VOCAB, CONTEXT, STEPS = 29, 40, 12
ATTENTION = AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2)
EXPERTS = {
    "": None,
    "finer": ExpertsSpec(granularity=2, expansion_rate=4),
    "one a token": ExpertsSpec(granularity=1, expansion_rate=4),
    "one a token, no norm": ExpertsSpec(granularity=1, expansion_rate=4, output_norm=False),
    "shared": ExpertsSpec(granularity=4, expansion_rate=4, shared_experts=1, every=2),
    "bias": ExpertsSpec(granularity=2, expansion_rate=4, output_norm=False, router=RouterSpec(balance="bias")),
    "experts choose": ExpertsSpec(granularity=2, expansion_rate=4, router=RouterSpec(kind="expert_choice")),
    "no-ops": ExpertsSpec(granularity=2, expansion_rate=4, noop_experts=2),
}
DEPTH = {
    "": None,
    "depth": DepthRoutingSpec(capacity=0.4),
    "sigmoid": DepthRoutingSpec(capacity=0.4, every=1, gate="sigmoid"),
    "predictor": DepthRoutingSpec(capacity=0.4, every=1, sampled_by="predictor"),
    "feed-forward": DepthRoutingSpec(capacity=0.4, part="feed_forward"),
    "stochastic": DepthRoutingSpec(capacity=0.4, router="stochastic"),
    "fixed": DepthRoutingSpec(capacity=0.4, router="fixed"),
    "all": DepthRoutingSpec(capacity=1.0, every=1),
}


def make(experts=None, depth=None, attention=ATTENTION, activation="swiglu", dtype=torch.float64, **spec):
    """A calibrated model with gains that are not 1."""
    model = Decoder(
        DecoderSpec(
            vocab_size=VOCAB,
            context=CONTEXT,
            n_layers=2,
            d_model=24,
            attention=attention,
            feed_forward=FeedForwardSpec(d_ff=32, activation=activation),
            experts=experts,
            depth_routing=depth,
            **spec,
        ),
        seed=3,
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=generator, dtype=dtype) + 0.5)
        for layer in model.moe_layers:
            if layer.router.experts.router.balance == "bias":
                layer.router.bias_X += 0.1 * torch.randn(layer.router.bias_X.shape, generator=generator)
    if model.needs_calibration:
        tokens_BT = torch.randint(0, VOCAB, (32, CONTEXT), generator=generator)
        calibrate_thresholds(model, [tokens_BT])
    if experts or depth:
        model.decisions = "sampled"
    return model


@torch.inference_mode()
def both(model, batch=5, padded=True, wrap=contextlib.nullcontext):
    """Logits [B, steps, V] of the modules and of a stepper, for the same tokens after the same prompts."""
    generator = torch.Generator().manual_seed(batch)
    prompt_BT = torch.randint(0, VOCAB, (batch, 6), generator=generator)
    padding_B = torch.arange(batch) % 4 if padded else None
    next_BT = torch.randint(0, VOCAB, (batch, STEPS), generator=generator)
    found = []
    for stepped in (False, True):
        cache = KVCache(model.spec, batch, 6 + STEPS, padding_B=padding_B, dtype=model.embedding_VD.dtype)
        model(prompt_BT, cache=cache)
        step = Stepper(model, cache, n_steps=STEPS) if stepped else None
        each = [
            model(next_B[:, None], cache=cache).logits_BTV[:, -1] if step is None else step(next_B.tolist())
            for next_B in next_BT.T
        ]
        found.append(torch.stack(each, 1))
        assert cache.length == 6 + STEPS
    return found


def check(model, rtol=1e-9, **kind):
    """Both agree."""
    with torch.inference_mode():
        assert Stepper.suits(model)
    expected, found = both(model, **kind)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("depth", DEPTH)
@pytest.mark.parametrize("experts", EXPERTS)
def test_every_kind_of_block(experts, depth):
    check(make(EXPERTS[experts], DEPTH[depth]))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 40])
@pytest.mark.parametrize("depth", ["", "depth", "feed-forward"])
def test_every_batch(batch, padded, depth):
    check(make(depth=DEPTH[depth]), batch=batch, padded=padded)


def test_normed_queries_and_more_sequences_than_are_taken_one_by_one():
    attention = AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2, qk_norm=True)
    for batch in (5, 40):
        check(make(EXPERTS["finer"], DEPTH["sigmoid"], attention), batch=batch)


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu"])
@pytest.mark.parametrize(
    "attention",
    [
        AttentionSpec(n_heads=4, head_dim=8),
        AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=1),
        AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2, qk_norm=True),
    ],
)
def test_every_attention_and_feed_forward(attention, activation):
    check(make(attention=attention, activation=activation, tied_head=True, norm_eps=1e-3))


@pytest.fixture
def counted(monkeypatch):
    """Everything is worth reordering; how often matrices are reordered, steppers made and experts taken one by one."""
    monkeypatch.setattr(stepping, "_FEWEST_REORDERED", 1)
    monkeypatch.setattr(stepping, "_SMALL", 100)
    counts = {"reordered": [], "steppers": [], "of few": []}
    reordered, made, taken = stepping._onednn.reordered, Stepper.__init__, ExpertsOfFew.__call__
    monkeypatch.setattr(
        stepping._onednn, "reordered", lambda w, n: counts["reordered"].append(4 * w.numel()) or reordered(w, n)
    )
    monkeypatch.setattr(Stepper, "__init__", lambda *a, **k: counts["steppers"].append(1) or made(*a, **k))
    monkeypatch.setattr(ExpertsOfFew, "__call__", lambda *a: counts["of few"].append(1) or taken(*a))
    return counts


ONEDNN = stepping._onednn.can_reorder(torch.zeros(2, 2))
MKL = grouped._sgemm_batch() is not None


@pytest.mark.parametrize("experts", ["", "finer", "shared", "bias", "one a token, no norm"])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_float32_takes_the_fast_products(experts, batch, counted):
    check(make(EXPERTS[experts], DEPTH["feed-forward"], dtype=torch.float32), 1e-4, batch=batch)
    assert bool(counted["reordered"]) == (ONEDNN and batch > 1)
    assert bool(counted["of few"]) == (MKL and experts != "")


def test_blocks_asked_as_modules_reorder_nothing(counted):
    check(make(EXPERTS["finer"], DEPTH["sigmoid"], dtype=torch.float32), 1e-4, batch=40)
    assert len(counted["reordered"]) == (1 if ONEDNN else 0)  # the head


def test_no_more_memory_than_allowed(counted, monkeypatch):
    model = make(dtype=torch.float32)
    most = 4 * (model.blocks[0].attention.w_qkv.numel() + model.blocks[0].attention.w_out.numel()) + 100
    monkeypatch.setattr(stepping, "_MOST_BYTES", most)
    check(model, 1e-4)
    assert most - 200 <= sum(counted["reordered"]) <= most or not ONEDNN
    monkeypatch.setattr(stepping, "_SMALL", 10**9)
    del counted["reordered"][:]
    check(model, 1e-4)
    assert not counted["reordered"]


def test_generation_steps_fast_where_it_can(counted):
    model = make(EXPERTS["finer"], DEPTH["depth"], dtype=torch.float32)
    assert len(generate(model, [[1, 2], [3]], max_new_tokens=20)[1]) == 20
    assert counted["steppers"] == [1]
    generate(model, [[1, 2], [3]], max_new_tokens=stepping.FEWEST_STEPS)
    assert counted["steppers"] == [1]


def test_a_full_cache_and_a_wrong_batch_are_refused():
    model = make()
    with torch.inference_mode():
        cache = KVCache(model.spec, 2, 1, dtype=torch.float64)
        step = Stepper(model, cache)
        for wrong in ([1], [1, 2, 3]):
            with pytest.raises(InputError, match="the cache was made for 2"):
                step(wrong)
        step([1, 2])
        with pytest.raises(InputError, match="holds 1 of at most 1"):
            step([1, 2])


class Twice(nn.Module):
    """A parametrisation."""

    def forward(self, x):
        """Twice the weight."""
        return 2 * x


def _doubled(module, inputs, output):
    return (2 * output[0], output[1]) if isinstance(output, tuple) else 2 * output


def _hooked(module):
    module.register_forward_hook(_doubled)


def _hooked_before(module):
    module.register_forward_pre_hook(lambda module, inputs: tuple(2 * each for each in inputs))


def _replaced_forward(module):
    forward = module.forward
    module.forward = lambda *a, **k: _doubled(None, None, forward(*a, **k))


def _parametrised(module):
    name = next(name for name, _ in module.named_parameters(recurse=False))
    parametrize.register_parametrization(module, name, Twice())


def _wrapped(module):
    module.__class__ = type(
        "Mine", (type(module),), {"forward": lambda s, *a, **k: _doubled(0, 0, super(type(s), s).forward(*a, **k))}
    )


CHANGES = [_hooked, _hooked_before, _replaced_forward, _parametrised, _wrapped]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["attention", "feed_forward", "experts", "router"])
def test_a_changed_model_is_asked_as_it_is(part, change):
    if part == "router" and change in (_hooked, _wrapped, _replaced_forward):
        pytest.skip("a router returns no tensor to double")
    model = make(EXPERTS["finer" if part in ("experts", "router") else ""], dtype=torch.float32)
    plain = generate(model, [[1, 2]], max_new_tokens=30, temperature=0)
    for block in model.blocks:
        layer = block.feed_forward
        change({"attention": block.attention, "router": getattr(layer, "router", None)}.get(part, layer))
    with torch.inference_mode():
        assert not Stepper.suits(model)
    tokens, expected = [1, 2], []
    with torch.no_grad():
        for _ in range(30):
            expected.append(int(model(torch.tensor([tokens])).logits_BTV[0, -1].argmax()))
            tokens.append(expected[-1])
    assert generate(model, [[1, 2]], max_new_tokens=30, temperature=0) == [expected] != plain


def test_global_hooks_eps_of_their_own_and_compiled_blocks_are_seen():
    model = make()
    with torch.inference_mode():
        handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
        assert not Stepper.suits(model)
        handle.remove()
        assert Stepper.suits(model)
        model.blocks[1].norm_eps = 0.1
        assert not Stepper.suits(model)
        model.blocks[1].norm_eps = model.spec.norm_eps
        model.blocks[1]._compiled_call_impl = model.blocks[1].forward  # as `compile()` sets it
        assert not Stepper.suits(model)


def test_weights_elsewhere_or_of_another_type_are_left_to_the_modules():
    class Mine(nn.Parameter):
        pass

    for change in (lambda w: nn.Parameter(w.to("meta")), lambda w: Mine(w.detach())):
        model = make()
        model.blocks[1].attention.w_out = change(model.blocks[1].attention.w_out)
        with torch.inference_mode():
            assert not Stepper.suits(model)


def test_other_types_gradients_and_counters_are_left_to_the_modules():
    model = make()
    assert not Stepper.suits(model)  # gradients
    with torch.no_grad():
        assert Stepper.suits(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not Stepper.suits(model)
        with FlopCounterMode(display=False):
            assert not Stepper.suits(model)
        assert not Stepper.suits(make(dtype=torch.bfloat16))


def test_models_that_decide_as_in_training_are_left_to_the_modules():
    model = make(EXPERTS["experts choose"], DEPTH["depth"])
    with torch.inference_mode():
        assert Stepper.suits(model)
        model.decisions = "trained"
        assert not Stepper.suits(model)


def test_weights_changed_between_calls_are_seen(counted):
    model = make(dtype=torch.float32)
    prompts = [[1, 2], [3], [4], [5]]
    first = generate(model, prompts, max_new_tokens=20, temperature=0)
    before = model.head_VD.detach().clone()
    model.head_VD.data.neg_()  # what no version counter sees
    assert generate(model, prompts, max_new_tokens=20, temperature=0) != first
    model.head_VD.data.copy_(before)
    assert generate(model, prompts, max_new_tokens=20, temperature=0) == first
    assert counted["steppers"] == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_weights_are_said(temperature):
    model = make(dtype=torch.float32)
    with torch.no_grad():
        model.final_gain.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        generate(model, [[1, 2]], max_new_tokens=20, temperature=temperature)
