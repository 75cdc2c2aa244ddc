"""Plans from published constants, against the papers' tables and closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import Machine, hardware, plan

E64_TABLE = [
    (100e6, 4.37e9, 8, 2.95e18, 3.133),
    (1e9, 28.94e9, 16, 1.93e20, 2.491),
    (3e9, 72.90e9, 16, 1.41e21, 2.245),
    (7e9, 137.60e9, 32, 6.46e21, 2.076),
    (70e9, 941.07e9, 32, 4.16e23, 1.694),
    (300e9, 2.96e12, 64, 5.69e24, 1.503),
    (1e12, 7.94e12, 64, 4.97e25, 1.367),
]
"""N_active, tokens, G, FLOPs, loss: Krajewski et al. 2024, arXiv 2402.07871, Table 2."""


@pytest.mark.parametrize(("params", "tokens", "granularity", "flops", "loss"), E64_TABLE)
def test_every_row_of_the_papers_compute_optimal_table(params, tokens, granularity, flops, loss):
    best = plan(flops=flops, law="krajewski-2024-e64", convention="krajewski").best
    assert best.granularity == granularity
    assert best.loss == pytest.approx(loss, abs=0.002)
    assert best.params_active == pytest.approx(params, rel=0.02)
    assert best.params_total == pytest.approx(43 * params, rel=0.02)
    assert best.tokens == pytest.approx(tokens, rel=0.02)
    assert best.n_experts == 64 * granularity


def test_neighbouring_sizes_and_granularities_are_worse():
    flops = 1.93e20
    law = laws.published("krajewski-2024-e64")
    best = plan(flops=flops, law=law).best

    def loss(size: float, granularity: int) -> float:
        n_layers = (size / (12 * 64**2)) ** (1 / 3)
        d_model = 64 * n_layers
        per_token = (72 * d_model**2 + 14 * d_model * 64 * granularity) * n_layers
        columns = {"params_total": 43 * size, "granularity": granularity, "tokens": flops / per_token}
        return float(law.form.predict(columns, law.parameters))

    assert loss(best.params_active, best.granularity) == pytest.approx(best.loss, abs=1e-9)
    for factor in (0.9, 0.97, 1.03, 1.1):
        assert loss(best.params_active * factor, best.granularity) > best.loss
    for granularity in (best.granularity / 2, best.granularity * 2):
        assert min(loss(size, granularity) for size in np.geomspace(1e7, 1e11, 2001)) > best.loss


@pytest.mark.parametrize("name", ["hoffmann-2022", "besiroglu-2024"])
@pytest.mark.parametrize("flops", [1e18, 5.76e23, 1e27])
def test_chinchilla_closed_form(name, flops):
    """N_opt = (αA / βB)^(1/(α+β)) · (C/6)^(β/(α+β)), Hoffmann et al. 2022, eq. 4."""
    p = laws.published(name).parameters
    total = p["alpha"] + p["beta"]
    optimum = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / total) * (flops / 6) ** (p["beta"] / total)
    found = plan(flops=flops, law=name)
    assert len(found.table) == 1
    assert found.best.params_active == pytest.approx(optimum, rel=1e-5)
    assert found.best.tokens == pytest.approx(flops / 6 / optimum, rel=1e-5)
    assert found.best.params_total == found.best.params_active
    assert found.best.router == "none"


def test_dense_law_of_the_fine_grained_paper_needs_many_times_the_flops():
    """Sec. 6: 20 times at 1e20; 18.3 follow from the constants."""
    moe = plan(flops=1e20, law="krajewski-2024-e64").best.loss
    assert plan(flops=18e20, law="krajewski-2024-dense").best.loss > moe
    assert plan(flops=18.6e20, law="krajewski-2024-dense").best.loss < moe
    both = {name: laws.published(name) for name in ("krajewski-2024-e64", "krajewski-2024-dense")}
    found = plan(flops=1e20, law=both, granularities=[8, 16])
    assert [row.architecture for row in found.table] == ["moe-e64-g16", "moe-e64-g8", "dense"]


def test_near_optimal_set_and_flat_sizes():
    found = plan(flops=1.93e20, law="krajewski-2024-e64")
    assert [row.granularity for row in found.near_optimal(0.002)] == [16]
    assert [row.granularity for row in found.near_optimal(0.0056)] == [16, 32, 8]
    low, high = found.sizes_within(0.002)["moe-e64-g16"]
    assert 0.5 * found.best.params_active < low < 0.9 * found.best.params_active
    assert 1.1 * found.best.params_active < high < 2 * found.best.params_active
    assert list(found.sizes_within(0.002)) == ["moe-e64-g16"]
    with pytest.raises(InputError, match="within is -1"):
        found.near_optimal(-1)


def test_nearest_model_of_a_continuous_row():
    best = plan(flops=1.93e20, law="krajewski-2024-e64", context=256).best
    counted = count(best.spec, convention="krajewski")
    assert counted.params_active - counted.params_router == pytest.approx(best.params_active, rel=0.08)
    assert counted.training_flops_per_token * best.tokens == pytest.approx(best.flops, rel=0.1)
    assert best.spec.experts.router.kind == "expert_choice"
    assert best.spec.context == 256


def test_a_token_cap_moves_the_optimum_to_the_cap():
    free = plan(flops=1e24, law="besiroglu-2024")
    capped = plan(flops=1e24, law="besiroglu-2024", tokens_available=1e12)
    assert capped.best.tokens == pytest.approx(1e12, rel=1e-6)
    assert capped.best.params_active == pytest.approx(1e24 / 6e12, rel=1e-6)
    assert capped.constraint_costs["tokens_available"] == pytest.approx(capped.best.loss - free.best.loss)
    assert capped.best.loss > free.best.loss
    assert plan(flops=1e24, law="besiroglu-2024", tokens_available=1e14).constraint_costs["tokens_available"] == 0


def test_parameter_caps_bind_and_say_what_they_cost():
    capped = plan(flops=1e24, law="besiroglu-2024", max_params_active=7e9, max_params_total=5e9)
    best = capped.best  # its N holds embedding and head, limits do not
    assert best.params_active - 2 * 50257 * best.d_model == pytest.approx(5e9, rel=1e-6)
    assert capped.constraint_costs["max_params_active"] == 0
    assert capped.constraint_costs["max_params_total"] > 0.003
    both = plan(flops=1e24, law="besiroglu-2024", max_params_active=7e9, tokens_available=1e12)
    best = both.best
    assert best.params_active - 2 * 50257 * best.d_model == pytest.approx(7e9, rel=1e-6)
    assert best.flops == pytest.approx(6 * best.params_active * 1e12, rel=1e-6)
    assert any("FLOPs are spent" in sentence for sentence in both.warnings)


def test_extrapolation_is_said():
    assert any("extrapolation" in w for w in plan(flops=1e27, law="hoffmann-2022").warnings)
    assert plan(flops=1e22, law="hoffmann-2022").warnings == ()
    law = laws.published("hoffmann-2022")
    plan(flops=1e27, law=law)
    assert law.warnings == []


@pytest.mark.parametrize("flops", [3e9, 1e11, 1e13])
@pytest.mark.parametrize("name", ["krajewski-2024-e64", "krajewski-2024-dense", "hoffmann-2022", "besiroglu-2024"])
def test_small_budgets_give_models_that_exist(name, flops):
    """At least one block, one head and one sequence; and a loss above that of guessing is said."""
    found = plan(flops=flops, law=name)
    for row in found.table:
        assert row.n_layers >= 1 - 1e-9
        assert row.d_model >= 64 - 1e-6
        assert row.tokens >= 1024 - 1e-6
    guessing = any("worse than guessing among 50257 tokens" in sentence for sentence in found.warnings)
    assert guessing == (found.best.loss > np.log(50257))
    assert plan(flops=5e8, law="hoffmann-2022").best.n_layers == pytest.approx(1, abs=0.01)


def test_assumed_vocabulary_and_context_are_noted():
    assert "vocab_size 50257 and context 1024 are defaults" in plan(flops=1e20, law="hoffmann-2022").notes[0]
    assert plan(flops=1e20, law="hoffmann-2022", vocab_size=300).notes[0].startswith("context 1024 is a default")
    assert plan(flops=1e20, law="hoffmann-2022", vocab_size=300, context=64).notes == ()


def test_a_law_that_knows_the_expansion_rate_ranks_it():
    class Both(laws.FineGrained):
        """Fine-grained, with the gain of the expansion rate as a column that it reads."""

        columns = ("params_total", "granularity", "tokens", "expansion_rate")

    law = replace(laws.published("krajewski-2024-e64"), form=Both(), fixed={}, range={})
    found = plan(flops=1e20, law=law, granularities=[8], expansion_rates=[4, 64])
    assert [row.architecture for row in found.table] == ["moe-e64-g8", "moe-e4-g8"]


class Strange(laws.FineGrained):
    """Reads what no candidate has."""

    columns = ("params_total", "granularity", "tokens", "n_heads")


STRANGE = replace(laws.published("krajewski-2024-e64"), form=Strange())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"flops": 0}, "flops is 0"),
        ({"flops": float("inf")}, "flops is inf"),
        ({"law": "kraj"}, "law is 'kraj'; .*krajewski-2024-e64"),
        ({"law": {}}, "law is an empty mapping"),
        ({"convention": "6nd"}, "convention is '6nd'; allowed: exact"),
        ({"convention": "6ND"}, "counts FLOPs as krajewski; .*hoffmann-2022, besiroglu-2024"),
        ({"convention": "exact"}, "counts FLOPs as krajewski"),
        ({"granularities": [0]}, r"granularities is \[0\]"),
        ({"expansion_rates": [8]}, "expansion_rates is 8; .*expansion_rate 64 alone"),
        ({"law": "hoffmann-2022", "granularities": [8]}, "granularity 1 alone"),
        ({"tokens_available": 0}, "tokens_available is 0"),
        ({"max_params_active": 10}, "max_params_active is 10, .* at least 53248"),
        ({"max_params_total": 2000}, "max_params_total is 2000, .* at least 2117632"),
        ({"level": 1}, "level is 1"),
        ({"law": "tian-2025"}, "law tian-2025 predicts leverage; a plan needs a law of the loss"),
        ({"law": STRANGE}, "reads n_heads, which no candidate has; they have params_total"),
        ({"law": "clark-2022-hash"}, "law clark-2022-hash reads neither tokens nor flops"),
        ({"flops": 1e8}, "flops is 1e8; not even the smallest candidate, of 53248 active .* sequence of 1024 tokens"),
        ({"tokens_available": 100}, "tokens_available is 100, .* at least 1024, the least tokens"),
    ],
)
def test_wrong_input_names_argument_and_value(arguments, words):
    with pytest.raises(InputError, match=words):
        plan(**{"flops": 1e20, "law": "krajewski-2024-e64", **arguments})


E_16 = [  # arXiv 2402.07871, Table 9: active parameters; 10th to 90th percentile of tokens; of granularity
    (8.22e18, 100e6, (10.29e9, 17.73e9), (8, 16)),
    (4.58e20, 1e9, (53.74e9, 103.54e9), (16, 32)),
    (1.351e22, 7e9, (177.65e9, 511.43e9), (16, 32)),
    (7.43e23, 70e9, (0.72e12, 3.22e12), (32, 64)),
    (7.53e25, 1e12, (3.60e12, 28.22e12), (32, 128)),
]


@pytest.mark.parametrize(("flops", "active", "tokens", "granularity"), E_16)
def test_ranges_of_the_papers_table_at_expansion_rate_16(
    flops: float, active: float, tokens: tuple[float, float], granularity: tuple[int, int]
) -> None:
    best = plan(flops=flops, law="krajewski-2024-e16").best
    assert best.params_active == pytest.approx(active, rel=0.01)  # the budget is the one that wants this size
    assert tokens[0] <= best.tokens <= tokens[1]
    assert granularity[0] <= best.granularity <= granularity[1]


def test_limits_of_experts_are_those_of_the_models_that_can_be_built():
    """A law whose N holds the embedding, which experts do not multiply: a cap that a model keeps costs nothing."""
    free = plan(flops=1e19, law="ludziejewski-2025", expansion_rates=[32])
    built = free.models[0]
    counted = count(built.spec)
    assert built.params_total == counted.params_total
    capped = plan(flops=1e19, law="ludziejewski-2025", expansion_rates=[32], max_params_total=1.2 * built.params_total)
    assert capped.constraint_costs["max_params_total"] < 2e-4
    assert capped.models[0].loss == pytest.approx(built.loss, abs=1e-3)


def test_the_comparison_with_dense_says_that_limits_are_left_out():
    free = plan(flops=1e21, law="ludziejewski-2025", expansion_rates=[1, 8])
    capped = plan(flops=1e21, law="ludziejewski-2025", expansion_rates=[1, 8], tokens_available=1e10)
    assert capped.against_dense.message.startswith("limits left out, dense needs")
    assert free.against_dense.message == capped.against_dense.message.removeprefix("limits left out, ")


def test_exact_flops_beyond_the_laws_are_said():
    long = plan(flops=1e18, law="krajewski-2024-dense", context=8192, vocab_size=128000)
    said = next(sentence for sentence in long.warnings if sentence.startswith("Counted exactly"))
    row = long.models[0]
    ratio = count(row.spec).training_flops_per_token * row.tokens / row.flops
    assert f"{ratio:.2f} times what krajewski counts" in said
    assert ratio > 1.1


def test_a_model_that_a_device_cannot_hold_is_said():
    machine = Machine(hardware=hardware("h100-sxm"))
    found = plan(device_hours=1e4, machine=machine, law="krajewski-2024-e64")
    assert any("GB on each of 1 device; h100-sxm has 80 GB" in sentence for sentence in found.warnings)
    more = plan(device_hours=1e4, machine=machine, law="krajewski-2024-e64", memory_per_device=5e12)
    assert any("memory_per_device is 5000 GB; h100-sxm has 80 GB" in sentence for sentence in more.warnings)
    with pytest.raises(InputError, match=r"measured_flops is 4e\+15; h100-sxm peaks at 9\.894e"):
        Machine(hardware=hardware("h100-sxm"), measured_flops=4e15)


def test_laws_that_count_differently_are_not_ranked():
    both = {"a": laws.published("hoffmann-2022"), "b": laws.published("krajewski-2024-e64")}
    with pytest.raises(InputError, match=r"count FLOPs differently \(a as 6ND, b as krajewski\)"):
        plan(flops=1e20, law=both)
