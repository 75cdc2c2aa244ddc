"""The posterior against one known in closed form, and its refusals."""

import sys

import numpy as np
import pytest
from scipy.stats import t as student

from isoflop import InputError, RunError
from isoflop.laws import FORMS, Fit, fit
from isoflop.laws.posterior import posterior

pytest.importorskip("emcee")

TRUTH = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}


def runs(n: int, seed: int, noise: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = {"params_total": 10 ** rng.uniform(7, 9.5, n), "tokens": 10 ** rng.uniform(8.5, 11, n)}
    return {**table, "loss": FORMS["chinchilla"].predict(table, TRUTH) * np.exp(noise * rng.standard_normal(n))}


@pytest.fixture(scope="module")
def linear() -> Fit:
    """Exponents pinned and a small noise: linear, with Student's t of n - p degrees of freedom."""
    return fit(runs(12, 1, 1e-4), huber_delta=None, pinned={"alpha": 0.31, "beta": 0.33, "B": 900.0})


def test_a_linear_law_has_students_posterior(linear: Fit) -> None:
    clean = linear.predict(linear.runs)
    design = np.stack([1 / clean, linear.runs["params_total"] ** -0.31 / clean], axis=1)
    error = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * np.sum(linear.residuals**2) / 10)
    found = posterior(linear, draws=6000, noise="normal")
    for name, own in zip(("E", "A"), error, strict=True):
        standard = (found.fit.draws[name] - linear.parameters[name]) / own
        for level in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert np.quantile(standard, level) == pytest.approx(student.ppf(level, 10), abs=0.25)
    assert set(found.fit.draws["alpha"]) == {0.31}
    assert np.median(found.noise) == pytest.approx(1e-4, rel=0.5)
    assert found.steps >= 50 * found.autocorrelation_time
    assert max(found.r_hat.values()) <= 1.05


def test_draws_serve_as_those_of_a_bootstrap_do() -> None:
    plain = fit(runs(30, 0, 0.004))
    found = posterior(plain, draws=200)
    assert found.fit.parameters == plain.parameters
    assert all(len(values) == 200 for values in found.fit.draws.values())
    for name, (low, high) in found.fit.intervals.items():
        assert low < plain.parameters[name] < high
    low, high = found.fit.predict_interval({"params_total": 1e9, "tokens": 1e10})
    assert low[0] < plain.predict({"params_total": 1e9, "tokens": 1e10})[0] < high[0]
    bootstrap = fit(runs(30, 0, 0.004), bootstrap=100)
    again = posterior(bootstrap, draws=200)
    for name in TRUTH:
        ratio = np.std(np.log(again.fit.draws[name])) / np.std(np.log(found.fit.draws[name]))
        assert ratio == pytest.approx(1, abs=0.3)  # wherever the walkers start


def test_a_prior_and_the_bounds_shape_it() -> None:
    table = {**runs(30, 2, 0.004), "params_total": np.full(30, 1e9)}
    found = posterior(fit(table, pinned={"E": 1.6}, priors={"alpha": (0.31, 0.02)}), draws=400)
    assert np.mean(found.fit.draws["alpha"]) == pytest.approx(0.31, abs=0.005)
    assert np.std(found.fit.draws["alpha"]) == pytest.approx(0.02, rel=0.2)
    assert (found.fit.draws["beta"] >= 0).all()


def test_the_same_seed_draws_the_same(linear: Fit) -> None:
    first, second, other = (posterior(linear, seed=seed, draws=100).fit.draws["E"] for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_chain_that_is_too_short_is_refused() -> None:
    with pytest.raises(RunError, match=r"not converged after 40 steps: autocorrelation time .*give priors"):
        posterior(fit(runs(30, 0, 0.004)), max_steps=40)


def test_wrong_arguments_are_sentences(linear: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="draws is 5"):
        posterior(linear, draws=5)
    with pytest.raises(InputError, match="noise is 'cauchy'"):
        posterior(linear, noise="cauchy")
    with pytest.raises(InputError, match="leaves none to know the noise"):
        posterior(fit(runs(5, 0, 0.004)))
    monkeypatch.setitem(sys.modules, "emcee", None)
    with pytest.raises(InputError, match=r"a posterior needs emcee: pip install 'isoflop\[bayes\]'"):
        posterior(linear)
