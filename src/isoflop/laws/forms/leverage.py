"""Efficiency leverage: how many times the FLOPs a dense model needs."""

import math

import numpy as np

from isoflop.laws.forms._saturation import log_saturated
from isoflop.laws.forms.base import Columns, Form, Parameter

_LN2, _LN10 = math.log(2), math.log(10)


class Leverage(Form):
    """Efficiency leverage of an MoE (Tian et al. 2025, arXiv 2507.17702): EL = C_dense / C_moe at equal loss.

    EL = Â^(a + d log10 C + gamma (log2 G)² + beta log2 G) with Â(A; A_start, A_max), 1/Â = 1/(A + 1/(1/A_start −
    1/A_max)) + 1/A_max. A = 1 − sparsity (active / all experts, shared ones in both), G granularity as
    2·d_model / d_expert (half of d_ff / d_expert with d_ff = 4·d_model), C flops. The bases of the logarithms are
    inferred from the paper's examples (EL 7.2 at A = 3.1%, G = 12, C = 1e22).
    """

    name = "leverage"
    equation = "EL = Â^(a + d log10 C + gamma (log2 G)² + beta log2 G)"
    source = "Tian et al. 2025, arXiv 2507.17702"
    columns = ("sparsity", "granularity", "flops")
    exponents = (
        Parameter(
            name="a", meaning="exponent of Â at 1 FLOP and G = 1", lower=-10.0, upper=10.0, starts=(-1.0, 0.0, 1.0)
        ),
        Parameter(name="d", meaning="its change with ten times the FLOPs", lower=-1.0, upper=1.0, starts=(-0.05, 0.0)),
        Parameter(name="gamma", meaning="curvature in log2 G", lower=-1.0, upper=1.0, starts=(0.01,)),
        Parameter(name="beta", meaning="slope in log2 G", lower=-2.0, upper=2.0, starts=(-0.1,)),
        Parameter(
            name="A_start",
            meaning="activation ratio below which nothing is gained",
            lower=1e-6,
            upper=0.5,
            starts=(0.003, 0.03),
            log=True,
        ),
        Parameter(
            name="A_max",
            meaning="activation ratio at which Â saturates",
            lower=0.6,
            upper=1e20,
            starts=(1e3,),
            log=True,
        ),
    )
    target = "leverage"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """The leverage itself."""
        used, _, _ = log_saturated(np.exp(x["sparsity"]), theta["A_start"], theta["A_max"])
        return {"leverage": np.exp(used * self._exponent(x, theta))}

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Of the exponential of ln Â times a polynomial in ln G and ln C."""
        used, by_start, by_max = log_saturated(np.exp(x["sparsity"]), theta["A_start"], theta["A_max"])
        value, doublings = terms["leverage"], x["granularity"] / _LN2
        exponent = self._exponent(x, theta)
        return {
            ("a", "leverage"): value * used,
            ("d", "leverage"): value * used * x["flops"] / _LN10,
            ("gamma", "leverage"): value * used * doublings**2,
            ("beta", "leverage"): value * used * doublings,
            ("A_start", "leverage"): value * exponent * by_start,
            ("A_max", "leverage"): value * exponent * by_max,
        }

    def _exponent(self, x: Columns, theta: Columns) -> np.ndarray:
        doublings = x["granularity"] / _LN2
        rest = theta["gamma"] * doublings**2 + theta["beta"] * doublings
        return np.asarray(theta["a"] + theta["d"] * x["flops"] / _LN10 + rest)
