"""Planted truth, away from every start of the grid, is found again; nothing the field's optimiser finds is lower."""

import numpy as np
import pytest
from tests.oracles import law_objective

from isoflop.laws import FORMS, fit

TRUTHS = {
    "chinchilla": [
        {"E": 1.69, "A": 406.0, "B": 411.0, "alpha": 0.34, "beta": 0.28},
        {"E": 0.41, "A": 12.0, "B": 2.6e5, "alpha": 0.117, "beta": 0.731},
        {"E": 2.3, "A": 2.1e6, "B": 17.0, "alpha": 0.823, "beta": 0.142},
    ],
    "fine-grained": [
        {"c": 0.47, "g": 2.076, "a": 18.07, "b": 30.81, "gamma": 0.584, "alpha": 0.1146, "beta": 0.1465},
        {"c": 1.9, "g": 900.0, "a": 260.0, "b": 9.0e3, "gamma": 1.13, "alpha": 0.377, "beta": 0.463},
        {"c": 0.83, "g": 5.0, "a": 30.0, "b": 410.0, "gamma": 0.22, "alpha": 0.171, "beta": 0.271},
    ],
}
CASES = [(law, i) for law, truths in TRUTHS.items() for i in range(len(truths))]


def runs(law: str, truth: dict[str, float], n: int, noise: float, outliers: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    table = {
        "params_total": 10 ** rng.uniform(6.5, 9.5, n),
        "tokens": 10 ** rng.uniform(8, 11, n),
        "granularity": 2.0 ** rng.integers(0, 6, n),
        "expansion_rate": np.full(n, 8.0),
    }
    loss = FORMS[law].predict(table, truth) * np.exp(noise * rng.standard_normal(n))
    loss = np.where(rng.random(n) < outliers, loss * rng.uniform(1.1, 1.5, n), loss)
    return {**table, "loss": loss}


@pytest.mark.parametrize("delta", [1e-3, None])
@pytest.mark.parametrize(("law", "case"), CASES)
def test_without_noise_every_parameter_is_recovered(law: str, case: int, delta: float | None) -> None:
    truth = TRUTHS[law][case]
    fitted = fit(runs(law, truth, 60, noise=0.0), law, huber_delta=delta)
    assert fitted.status == "converged", fitted.message
    for name, value in truth.items():
        assert fitted.parameters[name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("law", "case"), CASES)
def test_outliers_hardly_move_a_huber_fit(law: str, case: int) -> None:
    truth = TRUTHS[law][case]
    table = runs(law, truth, 200, noise=0.002, outliers=0.05)
    fitted = fit(table, law)
    assert fitted.status == "converged", fitted.message
    clean = FORMS[law].predict(table, truth)
    assert np.sqrt(np.mean(np.log(fitted.predict(table) / clean) ** 2)) < 0.0015
    squares = fit(table, law, huber_delta=None)
    assert np.sqrt(np.mean(np.log(squares.predict(table) / clean) ** 2)) > 0.004


@pytest.mark.parametrize("law", sorted(TRUTHS))
def test_no_start_of_the_fields_optimiser_ends_lower(law: str) -> None:
    truth = TRUTHS[law][0]
    table = runs(law, truth, 20, noise=0.004)
    fitted = fit(table, law)
    plain = {"chinchilla": law_objective.chinchilla, "fine-grained": law_objective.fine_grained}[law]
    names = (*FORMS[law].columns, "loss")
    rows = [{name: float(table[name][i]) for name in names} for i in range(20)]
    assert fitted.objective == pytest.approx(
        law_objective.huber_objective(plain, fitted.parameters, rows, 1e-3), rel=1e-9
    )
    assert fitted.objective <= law_objective.lbfgs_from(plain, truth, rows, 1e-3) * (1 + 1e-9)


def test_pinned_parameters_stay_and_the_others_are_recovered() -> None:
    truth = TRUTHS["fine-grained"][0]
    table = runs("fine-grained", truth, 60, noise=0.0)
    for pinned in ({"c": truth["c"]}, {"a": truth["a"], "gamma": truth["gamma"]}):
        fitted = fit(table, "fine-grained", pinned=pinned)
        assert fitted.pinned == pinned
        for name, value in truth.items():
            assert fitted.parameters[name] == pytest.approx(value, rel=1e-6)


def test_same_seed_same_fit() -> None:
    table = runs("chinchilla", TRUTHS["chinchilla"][0], 40, noise=0.004)
    first, second = (fit(table, bootstrap=50, seed=3) for _ in range(2))
    assert first.parameters == second.parameters
    assert all(np.array_equal(first.draws[name], second.draws[name]) for name in first.draws)
    assert not np.array_equal(first.draws["A"], fit(table, bootstrap=50, seed=4).draws["A"])
