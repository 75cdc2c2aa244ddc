"""Noise floor and lack of fit from repeats with other seeds."""

from pathlib import Path

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, RunTable, fit, load_fit, save_fit
from isoflop.laws.repeats import lack_of_fit, noise_floor, repeats

TRUTH = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}
NOISE = 0.006


def table(seed: int, bend: float = 0.0, settings: int = 12, copies: int = 3) -> RunTable:
    rng = np.random.default_rng(seed)
    n = 10 ** np.linspace(7, 9, settings)
    d = 10 ** rng.uniform(8.5, 10.5, settings)
    clean = FORMS["chinchilla"].predict({"params_total": n, "tokens": d}, TRUTH)
    clean = clean * np.exp(bend * np.cos(5 * np.log10(n)))
    return RunTable(
        {
            "params_total": n[i],
            "tokens": d[i],
            "seed": copy,
            "learning_rate": 1e-3,
            "loss": clean[i] * np.exp(NOISE * rng.standard_normal()),
        }
        for i in range(settings)
        for copy in range(copies)
    )


def test_the_noise_floor_is_the_pooled_deviation_of_repeats() -> None:
    runs = table(0)
    floor = noise_floor(runs)
    logs = np.log(runs["loss"]).reshape(12, 3)
    assert floor.sd == pytest.approx(np.sqrt(np.mean(np.var(logs, axis=1, ddof=1))), rel=1e-12)
    assert (floor.n_repeats, floor.n_sets) == (24, 12)
    # chi² with 24 degrees of freedom: 13.848 and 36.415 at 5% and 95%
    assert floor.interval == pytest.approx((floor.sd * np.sqrt(24 / 36.415), floor.sd * np.sqrt(24 / 13.848)), rel=1e-4)
    assert floor.to_dict()["interval"] == list(floor.interval)


def test_the_interval_of_the_noise_covers() -> None:
    found = [noise_floor(table(seed)).interval for seed in range(300)]
    assert 0.85 <= np.mean([low <= NOISE <= high for low, high in found]) <= 0.95


def test_differences_within_the_noise_are_said() -> None:
    runs = table(1)
    floor = noise_floor(runs)
    loss = runs["loss"]
    apart = floor.tells_apart(loss[:, None], loss[None])
    assert apart.shape == (36, 36)
    assert np.array_equal(apart, apart.T)
    assert not apart.diagonal().any()
    assert not floor.tells_apart(2.0, 2.0 * np.exp(0.99 * floor.difference()))
    assert floor.tells_apart(2.0, 2.0 * np.exp(1.01 * floor.difference()))
    pairs = [noise_floor(table(seed)).tells_apart(*table(seed + 500)["loss"][:2]) for seed in range(300)]
    assert 0.05 <= np.mean(pairs) <= 0.15  # repeats differ by more than this in one case of ten


def test_rows_with_anything_else_changed_are_no_repeats() -> None:
    rows = table(2, settings=2, copies=3).rows
    assert repeats(RunTable(rows)).tolist() == [0, 0, 0, 1, 1, 1]
    rows[1] = {**rows[1], "learning_rate": 2e-3}
    assert repeats(RunTable(rows)).tolist() == [0, 1, 0, 2, 2, 2]
    rows[4] = {**rows[4], "seed": 0}
    assert repeats(RunTable(rows)).tolist() == [0, 1, 0, 2, 3, 2]
    assert noise_floor(RunTable({k: v for k, v in row.items() if k != "seed"} for row in rows)) is None
    with pytest.raises(InputError, match="level is 0"):
        noise_floor(RunTable(rows), level=0)


def test_rows_that_failed_do_not_count() -> None:
    rows = [{**row, "status": "done"} for row in table(3).rows]
    rows += [{**rows[0], "seed": 9, "loss": None, "status": "diverged"}]
    assert noise_floor(RunTable(rows)) == noise_floor(table(3))


def test_a_law_that_bends_otherwise_is_found_and_the_right_one_is_not() -> None:
    wrong = [lack_of_fit(fit(table(seed, bend=0.03), restarts=4)) for seed in range(5)]
    assert all(test.p_value < 1e-3 for test in wrong)
    assert np.mean([test.misfit for test in wrong]) == pytest.approx(0.03 / np.sqrt(2), rel=0.4)
    right = [lack_of_fit(fit(table(seed), restarts=4)).p_value for seed in range(50)]
    assert 0.01 <= np.mean(np.array(right) < 0.1) <= 0.2
    assert 0.35 <= np.mean(right) <= 0.65


def test_the_statistic_against_the_textbook() -> None:
    runs = table(4)
    found = lack_of_fit(fit(runs))
    squares = np.sum(fit(runs, huber_delta=None).residuals ** 2)
    logs = np.log(runs["loss"]).reshape(12, 3)
    pure = np.sum((logs - logs.mean(axis=1, keepdims=True)) ** 2)
    assert found.statistic == pytest.approx(((squares - pure) / 7) / (pure / 24), rel=1e-9)
    assert (found.n_settings, found.n_repeats) == (12, 24)


def test_without_repeats_there_is_no_test() -> None:
    assert lack_of_fit(fit(table(5, copies=1))) is None


def test_a_saved_fit_is_the_same_fit(tmp_path: Path) -> None:
    rows = [
        {**row, "run_id": f"r{i}", "architecture": "odd" if i % 3 else "even", "note": None, "lr_end": float("nan")}
        for i, row in enumerate(table(6).rows)
    ]
    rows = [{**row, "loss": round(row["loss"], 2)} for row in rows]  # repeats that are twins but for their seed
    found = fit(RunTable(rows, notes=["rounded"]), bootstrap=20)
    save_fit(found, tmp_path / "fit.json")
    again = load_fit(tmp_path / "fit.json")
    assert again.to_dict() == found.to_dict()
    assert again.runs.columns == found.runs.columns
    assert again.runs.notes == found.runs.notes
    assert again.holdout() == found.holdout()
    assert again.leave_out("architecture") == found.leave_out("architecture")
    assert noise_floor(again.runs) == noise_floor(found.runs) is not None
    assert lack_of_fit(again) == lack_of_fit(found) is not None


def test_a_saved_fit_keeps_its_groups(tmp_path: Path) -> None:
    found = fit(table(7), groups="tokens", bootstrap=20)
    save_fit(found, tmp_path / "fit.json")
    again = load_fit(tmp_path / "fit.json")
    assert again.groups == "tokens"
    assert again.holdout() == found.holdout()
