"""How a spec computes, in torch: attention, feed-forward, routers, experts, dispatch, decoder and KV cache.

Layers are usable alone in somebody else's model; `Decoder` puts them together as a `DecoderSpec` says.
"""

from isoflop.nn._memory import keep_freed_memory
from isoflop.nn.attention import Attention
from isoflop.nn.cache import KVCache
from isoflop.nn.decoder import Decoder, DecoderOutput
from isoflop.nn.depth import DepthRouter
from isoflop.nn.feed_forward import FeedForward
from isoflop.nn.mod import MoD
from isoflop.nn.moe import MoE
from isoflop.nn.retrofit import retrofit
from isoflop.nn.router import Router, Routing
from isoflop.nn.statistics import DepthStatistics, ExpertStatistics
from isoflop.nn.thresholds import calibrate_thresholds

__all__ = [
    "Attention",
    "Decoder",
    "DecoderOutput",
    "DepthRouter",
    "DepthStatistics",
    "ExpertStatistics",
    "FeedForward",
    "KVCache",
    "MoD",
    "MoE",
    "Router",
    "Routing",
    "calibrate_thresholds",
    "keep_freed_memory",
    "retrofit",
]
