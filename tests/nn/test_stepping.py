"""Sampling's inner step gives the modules' logits, and stands aside where it cannot stand for them."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from isoflop.errors import InputError
from isoflop.nn import Decoder, KVCache, calibrate_thresholds, stepping
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


@pytest.mark.parametrize("experts", ["", "finer", "shared", "bias", "one a token, no norm"])
@pytest.mark.parametrize("batch", [1, 5])
def test_float32_takes_the_fast_products(experts, batch, monkeypatch):
    monkeypatch.setattr(stepping, "_FEWEST_REORDERED", 1)
    monkeypatch.setattr(stepping, "_SMALL", 100)  # reordered where oneDNN can, else torch's own
    check(make(EXPERTS[experts], DEPTH["depth"], dtype=torch.float32), 1e-4, batch=batch)


def test_no_more_memory_than_allowed(monkeypatch):
    monkeypatch.setattr(stepping, "_SMALL", 0)
    monkeypatch.setattr(stepping, "_FEWEST_REORDERED", 1)
    monkeypatch.setattr(stepping, "_MOST_BYTES", 3000)
    made = []
    reordered = stepping._onednn.reordered
    monkeypatch.setattr(stepping._onednn, "reordered", lambda w, n: made.append(w.numel()) or reordered(w, n))
    check(make(dtype=torch.float32), 1e-4)
    assert 4 * sum(made) <= 3000


def test_a_full_cache_and_a_wrong_batch_are_refused():
    model = make()
    with torch.inference_mode():
        cache = KVCache(model.spec, 2, 1, dtype=torch.float64)
        step = Stepper(model, cache)
        step([1, 2])
        with pytest.raises(InputError, match="holds 1 of at most 1"):
            step([1, 2])


class _Other(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        """Not what the layer computes."""
        return 2 * self.layer(x)


def _hooked(model):
    model.blocks[0].feed_forward.register_forward_hook(lambda module, inputs, output: 2 * output)


def _replaced(model):
    model.blocks[0].feed_forward = _Other(model.blocks[0].feed_forward)


def _parametrised(model):
    class Twice(nn.Module):
        def forward(self, x):
            """Twice the weight."""
            return 2 * x

    parametrize.register_parametrization(model.blocks[0].attention, "w_out", Twice())


@pytest.mark.parametrize("change", [_hooked, _replaced, _parametrised])
def test_a_changed_model_is_asked_as_it_is(change):
    model = make()
    plain = generate(model, [[1, 2]], max_new_tokens=20, temperature=0)
    change(model)
    with torch.inference_mode():
        assert not Stepper.suits(model)
    tokens, expected = [1, 2], []
    with torch.no_grad():
        for _ in range(20):
            expected.append(int(model(torch.tensor([tokens])).logits_BTV[0, -1].argmax()))
            tokens.append(expected[-1])
    assert generate(model, [[1, 2]], max_new_tokens=20, temperature=0) == [expected] != [plain]


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


def test_weights_changed_between_calls_are_seen(monkeypatch):
    monkeypatch.setattr(stepping, "_FEWEST_REORDERED", 1)
    monkeypatch.setattr(stepping, "_SMALL", 100)
    model = make(dtype=torch.float32)
    first = generate(model, [[1, 2], [3], [4], [5]], max_new_tokens=20, temperature=0)
    before = model.head_VD.detach().clone()
    model.head_VD.data.neg_()  # what no version counter sees
    assert generate(model, [[1, 2], [3], [4], [5]], max_new_tokens=20, temperature=0) != first
    model.head_VD.data.copy_(before)
    assert generate(model, [[1, 2], [3], [4], [5]], max_new_tokens=20, temperature=0) == first
