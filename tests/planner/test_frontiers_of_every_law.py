"""Frontiers of laws that read other columns than size and tokens agree with plans, or are refused in a sentence."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE

from isoflop import laws
from isoflop.errors import InputError
from isoflop.laws import LawFrontier, efficiency_multiplier, published
from isoflop.planner import ladder, plan


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("ludziejewski-2025", 1),
        ("ludziejewski-2025", 16),
        ("abnar-2025", 1),
        ("abnar-2025", 8),
        ("muennighoff-2023", 1),
    ],
)
def test_the_frontier_of_published_constants_is_the_plans_optimum(name, rate):
    frontier = LawFrontier(published(name), expansion_rate=rate)
    best = plan(flops=1e20, law=name, expansion_rates=[rate]).best
    found = frontier.optimum(1e20)
    assert found["loss"] == pytest.approx(best.loss, abs=1e-6)
    # of experts beside an embedding, which the frontier of a law alone does not know, params_total is the plan's alone
    totals = () if name == "ludziejewski-2025" and rate > 1 else ("params_total",)
    for column in ("params_active", *totals, "tokens"):
        assert found[column] == pytest.approx(getattr(best, column), rel=1e-3)


TRUTH = {"c": 1.3, "a": 40.0, "b": 60.0, "alpha": -0.22, "delta": -0.3, "gamma": 0.01, "beta": -0.2, "omega": 0.4}
TRUTH |= {"zeta": -0.02, "E_start": 1.8, "E_max": 200.0}


@pytest.fixture(scope="module")
def joint():
    """A fit of runs without noise at E = 1, 4 and 16, which count 8 FLOPs a parameter and token."""
    grid = [(n, d, e) for n in (1e7, 3e7, 1e8, 3e8, 1e9) for d in (1e8, 4e8, 16e8, 64e8) for e in (1.0, 4.0, 16.0)]
    size, tokens, rate = np.array(grid).T
    columns = {
        "params_active": size,
        "params_total": size * (1 + 0.5 * (rate - 1)),
        "tokens": tokens,
        "flops": 8 * size * tokens,
        "expansion_rate": rate,
        "granularity": np.ones_like(size),
    }
    columns["loss"] = laws.FORMS["joint"].predict(columns, TRUTH)
    return laws.fit([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], "joint")


def lowest(flops, rate):
    size = np.geomspace(1e6, 1e10, 20001)
    columns = {"params_active": size, "tokens": flops / 8 / size, "expansion_rate": rate}
    loss = laws.FORMS["joint"].predict(columns, TRUTH)
    return float(loss.min()), float(size[np.argmin(loss)])


def test_one_law_of_dense_and_moe_models_gives_their_multiplier(joint):
    found = efficiency_multiplier(joint, joint, 1e18, expansion_rate=16)
    loss, size = lowest(1e18, 16.0)
    assert found.loss == pytest.approx(loss, abs=1e-4)
    assert lowest(found.dense_flops, 1.0)[0] == pytest.approx(loss, abs=1e-4)
    assert found.value > 1.2
    best = LawFrontier(joint, expansion_rate=16).optimum(1e18)
    assert best["params_active"] == pytest.approx(size, rel=0.02)
    assert best["params_total"] == pytest.approx(8.5 * best["params_active"])


class Deep(laws.FORMS["chinchilla"].__class__):
    """Chinchilla whose size term wants depth."""

    name = "deep"
    columns = ("params_total", "tokens", "n_layers")

    def terms(self, x, theta):
        found = super().terms(x, theta)
        return {**found, "A": found["A"] * np.exp(-0.05 * x["n_layers"])}


DEEP = laws.Law(
    name="deep",
    form=Deep(),
    parameters={"E": 1.5, "A": 300.0, "B": 800.0, "alpha": 0.33, "beta": 0.3},
    source="made up",
    convention="exact",
)


def test_a_law_that_reads_the_depth_compares_dense_and_moe_models():
    moe = DENSE.with_experts("moe-e8-g2", granularity=2, expansion_rate=8)
    found = plan(flops=1e15, law=DEEP, templates=[DENSE, moe], spacing=1.1)
    assert found.against_dense.dense == "dense"
    dense = min(row.loss for row in found.table if row.architecture == "dense")
    here = plan(flops=1e15 * found.against_dense.multiplier.value, law=DEEP, templates=[DENSE], spacing=1.1).best
    assert here.loss == pytest.approx(found.against_dense.multiplier.loss, rel=5e-3)
    assert dense > found.best.loss
    assert {spec.n_layers for spec in ladder(DENSE, largest=1e8)} > {2}


@pytest.mark.parametrize(
    ("law", "given", "words"),
    [
        ("ludziejewski-2025", {}, "expansion_rate is missing; law ludziejewski-2025 needs one for its frontier"),
        ("abnar-2025", {}, "expansion_rate is missing; law abnar-2025"),
        ("abnar-2025", {"expansion_rate": 0.5}, "expansion_rate is 0.5; it must be at least 1"),
        ("krajewski-2024-e64", {}, "granularity is missing"),
        ("tian-2025", {}, "law tian-2025 predicts leverage; a frontier needs a law of the loss"),
        ("clark-2022-hash", {"expansion_rate": 8}, "law clark-2022-hash reads neither tokens nor flops"),
        (DEEP, {}, "law deep reads n_layers, which a frontier does not know of models of a size; it needs a law of"),
    ],
)
def test_what_no_frontier_can_be_made_of_is_one_sentence(law, given, words):
    with pytest.raises(InputError, match=words):
        LawFrontier(published(law) if isinstance(law, str) else law, **given)


def test_an_expansion_rate_that_no_run_has_is_refused(joint):
    with pytest.raises(InputError, match="expansion_rate is missing; law joint"):
        efficiency_multiplier(published("hoffmann-2022"), joint, 1e18)
    with pytest.raises(InputError, match="expansion_rate is 8, which no run has; there are 1, 4, 16"):
        efficiency_multiplier(published("hoffmann-2022"), joint, 1e18, expansion_rate=8)
    alone = replace(joint, runs=joint.runs.where(expansion_rate=4.0))
    assert LawFrontier(alone).optimum(1e18) == LawFrontier(joint, expansion_rate=4).optimum(1e18)
