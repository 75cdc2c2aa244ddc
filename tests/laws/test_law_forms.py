"""Forms against plain formulas, and the solver's analytic derivatives against finite differences."""

import numpy as np
import pytest
from tests.oracles import law_objective

from isoflop.laws import FORMS
from isoflop.laws._solver import Problem

PARAMETERS = {
    "chinchilla": {"E": 1.7, "A": 410.0, "B": 900.0, "alpha": 0.34, "beta": 0.29},
    "fine-grained": {"c": 0.9, "g": 4.0, "a": 18.0, "b": 31.0, "gamma": 0.6, "alpha": 0.21, "beta": 0.17},
}
PLAIN = {"chinchilla": law_objective.chinchilla, "fine-grained": law_objective.fine_grained}


def columns(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "params_total": 10 ** rng.uniform(7, 10, n),
        "tokens": 10 ** rng.uniform(8, 11, n),
        "granularity": 2.0 ** rng.integers(0, 6, n),
    }


@pytest.mark.parametrize("law", sorted(FORMS))
def test_prediction_is_the_printed_equation(law: str) -> None:
    form, given = FORMS[law], columns(6)
    predicted = form.predict(given, PARAMETERS[law])
    for i in range(6):
        row = {name: float(given[name][i]) for name in form.columns}
        assert predicted[i] == pytest.approx(PLAIN[law](**PARAMETERS[law], **row), rel=1e-13)


@pytest.mark.parametrize("pinned", [(), ("asymptote",), ("alpha",), ("coefficient", "beta")])
@pytest.mark.parametrize("law", sorted(FORMS))
def test_analytic_derivatives_equal_finite_differences(law: str, pinned: tuple[str, ...]) -> None:
    form, given = FORMS[law], columns(9)
    names = {"asymptote": form.asymptote, "coefficient": form.coefficients[1].name}
    fixed = {names.get(name, name): PARAMETERS[law][names.get(name, name)] for name in pinned}
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


@pytest.mark.parametrize("law", sorted(FORMS))
def test_coordinates_and_parameters_are_inverse(law: str) -> None:
    form = FORMS[law]
    problem = Problem(form, columns(5), np.full(5, 2.0), pinned={}, huber_delta=None)
    values = {name: np.full((1, 1), value) for name, value in PARAMETERS[law].items()}
    back = problem.parameters(problem.coordinates(values))
    for name, value in PARAMETERS[law].items():
        assert back[name][0, 0] == pytest.approx(value, rel=1e-12)
