import itertools
import math
from dataclasses import replace

import pytest

from isoflop.errors import InputError
from isoflop.planner import (
    Template,
    architecture,
    dense_params,
    expected_optimum,
    ladder,
    neighbour,
    sizes_around,
)
from isoflop.planner.ladder import aspect
from isoflop.spec import count, parse_spec, spec_to_dict

DENSE = Template(vocab_size=256, context=128, granularities=(1, 2, 4, 8, 16, 32))


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("head_dim", [None, 32])
def test_dense_and_every_granularity_share_shapes_and_active_parameters(activation, head_dim):
    dense = replace(DENSE, activation=activation, head_dim=head_dim)
    reference = ladder(dense, largest=1e8)
    for granularity in dense.granularities:
        moe = dense.with_experts("moe", granularity=granularity, expansion_rate=8)
        rungs = ladder(moe, largest=1e8)
        assert [replace(spec, experts=None) for spec in rungs] == reference
        for spec, plain in zip(rungs, reference, strict=True):
            counted = count(spec)
            output_norms = spec.n_layers * spec.d_model
            assert counted.params_active - counted.params_router - output_norms == count(plain).params_active
            assert spec.d_expert * granularity == spec.feed_forward.d_ff
            assert spec.d_expert % 4 == 0


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu"])
def test_spacing_shapes_and_aspect(activation):
    template = Template(vocab_size=256, context=128, activation=activation)
    rungs = ladder(template, largest=1e11)
    sizes = [dense_params(spec) for spec in rungs]
    ratios = [high / low for low, high in itertools.pairwise(sizes)]
    assert min(ratios) > 1.15
    assert max(ratios) < 1.8
    assert 1.35 < (sizes[-1] / sizes[0]) ** (1 / len(ratios)) < 1.5
    ideal = 8 / 3 if activation == "swiglu" else 4
    for low, spec in zip([rungs[0], *rungs], rungs, strict=False):
        assert spec.d_model >= low.d_model
        assert spec.d_model % (64 if spec.d_model >= 256 else 16) == 0
        assert spec.attention.width == spec.d_model
        assert spec.n_layers >= 2
        smallest = spec.feed_forward.d_ff == template.width_multiple  # no narrower one is divisible by every G
        assert smallest or 0.7 < spec.feed_forward.d_ff / (ideal * spec.d_model) < 1.3
        if spec.d_model >= 256:
            assert 0.6 < spec.d_model / spec.n_layers / aspect(spec.d_model) < 1.5


def test_aspect_rule_meets_the_papers_rule_for_large_models():
    assert architecture(DENSE, d_model=256).n_layers == 8
    assert architecture(DENSE, d_model=1024).n_layers == 16
    assert architecture(DENSE, d_model=4096).n_layers == 64
    assert architecture(replace(DENSE, depth=2), d_model=1024).n_layers == 32


@pytest.mark.parametrize("spacing", [1.25, 2**0.5, 1.6])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_sizes_around_brackets_the_target(spacing, n):
    for target in (2e5, 3.3e6, 1e8):
        rungs = sizes_around(DENSE, target, n, spacing)
        sizes = [dense_params(spec) for spec in rungs]
        assert len(set(sizes)) == n
        assert sizes == sorted(sizes)
        assert abs(math.log(sizes[(n - 1) // 2] / target)) < 0.7 * math.log(1.75)


def test_window_moves_up_at_the_foot_of_the_ladder():
    rungs = sizes_around(DENSE, 10, 5)
    assert rungs == ladder(DENSE, largest=1e6)[:5]
    assert neighbour(DENSE, rungs[0], -1) is None
    assert neighbour(DENSE, rungs[0], 2) == rungs[2]
    assert neighbour(DENSE, rungs[4], -1) == rungs[3]


def test_the_ladder_ends():
    for template in (DENSE, replace(DENSE, depth=0.05), replace(DENSE, head_dim=80, queries_per_kv=5)):
        sizes = [dense_params(spec) for spec in ladder(template, largest=1e18)]
        assert sizes == sorted(set(sizes))
        assert sizes[-1] > 1e12


def test_widening_keeps_the_rungs():
    narrow, wide = sizes_around(DENSE, 1e6, 5), sizes_around(DENSE, 1e6, 7)
    assert wide[1:-1] == narrow
    assert neighbour(DENSE, narrow[-1], 1) == wide[-1]


def test_specs_survive_a_round_trip():
    for spec in ladder(DENSE.with_experts("moe", granularity=4, expansion_rate=8), largest=1e7):
        assert parse_spec(spec_to_dict(spec)) == spec


def test_expected_optimum_spends_the_budget():
    assert expected_optimum(6 * 20 * 1e16, tokens_per_param=20) == pytest.approx(1e8)
    for flops in (1e12, 1e13, 1e14, 1e19):
        size = expected_optimum(flops, tokens_per_param=40, template=DENSE)
        nearest = sizes_around(DENSE, size, 1)[0]
        spent = count(nearest).training_flops_per_token * 40 * dense_params(nearest)
        assert 1 / 2.2 < spent / flops < 2.2
        assert size < expected_optimum(flops, tokens_per_param=40)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sizes_around(DENSE, -1, 3), "target_active_params is -1"),
        (lambda: sizes_around(DENSE, 1e6, 0), "n is 0"),
        (lambda: ladder(DENSE, largest=1e6, spacing=1.0), "spacing is 1.0"),
        (lambda: architecture(DENSE, d_model=40), "multiple of head_dim=16, e.g. 32 or 48"),
        (lambda: ladder(replace(DENSE, queries_per_kv=2**18), largest=1e6), "queries_per_kv 262144 divides no width"),
        (lambda: expected_optimum(0), "flops is 0"),
        (lambda: expected_optimum(1e12, tokens_per_param=-1), "tokens_per_param is -1"),
        (lambda: replace(DENSE, granularities=()), "granularities"),
        (lambda: replace(DENSE, head_dim=15), "head_dim is 15"),
        (lambda: replace(DENSE, depth=0), "depth is 0"),
        (lambda: replace(DENSE, vocab_size=0), "vocab_size is 0"),
    ],
)
def test_wrong_input_names_field_and_value(call, words):
    with pytest.raises(InputError, match=words):
        call()
