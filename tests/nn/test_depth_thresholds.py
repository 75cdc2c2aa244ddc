"""Thresholds of depth routers stand between scores, never on one that many tokens share."""

import pytest
import torch

from isoflop.nn import Decoder, KVCache, calibrate_thresholds
from isoflop.nn.depth import N_QUANTILES, _dividing
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, FeedForwardSpec


def text(batch, length, seed):
    """Few different tokens, some of them often."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(0.8 ** torch.arange(12.0), batch * length, True, generator=generator).view(batch, length)


def test_of_distinct_values_the_shares_are_exact():
    values_N = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    cuts_Q = _dividing(values_N, N_QUANTILES)
    above_Q = (values_N.double()[None] > cuts_Q[:, None]).double().mean(1)
    wanted_Q = 1 - torch.linspace(0, 1, N_QUANTILES, dtype=torch.float64)
    assert (above_Q - wanted_Q).abs().max() < 0.0007
    assert above_Q[0] == 1
    assert above_Q[-1] == 0


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_equal_values_are_never_divided(noise):
    """Equal up to rounding, as a score of one token in batches of other sizes."""
    generator = torch.Generator().manual_seed(1)
    levels_K = torch.tensor([-1.0, -0.2, 0.1, 0.11, 2.0])
    picks_N = torch.multinomial(torch.tensor([0.1, 0.3, 0.3, 0.2, 0.1]), 5000, True, generator=generator)
    values_N = levels_K[picks_N] + noise * torch.randn(5000, generator=generator)
    cuts_Q = _dividing(values_N, 257)
    assert (cuts_Q[:, None] - levels_K[None].double()).abs().min() > 1e-4
    shares_K = torch.tensor([(picks_N > k).double().mean() for k in range(-1, 5)])
    above_Q = (values_N.double()[None] > cuts_Q[:, None]).double().mean(1)
    wanted_Q = 1 - torch.linspace(0, 1, 257, dtype=torch.float64)
    nearest_Q = (wanted_Q[:, None] - shares_K[None]).abs().min(1).values
    assert ((above_Q - wanted_Q).abs() - nearest_Q).abs().max() < 2e-3


def test_one_value_has_a_cut_on_both_sides():
    cuts_Q = _dividing(torch.full((40,), 3.0), 5)
    assert ((cuts_Q - 3).abs() > 0).all()
    assert cuts_Q[0] < 3 < cuts_Q[-1]


def test_where_every_block_is_routed_cached_decoding_equals_the_whole_sequence():
    """The first block scores the bare embedding: every occurrence of a token has one score."""
    spec = DecoderSpec(
        vocab_size=12,
        context=24,
        n_layers=3,
        d_model=32,
        attention=AttentionSpec(n_heads=4, head_dim=8),
        feed_forward=FeedForwardSpec(d_ff=64),
        depth_routing=DepthRoutingSpec(capacity=0.5, every=1),
    )
    model = Decoder(spec, seed=3)
    calibrate_thresholds(model, [text(16, 24, seed) for seed in range(8)])
    model.decisions = "sampled"
    for capacity in (None, 0.05, 0.125, 0.3, 0.7, 0.99):
        model.set_depth_capacity(capacity)
        for batch in (1, 3):
            tokens_BT = text(batch, 24, seed=100 + batch)
            cache = KVCache(spec, batch, 24)
            with torch.no_grad():
                whole_BTV = model(tokens_BT).logits_BTV
                pieces = [model(piece, cache=cache).logits_BTV for piece in tokens_BT.split(1, dim=1)]
            torch.testing.assert_close(torch.cat(pieces, 1), whole_BTV, rtol=1e-5, atol=1e-5)
