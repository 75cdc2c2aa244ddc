"""The law of the best ratio with its depth: planted truths come back, intervals cover, files keep everything."""

import json

import numpy as np
import pytest
from tests.laws.test_valleys import DEPTH, LAW, best, faint, runs

from isoflop.errors import InputError
from isoflop.laws import (
    RunTable,
    best_ratio,
    best_ratio_of,
    fit,
    load_best_ratio,
    pooled_depth,
    ratio_valleys,
    save_best_ratio,
    save_fit,
)


def law_of(seed, **how):
    return best_ratio_of(ratio_valleys(runs(np.random.default_rng(seed), **how), draws=300, seed=seed), draws=40)


def test_without_noise_place_and_cost_are_exact():
    found = law_of(0, noise=0.0)
    assert found.depth == pytest.approx(DEPTH, rel=1e-9)
    optimum = found.at(3e19, 0.75)
    assert optimum.ratio == pytest.approx(best(3e19, 0.75), rel=1e-5)
    cost, interval = optimum.cost(3 * optimum.ratio)
    assert cost == pytest.approx(DEPTH * np.log(3) ** 2, rel=1e-6)
    assert interval == pytest.approx((cost, cost), rel=1e-5)
    assert optimum.cost(optimum.ratio)[0] == pytest.approx(0, abs=1e-20)
    there, _ = optimum.change(3 * optimum.ratio, optimum.ratio)
    assert there == pytest.approx(-cost)


def test_intervals_of_place_cost_and_change_cover():
    """20 sets, at a budget and sparsity between those that were run: a 90% interval covers 18 ± 1.3 of them."""
    truth, ratio = best(3e19, 0.9), 2.0
    places = costs = changes = depths = 0
    for seed in range(20):
        found = law_of(seed)
        low, high = found.depth_interval
        depths += low <= DEPTH <= high
        optimum = found.at(3e19, 0.9)
        low, high = optimum.interval()
        places += low <= truth <= high
        low, high = optimum.cost(ratio)[1]
        costs += low <= DEPTH * np.log(ratio / truth) ** 2 <= high
        low, high = optimum.change(0.5, ratio)[1]
        changes += low <= DEPTH * (np.log(ratio / truth) ** 2 - np.log(0.5 / truth) ** 2) <= high
    for covered in (places, costs, changes, depths):
        assert covered >= 14, (places, costs, changes, depths)
    assert places + costs + changes + depths < 79  # intervals that always hold say nothing


def test_hills_count_in_the_depth_so_that_no_valley_is_seen_where_there_is_none():
    depths, visible = [], 0
    for seed in range(40):
        valleys = ratio_valleys(runs(np.random.default_rng(seed), depth=0.0), draws=300, seed=seed)
        depth, (low, _), _, _ = pooled_depth(valleys)
        depths.append(depth)
        visible += low > 0
    assert visible <= 6
    assert abs(np.mean(depths)) < 3 * np.std(depths) / np.sqrt(len(depths))


def test_depths_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = pooled_depth(ratio_valleys(runs(rng)))
    shallow, deep = runs(rng, depth=0.01, sparsities=(0.5,)), runs(rng, depth=0.06, sparsities=(0.875,))
    apart = pooled_depth(ratio_valleys(RunTable([*shallow.rows, *deep.rows])))
    assert 1 <= alike[3] < 1.6
    assert apart[3] > 5
    assert apart[1][1] - apart[1][0] > 3 * (alike[1][1] - alike[1][0])


def test_a_file_keeps_everything(tmp_path):
    table = runs(np.random.default_rng(0)).with_columns({"flops_convention": "exact", "context": 128})
    found = best_ratio_of(ratio_valleys(table), draws=30, source="mine.csv")
    save_best_ratio(found, tmp_path / "best.json")
    back = load_best_ratio(tmp_path / "best.json")
    assert back.to_dict() == found.to_dict()
    assert (back.convention, back.flops_convention, back.name) == ("exact", "exact", "mine.csv")
    assert back.range["context"] == (128, 128)
    assert back.at(1e19, 0.9).cost(2.0) == found.at(1e19, 0.9).cost(2.0)
    assert back.is_visible
    assert not back.covers_dense()


def test_a_fit_of_law_allocation_says_places_but_no_cost(tmp_path):
    rows = [
        {"flops": c, "sparsity": s, "expert_attention_ratio": best(c, s), "flops_convention": "exact"}
        for c in (1e18, 1e19, 1e20)
        for s in (0.5, 0.8, 0.9)
    ]
    save_fit(fit(rows, "allocation"), tmp_path / "fit.json")
    found = load_best_ratio(tmp_path / "fit.json")
    assert found.at(1e19, 0.9).ratio == pytest.approx(best(1e19, 0.9), rel=1e-4)
    assert found.at(1e19, 0.9).cost(2.0) is None
    assert found.convention == "exact"


def test_the_published_law_says_where_it_was_measured():
    found = best_ratio("li-2026")
    assert found.at(1e20, 0.8235).ratio == pytest.approx(1.223, abs=1e-3)
    assert found.at(1e20, 0.8235).interval() is None
    assert found.beyond(flops=1e20, sparsity=0.9, context=4096) == []
    said = found.beyond(flops=1e25, sparsity=0.5, context=32768, expert_attention_ratio=3.0)
    assert said == [
        "flops 1e25 (1e18 to 1e21)",
        "sparsity 0.5 (0.8235 to 0.9767)",
        "context 32768 (4096)",
        "expert_attention_ratio 3 (0.2 to 1.5)",
    ]
    assert found.at(1e20, 0.8235).ratio == pytest.approx(
        dict(LAW.parameters)["A"] * (1 - 0.8235) ** -1.23 * 1e20**0.1667, 0.01
    )


def test_what_cannot_be_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"allocation is 'abnar-2025'; published laws of the best ratio: li-2026\."):
        best_ratio("abnar-2025")
    with pytest.raises(InputError, match=r"law li-2026 is published; give its name in place of a file\."):
        save_best_ratio(best_ratio("li-2026"), tmp_path / "x.json")
    (tmp_path / "other.json").write_text(json.dumps({"depth": 1}))
    with pytest.raises(InputError, match=r"allocation file .*other\.json: it holds no law of the best ratio"):
        load_best_ratio(tmp_path / "other.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match=r"allocation file .*list\.json: it holds no law of the best ratio"):
        load_best_ratio(tmp_path / "list.json")
    (tmp_path / "text.json").write_text("r* = 1")
    with pytest.raises(InputError, match="is not JSON"):
        load_best_ratio(tmp_path / "text.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_best_ratio(tmp_path / "absent.json")
    table = runs(np.random.default_rng(0))
    mixed = table.with_columns({"flops_convention": np.array(["exact", "6ND"] * 99, dtype=object)[: len(table)]})
    with pytest.raises(InputError, match="counts the FLOPs of one group by exact and 6ND"):
        ratio_valleys(mixed)
    by_group = np.array(["exact" if s == 0.5 else "6ND" for s in table["sparsity"]], dtype=object)
    with pytest.raises(InputError, match="counts FLOPs by exact and 6ND"):
        best_ratio_of(ratio_valleys(table.with_columns({"flops_convention": by_group})))
    hole = [{**row, "budget": np.nan if index == 3 else row["budget"]} for index, row in enumerate(table.rows)]
    with pytest.raises(InputError, match="row 4: budget is missing; valleys are grouped by it"):
        ratio_valleys(RunTable(hole))


def test_how_the_law_is_found_does_not_hang_on_draws_or_level():
    deep, weak = runs(np.random.default_rng(0)), faint(0)
    for table, method in ((deep, "minima"), (weak, "shared")):
        for draws, level in ((0, 0.9), (20, 0.9), (150, 0.999), (150, 0.3)):
            valleys = ratio_valleys(table, draws=draws, level=level)
            found = best_ratio_of(valleys, draws=min(draws, 5), level=level)
            assert found.method == method
            assert (found.depth_interval is None) == (draws == 0)
            assert found.is_visible
            assert found.law.parameters == best_ratio_of(ratio_valleys(table, draws=0), draws=0).law.parameters


def test_r_star_is_held_within_the_ratios_that_were_run_and_nothing_beyond_is_credited():
    """Eight orders of magnitude beyond its runs the law says 13; the runs had 0.25 to 4."""
    found = best_ratio_of(ratio_valleys(faint(0)))
    far = found.at(1e20, 0.875)
    assert far.law_ratio > 10
    assert far.ratio == pytest.approx(4)
    assert far.at_end
    assert far.interval()[1] <= 4.0001
    assert far.cost(4.0)[0] == pytest.approx(0)
    assert far.cost(0.01)[0] == far.cost(0.25)[0] == pytest.approx(found.depth * np.log(16) ** 2)
    assert far.change(0.01, 4.0)[0] == far.change(0.25, 4.0)[0]
    assert far.change(0.01, 0.2)[0] == 0
    assert far.change(4.0, 40.0)[0] == pytest.approx(found.depth * np.log(10) ** 2)  # what it would lose is counted
    assert far.change(40.0, 40.0)[0] == 0
    assert (far.covers(4.0), far.covers(5.0)) == (True, False)
    near = found.at(1e12, 0.875)
    assert near.law_ratio is None
    assert not near.at_end


def test_flat_draws_leave_no_interval_of_the_place(tmp_path):
    for seed in range(40):
        valleys = ratio_valleys(faint(seed, depth=0.001), draws=100)
        try:
            found = best_ratio_of(valleys, draws=400)
        except InputError:  # a hill
            continue
        save_best_ratio(found, tmp_path / "best.json")
        assert "null" not in json.dumps(json.loads((tmp_path / "best.json").read_text())["allocation"]["draws"])
        back = load_best_ratio(tmp_path / "best.json")
        assert back.to_dict() == found.to_dict()
        for each in (found, back):
            known = found.flat <= 0.05
            assert (each.at(1e12, 0.875).interval() is not None) == known
            assert bool(each.interval()) == known
            nats, (low, _) = each.at(1e12, 0.875).cost(0.25)
            assert known or low == 0 or nats == 0


def test_a_file_says_how_the_law_was_found(tmp_path):
    table = faint(0)
    three = RunTable([row for row in table.rows if row["expert_attention_ratio"] in (0.25, 0.8, 2.4)])
    found = best_ratio_of(ratio_valleys(three))
    assert (found.method, found.misfit) == ("shared", None)
    save_best_ratio(found, tmp_path / "best.json")
    back = load_best_ratio(tmp_path / "best.json")
    assert (back.method, back.misfit, back.is_visible, back.flat) == ("shared", None, found.is_visible, found.flat)
    old = {name: value for name, value in found.to_dict().items() if name not in ("method", "visible", "flat")}
    (tmp_path / "old.json").write_text(json.dumps({**old, "misfit": 0.3}))
    assert load_best_ratio(tmp_path / "old.json").method == "shared"
    (tmp_path / "wrong.json").write_text(json.dumps({**found.to_dict(), "method": "guess"}))
    with pytest.raises(InputError, match="it holds no law of the best ratio"):
        load_best_ratio(tmp_path / "wrong.json")
