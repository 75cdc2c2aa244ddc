"""Logits equal those of independent implementations on the same weights, and so do gradients."""

import pytest
import torch
import torch.nn.functional as F

from isoflop.nn import Decoder
from isoflop.spec import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec, RouterSpec

transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}


def decoder(*, n_kv_heads, qk_norm, tied_head, experts=None, d_ff=48):
    spec = DecoderSpec(
        vocab_size=53,
        context=32,
        n_layers=2,
        d_model=32,
        attention=AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=n_kv_heads, qk_norm=qk_norm, rope_theta=500.0),
        feed_forward=FeedForwardSpec(d_ff=d_ff),
        experts=experts,
        tied_head=tied_head,
    )
    return Decoder(spec, seed=7)


def copy_common(ours, theirs):
    """Copy everything but the feed-forward layers; gains are made uneven so that a swapped one shows."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in ours.named_parameters():
        if name.endswith("gain"):
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    theirs.model.embed_tokens.weight.data.copy_(ours.embedding_VD)
    theirs.model.norm.weight.data.copy_(ours.final_gain)
    if not ours.spec.tied_head:
        theirs.lm_head.weight.data.copy_(ours.head_VD)
    width, kv_width = ours.spec.attention.width, ours.spec.attention.kv_heads * ours.spec.attention.head_dim
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        layer.input_layernorm.weight.data.copy_(block.attention_gain)
        layer.post_attention_layernorm.weight.data.copy_(block.feed_forward_gain)
        q, k, v = block.attention.w_qkv.split((width, kv_width, kv_width))
        layer.self_attn.q_proj.weight.data.copy_(q)
        layer.self_attn.k_proj.weight.data.copy_(k)
        layer.self_attn.v_proj.weight.data.copy_(v)
        layer.self_attn.o_proj.weight.data.copy_(block.attention.w_out)
        if ours.spec.attention.qk_norm:
            layer.self_attn.q_norm.weight.data.copy_(block.attention.q_gain)
            layer.self_attn.k_norm.weight.data.copy_(block.attention.k_gain)


def assert_same(ours, theirs):
    tokens_BT = torch.randint(0, 53, (3, 32), generator=torch.Generator().manual_seed(1))
    theirs.train()
    actual = ours(tokens_BT).logits_BTV
    expected = theirs(tokens_BT).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    for logits in (actual, expected):
        F.cross_entropy(logits.flatten(0, 1), tokens_BT.flatten()).backward()
    torch.testing.assert_close(ours.embedding_VD.grad, theirs.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied_head", [False, True])
def test_dense_equals_llama(n_kv_heads, tied_head):
    ours = decoder(n_kv_heads=n_kv_heads, qk_norm=False, tied_head=tied_head)
    config = transformers.LlamaConfig(
        **SHAPE,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        head_dim=8,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied_head,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config)
    copy_common(ours, theirs)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        gate, up = block.feed_forward.w_up.chunk(2)
        layer.mlp.gate_proj.weight.data.copy_(gate)
        layer.mlp.up_proj.weight.data.copy_(up)
        layer.mlp.down_proj.weight.data.copy_(block.feed_forward.w_down)
    assert_same(ours, theirs)


@pytest.mark.parametrize("renormalise", [False, True])
def test_token_choice_equals_qwen3_moe(renormalise):
    experts = ExpertsSpec(
        granularity=4,
        expansion_rate=2,
        activation_multiplier=0.75,
        output_norm=False,
        router=RouterSpec(renormalise=renormalise),
    )
    ours = decoder(n_kv_heads=2, qk_norm=True, tied_head=False, experts=experts)
    config = transformers.Qwen3MoeConfig(
        **SHAPE,
        intermediate_size=48,
        moe_intermediate_size=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=renormalise,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
        experts_implementation="eager",
    )
    theirs = transformers.Qwen3MoeForCausalLM(config)
    copy_common(ours, theirs)
    for moe, layer in zip(ours.moe_layers, theirs.model.layers, strict=True):
        moe.router.w_XD.data.mul_(3)  # scores clearly apart
        layer.mlp.gate.weight.data.copy_(moe.router.w_XD)
        layer.mlp.experts.gate_up_proj.data.copy_(moe.w_up.mT)
        layer.mlp.experts.down_proj.data.copy_(moe.w_down.mT)
    assert_same(ours, theirs)
