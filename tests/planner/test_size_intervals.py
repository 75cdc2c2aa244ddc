"""The interval of the best size: the optimum under every draw."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE

from isoflop import laws
from isoflop.planner import plan

TRUE = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.33, "beta": 0.37}


@pytest.fixture(scope="module")
def chinchilla():
    rng = np.random.default_rng(0)
    rows = [{"params_total": n, "tokens": d} for n in (1e8, 3e8, 1e9, 3e9) for d in (2e9, 8e9, 32e9, 128e9)]
    for row in rows:
        size, data = TRUE["A"] / row["params_total"] ** TRUE["alpha"], TRUE["B"] / row["tokens"] ** TRUE["beta"]
        row["loss"] = (TRUE["E"] + size + data) * np.exp(0.003 * rng.standard_normal())
    return laws.fit(rows, "chinchilla", bootstrap=400)


def closed_form(fit, flops):
    """Best sizes [B] under 6·N·D (Hoffmann et al. 2022, eq. 4)."""
    A, B, alpha, beta = (fit.draws[name] for name in ("A", "B", "alpha", "beta"))
    return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))


@pytest.mark.parametrize("level", [0.9, 0.5])
@pytest.mark.parametrize("flops", [1e20, 1e23])
def test_against_the_closed_form_of_every_draw(chinchilla, flops, level):
    best = plan(law=chinchilla, flops=flops, level=level).best
    tail = (1 - level) / 2
    sizes = closed_form(chinchilla, flops)
    assert best.params_active_interval == pytest.approx(np.quantile(sizes, [tail, 1 - tail]), rel=0.01)
    assert best.tokens_interval == pytest.approx(np.quantile(flops / 6 / sizes, [tail, 1 - tail]), rel=0.01)


def test_it_is_wide_although_the_flat_range_of_a_tight_tolerance_is_not(chinchilla):
    found = plan(law=chinchilla, flops=1e23)
    low, high = found.best.params_active_interval
    flat = found.sizes_within(1e-4)["dense"]
    assert low < flat[0] < flat[1] < high


def test_limits_bind_every_draw(chinchilla):
    capped = plan(law=chinchilla, flops=1e23, max_params_active=3e9).best
    assert capped.params_active_interval == pytest.approx((3e9, 3e9), rel=0.01)
    few = plan(law=chinchilla, flops=1e23, tokens_available=1e11).best
    assert few.tokens_interval == pytest.approx((1e11, 1e11), rel=0.01)


def test_integer_models_have_it_once_for_each_architecture(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    leaders = {row.architecture: row for row in reversed(found.table)}
    having = [row for row in found.table if row.params_active_interval is not None]
    assert {row.architecture for row in having} == leaders.keys()
    assert len(having) == len(leaders)
    for row in having:
        low, high = row.params_active_interval
        assert low < high
        assert low / 1.5 < row.params_active < high * 1.5
    written = found.to_dict()["best"]
    assert written["params_active_interval"] == found.best.params_active_interval
    assert written["tokens_interval"] == found.best.tokens_interval


def test_a_law_without_draws_has_none(fits):
    for law in ({**fits, "moe-e8": replace(fits["moe-e8"], draws={})}, {"moe-e8": replace(fits["moe-e8"], draws={})}):
        found = plan(flops=1e14, law=law, templates=MOE)
        assert all(row.params_active_interval is None and row.tokens_interval is None for row in found.table)
