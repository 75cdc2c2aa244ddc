import random
from pathlib import Path

import pytest
import torch

from isoflop.data import prepare
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec

WORDS = (
    "the",
    "loss",
    "law",
    "of",
    "experts",
    "grows",
    "with",
    "budget",
    "and",
    "falls",
    "by",
    "each",
    "large",
    "model",
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Byte tokens of 400 documents of random words, so that the text has structure but nothing repeats."""
    root = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    source = root / "text"
    source.mkdir()
    for index in range(400):
        (source / f"{index:03}.txt").write_text(" ".join(rng.choices(WORDS, k=60)) + "\n")
    prepare([source], root / "tokens", tokenizer="bytes")
    return root / "tokens"


@pytest.fixture
def dense() -> DecoderSpec:
    return tiny_spec()


@pytest.fixture
def moe() -> DecoderSpec:
    return tiny_spec(experts=ExpertsSpec(granularity=2, expansion_rate=4, router=RouterSpec(balance="bias")))


@pytest.fixture
def expert_choice() -> DecoderSpec:
    router = RouterSpec(kind="expert_choice")
    return tiny_spec(experts=ExpertsSpec(granularity=2, expansion_rate=4, router=router))


@pytest.fixture
def depth_routed() -> DecoderSpec:
    return tiny_spec(depth_routing=DepthRoutingSpec(capacity=0.25, sampled_by="predictor"))


def tiny_spec(
    experts: ExpertsSpec | None = None, vocab_size: int = 257, depth_routing: DepthRoutingSpec | None = None
) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocab_size,
        context=16,
        n_layers=2,
        d_model=16,
        attention=AttentionSpec(n_heads=2, head_dim=8),
        feed_forward=FeedForwardSpec(d_ff=32),
        experts=experts,
        depth_routing=depth_routing,
    )
