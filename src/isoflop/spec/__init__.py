"""What a model is.

Frozen, keyword-only dataclasses, their validation, and the one accounting of parameters, FLOPs and bytes. No torch.
"""

from isoflop.spec.attention import AttentionSpec
from isoflop.spec.count import CONVENTIONS, Count, count, expert_layer_flops
from isoflop.spec.decoder import DecoderSpec
from isoflop.spec.depth_routing import DepthRoutingSpec
from isoflop.spec.experts import ExpertsSpec, RouterSpec
from isoflop.spec.feed_forward import FeedForwardSpec
from isoflop.spec.io import load_spec, parse_spec, save_spec, spec_to_dict
from isoflop.spec.memory import Memory, kv_cache_bytes, memory

__all__ = [
    "CONVENTIONS",
    "AttentionSpec",
    "Count",
    "DecoderSpec",
    "DepthRoutingSpec",
    "ExpertsSpec",
    "FeedForwardSpec",
    "Memory",
    "RouterSpec",
    "count",
    "expert_layer_flops",
    "kv_cache_bytes",
    "load_spec",
    "memory",
    "parse_spec",
    "save_spec",
    "spec_to_dict",
]
