"""Made-up truths for every law, away from the grids that fits start from, and rows that identify them."""

from collections.abc import Mapping

import numpy as np

from isoflop.laws import FORMS

TRUTHS: Mapping[str, Mapping[str, float]] = {
    "chinchilla": {"E": 1.41, "A": 812.0, "B": 377.0, "alpha": 0.371, "beta": 0.263},
    "fine-grained": {"c": 1.13, "g": 210.0, "a": 340.0, "b": 2900.0, "gamma": 0.83, "alpha": 0.333, "beta": 0.391},
    "joint": {
        **{"c": 1.07, "a": 95.0, "b": 310.0, "alpha": -0.287, "delta": -0.41, "gamma": 0.013, "beta": -0.293},
        **{"omega": 0.17, "zeta": -0.009, "E_start": 1.62, "E_max": 137.0},
    },
    "routed": {"a": -0.068, "b": -0.171, "c": 0.0137, "d": 0.987, "E_start": 2.9, "E_max": 157.0},
    "sparsity": {
        **{"e": 0.7, "a": 5200.0, "b": 2700.0, "c": 0.61, "d": 31.0, "alpha": 0.53, "beta": 0.36, "lambda": -0.63},
        **{"delta": 0.43, "gamma": 0.21},
    },
    "leverage": {"a": 0.83, "d": -0.083, "gamma": 0.023, "beta": -0.163, "A_start": 0.011, "A_max": 1.7},
    "allocation": {"A": 3.1e-3, "p": -0.71, "B": 0.131, "q": 0.37},
    "allocation-loss": {
        **{"e": 1.3, "a": 950.0, "b": 710.0, "c": 31.0, "v": 0.043, "alpha": 0.43, "beta": 0.317, "gamma": 0.71},
        **{"lambda": 0.173, "rho": 0.37, "sigma": -0.043},
    },
    "repetition": {"E": 1.52, "A": 660.0, "B": 1300.0, "alpha": 0.337, "beta": 0.343, "R": 8.7},
    "unified": {
        **{"c": 1.05, "a": 152.0, "g": 123.0, "b": 330.0, "v": 0.031, "alpha": 0.293, "beta": 0.297, "gamma": 0.71},
        **{"delta": -0.29, "kappa": -0.013, "omega": 0.21, "zeta": 0.011, "E_start": 1.37, "E_max": 171.0},
        **{"mu": 0.073, "rho": -0.43, "sigma": 0.063},
    },
}

ROWS: Mapping[str, int] = {"joint": 160, "sparsity": 160, "allocation-loss": 160, "unified": 240}
"""Rows that a law's parameters want; 80 for the others."""


def columns(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of n runs of all kinds, each varied for itself and over what a large study would span."""
    made = {
        "params_active": 10 ** rng.uniform(6.3, 9.6, n),
        "tokens": 10 ** rng.uniform(7.8, 11.2, n),
        "granularity": 2.0 ** rng.integers(0, 6, n),
        "expansion_rate": 2.0 ** rng.integers(0, 10, n),
        "sparsity": 1 - 2.0 ** -rng.uniform(0, 7, n),
        "expert_attention_ratio": np.exp(rng.uniform(-2.5, 2.5, n)),
        "unique_tokens": 10 ** rng.uniform(7.5, 9.5, n),
        "depth_capacity": 2.0 ** -np.random.default_rng(n).integers(0, 5, n),
    }
    return made | {"params_total": made["params_active"], "flops": 6 * made["params_active"] * made["tokens"]}


def planted(
    law: str, seed: int, *, noise: float = 0.0, outliers: float = 0.0, n: int | None = None
) -> dict[str, np.ndarray]:
    """Runs of a planted law, with normal noise of ln L and a share of rows that lie 10 to 50% too high."""
    form, rng = FORMS[law], np.random.default_rng(seed)
    n = ROWS.get(law, 80) if n is None else n
    made = columns(n, rng)
    made |= {name: np.full(n, {"tokens": 1.3e11, "expansion_rate": 8.0}[name]) for name in form.fixed}
    table = {name: made[name] for name in (*form.columns, *form.fixed)}
    target = form.predict(table, TRUTHS[law]) * np.exp(noise * rng.standard_normal(n))
    target = np.where(rng.random(n) < outliers, target * rng.uniform(1.1, 1.5, n), target)
    return {**table, form.target: target}
