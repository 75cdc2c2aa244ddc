"""Models of the comparisons: our specs, and the same shapes as configurations of Hugging Face's transformers."""

from dataclasses import replace
from typing import Any

from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec

EXPERTS = ExpertsSpec(granularity=8, expansion_rate=8, output_norm=False)
"""64 experts of an eighth of d_ff, 8 a token; without the output norm, which Qwen3-MoE lacks."""
DEPTH = DepthRoutingSpec(capacity=0.125, every=2)


def dense(*, d_model: int, n_layers: int, d_ff: int, context: int, head_dim: int, vocab_size: int = 257) -> DecoderSpec:
    """A Llama."""
    return DecoderSpec(
        vocab_size=vocab_size,
        context=context,
        n_layers=n_layers,
        d_model=d_model,
        attention=AttentionSpec(n_heads=d_model // head_dim, head_dim=head_dim),
        feed_forward=FeedForwardSpec(d_ff=d_ff),
    )


def with_experts(spec: DecoderSpec) -> DecoderSpec:
    """Its Qwen3-MoE."""
    return replace(spec, experts=EXPERTS, attention=replace(spec.attention, qk_norm=True))


def with_depth(spec: DecoderSpec) -> DecoderSpec:
    """Its Mixture-of-Depths."""
    return replace(spec, depth_routing=DEPTH)


def theirs(spec: DecoderSpec) -> tuple[str, dict[str, Any]]:
    """Model type and configuration of the same function in transformers."""
    config: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "intermediate_size": spec.feed_forward.d_ff,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.attention.n_heads,
        "num_key_value_heads": spec.attention.kv_heads,
        "head_dim": spec.attention.head_dim,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.attention.rope_theta},
        "attn_implementation": "sdpa",
    }
    if spec.experts is None:
        return "llama", config
    experts = {
        "moe_intermediate_size": spec.feed_forward.d_ff // spec.experts.granularity,
        "num_experts": spec.experts.n_experts,
        "num_experts_per_tok": spec.experts.top_k,
        "norm_topk_prob": spec.experts.router.renormalise,
        "router_aux_loss_coef": spec.experts.router.balance_weight,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return "qwen3_moe", config | experts
