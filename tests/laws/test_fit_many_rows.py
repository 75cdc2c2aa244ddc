"""Many rows: the same minimum as without a shortcut, at a cost that grows with the rows and not with the restarts."""

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, RunTable, fit
from isoflop.laws._screening import minimise_from
from isoflop.laws._solver import Problem, minimise
from isoflop.laws._starts import starts

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def many(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    table = {"params_total": 10 ** rng.uniform(6.5, 9.5, n), "tokens": 10 ** rng.uniform(8, 11, n)}
    return {**table, "loss": FORMS["chinchilla"].predict(table, TRUTH) * np.exp(0.003 * rng.standard_normal(n))}


def test_screened_starts_end_where_all_of_them_would() -> None:
    table = many(12_000)
    problem = Problem(FORMS["chinchilla"], table, table["loss"], pinned={}, huber_delta=1e-3)
    start = starts(problem, 16, np.random.default_rng(0))
    plain, screened = minimise(problem, start), minimise_from(problem, start)
    assert screened.objective.min() == pytest.approx(plain.objective.min(), rel=1e-9)
    assert screened.coordinates.shape == plain.coordinates.shape
    assert screened.coordinates[screened.best()] == pytest.approx(plain.coordinates[plain.best()], rel=1e-6)


def test_all_rows_are_read_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    evaluate = Problem.evaluate

    def counted(problem: Problem, z: np.ndarray) -> object:
        read.append(len(z) * len(problem.log_loss))
        return evaluate(problem, z)

    monkeypatch.setattr(Problem, "evaluate", counted)
    found = fit(many(40_000))
    assert found.status == "converged", found.message
    assert found.parameters["E"] == pytest.approx(1.8, abs=0.003)
    assert "16 of 16 restarts" in found.message
    assert sum(read) < 60 * 40_000


def test_twins_among_rows_that_share_their_numbers() -> None:
    rows = [{name: float(values[i]) for name, values in many(30).items()} | {"seed": i} for i in range(30)]
    repeat = {**rows[3], "seed": 99}
    assert fit(RunTable([*rows, repeat])).n_rows == 31
    with pytest.raises(InputError, match="row 32: every column is the same as in row 31"):
        fit(RunTable([*rows, repeat, repeat]))
