"""Row weights, priors and the limits of the Huber loss."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, Fit, RunTable, fit
from isoflop.laws._noise import log_likelihood, spread, worth
from isoflop.laws.fitting import problem_again

TRUTH = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}
NOISE = 0.004


def runs(n: int = 40, seed: int = 0, noise: float | np.ndarray = NOISE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = {"params_total": 10 ** rng.uniform(7, 9.5, n), "tokens": 10 ** rng.uniform(8.5, 11, n)}
    return {**table, "loss": FORMS["chinchilla"].predict(table, TRUTH) * np.exp(noise * rng.standard_normal(n))}


@pytest.mark.parametrize("delta", [1e-3, None])
def test_a_weight_of_two_is_the_row_twice(delta: float | None) -> None:
    table = runs(30)
    weights = np.where(np.arange(30) < 10, 2.0, 1.0)
    weighted = fit(table, weights=weights, huber_delta=delta)
    twice = {name: np.concatenate([values, values[:10]]) for name, values in table.items()}
    doubled = fit({**twice, "seed": np.arange(40)}, huber_delta=delta)
    assert weighted.parameters == pytest.approx(doubled.parameters, rel=1e-5)
    assert weighted.objective * weights.mean() == pytest.approx(doubled.objective, rel=1e-8)
    assert weighted.parameters != pytest.approx(fit(table, huber_delta=delta).parameters, rel=1e-5)


def test_weights_may_be_a_column_in_any_unit_and_survive_json_and_holdout() -> None:
    table = {**runs(40), "batch": np.where(np.arange(40) % 2, 1.0, 30.0)}
    by_name = fit(table, weights="batch", bootstrap=20)
    by_values = fit(table, weights=7 * table["batch"], bootstrap=20)
    assert by_name.parameters == pytest.approx(by_values.parameters, rel=1e-12)
    again = Fit.from_dict(by_name.to_dict())
    assert again.to_dict() == by_name.to_dict()
    assert again.holdout() == by_name.holdout() != fit(table).holdout()


def test_weights_make_better_fits_of_rows_that_differ_in_noise() -> None:
    errors = {"plain": [], "weighted": []}
    for seed in range(25):
        sd = np.where(np.arange(40) % 2, 0.001, 0.02)
        table = runs(40, seed, sd)
        for name, weights in (("plain", None), ("weighted", 1 / sd**2)):
            found = fit(table, weights=weights, huber_delta="l2", restarts=4)
            errors[name].append(found.parameters["alpha"] - TRUTH["alpha"])
    assert np.std(errors["weighted"]) < 0.4 * np.std(errors["plain"])


def test_a_prior_on_what_the_rows_leave_open_identifies_it() -> None:
    table = {**runs(30), "tokens": np.full(30, 2e9)}
    clean = FORMS["chinchilla"].predict(table, TRUTH)
    table["loss"] = clean * np.exp(NOISE * np.random.default_rng(3).standard_normal(30))
    assert fit(table).status == "not_identified"
    found = fit(table, priors={"beta": (0.33, 0.02), "E": (1.6, 0.02)}, bootstrap=200)
    assert found.status == "converged", found.message
    assert found.parameters["beta"] == pytest.approx(0.33, abs=1e-4)
    assert np.std(found.draws["beta"]) == pytest.approx(0.02, rel=0.2)
    assert np.std(found.draws["E"]) == pytest.approx(0.02, rel=0.2)


def test_a_prior_pulls_as_an_observation_of_the_same_precision_would() -> None:
    """Least squares is linear near its minimum: mean and spread of a normal prior times a normal likelihood."""
    table = runs(60)
    plain = fit(table, huber_delta=None)
    problem = problem_again(plain)
    z = problem.coordinates({name: np.full((1, 1), value) for name, value in plain.parameters.items()})
    jacobian = problem.jacobian(problem.evaluate(z))[0]
    noise = np.sqrt(np.sum(plain.residuals**2) / 55)
    covariance = noise**2 * np.linalg.inv(jacobian @ jacobian.T)
    at = problem.names.index("alpha")
    own, sd, shift = np.sqrt(covariance[at, at]), 0.5 * np.sqrt(covariance[at, at]), 0.3
    prior = (plain.parameters["alpha"] + shift * own, sd)
    found = fit(table, huber_delta=None, priors={"alpha": prior})
    expected = plain.parameters["alpha"] + shift * own * own**2 / (own**2 + sd**2)
    assert found.parameters["alpha"] - plain.parameters["alpha"] == pytest.approx(
        expected - plain.parameters["alpha"], rel=0.02
    )
    assert found.prior_noise == pytest.approx(noise, rel=1e-6)
    drawn = fit(table, huber_delta=None, priors={"alpha": prior}, bootstrap=400)
    assert np.std(drawn.draws["alpha"]) == pytest.approx(1 / np.hypot(1 / own, 1 / sd), rel=0.2)
    assert Fit.from_dict(drawn.to_dict()).to_dict() == drawn.to_dict()


def test_a_prior_on_a_scale_is_on_its_logarithm() -> None:
    form = FORMS["repetition"]
    rng = np.random.default_rng(0)
    table = {"params_total": 10 ** rng.uniform(7, 9, 40), "unique_tokens": 10 ** rng.uniform(8, 9, 40)}
    table["tokens"] = table["unique_tokens"] * 0.5  # never repeated: R is free
    truth = {**TRUTH, "R": 5.0}
    table["loss"] = form.predict(table, truth) * np.exp(NOISE * rng.standard_normal(40))
    found = fit(table, "repetition", priors={"R": (15.0, 0.2)}, bootstrap=200)
    assert found.parameters["R"] == pytest.approx(15.0, rel=1e-3)
    assert np.std(np.log(found.draws["R"])) == pytest.approx(0.2, rel=0.15)


def test_few_rows_with_priors_are_enough() -> None:
    few = {name: values[:4] for name, values in runs(30).items()}
    with pytest.raises(InputError, match="only 4 usable rows"):
        fit(few)
    pinned = fit(few, pinned={"alpha": 0.31, "beta": 0.33})
    assert pinned.status == "converged", pinned.message
    found = fit(few, priors={"alpha": (0.31, 0.01), "beta": (0.33, 0.01)})
    assert found.parameters["alpha"] == pytest.approx(0.31, abs=0.03)
    with pytest.raises(InputError, match="leave none to know it"):
        fit({name: values[:3] for name, values in few.items()}, priors={"alpha": (0.3, 0.1), "beta": (0.3, 0.1)})


def test_words_for_delta() -> None:
    table = runs(30)
    assert fit(table, huber_delta="l2").parameters == fit(table, huber_delta=None).parameters
    absolute = fit(table, huber_delta="l1")
    assert absolute.status == "converged", absolute.message
    total = np.abs(absolute.residuals).sum()
    assert np.count_nonzero(np.abs(absolute.residuals) < 1e-6) == 5  # a minimum of absolute errors goes through p rows
    for other in (1e-3, None):
        assert total < np.abs(fit(table, huber_delta=other).residuals).sum()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"huber_delta": "l3"}, "huber_delta is 'l3'; it must be a positive number, 'l1' or 'l2'"),
        ({"weights": [1.0, 2.0]}, "weights has shape"),
        ({"weights": np.zeros(30)}, "weight is 0; it must be positive"),
        ({"weights": "mass"}, "no column mass"),
        ({"priors": {"A": (400, 10)}}, "takes priors on alpha, beta, E"),
        ({"priors": {"gamma": (0.3, 0.1)}}, "prior gamma is on no parameter"),
        ({"priors": {"beta": (0.3, 0.0)}}, "standard deviation 0; it must be positive"),
        ({"priors": {"beta": (9.0, 0.1)}}, "mean 9; it must be between 0 and 2"),
        ({"priors": {"beta": (0.3, 0.1)}, "pinned": {"beta": 0.3}}, "either pin it or give it a prior"),
    ],
)
def test_wrong_options_are_sentences(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        fit(
            RunTable([dict(zip(runs(30), row, strict=True)) for row in zip(*runs(30).values(), strict=True)]), **options
        )


def test_noise_and_likelihood_against_plain_formulas() -> None:
    rng = np.random.default_rng(0)
    noise = 0.003 * rng.standard_normal(100_000)
    assert spread(noise, 0, 1e-3) == pytest.approx(0.003, rel=0.01)
    wild = np.where(rng.random(100_000) < 0.03, noise + 0.5, noise)
    assert spread(wild, 0, 1e-3) == pytest.approx(0.003, rel=0.08)
    assert worth(0.003, 10.0) == pytest.approx(0.003**2, rel=1e-9)
    assert worth(0.003, 1e-7) == pytest.approx(1e-7 * 0.003 * np.sqrt(np.pi / 2), rel=1e-3)
    normal = -0.5 * np.sum(noise**2) / np.mean(noise**2) - len(noise) * np.log(np.sqrt(2 * np.pi * np.mean(noise**2)))
    assert log_likelihood(0.5 * float(np.sum(noise**2)), len(noise), None) == pytest.approx(normal, rel=1e-9)
    assert log_likelihood(0.5 * float(np.sum(noise**2)), len(noise), 1.0) == pytest.approx(normal, rel=1e-6)
    scale = np.mean(np.abs(noise))
    laplace = -len(noise) * np.log(2 * scale) - len(noise)
    assert log_likelihood(1e-9 * len(noise) * scale, len(noise), 1e-9) == pytest.approx(laplace, rel=1e-4)


def test_prediction_noise_of_a_weighted_fit_is_that_of_a_row_of_mean_weight() -> None:
    sd = np.where(np.arange(400) % 2, 0.002, 0.02)
    found = fit(runs(400, 0, sd), weights=1 / sd**2, huber_delta=None)
    expected = 1 / np.sqrt(np.mean(1 / sd**2))
    assert found.noise == pytest.approx(expected, rel=0.15)
    assert replace(found, weights=None).noise != pytest.approx(expected, rel=0.15)
