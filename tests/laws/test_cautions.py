"""Fits that converge and are of little use say so; good ones stay silent."""

import os
import subprocess
import sys

import numpy as np
from tests.oracles.planted_laws import planted

from isoflop.laws import fit
from isoflop.laws.cautions import cautions


def test_a_good_fit_is_silent() -> None:
    found = fit(planted("chinchilla", 4, noise=0.003), "chinchilla", bootstrap=60)
    assert cautions(found, found.intervals, found.holdout("tokens")) == []
    assert found.warnings == []


def test_a_law_that_does_not_carry() -> None:
    rows = planted("chinchilla", 4, noise=0.003)
    large = rows["tokens"] >= np.quantile(rows["tokens"], 0.8)
    rows["loss"] = np.where(large, 1.2 * rows["loss"], rows["loss"])
    found = fit(rows, "chinchilla", bootstrap=60)
    assert any("times the" in each for each in cautions(found, {}, found.holdout("tokens")))


def test_wide_intervals_and_bounds() -> None:
    found = fit(planted("chinchilla", 4, noise=0.003), "chinchilla")
    said = cautions(found, {"A": (1.0, 1e4), "B": (0.0, 9.0), "E": (1.6, 1.8), "beta": (0.1, 2.0)})
    assert said == [
        "the interval of A spans over two decades and the intervals of B and beta end at a bound: the rows hardly say "
        "how large; add runs, or pin what is known."
    ]


def test_a_fitted_perplexity() -> None:
    rows = planted("chinchilla", 4)
    found = fit({**rows, "loss": rows["loss"] + 4}, "chinchilla")
    assert any("above 4 nats per token" in each for each in cautions(found))


def test_a_sweep_of_learning_rates_is_pointed_to_its_best() -> None:
    rows = {name: np.repeat(values, 3) for name, values in planted("chinchilla", 4).items()}
    rows["lr"] = np.resize([1e-4, 3e-4, 1e-3], len(rows["loss"]))
    rows["loss"] = rows["loss"] * np.resize([1.1, 1.0, 1.2], len(rows["loss"]))
    assert any("--best-of params_total,tokens" in each for each in fit(rows, "chinchilla").warnings)


def test_more_restarts_than_starts_is_said() -> None:
    found = fit(planted("chinchilla", 4), "chinchilla", restarts=500)
    assert any("only" in each and "starting points" in each for each in found.warnings)


def test_a_reader_that_stops_is_no_failure() -> None:
    script = f"{sys.executable} -c 'from isoflop.cli import main; main()' laws | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
