"""Training memory against the tensors that a real backward keeps."""

from dataclasses import replace

import pytest
import torch

from isoflop.nn import Decoder, MoE
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec, memory

BATCH, CONTEXT = 8, 32


def _spec(*, activation="swiglu", n_kv_heads=None, qk_norm=False, d_ff=256, depth=None, **experts):
    return DecoderSpec(
        d_model=64,
        n_layers=2,
        vocab_size=128,
        context=CONTEXT,
        attention=AttentionSpec(n_heads=4, head_dim=16, n_kv_heads=n_kv_heads, qk_norm=qk_norm),
        feed_forward=FeedForwardSpec(d_ff=d_ff, activation=activation),
        experts=ExpertsSpec(**experts) if experts else None,
        depth_routing=depth,
    )


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """Keep what the device's path keeps; both run here."""
    if request.param == "cuda":
        plain = MoE._in_expert_order
        forward = MoE.forward

        def whole(layer, x_BTD):
            monkeypatch.setattr("isoflop.nn.moe.experts_in_blocks", lambda *rest: plain(layer, *rest[:-1]))
            return forward(layer, x_BTD)

        monkeypatch.setattr(MoE, "forward", whole)
    return request.param


def _kept_bytes(spec, *, dtype=torch.float32, checkpointing=False):
    """Bytes of the tensors that autograd saves in a forward, without parameters; indices of the dispatch included."""
    model = Decoder(spec)
    model.activation_checkpointing = checkpointing
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor  # held, so that no other tensor takes its place
        return tensor

    tokens_BT = torch.randint(spec.vocab_size, (BATCH, CONTEXT))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(tokens_BT)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


MODELS = {
    "dense": {},
    "gelu": {"activation": "gelu"},
    "relu": {"activation": "relu"},
    "grouped_query": {"n_kv_heads": 2},
    "qk_norm": {"qk_norm": True},
    "one_expert": {"granularity": 1, "expansion_rate": 8.0},
    "one_expert_no_norm": {"granularity": 1, "expansion_rate": 8.0, "output_norm": False},
    "fine_grained": {"granularity": 4, "expansion_rate": 8.0},
    "fine_grained_relu": {"granularity": 4, "expansion_rate": 4.0, "activation": "relu"},
    "shared": {"granularity": 4, "expansion_rate": 4.0, "shared_experts": 1},
    "expert_choice": {"granularity": 2, "expansion_rate": 4.0, "router": RouterSpec(kind="expert_choice")},
    "short_experts": {"granularity": 8, "expansion_rate": 4.0},
    "depth": {"depth": DepthRoutingSpec(capacity=0.25)},
    "depth_feed_forward": {"depth": DepthRoutingSpec(capacity=0.5, part="feed_forward")},
    "depth_predictor": {"depth": DepthRoutingSpec(capacity=0.5, every=1, sampled_by="predictor")},
    "depth_fixed": {"depth": DepthRoutingSpec(capacity=0.5, router="fixed")},
    "staged": {"depth": DepthRoutingSpec(capacity=0.5), "granularity": 4, "expansion_rate": 4.0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_those_that_a_backward_keeps(name, dtype, device):
    spec = _spec(**MODELS[name])
    counted = memory(spec, batch_tokens=BATCH * CONTEXT, activation_bytes=dtype.itemsize, device=device)
    assert counted.activations == pytest.approx(_kept_bytes(spec, dtype=dtype), rel=0.08)


@pytest.mark.parametrize("name", ["dense", "fine_grained"])
def test_checkpointing_keeps_one_block(name):
    spec = _spec(**MODELS[name])
    tokens = BATCH * CONTEXT
    counted = memory(spec, batch_tokens=tokens, activation_checkpointing=True, device="cpu")
    whole = memory(spec, batch_tokens=tokens, device="cpu")
    inputs = _kept_bytes(spec, checkpointing=True)
    block = _kept_bytes(spec) - _kept_bytes(replace(spec, n_layers=1))
    assert counted.activations == pytest.approx(inputs + block, rel=0.08)
    assert counted.activations < whole.activations
