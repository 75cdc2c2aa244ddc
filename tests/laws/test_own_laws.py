"""A law of the user's own: the file of the documentation fits, and mistakes in one are sentences."""

import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, fit, load_fit, save_fit
from isoflop.laws.forms import Chinchilla, Columns, base
from isoflop.laws.loading import load_form


def documented() -> str:
    """The file that the documentation of Form shows."""
    shown = base.__doc__.split("A whole file")[1].split("\n\n", 1)[1]
    return textwrap.dedent(shown)


@pytest.fixture
def law(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(documented())
    return f"{path}:Depth"


def runs(seed: int = 0, noise: float = 0.0) -> dict[str, np.ndarray]:
    depth = np.arange(2.0, 42.0)
    loss = (1.9 + 2.3 / depth**0.61) * np.exp(noise * np.random.default_rng(seed).standard_normal(40))
    return {"n_layers": depth, "loss": loss}


def test_the_documented_law_is_short_and_fits(law: str) -> None:
    lines = [line for line in documented().splitlines() if line.strip()]
    assert len(lines) <= 20
    found = fit(runs(), law)
    assert found.status == "converged", found.message
    assert found.parameters == pytest.approx({"E": 1.9, "A": 2.3, "alpha": 0.61}, rel=1e-6)
    noisy = fit(runs(noise=0.003), law, bootstrap=100)
    assert all(low < high for low, high in noisy.intervals.values())


def test_beyond_ten_times_the_largest_column_it_warns(law: str) -> None:
    found = fit(runs(noise=0.003), law, bootstrap=50)
    found.predict({"n_layers": 400})
    assert found.warnings == []
    found.predict({"n_layers": [12, 4000]})
    found.predict({"n_layers": 4100})
    assert len(found.warnings) == 1
    assert "n_layers is outside 2 to 41" in found.warnings[0]
    assert "the farthest loss there is" in found.warnings[0]
    assert "with 90% between" in found.warnings[0]


def test_a_saved_fit_runs_no_file_unasked(law: str, tmp_path: Path) -> None:
    found = fit(runs(noise=0.003), law)
    save_fit(found, tmp_path / "fit.json")
    with pytest.raises(InputError, match="which is not run unasked; give its form"):
        load_fit(tmp_path / "fit.json")
    assert load_fit(tmp_path / "fit.json", form=load_form(law)).to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("class Depth", "class Deep", "has no subclass of Form called Depth; it has Deep"),
        ("class Depth(Form)", "class Depth", "has no subclass of Form called Depth; it has none"),
        ("import numpy as np", "import nampy as np", "cannot be run: ModuleNotFoundError: No module named 'nampy'"),
        ("def terms", "def term", "lacks the method terms"),
        ('name = "depth"', 'name = "chinchilla"', "is called 'chinchilla', which is a law of isoflop"),
        ('equation = "L', 'equations = "L', "does not say its equation"),
        ('("n_layers",)', '("n_layers")', "must be a tuple of names"),
        ("starts=(0.2, 0.5, 1.0)", "starts=()", "exponent alpha has no starts"),
        ("starts=(0.2, 0.5, 1.0)", "starts=(0.2, 5.0)", "exponent alpha has a start outside of its bounds 0 to 2"),
        ("upper=2.0", "log=True", "must be positive and finite, since it moves in its logarithm"),
        ('asymptote = "E"', 'asymptote = "F"', "asymptote F, which is none of its coefficients"),
        ('"A": np.exp', '"B": np.exp', "terms lacks the coefficient A; it gives E, B"),
        ('x["n_layers"])}', 'x["depth"])}', "terms cannot be computed: KeyError: 'depth'"),
        ('name="A"', 'name="E"', "has the parameter E twice"),
    ],
)
def test_mistakes_in_the_file_are_sentences(law: str, old: str, new: str, says: str) -> None:
    path = Path(law.rpartition(":")[0])
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=says.replace("(", r"\(")) as caught:
        fit(runs(), law)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own.py", "a law of your own is written as file.py:Class"),
        ("nowhere.py:Law", r"there is no file nowhere\.py"),
        ("krajewski-2024-e64", "has its constants already; fit its form, 'fine-grained'"),
    ],
)
def test_other_names_are_explained(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        fit(runs(), name)


COLUMNS = {
    "params_total": 3e8,
    "params_active": 1e8,
    "tokens": 3e9,
    "unique_tokens": 1e9,
    "granularity": 4.0,
    "expansion_rate": 8.0,
    "sparsity": 0.8,
    "expert_attention_ratio": 2.0,
    "flops": 6e18,
    "depth_capacity": 0.5,
}


@pytest.mark.parametrize("law", sorted(FORMS))
def test_every_law_warns_beyond_ten_times_its_rows(law: str) -> None:
    """Whatever of a law's columns grows a thousandfold: with its budget, or where it knows none, by itself."""
    form = FORMS[law]
    rng = np.random.default_rng(0)
    truth = {p.name: (1.0 if p in form.coefficients else p.starts[0]) for p in form.parameters}
    table = {name: value * np.exp(rng.uniform(-0.5, 0.5, 40)) for name, value in COLUMNS.items()}
    table |= {"sparsity": rng.uniform(0, 0.9, 40), "flops": 6 * table["params_active"] * table["tokens"]}
    table |= {name: np.full(40, COLUMNS[name]) for name in form.fixed}
    table["loss"] = table[form.target] = form.predict(table, truth) * np.exp(0.01 * rng.standard_normal(40))
    found = fit(table, law, restarts=2)
    near = {name: COLUMNS[name] for name in form.columns}
    found.predict(near)
    assert not [sentence for sentence in found.warnings if "an extrapolation" in sentence]
    grown = [name for name in form.columns if name in ("flops", "params_active", "params_total")][-1]
    found.predict(near | {grown: 1e3 * near[grown]})
    assert [sentence for sentence in found.warnings if "an extrapolation" in sentence]


class Bounded(Chinchilla):
    """A dense law whose irreducible loss, a constant term, may lie between given bounds."""

    name = "bounded"

    def __init__(self, lower: float, upper: float) -> None:
        self.coefficients = (
            replace(Chinchilla.coefficients[0], lower=lower, upper=upper),
            *Chinchilla.coefficients[1:],
        )

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        return {**super().terms(x, theta), "E": np.ones(())}


def dense_runs(ratio: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    table = {"params_total": 10 ** rng.uniform(7, 9.5, 60), "tokens": 10 ** rng.uniform(8.5, 11, 60)}
    truth = {"E": 1.6, "A": 300.0, "B": 900.0, "alpha": 0.31, "beta": 0.33}
    return {
        **table,
        "loss": ratio * FORMS["chinchilla"].predict(table, truth) * np.exp(0.002 * rng.standard_normal(60)),
    }


@pytest.mark.parametrize(("lower", "upper", "ends"), [(0.0, 1.2, 1.2), (1.8, np.inf, 1.8), (-1.0, 1.2, 1.2)])
def test_a_coefficient_that_ends_at_its_own_bound_is_said(lower: float, upper: float, ends: float) -> None:
    found = fit(dense_runs(), Bounded(lower, upper))
    assert found.parameters["E"] == pytest.approx(ends, rel=1e-9)
    assert found.status == "bound_hit", found.message
    assert "E is at a bound" in found.message
    assert found.objective == pytest.approx(fit(dense_runs(), pinned={"E": ends}).objective, rel=1e-6)


def test_bounds_that_do_not_bind_change_nothing() -> None:
    found = fit(dense_runs(), Bounded(1.2, 1.8), bootstrap=20)
    assert found.status == "converged", found.message
    assert found.parameters == pytest.approx(fit(dense_runs()).parameters, rel=1e-5)


class Scaled(Chinchilla):
    """A dense law whose coefficient of size is bounded, where its coordinate moves with the exponent."""

    name = "scaled"
    coefficients = (
        Chinchilla.coefficients[0],
        replace(Chinchilla.coefficients[1], lower=500.0, upper=2000.0),
        Chinchilla.coefficients[2],
    )


def test_a_bounded_coefficient_of_a_power_ends_at_its_bound() -> None:
    found = fit(dense_runs(), Scaled())
    assert found.status == "bound_hit", found.message
    assert "A is at a bound" in found.message
    assert found.parameters["A"] == pytest.approx(500.0, rel=1e-6)
