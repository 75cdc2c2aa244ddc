"""Repeated data."""

import numpy as np

from isoflop.laws.forms.base import Columns, Form, Parameter


class Repetition(Form):
    """Dense law with repeated tokens (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5, its data half).

    L = E + A/N^alpha + B/D'^beta, D' = U + U R* (1 − exp(−R/R*)), R = D/U − 1 repetitions of U unique_tokens. N
    params_total, D tokens. Of the paper's law this is the half that discounts data; its other half discounts parameters
    beyond what U tokens would want, so use it for models no larger than those.
    """

    name = "repetition"
    equation = "L = E + A/N^alpha + B/(U + U R (1 - exp(-(D/U - 1)/R)))^beta"
    source = "Muennighoff et al. 2023, arXiv 2305.16264"
    columns = ("params_total", "tokens", "unique_tokens")
    coefficients = (
        Parameter(name="E", meaning="irreducible loss, nats per token"),
        Parameter(name="A", meaning="coefficient of size, nats · parameters^alpha"),
        Parameter(name="B", meaning="coefficient of data, nats · tokens^beta"),
    )
    exponents = (
        Parameter(name="alpha", meaning="exponent of size", upper=2.0, starts=(0.1, 0.2, 0.3, 0.45, 0.9)),
        Parameter(name="beta", meaning="exponent of data", upper=2.0, starts=(0.1, 0.2, 0.3, 0.45, 0.9)),
        Parameter(
            name="R",
            meaning="repetitions after which further ones are worth 1/e of fresh tokens",
            lower=0.01,
            upper=1e4,
            starts=(0.5, 4.0, 15.0, 60.0),
            log=True,
        ),
    )
    asymptote = "E"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, N^-alpha, D'^-beta."""
        log_data, _ = self._worth(x, theta)
        return {
            "E": np.ones(()),
            "A": np.exp(-theta["alpha"] * x["params_total"]),
            "B": np.exp(-theta["beta"] * log_data),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm; D' moves with R."""
        log_data, by_decay = self._worth(x, theta)
        return {
            ("alpha", "A"): -x["params_total"] * terms["A"],
            ("beta", "B"): -log_data * terms["B"],
            ("R", "B"): -theta["beta"] * by_decay * terms["B"],
        }

    def _worth(self, x: Columns, theta: Columns) -> tuple[np.ndarray, np.ndarray]:
        """ln D' and its derivative by R; what is seen at most once counts in full."""
        repetitions = np.maximum(np.expm1(x["tokens"] - x["unique_tokens"]), 0.0)
        seen_once = np.minimum(x["tokens"], x["unique_tokens"])
        ratio = repetitions / theta["R"]
        fresh = 1 + theta["R"] * -np.expm1(-ratio)
        return seen_once + np.log(fresh), (-np.expm1(-ratio) - ratio * np.exp(-ratio)) / fresh
