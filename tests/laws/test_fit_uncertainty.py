"""Intervals cover what they promise, predictions say where they extrapolate, and JSON loses nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, Fit, RunTable, fit, load_fit, save_fit

TRUTH = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}
NOISE = 0.004


def grid(per_budget: int) -> dict[str, np.ndarray]:
    budgets = np.repeat([1e18, 3e18, 1e19, 3e19, 1e20], per_budget)
    params = np.sqrt(budgets / 120) * np.exp(np.tile(np.linspace(-1.2, 1.2, per_budget), 5))
    return {"params_total": params, "tokens": budgets / 6 / params, "budget": budgets}


def noisy(table: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    clean = FORMS["chinchilla"].predict(table, TRUTH)
    return {**table, "loss": clean * np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(clean)))}


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(noisy(grid(6), 0), bootstrap=200)


def test_intervals_cover() -> None:
    """60 data sets: a 90% interval covers 54 of them ± 2.3, and a new run 3 times beyond the largest budget too."""
    covered = dict.fromkeys(TRUTH, 0)
    predicted = 0
    beyond = {"params_total": np.sqrt(3e20 / 120), "tokens": np.sqrt(3e20 * 20 / 6)}
    new = FORMS["chinchilla"].predict({name: np.array([value]) for name, value in beyond.items()}, TRUTH)[0]
    rng = np.random.default_rng(1)
    for seed in range(60):
        found = fit(noisy(grid(4), seed), bootstrap=100, restarts=4)
        for name, (low, high) in found.intervals.items():
            covered[name] += low <= TRUTH[name] <= high
        low, high = found.predict_interval(beyond)
        predicted += low[0] <= new * np.exp(NOISE * rng.standard_normal()) <= high[0]
    assert all(48 <= count <= 60 for count in covered.values()), covered
    assert 48 <= predicted <= 60


def test_prediction_intervals_hold_noise_as_well_as_parameters(fitted: Fit) -> None:
    middle = {"params_total": np.array([3e8]), "tokens": np.array([6e9])}
    low, high = fitted.predict_interval(middle)
    draws = fitted.predict_draws(middle)[:, 0]
    assert high[0] - low[0] > 2 * (np.quantile(draws, 0.95) - np.quantile(draws, 0.05))
    assert high[0] / low[0] - 1 == pytest.approx(2 * 1.645 * NOISE, rel=0.6)
    wider = fitted.predict_interval(middle, level=0.99)
    assert wider[0][0] < low[0] < high[0] < wider[1][0]


def test_budgets_beyond_ten_times_the_largest_warn(fitted: Fit) -> None:
    fresh = Fit.from_dict(fitted.to_dict())
    fresh.predict({"params_total": np.array([1e9, 9e9]), "tokens": np.array([1e10, 1e10])})
    assert fresh.warnings == []
    fresh.predict({"params_total": 1e10, "tokens": 1e12})
    assert len(fresh.warnings) == 1
    assert "by more than 10 times: an extrapolation" in fresh.warnings[0]


def test_holdout_scores_rows_that_the_fit_did_not_see(fitted: Fit) -> None:
    score = fitted.holdout(by="budget", largest=0.2)
    assert (score.n_fit, score.n_held_out, score.threshold) == (24, 6, 1e20)
    assert 0.2 * NOISE < score.rmse < 4 * NOISE
    smaller = fit(fitted.runs.where(fitted.runs["budget"] < 1e20))
    held_out = fitted.runs.where(budget=1e20)
    errors = np.log(held_out["loss"] / smaller.predict(held_out))
    assert score.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9)
    with pytest.raises(InputError, match="leaves 0 rows for 5 free parameters"):
        fitted.holdout(by="expansion_rate")
    with pytest.raises(InputError, match="no column nonsense"):
        fitted.holdout(by="nonsense")


def test_each_value_of_a_column_is_left_out_in_turn(fitted: Fit) -> None:
    scores = fitted.leave_out(by="budget")
    assert list(scores) == [1e18, 3e18, 1e19, 3e19, 1e20]
    for budget, score in scores.items():
        assert (score.by, score.left_out, score.threshold, score.n_held_out) == ("budget", budget, None, 6)
        others = fit(fitted.runs.where(fitted.runs["budget"] != budget))
        own = fitted.runs.where(budget=budget)
        assert score.bias == pytest.approx(np.mean(np.log(own["loss"] / others.predict(own))), rel=1e-9)
        assert score.rmse < 4 * NOISE
    with pytest.raises(InputError, match="expansion_rate, which has one value"):
        fitted.leave_out(by="expansion_rate")


def test_a_family_that_the_law_cannot_tell_apart_is_predicted_as_if_it_did_not_matter() -> None:
    table = noisy(grid(8), 2)
    sparse = np.arange(40) % 2 == 1
    table |= {"expansion_rate": np.where(sparse, 8.0, 1.0), "loss": table["loss"] * np.where(sparse, 0.9, 1.0)}
    scores = fit(table).leave_out(by="expansion_rate")
    assert scores[8.0].bias == pytest.approx(np.log(0.9), abs=0.01)
    assert scores[1.0].bias == pytest.approx(-np.log(0.9), abs=0.01)


def test_json_gives_the_same_fit(fitted: Fit) -> None:
    again = Fit.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again.to_dict() == fitted.to_dict()
    assert again.holdout() == fitted.holdout()
    columns = {"params_total": [1e9], "tokens": [2e10]}
    assert again.predict_interval(columns) == fitted.predict_interval(columns)


def test_files_give_the_same_fit_and_others_are_refused(fitted: Fit, tmp_path: Path) -> None:
    save_fit(fitted, tmp_path / "fit.json")
    assert load_fit(tmp_path / "fit.json").to_dict() == fitted.to_dict()
    (tmp_path / "other.json").write_text('{"law": "chinchilla"}')
    with pytest.raises(InputError, match="lacks the field 'runs'"):
        load_fit(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_fit(tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"cannot be read"):
        load_fit(tmp_path / "none.json")


def test_groups_are_resampled_as_wholes() -> None:
    table = noisy(grid(6), 0)
    shifted = {**table, "loss": table["loss"] * np.where(table["budget"] == 1e19, 1.02, 1.0)}
    by_row = fit(shifted, bootstrap=200)
    by_budget = fit(shifted, bootstrap=200, groups="budget")
    assert by_budget.parameters == by_row.parameters
    assert np.std(by_budget.draws["E"]) > np.std(by_row.draws["E"])
    with pytest.raises(InputError, match="groups is expansion_rate, which has one value"):
        fit(shifted, bootstrap=200, groups="expansion_rate")


def test_one_row_to_spare_gives_a_finite_interval_and_a_warning() -> None:
    """Student's t with one degree of freedom: 6.31 times the noise either way at 90%, beside the parameters' spread."""
    table = noisy(grid(6), 0)
    few = {name: values[[0, 5, 12, 17, 24, 29]] for name, values in table.items()}
    found = fit(few)
    new = {"params_total": 1e9, "tokens": 1e10}
    same = replace(found, draws={name: np.full(50, value) for name, value in found.parameters.items()})
    assert same.n_rows - same.n_free == 1
    predicted = found.predict(new)[0]
    for level, quantile in ((0.9, 6.314), (0.5, 1.0)):
        low, high = same.predict_interval(new, level=level)
        assert np.log(high[0] / predicted) == pytest.approx(quantile * found.noise, rel=0.15)
        assert np.log(predicted / low[0]) == pytest.approx(quantile * found.noise, rel=0.15)
    loud = replace(same, residuals=same.residuals + 0.5 * np.sign(same.residuals))
    low, high = loud.predict_interval(new, level=0.9999)
    assert 0 < low[0] < predicted < high[0] < np.inf
    assert [sentence for sentence in loud.warnings if "from 1 to spare and are very wide" in sentence]


def test_without_a_bootstrap_there_are_no_intervals() -> None:
    plain = fit(noisy(grid(3), 0))
    assert plain.intervals == {}
    with pytest.raises(InputError, match="bootstrap=1000"):
        plain.predict_interval({"params_total": 1e9, "tokens": 1e10})


def curves(seed: int = 0) -> RunTable:
    """30 runs of eight rows each; a run's rows lie above or below the law together."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(30):
        params, end, off = 10 ** rng.uniform(7, 9), 10 ** rng.uniform(9.5, 10.5), 0.02 * rng.standard_normal()
        for step in range(1, 9):
            tokens = end * step / 8
            clean = 1.6 + 300 * params**-0.31 + 900 * tokens**-0.33
            loss = clean * np.exp(off + 0.001 * rng.standard_normal())
            sizes = {"params_total": params, "tokens": tokens, "flops": 6 * params * tokens}
            rows.append({"run_id": f"r{run}", "step": step, **sizes, "loss": loss})
    return RunTable(rows)


def test_a_group_with_a_row_that_is_held_out_is_not_fitted() -> None:
    table = curves()
    found = fit(table, groups="run_id")
    score = found.holdout()
    large = table["flops"] >= score.threshold
    touched = set(table["run_id"][large])
    of_them = np.array([run in touched for run in table["run_id"]])
    assert (score.n_held_out, score.n_fit, score.n_aside) == (large.sum(), (~of_them).sum(), (of_them & ~large).sum())
    assert score.n_aside > 0
    by_hand = fit(table.where(~of_them), groups="run_id")
    errors = np.log(table["loss"][large] / by_hand.form.predict(dict_of(table.where(large)), by_hand.parameters))
    assert score.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9)
    with pytest.raises(InputError, match="with every run_id that has such a row, leaves 0 rows"):
        found.leave_out("step")  # every run stands under every step


def dict_of(table: RunTable) -> dict[str, np.ndarray]:
    return {name: table[name] for name in ("params_total", "tokens")}
