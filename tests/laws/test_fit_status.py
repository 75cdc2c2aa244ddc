"""The status says what the data can bear, and unusable rows end in one sentence."""

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, RunTable, fit

DENSE = {"E": 1.7, "A": 410.0, "B": 900.0, "alpha": 0.34, "beta": 0.29}
MOE = {"c": 0.9, "g": 4.0, "a": 18.0, "b": 31.0, "gamma": 0.6, "alpha": 0.21, "beta": 0.17}


def runs(law: str, truth: dict[str, float], noise: float = 0.003, **constant: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    table = {
        "params_total": 10 ** rng.uniform(6.5, 9.5, 50),
        "tokens": 10 ** rng.uniform(8, 11, 50),
        "granularity": 2.0 ** rng.integers(0, 6, 50),
        "expansion_rate": np.full(50, 8.0),
    }
    table |= {name: np.full(50, value) for name, value in constant.items()}
    return {**table, "loss": FORMS[law].predict(table, truth) * np.exp(noise * rng.standard_normal(50))}


@pytest.mark.parametrize("noise", [0.0, 0.003])
@pytest.mark.parametrize(
    ("law", "truth", "column", "named"),
    [
        ("chinchilla", DENSE, "params_total", {"E", "A", "alpha"}),
        ("chinchilla", DENSE, "tokens", {"E", "B", "beta"}),
        ("fine-grained", MOE, "granularity", {"g", "a", "gamma"}),
        ("fine-grained", MOE, "tokens", {"c", "b", "beta"}),
    ],
)
def test_a_constant_column_identifies_nothing_and_the_parameters_are_named(
    law: str, truth: dict[str, float], column: str, named: set[str], noise: float
) -> None:
    value = 4.0 if column == "granularity" else 1e9
    fitted = fit(runs(law, truth, noise, **{column: value}), law)
    assert fitted.status == "not_identified", fitted.message
    sentence = fitted.message.split(";")[0]
    mentioned = set(sentence.removeprefix("the rows do not identify ").replace(" and ", ", ").split(", "))
    assert mentioned == named


def test_pinning_what_a_constant_column_leaves_open_converges() -> None:
    fitted = fit(runs("chinchilla", DENSE, params_total=1e9), pinned={"E": 1.7, "alpha": 0.34})
    assert fitted.status == "converged", fitted.message
    assert fitted.parameters["beta"] == pytest.approx(0.29, rel=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_no_gain_from_granularity_leaves_its_exponent_open(noise: float) -> None:
    table = runs("fine-grained", MOE | {"g": 0.0}, noise=noise)
    fitted = fit(table, "fine-grained")
    assert fitted.status == "not_identified"
    assert "gamma" in fitted.message
    coarse, fine = (fitted.predict({**table, "granularity": value})[:1] for value in (1, 32))
    assert abs(np.log(fine / coarse)[0]) < 0.004


def test_a_loss_that_grows_with_granularity_hits_a_bound() -> None:
    table = runs("fine-grained", MOE | {"g": 0.0})
    table["loss"] = table["loss"] * table["granularity"] ** 0.02
    fitted = fit(table, "fine-grained")
    assert fitted.status in ("bound_hit", "not_identified")
    assert "at a bound" in fitted.message


def test_losses_below_any_law_hit_the_bound_of_the_asymptote() -> None:
    table = runs("chinchilla", DENSE, noise=0.0)
    table["loss"] = table["loss"] - 1.9  # as if E were negative
    fitted = fit(table)
    assert fitted.status == "bound_hit"
    assert fitted.parameters["E"] == 0.0


def test_rows_that_did_not_finish_are_counted_and_left_out() -> None:
    table = runs("chinchilla", DENSE)
    rows = [{name: values[i] for name, values in table.items()} | {"status": "done", "seed": i} for i in range(50)]
    broken = [{"params_total": 1e9, "tokens": 1e9, "status": "diverged", "loss": None, "seed": 99}]
    fitted = fit(RunTable([*rows, *broken]))
    assert (fitted.n_rows, fitted.n_left_out) == (50, 1)
    assert fitted.parameters == fit(RunTable(rows)).parameters


def test_a_law_of_one_expansion_rate_refuses_several() -> None:
    table = runs("fine-grained", MOE)
    table["expansion_rate"][:10] = 1.0
    with pytest.raises(InputError, match=r'one expansion_rate.*has 1, 8; keep one.*--where "expansion_rate=8"'):
        fit(table, "fine-grained")
    mixed = fit(table, "chinchilla")
    assert any("mix expansion_rate 1, 8" in sentence for sentence in mixed.warnings)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("tokens", float("nan"), "row 8: tokens is missing"),
        ("loss", -1.0, "row 8: loss is -1"),
        ("params_total", float("inf"), "row 8: params_total is inf"),
        ("tokens", 0.0, "row 8: tokens is 0"),
    ],
)
def test_an_unusable_value_names_row_column_and_remedy(column: str, value: float, says: str) -> None:
    table = runs("chinchilla", DENSE)
    table[column][7] = value
    with pytest.raises(InputError, match=says) as caught:
        fit(table)
    assert "fill in its value" in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_twins_too_few_rows_and_wrong_arguments_are_sentences() -> None:
    table = runs("chinchilla", DENSE)
    rows = RunTable([{name: values[i] for name, values in table.items()} for i in range(50)])
    with pytest.raises(InputError, match="row 51: every column is the same as in row 4"):
        fit(RunTable([*rows.rows, rows.rows[3]]))
    with pytest.raises(InputError, match=r"5 free parameters .* only 4 usable rows"):
        fit(rows.take(range(4)))
    with pytest.raises(InputError, match="law is 'chinchila'; allowed: chinchilla, fine-grained"):
        fit(rows, "chinchila")
    with pytest.raises(InputError, match="pinned parameter c is not in law chinchilla"):
        fit(rows, pinned={"c": 1.0})
    with pytest.raises(InputError, match="pinned alpha is -1"):
        fit(rows, pinned={"alpha": -1.0})
    with pytest.raises(InputError, match="huber_delta is 0"):
        fit(rows, huber_delta=0.0)
    with pytest.raises(InputError, match="no column loss"):
        fit({"params_total": [1e9], "tokens": [1e9]})
    with pytest.raises(InputError, match="bootstrap is 3"):
        fit(rows, bootstrap=3)


NOISY = [  # docs/results/granularity-runs.csv, dense: params_total, tokens, loss
    (30944, 3247104, 1.662146),
    (55536, 2083840, 1.709375),
    (106816, 1196032, 1.725119),
    (215600, 625664, 1.812962),
    (55536, 10416128, 1.540949),
    (106816, 5976064, 1.496874),
    (215600, 3127296, 1.517328),
    (106816, 35854336, 1.387590),
    (215600, 18757632, 1.348444),
    (106816, 5976064, 1.522285),
]


def test_noise_far_above_delta_does_not_stop_the_restarts() -> None:
    """Far beyond delta and with E at its bound the objective is a polyhedron, on which starts used to crawl."""
    table = dict(zip(("params_total", "tokens", "loss"), np.array(NOISY).T, strict=True))
    fitted = fit(table)
    assert fitted.status == "bound_hit", fitted.message
    assert fitted.objective == pytest.approx(fit(table, pinned={"E": 0.0}).objective, rel=1e-9)


def test_as_many_rows_as_parameters_identify_nothing() -> None:
    table = runs("chinchilla", DENSE)
    for seed in range(6):
        picked = np.random.default_rng(seed).choice(50, 5, replace=False)
        few = {name: values[picked] for name, values in table.items()}
        found = fit(few)
        assert found.status == "not_identified", found.message
        assert "5 rows for 5 free parameters leave no row to spare" in found.message
    pinned = fit(few, pinned={"E": 1.7, "alpha": 0.34})
    assert pinned.status == "converged", pinned.message


@pytest.mark.parametrize(("n", "says"), [(6, "from 1 to spare"), (7, "from 2 to spare"), (8, None)])
def test_one_or_two_rows_to_spare_are_said(n: int, says: str | None) -> None:
    table = {name: values[:n] for name, values in runs("chinchilla", DENSE, granularity=1.0).items()}
    assert [says in sentence for sentence in fit(table).warnings] == ([] if says is None else [True])


def test_an_asymptote_pinned_above_a_loss_is_refused() -> None:
    table = runs("chinchilla", DENSE)
    lowest = float(table["loss"].min())
    row = int(np.argmin(table["loss"])) + 1
    with pytest.raises(InputError, match=rf"pinned E is .* row {row} has loss .*\(1 of 50 rows"):
        fit(table, pinned={"E": lowest + 1e-6})
    assert fit(table, pinned={"E": lowest - 1e-6}).n_rows == 50


def test_flops_that_were_counted_in_two_ways() -> None:
    table = runs("chinchilla", DENSE)
    flops = 6 * table["params_total"] * table["tokens"]
    two = np.where(np.arange(50) % 2, "exact", "krajewski")
    found = fit({**table, "flops": flops, "flops_convention": two})
    assert [s for s in found.warnings if "flops_convention krajewski, exact, so that their flops are not one" in s]
    ratio = np.random.default_rng(0).uniform(0.1, 0.9, 50)
    with pytest.raises(InputError, match=r"law allocation reads flops, and .* krajewski and exact; count all"):
        fit({"flops": flops, "sparsity": ratio, "expert_attention_ratio": ratio, "flops_convention": two}, "allocation")
    unsaid = fit({**table, "flops": flops})
    assert "flops_convention is absent: flops are taken as 6ND." in unsaid.runs.notes
    assert not [s for s in fit(table).runs.notes if "flops_convention" in s]  # derived as 6ND
