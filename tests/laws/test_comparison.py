"""The law that made the data wins, and the criteria are the textbook's."""

import json

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, RunTable
from isoflop.laws.comparison import compare

JOINT = {
    **{"c": 1.3, "a": 40.0, "b": 60.0, "alpha": -0.22, "delta": -0.3, "gamma": 0.01, "beta": -0.2, "omega": 0.4},
    **{"zeta": -0.02, "E_start": 1.8, "E_max": 200.0},
}
DENSE = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}


def runs(law: str, truth: dict[str, float], n: int = 60, experts: float | None = None) -> RunTable:
    rng = np.random.default_rng(0)
    columns = {"params_active": 10 ** rng.uniform(7, 9.3, n), "tokens": 10 ** rng.uniform(8.5, 11, n)}
    columns["expansion_rate"] = 2.0 ** rng.integers(0, 6, n) if experts is None else np.full(n, experts)
    columns["params_total"] = columns["params_active"] * columns["expansion_rate"]
    columns["granularity"] = 2.0 ** rng.integers(0, 4, n)
    columns["flops"] = 6 * columns["params_active"] * columns["tokens"]
    columns["loss"] = FORMS[law].predict(columns, truth) * np.exp(0.003 * rng.standard_normal(n))
    return RunTable(dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True))


def test_the_law_that_made_the_rows_predicts_best() -> None:
    found = compare(runs("joint", JOINT), ["chinchilla", "joint"], restarts=6)
    assert [law.law for law in found.laws] == ["joint", "chinchilla"]
    assert found.best.holdout.rmse < 0.5 * found.laws[1].holdout.rmse
    assert found.best.aicc < found.laws[1].aicc - 20
    assert found.best.bic < found.laws[1].bic - 20
    assert (found.best.n_parameters, found.n_rows) == (11, 60)
    document = json.loads(json.dumps(found.to_dict()))
    assert [law["law"] for law in document["laws"]] == ["joint", "chinchilla"]


def test_parameters_that_buy_nothing_cost() -> None:
    found = compare(runs("chinchilla", DENSE, experts=1.0), ["fine-grained", "chinchilla"], restarts=6)
    by_law = {law.law: law for law in found.laws}
    assert by_law["chinchilla"].bic < by_law["fine-grained"].bic
    assert by_law["chinchilla"].aicc < by_law["fine-grained"].aicc


def test_criteria_of_least_squares_are_the_textbooks() -> None:
    found = compare(
        runs("chinchilla", DENSE, experts=1.0), ["chinchilla", "fine-grained"], huber_delta="l2", restarts=6
    )
    law = next(each for each in found.laws if each.law == "chinchilla")
    squares = np.sum(law.fit.residuals**2)
    n, k = 60, 6
    deviance = n * np.log(2 * np.pi * squares / n) + n
    assert law.aicc == pytest.approx(deviance + 2 * k + 2 * k * (k + 1) / (n - k - 1), rel=1e-9)
    assert law.bic == pytest.approx(deviance + k * np.log(n), rel=1e-9)
    assert found.likelihood.startswith("normal; ")


def test_criteria_of_absolute_errors_are_laplaces() -> None:
    found = compare(
        runs("chinchilla", DENSE, experts=1.0), ["chinchilla", "fine-grained"], huber_delta="l1", restarts=6
    )
    law = next(each for each in found.laws if each.law == "chinchilla")
    scale = np.mean(np.abs(law.fit.residuals))
    assert law.log_likelihood == pytest.approx(-60 * (np.log(2 * scale) + 1), rel=1e-3)


def test_laws_that_cannot_be_fitted_or_scored_come_last_and_say_why() -> None:
    found = compare(runs("joint", JOINT, n=14), ["joint", "fine-grained", "chinchilla"], restarts=6)
    assert [law.law for law in found.laws] == ["chinchilla", "joint", "fine-grained"]
    chinchilla, joint, fine = found.laws
    assert (chinchilla.problem, joint.holdout, fine.fit) == ("", None, None)
    assert "no held-out score: holding out flops" in joint.problem
    assert "law fine-grained holds for one expansion_rate" in fine.problem


@pytest.mark.parametrize(
    ("laws", "options", "says"),
    [
        (["chinchilla"], {}, "needs at least two"),
        (["chinchilla", "chinchilla"], {}, "laws has chinchilla twice"),
        (["chinchilla", "leverage"], {}, "law leverage predicts leverage and law chinchilla loss"),
        (["chinchilla", "repetition"], {}, "no column unique_tokens"),
        (["chinchilla", "krajewski-2024-e64"], {}, "which has its constants already; fit its form, 'fine-grained'"),
        (["chinchilla", "joint"], {"by": "size"}, "no column size"),
        (["chinchilla", "joint"], {"largest": 1.0}, "largest is 1"),
    ],
)
def test_wrong_arguments_are_sentences(laws: list[str], options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compare(runs("joint", JOINT), laws, **options)


def test_the_order_of_the_laws_changes_nothing() -> None:
    rows = runs("joint", JOINT)
    first, second = (compare(rows, laws, restarts=4) for laws in (["joint", "unified"], ["unified", "joint"]))
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize("laws", [["unified", "allocation-loss"], ["allocation-loss", "unified"]])
def test_a_column_that_one_law_does_without_is_not_made_up_for_another(laws: list[str]) -> None:
    table = runs("joint", JOINT).with_columns({"sparsity": np.linspace(0.1, 0.9, 60)})
    with pytest.raises(InputError, match="no column expert_attention_ratio"):
        compare(table, laws, restarts=4)
