"""The 240 points that Epoch AI read from the Chinchilla paper (Besiroglu et al. 2024, arXiv 2404.10102)."""

from pathlib import Path

import numpy as np
import pytest

from isoflop.laws import RunTable, fit, published, read_runs

PATH = Path(__file__).parents[2].parent / "shared" / "data" / "chinchilla_epoch" / "svg_extracted_data.csv"

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="needs the extracted points")


@pytest.fixture(scope="module")
def points() -> RunTable:
    runs = read_runs(PATH, columns={"params_total": "Model Size", "flops": "Training FLOP"})
    return runs.where(runs["loss"] < np.sort(runs["loss"])[-5])


def test_the_global_optimum(points: RunTable) -> None:
    found = fit(points, law="chinchilla", huber_delta=1e-3)
    assert len(points) == 240
    assert found.status == "converged", found.message
    assert found.objective <= 0.00101827402
    expected = {
        "alpha": (0.34731, 1e-5),
        "beta": (0.36717, 1e-5),
        "A": (477.8, 0.05),
        "B": (2143, 0.6),
        "E": (1.8172, 5e-5),
    }
    for name, (value, within) in expected.items():
        assert found.parameters[name] == pytest.approx(value, abs=within)


def test_bootstrap_standard_errors(points: RunTable) -> None:
    found = fit(points, bootstrap=1000)
    errors = {name: float(np.std(draws)) for name, draws in found.draws.items()}
    assert errors["A"] == pytest.approx(116, rel=0.12)
    assert errors["alpha"] == pytest.approx(0.0147, rel=0.12)
    assert errors["beta"] == pytest.approx(0.0208, rel=0.12)
    assert errors["E"] == pytest.approx(0.026, rel=0.12)


def test_the_published_refit_is_the_limit_of_absolute_errors(points: RunTable) -> None:
    found = fit(points, huber_delta="l1")
    assert found.status == "converged", found.message
    expected = {"A": (482.0, 0.05), "B": (2085.4, 0.05), "E": (1.81686, 6e-6), "alpha": (0.34781, 6e-6)}
    for name, (value, within) in {**expected, "beta": (0.36585, 6e-6)}.items():
        assert found.parameters[name] == pytest.approx(value, abs=within)
    assert np.abs(found.residuals).sum() == pytest.approx(1.129495, rel=1e-6)
    np.testing.assert_allclose(
        found.predict(points), published("besiroglu-2024").predict(points), rtol=6e-4
    )  # printed digits


def test_held_out_budgets_are_predicted_to_two_percent(points: RunTable) -> None:
    score = fit(points).holdout(by="flops", largest=0.2)
    assert score.n_held_out == 48
    assert score.rmse < 0.02
