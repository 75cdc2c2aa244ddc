"""Valleys over the expert–attention ratio: planted places come back, their intervals cover, and r*(C, S) is found."""

import numpy as np
import pytest

from isoflop.errors import InputError
from isoflop.laws import RunTable, allocation_of, published, ratio_valleys

LAW = published("li-2026")
NOISE, DEPTH = 0.003, 0.03


def best(flops, sparsity):
    return float(LAW.predict({"flops": [flops], "sparsity": [sparsity]})[0])


def runs(rng, *, noise=NOISE, depth=DEPTH, sparsities=(0.5, 0.875, 0.9375), budgets=(1e18, 1e19, 1e20), seeds=1):
    return RunTable(
        {
            "run_id": f"{sparsity}-{flops}-{index}-{seed}",
            "flops": flops,
            "budget": flops,
            "sparsity": sparsity,
            "seed": seed,
            "expert_attention_ratio": ratio,
            "loss": 2.5 + depth * np.log(ratio / best(flops, sparsity)) ** 2 + noise * rng.standard_normal(),
        }
        for sparsity in sparsities
        for flops in budgets
        for index, ratio in enumerate(best(flops, sparsity) * np.geomspace(1 / 3, 3, 7))
        for seed in range(seeds)
    )


def test_without_noise_the_valley_is_exact():
    for valley in ratio_valleys(runs(np.random.default_rng(0), noise=0.0)):
        assert valley.inside
        assert valley.ratio == pytest.approx(best(valley.flops, valley.sparsity), rel=1e-9)
        assert valley.depth == pytest.approx(DEPTH, rel=1e-9)
        assert valley.costs == pytest.approx({0.5: DEPTH * np.log(2) ** 2, 2.0: DEPTH * np.log(2) ** 2}, rel=1e-8)
        curve = valley.curve(np.array([valley.ratio, 2 * valley.ratio]))
        assert curve == pytest.approx([2.5, 2.5 + DEPTH * np.log(2) ** 2])


def test_intervals_of_place_and_depth_cover():
    """30 sets of nine valleys: a 90% interval covers 243 ± 5 of them."""
    places = depths = costs = 0
    for seed in range(30):
        for valley in ratio_valleys(runs(np.random.default_rng(seed)), draws=400, seed=seed):
            low, high = valley.ratio_interval
            places += low <= best(valley.flops, valley.sparsity) <= high
            depths += valley.depth_interval[0] <= DEPTH <= valley.depth_interval[1]
            low, high = valley.cost_intervals[2.0]
            costs += low <= DEPTH * np.log(2) ** 2 <= high
    for covered in (places, depths, costs):
        assert 226 <= covered <= 260


def test_the_band_is_what_one_run_cannot_tell_from_the_best():
    valley = ratio_valleys(runs(np.random.default_rng(1)))[0]
    assert valley.noise == pytest.approx(NOISE, rel=0.3)
    assert valley.curve(np.array(valley.band)) == pytest.approx(valley.loss + valley.noise)


def test_a_flat_or_open_valley_is_no_optimum():
    flat = ratio_valleys(runs(np.random.default_rng(3), depth=0.0))
    assert all(valley.ratio_interval is None for valley in flat)
    assert sum(valley.depth_interval[0] <= 0 <= valley.depth_interval[1] for valley in flat) >= 6
    hill = ratio_valleys(runs(np.random.default_rng(3), depth=-0.03))
    assert {valley.status for valley in hill} == {"not_convex"}
    assert all(valley.costs == {} and valley.band is None and valley.depth_interval[1] < 0 for valley in hill)
    table = runs(np.random.default_rng(4), noise=0.0)
    beyond = ratio_valleys(table.where(table.numeric("expert_attention_ratio") > 1.05))
    assert "edge" in {valley.status for valley in beyond}


def test_the_allocation_law_comes_back():
    exact = allocation_of(ratio_valleys(runs(np.random.default_rng(0), noise=0.0)), draws=0)
    assert exact.status == "converged"
    assert exact.parameters == pytest.approx(dict(LAW.parameters), rel=1e-5)
    covered = dict.fromkeys(LAW.parameters, 0)
    for seed in range(12):
        found = allocation_of(ratio_valleys(runs(np.random.default_rng(100 + seed)), draws=60), draws=40)
        for name, (low, high) in found.interval(0.9).items():
            covered[name] += low <= LAW.parameters[name] <= high
    assert all(count >= 7 for count in covered.values()), covered


def test_one_sparsity_or_one_budget_pins_what_it_cannot_tell():
    one = allocation_of(ratio_valleys(runs(np.random.default_rng(0), noise=0.0, sparsities=(0.875,))), draws=0)
    assert set(one.pinned) == {"p", "q"}
    assert one.parameters["B"] == pytest.approx(0.24 * (1 - 0.875) ** 0.21, rel=1e-6)
    other = allocation_of(ratio_valleys(runs(np.random.default_rng(0), noise=0.0, budgets=(1e19,))), draws=0)
    assert set(other.pinned) == {"B", "q"}


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(InputError, match="level is 2"):
        ratio_valleys(runs(np.random.default_rng(0)), level=2)
    with pytest.raises(InputError, match="no row has status done"):
        ratio_valleys([{"status": "failed"}])
    few = ratio_valleys(runs(np.random.default_rng(0), sparsities=(0.5, 0.875), budgets=(1e18, 1e19)))
    with pytest.raises(InputError, match=r"3 of 3 valleys lie inside .* fewer than the 4 parameters"):
        allocation_of(few[:3])
    assert allocation_of(few[:3], draws=0, pinned={"q": 0.21}).parameters["q"] == 0.21


def test_to_dict_is_plain():
    document = ratio_valleys(runs(np.random.default_rng(0)))[0].to_dict()
    assert document["sparsity"] == 0.5
    assert set(document["costs"]) == {"0.5", "2"}
    assert "log_ratio_draws" not in document
