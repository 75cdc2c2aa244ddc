"""Profile likelihood against one fit after another, and against what is known in closed form."""

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, fit
from isoflop.laws._noise import spread, worth
from isoflop.laws.profile import profile

TRUTH = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}


def runs(n: int, seed: int, noise: float, largest: float = 9.5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = {"params_total": 10 ** rng.uniform(7, largest, n), "tokens": 10 ** rng.uniform(8.5, 11, n)}
    return {**table, "loss": FORMS["chinchilla"].predict(table, TRUTH) * np.exp(noise * rng.standard_normal(n))}


@pytest.mark.parametrize("delta", [1e-3, None])
@pytest.mark.parametrize("name", ["alpha", "E", "B"])
def test_every_point_is_the_fit_with_that_value_pinned(name: str, delta: float | None) -> None:
    found = fit(runs(40, 0, 0.004), huber_delta=delta)
    curve = profile(found, name)
    assert curve.closed == (True, True)
    assert curve.interval[0] < found.parameters[name] < curve.interval[1]
    for i in (0, 7, 20, 33, len(curve.values) - 1):
        pinned = fit(found.runs, huber_delta=delta, pinned={name: float(curve.values[i])})
        assert curve.objective[i] == pytest.approx(pinned.objective, rel=1e-6)
    outside = np.interp(curve.interval, curve.values, curve.deviance)
    assert outside == pytest.approx([curve.threshold] * 2, rel=0.02)


def test_a_law_that_is_linear_has_the_interval_of_linear_regression() -> None:
    """With its exponents pinned and a small noise, the law is linear and Student's interval is exact."""
    pinned = {"alpha": 0.31, "beta": 0.33, "B": 900.0}
    table = runs(30, 1, 1e-4)
    found = fit(table, huber_delta=None, pinned=pinned)
    clean = FORMS["chinchilla"].predict(table, TRUTH)
    design = np.stack([1 / clean, table["params_total"] ** -0.31 / clean], axis=1)
    covariance = np.linalg.inv(design.T @ design) * np.sum(found.residuals**2) / 28
    half = 1.7011309 * np.sqrt(np.diag(covariance))  # Student's t, 28 degrees of freedom, 95%
    for name, width in zip(("E", "A"), half, strict=True):
        low, high = profile(found, name).interval
        assert (high - low) / 2 == pytest.approx(width, rel=0.01)


def test_a_side_that_the_rows_do_not_bound_is_open() -> None:
    flat = runs(25, 2, 0.02, largest=7.6)
    found = fit(flat)
    curve = profile(found, "E")
    assert not curve.closed[0]
    assert curve.interval[0] == 0.0
    assert curve.closed[1]
    pinned = fit(flat, pinned={"E": 1e-9})
    per_nat = worth(spread(found.residuals, found.n_free, found.huber_delta), found.huber_delta)
    assert 0 <= 2 * (pinned.objective - found.objective) / per_nat < curve.threshold
    assert curve.values[0] == 0.0
    assert curve.objective[0] == pytest.approx(pinned.objective, rel=1e-5)
    above = fit(flat, pinned={"E": 1.02 * curve.interval[1]})
    assert 2 * (above.objective - found.objective) / per_nat > curve.threshold
    assert curve.to_dict()["closed"] == [False, True]


def test_a_prior_narrows_the_interval() -> None:
    table = runs(30, 3, 0.004)
    wide = profile(fit(table), "beta").interval
    narrow = profile(fit(table, priors={"beta": (0.33, 0.005)}), "beta").interval
    assert narrow[1] - narrow[0] < 0.6 * (wide[1] - wide[0])


@pytest.mark.parametrize("delta", [1e-3, None])
def test_intervals_cover(delta: float | None) -> None:
    """36 data sets: a 90% interval covers 32 ± 1.8 of them."""
    covered = 0
    for seed in range(36):
        found = fit(runs(24, 100 + seed, 0.004), huber_delta=delta, restarts=4)
        low, high = profile(found, "alpha", points=9).interval
        covered += low <= TRUTH["alpha"] <= high
    assert 27 <= covered <= 36


def test_wrong_arguments_are_sentences() -> None:
    found = fit(runs(20, 0, 0.004), pinned={"E": 1.6})
    for name in ("E", "gamma"):
        with pytest.raises(InputError, match=f"profile is of {name}, which was not fitted; fitted are A, B, alpha"):
            profile(found, name)
    with pytest.raises(InputError, match="level is 2"):
        profile(found, "alpha", level=2)
    with pytest.raises(InputError, match="leaves none to know the noise"):
        profile(fit(runs(5, 0, 0.004)), "alpha")
