"""Forms against plain formulas, and the solver's analytic derivatives against finite differences."""

import numpy as np
import pytest
from tests.oracles import law_objective

from isoflop.laws import FORMS, Form, published
from isoflop.laws._solver import Problem
from isoflop.laws.forms import Unified

PARAMETERS = {
    "chinchilla": {"E": 1.7, "A": 410.0, "B": 900.0, "alpha": 0.34, "beta": 0.29},
    "fine-grained": {"c": 0.9, "g": 4.0, "a": 18.0, "b": 31.0, "gamma": 0.6, "alpha": 0.21, "beta": 0.17},
    "joint": dict(published("ludziejewski-2025").parameters),
    "routed": dict(published("clark-2022-hash").parameters),
    "sparsity": dict(published("abnar-2025").parameters),
    "leverage": dict(published("tian-2025").parameters) | {"A_max": 40.0},
    "allocation": dict(published("li-2026").parameters),
    "allocation-loss": {
        **{"e": 1.4, "a": 30.0, "b": 200.0, "c": 8.0, "v": 0.03, "alpha": 0.3, "beta": 0.28, "gamma": 0.2},
        **{"lambda": 0.15, "rho": 0.4, "sigma": 0.12},
    },
    "repetition": {"E": 1.7, "A": 410.0, "B": 900.0, "alpha": 0.34, "beta": 0.29, "R": 6.0},
    "unified": {
        **{"c": 1.2, "a": 20.0, "g": 4.0, "b": 60.0, "v": 0.02, "alpha": 0.19, "beta": 0.2, "gamma": 0.6},
        **{"delta": -0.2, "kappa": -0.01, "omega": 0.4, "zeta": 0.02, "E_start": 1.7, "E_max": 300.0},
        **{"mu": 0.11, "rho": -0.3, "sigma": 0.1},
    },
}


def plain(law: str, **row: float) -> float:
    """The law as the paper prints it, for one row."""
    parameters = PARAMETERS[law]
    if law in ("chinchilla", "fine-grained"):
        return {"chinchilla": law_objective.chinchilla, "fine-grained": law_objective.fine_grained}[law](
            **parameters, **row
        )
    return getattr(law_objective, law.replace("-", "_"))(parameters, **row)


def columns(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "params_total": 10 ** rng.uniform(7, 10, n),
        "tokens": 10 ** rng.uniform(8, 11, n),
        "granularity": 2.0 ** rng.integers(0, 6, n),
        "params_active": 10 ** rng.uniform(7, 9, n),
        "expansion_rate": 2.0 ** rng.integers(0, 6, n),
        "sparsity": rng.choice([0.0, 0.5, 0.8, 0.95], n),
        "expert_attention_ratio": np.exp(rng.uniform(-1, 2, n)),
        "flops": 10 ** rng.uniform(17, 21, n),
        "unique_tokens": 10 ** rng.uniform(7.5, 10.5, n),
        "depth_capacity": rng.choice([0.125, 0.5, 1.0], n),
    }


@pytest.mark.parametrize("law", sorted(FORMS))
def test_prediction_is_the_printed_equation(law: str) -> None:
    form, given = FORMS[law], columns(6)
    predicted = form.predict(given, PARAMETERS[law])
    for i in range(6):
        row = {name: float(given[name][i]) for name in form.columns}
        assert predicted[i] == pytest.approx(plain(law, **row), rel=1e-12)


@pytest.mark.parametrize("pinned", ["nothing", "first coefficient", "first exponent", "last of each"])
@pytest.mark.parametrize("law", sorted(FORMS))
def test_analytic_derivatives_equal_finite_differences(law: str, pinned: str) -> None:
    form, given = FORMS[law], columns(9)
    names = {
        "nothing": [],
        "first coefficient": form.coefficients[:1],
        "first exponent": form.exponents[:1],
        "last of each": [*form.coefficients[-1:], *form.exponents[-1:]],
    }[pinned]
    fixed = {parameter.name: PARAMETERS[law][parameter.name] for parameter in names}
    loss = form.predict(given, PARAMETERS[law]) * np.exp(np.random.default_rng(2).normal(0, 0.05, 9))
    problem = Problem(form, given, loss, pinned=fixed, huber_delta=0.02)
    z = problem.coordinates({name: np.full((1, 1), value) for name, value in PARAMETERS[law].items()})
    z = z * 1.03

    def objective(at: np.ndarray) -> float:
        return float(problem.huber(problem.evaluate(at).residuals).sum())

    point = problem.evaluate(z)
    jacobian = problem.jacobian(point)[0]
    gradient, _, _ = problem.normal_equations(point, None)
    for k in range(problem.size):
        step = np.zeros_like(z)
        step[0, k] = 1e-6 * max(1.0, abs(z[0, k]))
        up, down = problem.evaluate(z + step), problem.evaluate(z - step)
        slope = (down.residuals - up.residuals)[0] / (2 * step[0, k])
        np.testing.assert_allclose(jacobian[k], slope, rtol=2e-6, atol=1e-8)
        change = (objective(z + step) - objective(z - step)) / (2 * step[0, k])
        assert gradient[0, k] == pytest.approx(change, rel=1e-5, abs=1e-9)


def test_a_coordinate_is_its_terms_root_mean_square() -> None:
    form, given = FORMS["allocation-loss"], columns(9)
    problem = Problem(form, given, np.full(9, 2.0), pinned={}, huber_delta=None)
    values = PARAMETERS["allocation-loss"]
    z = problem.coordinates({name: np.full((1, 1), value) for name, value in values.items()})[0]
    terms = form.terms(form.features(given), {name: np.asarray(value) for name, value in values.items()})
    for j, parameter in enumerate(form.coefficients):
        size = np.sqrt(np.mean(np.broadcast_to(values[parameter.name] * terms[parameter.name], 9) ** 2))
        assert z[j] == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("law", sorted(FORMS))
def test_coordinates_and_parameters_are_inverse(law: str) -> None:
    form = FORMS[law]
    problem = Problem(form, columns(5), np.full(5, 2.0), pinned={}, huber_delta=None)
    values = {name: np.full((1, 1), value) for name, value in PARAMETERS[law].items()}
    back = problem.parameters(problem.coordinates(values))
    for name, value in PARAMETERS[law].items():
        assert back[name][0, 0] == pytest.approx(value, rel=1e-12)


class WithoutDerivatives(Unified):
    """A user's law: terms alone."""

    derivatives = Form.derivatives


def test_differences_stand_in_for_derivatives() -> None:
    exact, numeric, given = Unified(), WithoutDerivatives(), columns(7)
    x = exact.features(given)
    theta = {name: np.full((1, 1), value) for name, value in PARAMETERS["unified"].items()}
    found = numeric.derivatives(x, theta, numeric.terms(x, theta))
    for key, value in exact.derivatives(x, theta, exact.terms(x, theta)).items():
        np.testing.assert_allclose(
            np.broadcast_to(found[key], (1, 7)), np.broadcast_to(value, (1, 7)), rtol=1e-6, atol=1e-9
        )


def test_the_unified_law_contains_the_others() -> None:
    given = columns(8) | {"expert_attention_ratio": np.ones(8), "depth_capacity": np.ones(8)}
    joint = PARAMETERS["joint"]
    same = {"v": 0.0, "mu": 0.3, "rho": 0.0, "sigma": 0.0, "g": 0.0, "gamma": 1.0}
    same |= {"alpha": -joint["alpha"], "kappa": -joint["gamma"], "beta": -joint["beta"], "zeta": -joint["zeta"]}
    same |= {name: joint[name] for name in ("a", "b", "c", "delta", "omega", "E_start", "E_max")}
    np.testing.assert_allclose(FORMS["unified"].predict(given, same), FORMS["joint"].predict(given, joint), rtol=1e-12)

    fine = PARAMETERS["fine-grained"]
    share = 4.0  # params_total / params_active of every row, as at one expansion rate
    rows = given | {"expansion_rate": np.full(8, 8.0), "params_total": share * given["params_active"]}
    one = {"delta": 0.0, "kappa": 0.0, "omega": 0.0, "zeta": 0.0, "E_start": 1.0, "E_max": 1e6}
    one |= {"v": 0.0, "mu": 0.3, "rho": 0.0, "sigma": 0.0, "c": fine["c"], "b": fine["b"]}
    one |= {name: fine[name] for name in ("alpha", "beta", "gamma")}
    one |= {name: fine[name] * share ** -fine["alpha"] for name in ("a", "g")}
    np.testing.assert_allclose(
        FORMS["unified"].predict(rows, one), FORMS["fine-grained"].predict(rows, fine), rtol=1e-12
    )

    dense = PARAMETERS["chinchilla"]
    rows = given | {"granularity": np.ones(8), "expansion_rate": np.ones(8), "params_total": given["params_active"]}
    plain_dense = one | {"c": dense["E"], "a": dense["A"], "g": 0.0, "b": dense["B"]}
    plain_dense |= {"alpha": dense["alpha"], "beta": dense["beta"]}
    np.testing.assert_allclose(
        FORMS["unified"].predict(rows, plain_dense), FORMS["chinchilla"].predict(rows, dense), rtol=1e-12
    )


def test_fresh_tokens_alone_make_repetition_the_dense_law() -> None:
    given = columns(6) | {"unique_tokens": np.full(6, 1e13)}
    repeated = FORMS["repetition"].predict(given, PARAMETERS["repetition"])
    dense = {name: value for name, value in PARAMETERS["repetition"].items() if name != "R"}
    np.testing.assert_allclose(repeated, FORMS["chinchilla"].predict(given, dense), rtol=1e-13)
