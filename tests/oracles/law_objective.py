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


def saturated(experts: float, start: float, end: float) -> float:
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / end)) + 1 / end)


def joint(p: Mapping[str, float], *, params_active: float, tokens: float, expansion_rate: float) -> float:
    e = saturated(expansion_rate, p["E_start"], p["E_max"])
    size = p["a"] * e ** p["delta"] * params_active ** (p["alpha"] + p["gamma"] * math.log(e))
    return size + p["b"] * e ** p["omega"] * tokens ** (p["beta"] + p["zeta"] * math.log(e)) + p["c"]


def routed(p: Mapping[str, float], *, params_active: float, expansion_rate: float) -> float:
    n, e = math.log10(params_active), math.log10(saturated(expansion_rate, p["E_start"], p["E_max"]))
    return 10 ** (p["a"] * n + p["b"] * e + p["c"] * n * e + p["d"])


def sparsity(p: Mapping[str, float], *, params_total: float, tokens: float, sparsity: float) -> float:
    used = 1 - sparsity
    mixed = p["d"] / (used ** p["delta"] * params_total ** p["gamma"])
    return (
        p["a"] / params_total ** p["alpha"]
        + p["b"] / tokens ** p["beta"]
        + p["c"] / used ** p["lambda"]
        + mixed
        + p["e"]
    )


def leverage(p: Mapping[str, float], *, sparsity: float, granularity: float, flops: float) -> float:
    used = 1 / (1 / (1 - sparsity + 1 / (1 / p["A_start"] - 1 / p["A_max"])) + 1 / p["A_max"])
    g = math.log2(granularity)
    return used ** (p["a"] + p["d"] * math.log10(flops) + p["gamma"] * g**2 + p["beta"] * g)


def allocation(p: Mapping[str, float], *, flops: float, sparsity: float) -> float:
    return p["A"] * (1 - sparsity) ** p["p"] * flops ** (p["B"] * (1 - sparsity) ** p["q"])


def allocation_loss(
    p: Mapping[str, float],
    *,
    params_active: float,
    tokens: float,
    sparsity: float,
    expert_attention_ratio: float,
    flops: float,
) -> float:
    best = p["rho"] + p["sigma"] * math.log(flops / 1e20)
    powers = p["a"] / params_active ** p["alpha"] + p["b"] / tokens ** p["beta"]
    powers += p["c"] * (1 - sparsity) ** p["gamma"] / params_active ** p["lambda"]
    return p["e"] + powers + p["v"] * (math.log(expert_attention_ratio) - best) ** 2


def repetition(p: Mapping[str, float], *, params_total: float, tokens: float, unique_tokens: float) -> float:
    seen = min(tokens, unique_tokens)
    repeats = max(tokens / unique_tokens - 1, 0)
    worth = seen + seen * p["R"] * (1 - math.exp(-repeats / p["R"]))
    return p["E"] + p["A"] / params_total ** p["alpha"] + p["B"] / worth ** p["beta"]


def unified(
    p: Mapping[str, float],
    *,
    params_active: float,
    tokens: float,
    granularity: float,
    expansion_rate: float,
    depth_capacity: float,
    expert_attention_ratio: float,
    flops: float,
) -> float:
    e = saturated(expansion_rate, p["E_start"], p["E_max"])
    size = e ** p["delta"] * depth_capacity ** p["mu"] * params_active ** -(p["alpha"] + p["kappa"] * math.log(e))
    data = p["b"] * e ** p["omega"] * tokens ** -(p["beta"] + p["zeta"] * math.log(e))
    best = p["rho"] + p["sigma"] * math.log(flops / 1e20)
    valley = p["v"] * (math.log(expert_attention_ratio) - best) ** 2
    return p["c"] + (p["a"] + p["g"] * granularity ** -p["gamma"]) * size + data + valley


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
