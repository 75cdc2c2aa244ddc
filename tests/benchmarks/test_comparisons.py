"""The comparisons' own arithmetic, and that both sides are one function before they are timed."""

import numpy as np
import pytest

from benchmarks import models
from isoflop.nn import Decoder

TINY = models.dense(d_model=32, n_layers=2, d_ff=64, context=16, head_dim=8, vocab_size=53)


@pytest.mark.parametrize("change", [lambda spec: spec, models.with_experts], ids=["llama", "qwen3_moe"])
def test_exported_weights_are_all_of_theirs(change):
    transformers = pytest.importorskip("transformers")
    from benchmarks.side_isoflop import named_as_theirs

    spec = change(TINY)
    kind, config = models.theirs(spec)
    model = Decoder(spec)
    named = {"llama": transformers.LlamaForCausalLM, "qwen3_moe": transformers.Qwen3MoeForCausalLM}
    configs = {"llama": transformers.LlamaConfig, "qwen3_moe": transformers.Qwen3MoeConfig}
    theirs = named[kind](configs[kind](**config))
    theirs.load_state_dict(named_as_theirs(model), strict=True)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())


def test_first_difference_of_two_continuations():
    from benchmarks.sample import first_difference

    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    with pytest.raises(ValueError, match="longer"):
        first_difference([1], [1, 2])


def test_slope_of_a_power_law_and_its_interval():
    from benchmarks.scaling import slope

    x = np.array([1.0, 2.0, 4.0, 8.0])
    assert slope(x, 3 * x**1.5) == pytest.approx((1.5, 1.5, 1.5))
    found, low, high = slope(x, x * np.array([1.0, 1.1, 0.9, 1.0]))
    assert low < 1 < high
    assert high - found == pytest.approx(found - low)
