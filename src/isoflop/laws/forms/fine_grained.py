"""Fine-grained Mixture-of-Experts at one expansion rate."""

import numpy as np

from isoflop.laws.forms.base import Columns, Form, Parameter


class FineGrained(Form):
    """Fine-grained MoE (Krajewski et al. 2024, arXiv 2402.07871, eq. 9): L = c + (g/G^gamma + a)/N^alpha + b/D^beta.

    N params_total without embedding and router, G granularity (d_ff / d_expert), D tokens, L nats per token. The law
    knows one expansion rate: a and g differ between expansion rates, and a dense model has the chinchilla form, which
    may share c.
    """

    name = "fine-grained"
    equation = "L = c + (g/G^gamma + a)/N^alpha + b/D^beta"
    source = "Krajewski et al. 2024, arXiv 2402.07871"
    columns = ("params_total", "granularity", "tokens")
    coefficients = (
        Parameter(name="c", meaning="irreducible loss, nats per token"),
        Parameter(name="g", meaning="what granularity can save, nats · parameters^alpha"),
        Parameter(name="a", meaning="coefficient of size, nats · parameters^alpha"),
        Parameter(name="b", meaning="coefficient of data, nats · tokens^beta"),
    )
    exponents = (
        Parameter(name="gamma", meaning="exponent of granularity", upper=4.0, starts=(0.15, 0.4, 0.8, 1.4, 2.2)),
        Parameter(name="alpha", meaning="exponent of size", upper=2.0, starts=(0.05, 0.1, 0.2, 0.35, 0.6, 1.0)),
        Parameter(name="beta", meaning="exponent of data", upper=2.0, starts=(0.05, 0.1, 0.2, 0.35, 0.6, 1.0)),
    )
    asymptote = "c"
    fixed = ("expansion_rate",)

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, G^-gamma N^-alpha, N^-alpha, D^-beta."""
        size = np.exp(-theta["alpha"] * x["params_total"])
        return {
            "c": np.ones(()),
            "g": np.exp(-theta["gamma"] * x["granularity"]) * size,
            "a": size,
            "b": np.exp(-theta["beta"] * x["tokens"]),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm."""
        return {
            ("gamma", "g"): -x["granularity"] * terms["g"],
            ("alpha", "g"): -x["params_total"] * terms["g"],
            ("alpha", "a"): -x["params_total"] * terms["a"],
            ("beta", "b"): -x["tokens"] * terms["b"],
        }
