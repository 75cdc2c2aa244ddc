"""One law for size, data, granularity, expansion rate, depth capacity and expert–attention ratio."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from isoflop.laws.forms._saturation import E_MAX, E_START, log_saturated
from isoflop.laws.forms.allocation import LOG_1E20
from isoflop.laws.forms.base import Columns, Form, Neutral, Parameter

_POWERS = (0.1, 0.2, 0.35, 0.6)


class Unified(Form):
    """The unified law: the published laws' ingredients in one formula.

    L = c + (a + g G^-gamma) Ê^delta κ^mu N^-(alpha + kappa ln Ê) + b Ê^omega D^-(beta + zeta ln Ê)
    + v (ln r − ln r*)², ln r* = rho + sigma ln(C / 1e20), Ê(E; E_start, E_max). N params_active, D tokens,
    G granularity, E expansion_rate, κ depth_capacity (1 without depth routing), r expert_attention_ratio, C flops;
    L nats per token.

    Special cases: dense (G = E = 1): Chinchilla. One E: fine-grained in params_active, which at one E is
    params_total times a constant (Krajewski et al. 2024). g = v = 0: joint (Ludziejewski et al. 2025). Its data-free
    form in ln N, ln Ê is routed (Clark et al. 2022) to first order in the terms.

    What each term is for, and what rows identify it: c, a, alpha need three sizes, b, beta three lengths (of any one
    architecture); g, gamma three granularities at equal N, D and E; delta three expansion rates at equal N, kappa the
    same at two sizes; omega and zeta the same at two lengths; E_start dense rows beside E = 2 to 8, E_max rates far
    above the rest; mu two capacities at equal N and D; v three ratios at equal C, rho needs the best of them inside,
    sigma the same at two budgets. Pin what the rows do not vary; a column that a table lacks, or that has its neutral
    value in every row, removes its parameters by itself.

    N counts a routed block's weights by the share of tokens that use them, as `isoflop count` does, so κ^mu is what the
    weights that tokens pass by are worth: mu > 0 if they help, as idle experts do. It stands for one way of routing;
    whether every block or every other one is routed is not in κ, so fit those apart.
    """

    name = "unified"
    equation = (
        "L = c + (a + g G^-gamma) Ê^delta κ^mu N^-(alpha + kappa ln Ê) + b Ê^omega D^-(beta + zeta ln Ê) "
        "+ v (ln r - rho - sigma ln(C/1e20))²"
    )
    source = "isoflop; contains arXiv 2203.15556, 2402.07871, 2502.05172 and a valley after 2603.10379"
    columns = (
        *("params_active", "tokens", "granularity", "expansion_rate", "depth_capacity"),
        *("expert_attention_ratio", "flops"),
    )
    coefficients = (
        Parameter(name="c", meaning="irreducible loss, nats per token"),
        Parameter(name="a", meaning="coefficient of size"),
        Parameter(name="g", meaning="what granularity can save"),
        Parameter(name="b", meaning="coefficient of data"),
        Parameter(name="v", meaning="depth of the valley, nats per squared ln r"),
    )
    exponents = (
        Parameter(name="alpha", meaning="exponent of size of a model with Ê = 1", upper=2.0, starts=_POWERS),
        Parameter(name="beta", meaning="exponent of data of a model with Ê = 1", upper=2.0, starts=_POWERS),
        Parameter(name="gamma", meaning="exponent of granularity", upper=4.0, starts=(0.4, 1.0)),
        Parameter(name="delta", meaning="exponent of Ê at size 1", lower=-3.0, upper=3.0, starts=(-0.3, 0.0)),
        Parameter(
            name="kappa", meaning="change of the size exponent by ln Ê", lower=-0.3, upper=0.3, starts=(0.0, -0.02)
        ),
        Parameter(name="omega", meaning="exponent of Ê at one token", lower=-3.0, upper=3.0, starts=(0.0, 0.4)),
        Parameter(
            name="zeta", meaning="change of the data exponent by ln Ê", lower=-0.3, upper=0.3, starts=(0.0, 0.02)
        ),
        E_START,
        E_MAX,
        Parameter(name="mu", meaning="exponent of depth capacity", lower=-3.0, upper=3.0, starts=(0.0, 0.2)),
        Parameter(name="rho", meaning="ln r* at 1e20 FLOPs", lower=-7.0, upper=7.0, starts=(-1.0, 0.0, 1.0)),
        Parameter(name="sigma", meaning="exponent of C in r*", lower=-2.0, upper=2.0, starts=(0.0, 0.15)),
    )
    asymptote = "c"
    optional: Mapping[str, Neutral] = MappingProxyType(
        {
            "granularity": Neutral(value=1.0, pinned={"g": 0.0, "gamma": 1.0}),
            "expansion_rate": Neutral(
                value=1.0,
                pinned={"delta": 0.0, "kappa": 0.0, "omega": 0.0, "zeta": 0.0, "E_start": 1.0, "E_max": 1e6},
            ),
            "depth_capacity": Neutral(value=1.0, pinned={"mu": 0.0}),
            "expert_attention_ratio": Neutral(value=1.0, pinned={"v": 0.0, "rho": 0.0, "sigma": 0.0}),
        }
    )

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1; size; size times G^-gamma; data; the valley."""
        e, _, _ = log_saturated(np.expm1(x["expansion_rate"]), theta["E_start"], theta["E_max"])
        size = np.exp(
            theta["delta"] * e
            + theta["mu"] * x["depth_capacity"]
            - (theta["alpha"] + theta["kappa"] * e) * x["params_active"]
        )
        return {
            "c": np.ones(()),
            "a": size,
            "g": np.exp(-theta["gamma"] * x["granularity"]) * size,
            "b": np.exp(theta["omega"] * e - (theta["beta"] + theta["zeta"] * e) * x["tokens"]),
            "v": self._from_best(x, theta) ** 2,
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Size and data are exponentials of polynomials in ln N or ln D, ln Ê and ln κ; the valley is a square."""
        e, by_start, by_max = log_saturated(np.expm1(x["expansion_rate"]), theta["E_start"], theta["E_max"])
        n, d, b = x["params_active"], x["tokens"], terms["b"]
        off = self._from_best(x, theta)
        b_by_e = b * (theta["omega"] - theta["zeta"] * d)
        found = {
            ("gamma", "g"): -x["granularity"] * terms["g"],
            ("beta", "b"): -d * b,
            ("omega", "b"): e * b,
            ("zeta", "b"): -e * d * b,
            ("E_start", "b"): b_by_e * by_start,
            ("E_max", "b"): b_by_e * by_max,
            ("rho", "v"): -2 * off,
            ("sigma", "v"): -2 * off * (x["flops"] - LOG_1E20),
        }
        for name in ("a", "g"):
            size = terms[name]
            by_e = size * (theta["delta"] - theta["kappa"] * n)
            found |= {
                ("alpha", name): -n * size,
                ("delta", name): e * size,
                ("kappa", name): -e * n * size,
                ("mu", name): x["depth_capacity"] * size,
                ("E_start", name): by_e * by_start,
                ("E_max", name): by_e * by_max,
            }
        return found

    def _from_best(self, x: Columns, theta: Columns) -> np.ndarray:
        best = theta["rho"] + theta["sigma"] * (x["flops"] - LOG_1E20)
        return np.asarray(x["expert_attention_ratio"] - best)
