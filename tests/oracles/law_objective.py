"""The fitted objective as the papers write it, one row at a time, and the field's way to minimise it."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize

Predict = Callable[..., float]


def chinchilla(*, E: float, A: float, B: float, alpha: float, beta: float, params_total: float, tokens: float) -> float:
    return E + A / params_total**alpha + B / tokens**beta


def fine_grained(
    *,
    c: float,
    g: float,
    a: float,
    b: float,
    gamma: float,
    alpha: float,
    beta: float,
    params_total: float,
    tokens: float,
    granularity: float,
) -> float:
    return c + (g / granularity**gamma + a) / params_total**alpha + b / tokens**beta


def huber_objective(
    predict: Predict, parameters: Mapping[str, float], rows: Sequence[Mapping[str, float]], delta: float
) -> float:
    total = 0.0
    for row in rows:
        columns = {name: value for name, value in row.items() if name != "loss"}
        residual = abs(math.log(row["loss"]) - math.log(predict(**parameters, **columns)))
        total += 0.5 * residual**2 if residual <= delta else delta * (residual - 0.5 * delta)
    return total


def lbfgs_from(
    predict: Predict, start: Mapping[str, float], rows: Sequence[Mapping[str, float]], delta: float
) -> float:
    """Lowest objective that L-BFGS reaches from one start, coefficients as logarithms, the objective rescaled."""
    names = list(start)
    exponents = {"alpha", "beta", "gamma"}

    def objective(x: np.ndarray) -> float:
        parameters = {n: v if n in exponents else math.exp(min(v, 60.0)) for n, v in zip(names, x, strict=True)}
        return 1e4 * huber_objective(predict, parameters, rows, delta)

    x0 = [start[name] if name in exponents else math.log(start[name]) for name in names]
    found = minimize(objective, x0, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 2000})
    return float(found.fun) / 1e4
