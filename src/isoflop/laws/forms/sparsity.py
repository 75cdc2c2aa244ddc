"""Total parameters against sparsity."""

import numpy as np

from isoflop.laws.forms.base import Columns, Form, Parameter

_POWERS = (0.1, 0.25, 0.5, 0.9)


class Sparsity(Form):
    """Sparsity law (Abnar et al. 2025, arXiv 2501.12370, eq. 2).

    L = a/N^alpha + b/D^beta + c/(1−S)^lambda + d/((1−S)^delta N^gamma) + e. N params_total, D tokens, S sparsity (share
    of the experts that a token does not use), L nats per token. lambda and delta may have either sign.
    """

    name = "sparsity"
    equation = "L = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e"
    source = "Abnar et al. 2025, arXiv 2501.12370"
    columns = ("params_total", "tokens", "sparsity")
    coefficients = (
        Parameter(name="e", meaning="irreducible loss, nats per token"),
        Parameter(name="a", meaning="coefficient of size"),
        Parameter(name="b", meaning="coefficient of data"),
        Parameter(name="c", meaning="coefficient of sparsity alone, nats per token"),
        Parameter(name="d", meaning="coefficient of sparsity with size"),
    )
    exponents = (
        Parameter(name="alpha", meaning="exponent of size", upper=2.0, starts=_POWERS),
        Parameter(name="beta", meaning="exponent of data", upper=2.0, starts=_POWERS),
        Parameter(name="lambda", meaning="exponent of 1 − S", lower=-2.0, upper=2.0, starts=(-0.5, -0.15, 0.2)),
        Parameter(
            name="delta", meaning="exponent of 1 − S beside size", lower=-2.0, upper=2.0, starts=(-0.2, 0.15, 0.5)
        ),
        Parameter(name="gamma", meaning="exponent of size beside 1 − S", upper=2.0, starts=_POWERS),
    )
    asymptote = "e"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """N^-alpha, D^-beta, (1−S)^-lambda, (1−S)^-delta N^-gamma, 1."""
        n, used = x["params_total"], x["sparsity"]
        return {
            "e": np.ones(()),
            "a": np.exp(-theta["alpha"] * n),
            "b": np.exp(-theta["beta"] * x["tokens"]),
            "c": np.exp(-theta["lambda"] * used),
            "d": np.exp(-theta["delta"] * used - theta["gamma"] * n),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm."""
        n, used = x["params_total"], x["sparsity"]
        return {
            ("alpha", "a"): -n * terms["a"],
            ("beta", "b"): -x["tokens"] * terms["b"],
            ("lambda", "c"): -used * terms["c"],
            ("delta", "d"): -used * terms["d"],
            ("gamma", "d"): -n * terms["d"],
        }
