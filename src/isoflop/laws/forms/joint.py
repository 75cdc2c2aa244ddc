"""Mixture-of-Experts with the number of experts in the formula."""

import numpy as np

from isoflop.laws.forms._saturation import E_MAX, E_START, log_saturated
from isoflop.laws.forms.base import Columns, Form, Parameter

_SLOW = (-0.08, -0.15, -0.25, -0.4)


class Joint(Form):
    """Joint MoE law (Ludziejewski et al. 2025, arXiv 2502.05172, eq. 5).

    L = a Ê^delta N^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c with Ê(E; E_start, E_max).
    N params_active (in the paper with embedding and head), D tokens, E expansion_rate (1: dense), L nats per token.
    Exponents alpha and beta are negative, as printed.
    """

    name = "joint"
    equation = "L = a Ê^delta N^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c"
    source = "Ludziejewski et al. 2025, arXiv 2502.05172"
    columns = ("params_active", "tokens", "expansion_rate")
    coefficients = (
        Parameter(name="c", meaning="irreducible loss, nats per token"),
        Parameter(name="a", meaning="coefficient of size"),
        Parameter(name="b", meaning="coefficient of data"),
    )
    exponents = (
        Parameter(name="alpha", meaning="exponent of size of a model with Ê = 1", lower=-2.0, upper=0.0, starts=_SLOW),
        Parameter(name="delta", meaning="exponent of Ê at size 1", lower=-3.0, upper=3.0, starts=(-0.3, 0.0)),
        Parameter(
            name="gamma", meaning="change of the size exponent by ln Ê", lower=-0.3, upper=0.3, starts=(0.0, 0.02)
        ),
        Parameter(name="beta", meaning="exponent of data of a model with Ê = 1", lower=-2.0, upper=0.0, starts=_SLOW),
        Parameter(name="omega", meaning="exponent of Ê at one token", lower=-3.0, upper=3.0, starts=(0.0, 0.5)),
        Parameter(
            name="zeta", meaning="change of the data exponent by ln Ê", lower=-0.3, upper=0.3, starts=(0.0, -0.02)
        ),
        E_START,
        E_MAX,
    )
    asymptote = "c"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, Ê^delta N^(alpha + gamma ln Ê), Ê^omega D^(beta + zeta ln Ê)."""
        e, _, _ = log_saturated(np.expm1(x["expansion_rate"]), theta["E_start"], theta["E_max"])
        return {
            "c": np.ones(()),
            "a": np.exp(theta["delta"] * e + (theta["alpha"] + theta["gamma"] * e) * x["params_active"]),
            "b": np.exp(theta["omega"] * e + (theta["beta"] + theta["zeta"] * e) * x["tokens"]),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Each term is the exponential of a polynomial in ln N or ln D and ln Ê."""
        e, by_start, by_max = log_saturated(np.expm1(x["expansion_rate"]), theta["E_start"], theta["E_max"])
        n, d, a, b = x["params_active"], x["tokens"], terms["a"], terms["b"]
        a_by_e = a * (theta["delta"] + theta["gamma"] * n)
        b_by_e = b * (theta["omega"] + theta["zeta"] * d)
        return {
            ("alpha", "a"): a * n,
            ("delta", "a"): a * e,
            ("gamma", "a"): a * e * n,
            ("beta", "b"): b * d,
            ("omega", "b"): b * e,
            ("zeta", "b"): b * e * d,
            ("E_start", "a"): a_by_e * by_start,
            ("E_start", "b"): b_by_e * by_start,
            ("E_max", "a"): a_by_e * by_max,
            ("E_max", "b"): b_by_e * by_max,
        }
