"""Dense scaling law."""

import numpy as np

from isoflop.laws.forms.base import Columns, Form, Parameter


class Chinchilla(Form):
    """Dense law (Hoffmann et al. 2022, arXiv 2203.15556, approach 3): L = E + A/N^alpha + B/D^beta.

    N params_total, D tokens, L nats per token. In the original N counts the embedding; here it is whatever the column
    holds.
    """

    name = "chinchilla"
    equation = "L = E + A/N^alpha + B/D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556"
    columns = ("params_total", "tokens")
    coefficients = (
        Parameter(name="E", meaning="irreducible loss, nats per token"),
        Parameter(name="A", meaning="coefficient of size, nats · parameters^alpha"),
        Parameter(name="B", meaning="coefficient of data, nats · tokens^beta"),
    )
    exponents = (
        Parameter(
            name="alpha", meaning="exponent of size", upper=2.0, starts=(0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
        ),
        Parameter(
            name="beta", meaning="exponent of data", upper=2.0, starts=(0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
        ),
    )
    asymptote = "E"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, N^-alpha, D^-beta."""
        return {
            "E": np.ones(()),
            "A": np.exp(-theta["alpha"] * x["params_total"]),
            "B": np.exp(-theta["beta"] * x["tokens"]),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm."""
        return {
            ("alpha", "A"): -x["params_total"] * terms["A"],
            ("beta", "B"): -x["tokens"] * terms["B"],
        }
