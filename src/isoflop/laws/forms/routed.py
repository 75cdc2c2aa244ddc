"""Routed language models at one number of tokens."""

import math

import numpy as np

from isoflop.laws.forms._saturation import E_MAX, E_START, log_saturated
from isoflop.laws.forms.base import Columns, Form, Parameter

_LN10 = math.log(10)


class Routed(Form):
    """Law of routed models (Clark et al. 2022, arXiv 2202.01169, eq. 1), at one number of training tokens.

    log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d with Ê(E; E_start, E_max). N params_active, E expansion_rate
    (number of experts at one expert per token), L nats per token. Experts stop helping at N = 10^(−b/c).
    """

    name = "routed"
    equation = "log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d"
    source = "Clark et al. 2022, arXiv 2202.01169"
    columns = ("params_active", "expansion_rate")
    exponents = (
        Parameter(name="a", meaning="exponent of size", lower=-1.0, upper=0.0, starts=(-0.05, -0.1)),
        Parameter(name="b", meaning="exponent of Ê", lower=-1.0, upper=1.0, starts=(-0.1, 0.0)),
        Parameter(
            name="c",
            meaning="how much less experts help a ten times larger model",
            lower=-0.3,
            upper=0.3,
            starts=(0.01,),
        ),
        Parameter(name="d", meaning="log10 of the loss at size 1", lower=-10.0, upper=10.0, starts=(1.0,)),
        E_START,
        E_MAX,
    )
    fixed = ("tokens",)

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """The loss itself."""
        e, _, _ = log_saturated(np.expm1(x["expansion_rate"]), theta["E_start"], theta["E_max"])
        n = x["params_active"]
        log_loss = theta["a"] * n + theta["b"] * e + theta["c"] * n * e / _LN10 + theta["d"] * _LN10
        return {"loss": np.exp(log_loss)}

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Of the exponential of a polynomial in ln N and ln Ê."""
        e, by_start, by_max = log_saturated(np.expm1(x["expansion_rate"]), theta["E_start"], theta["E_max"])
        n, loss = x["params_active"], terms["loss"]
        by_e = loss * (theta["b"] + theta["c"] * n / _LN10)
        return {
            ("a", "loss"): loss * n,
            ("b", "loss"): loss * e,
            ("c", "loss"): loss * n * e / _LN10,
            ("d", "loss"): loss * _LN10,
            ("E_start", "loss"): by_e * by_start,
            ("E_max", "loss"): by_e * by_max,
        }
