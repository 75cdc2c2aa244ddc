"""Valleys over the expert–attention ratio: planted places come back, their intervals cover, and r*(C, S) is found."""

import numpy as np
import pytest

from isoflop.errors import InputError
from isoflop.laws import RunTable, allocation_of, published, ratio_valleys, shared_valley

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


def faint(seed, *, depth=0.01, noise=0.012, budgets=(3e11, 1e12, 3e12), sparsities=(0.5, 0.875, 0.97), other=None):
    """Runs of valleys that are hardly deeper than the noise: ln r* = .2 - .3 ln(1-S) + .15 ln(C/1e12)."""
    rng = np.random.default_rng(seed)
    rows = []
    for sparsity in sparsities:
        for budget in budgets:
            best = 0.2 - 0.3 * np.log(1 - sparsity) + 0.15 * np.log(budget / 1e12)
            own = other if other is not None and budget == budgets[0] else depth
            for ratio in (0.25, 0.45, 0.8, 1.4, 2.4, 4.0):
                loss = 1.5 + 0.1 * sparsity + own * (np.log(ratio) - best) ** 2 + noise * rng.standard_normal()
                row = {"run_id": f"{len(rows)}", "status": "done", "budget": budget, "flops": budget}
                rows.append({**row, "sparsity": sparsity, "expert_attention_ratio": ratio, "loss": float(loss)})
    return RunTable(rows)


def test_one_depth_for_all_groups_recovers_a_planted_truth():
    found = shared_valley(ratio_valleys(faint(0, noise=1e-6)))
    assert found.depth == pytest.approx(0.01, rel=1e-3)
    assert found.noise == pytest.approx(1e-6, rel=0.5)
    assert found.law.parameters["p"] == pytest.approx(-0.3, abs=1e-3)
    assert found.law.parameters["B"] == pytest.approx(0.15, abs=1e-3)
    assert found.law.parameters["q"] == 0
    at = {"flops": np.array([1e12]), "sparsity": np.array([0.0])}
    assert found.law.form.predict(at, found.law.parameters)[0] == pytest.approx(np.exp(0.2), rel=1e-3)
    pinned = shared_valley(ratio_valleys(faint(0, noise=1e-6)), pinned={"B": 0.15}, draws=0)
    assert pinned.law.parameters["p"] == pytest.approx(-0.3, abs=1e-3)
    assert set(pinned.law.pinned) == {"B", "q"}


def test_intervals_of_a_faint_shared_valley_hold_the_truth():
    held, deep, sure, misfits = [], [], [], []
    at = {"flops": np.array([1e12]), "sparsity": np.array([0.875])}
    truth = np.exp(0.2 - 0.3 * np.log(0.125))
    for seed in range(60):
        valleys = ratio_valleys(faint(seed), draws=50)
        found = shared_valley(valleys, seed=seed)
        low, high = np.quantile(found.depth_draws, [0.05, 0.95])
        deep.append(low <= 0.01 <= high)
        sure.append(low > 0)
        misfits.append(found.misfit)
        drawn = found.law.form.predict(at, {name: values[:, None] for name, values in found.law.draws.items()})
        low, high = np.quantile(drawn, [0.05, 0.95])
        held.append(low <= truth <= high)
        assert not all(valley.ratio_interval is not None for valley in valleys)  # one by one they say little
    assert np.mean(held) > 0.8
    assert np.mean(deep) > 0.8
    assert np.mean(sure) > 0.9
    assert 0.3 < np.mean(misfits) < 0.7


def test_groups_that_do_not_share_their_depth_are_found_out():
    assert shared_valley(ratio_valleys(faint(0, noise=0.003, other=0.05))).misfit < 0.01


def test_a_shared_hill_has_no_law():
    found = shared_valley(ratio_valleys(faint(0, depth=-0.02, noise=0.003)))
    assert found.depth < 0
    assert found.law is None


def test_shared_valleys_of_one_budget_and_sparsity_have_one_best_ratio():
    found = shared_valley(ratio_valleys(faint(0, noise=1e-6, budgets=(1e12,), sparsities=(0.5,))))
    assert found.law.pinned == {"p": 0.0, "B": 0.0, "q": 0.0}
    assert found.law.parameters["A"] == pytest.approx(np.exp(0.2 + 0.3 * np.log(2)), rel=1e-3)


def test_shared_valleys_refuse_what_they_do_not_know():
    valleys = ratio_valleys(faint(0))
    with pytest.raises(InputError, match="one depth for all valleys knows p and B alone, and q = 0"):
        shared_valley(valleys, pinned={"q": 0.2})
    few = RunTable(
        [row for row in faint(0, budgets=(1e12,), sparsities=(0.5,)).rows if row["expert_attention_ratio"] < 1]
    )
    with pytest.raises(InputError, match="3 rows in 1 groups leave nothing to estimate the noise from"):
        shared_valley(ratio_valleys(few))
    with pytest.raises(InputError, match="no group has runs at three ratios"):
        shared_valley(ratio_valleys(RunTable(few.rows[:2])))
    paired = RunTable(
        [row for row in faint(0).rows if (row["budget"], row["sparsity"]) in ((3e11, 0.5), (1e12, 0.875))]
    )
    with pytest.raises(InputError, match="p and B cannot be told apart"):
        shared_valley(ratio_valleys(paired))


def test_budgets_and_sparsities_that_hardly_differ_are_one():
    """Runs of one budget never cost exactly the same, and 1e12 must not be told from 1.004e12 by rounding."""
    near = faint(0, noise=1e-6, budgets=(1e12, 1.004e12, 1.03e12), sparsities=(0.5, 0.505))
    assert shared_valley(ratio_valleys(near), draws=0).law.pinned == {"p": 0.0, "B": 0.0, "q": 0.0}
    assert set(allocation_of(ratio_valleys(near), draws=0).pinned) == {"p", "B", "q"}
    apart = faint(0, noise=1e-6, budgets=(1e12, 1.2e12), sparsities=(0.97, 0.98))
    assert shared_valley(ratio_valleys(apart), draws=0).law.pinned == {"q": 0.0}


def test_what_is_far_from_zero_changes_nothing():
    plain = shared_valley(ratio_valleys(faint(0)), draws=0)
    table = faint(0)
    moved = table.with_columns(
        {
            "loss": table.numeric("loss") + 15,
            "expert_attention_ratio": table.numeric("expert_attention_ratio") * 1e6,
        }
    )
    far = shared_valley(ratio_valleys(moved), draws=0)
    assert far.depth == pytest.approx(plain.depth, rel=1e-6)
    assert far.noise == pytest.approx(plain.noise, rel=1e-6)
    assert far.misfit == pytest.approx(plain.misfit, rel=1e-4)
    assert far.law.parameters["B"] == pytest.approx(plain.law.parameters["B"], rel=1e-5)


def test_three_ratios_a_group_leave_nothing_to_test_what_they_share():
    table = faint(0)
    three = RunTable([row for row in table.rows if row["expert_attention_ratio"] in (0.25, 0.8, 2.4)])
    valleys = ratio_valleys(three)
    assert all(valley.curvature_error is None and not valley.is_clear for valley in valleys)
    found = shared_valley(valleys)
    assert found.misfit is None
    assert found.spare == 27 - 9 - 4


def test_no_draws_are_no_draws_and_say_the_same():
    drawn, none = (shared_valley(ratio_valleys(faint(0), draws=draws), draws=draws) for draws in (200, 0))
    assert none.law.draws == {}
    assert none.law.interval(0.9) == {}
    assert none.depth_draws.size == none.used.size == 0
    assert none.depth == drawn.depth
    assert none.law.parameters == drawn.law.parameters
    assert none.law.status == drawn.law.status == "converged"
    assert none.depth_interval() == drawn.depth_interval()
    low, high = np.quantile(shared_valley(ratio_valleys(faint(0)), draws=20_000).depth_draws, [0.05, 0.95])
    assert none.depth_interval() == pytest.approx((low, high), rel=0.05)
    for many, few in zip(ratio_valleys(faint(0)), ratio_valleys(faint(0), draws=0), strict=True):
        assert few.depth_interval is few.ratio_interval is few.loss_interval is None
        assert few.cost_intervals == {}
        assert (few.is_visible, few.is_clear) == (many.is_visible, many.is_clear)
        assert few.is_visible == (many.depth_interval[0] > 0)


def test_the_shared_law_holds_real_minima_and_how_far_they_lie_from_it():
    valleys = ratio_valleys(faint(1))
    found = shared_valley(valleys).law
    own = [valley for valley in valleys if valley.depth is not None]
    assert found.runs.numeric("expert_attention_ratio") == pytest.approx([valley.ratio for valley in own])
    columns = {name: found.runs.numeric(name) for name in ("flops", "sparsity")}
    predicted = found.form.predict(columns, found.parameters)
    assert found.residuals == pytest.approx(np.log([valley.ratio for valley in own]) - np.log(predicted))
    assert np.abs(found.residuals).max() > 0.01


def test_numbers_stay_finite_where_the_valley_is_nearly_flat():
    """Where the depth may be 0, r* = ratio of two coefficients may be any power of ten in a draw."""
    for seed in range(6):
        valleys = ratio_valleys(faint(seed, depth=0.0005))
        found = shared_valley(valleys, draws=2000)
        if found.law is None:
            continue
        assert len(found.used) == len(found.law.draws["A"])
        for values in found.law.draws.values():
            assert np.isfinite(values).all()
        assert (found.law.draws["A"] > 0).all()


def test_conventions_that_are_not_said_are_one_not_many():
    table = faint(0)
    blank = np.array([[None, float("nan"), " "][index % 3] for index in range(len(table))], dtype=object)
    assert {valley.convention for valley in ratio_valleys(table.with_columns({"flops_convention": blank}))} == {None}
    some = blank.copy()
    some[3] = "exact"
    with pytest.raises(InputError, match=r"by nothing that is said and exact; .* \"flops_convention=exact\""):
        ratio_valleys(table.with_columns({"flops_convention": some}))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"seed": -1}, r"seed is -1; it must be a whole number from 0\."),
        ({"draws": 99999999999}, r"draws is 99999999999; it must be from 0 to 100,000\."),
        ({"by": ("sparsity", "sparsity")}, r"by is sparsity,sparsity, which names sparsity twice"),
        ({"by": ("sparsity", "loss")}, r"by is sparsity,loss, but loss is what the runs of a group differ in"),
        ({"by": ("expert_attention_ratio",)}, r"expert_attention_ratio is what the runs of a group differ in"),
    ],
)
def test_draws_seeds_and_groupings_that_cannot_be(how, sentence):
    with pytest.raises(InputError, match=sentence):
        ratio_valleys(faint(0), **how)


def test_a_hill_has_no_ratio_in_json():
    for valley in ratio_valleys(runs(np.random.default_rng(3), depth=-0.03)):
        document = valley.to_dict()
        assert document["ratio"] is document["ratio_interval"] is document["loss"] is None
        assert document["curvature"] < 0
    mixed = ratio_valleys(runs(np.random.default_rng(0)), by=("sparsity",))
    assert mixed[0].flops_range == (1e18, 1e20)
