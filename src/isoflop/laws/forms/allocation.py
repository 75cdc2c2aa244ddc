"""How to split FLOPs between experts and attention."""

import numpy as np

from isoflop.laws.forms.base import Columns, Form, Parameter

_LARGEST = 300.0  # of |ln φ|: a start far from any sensible law must not overflow, nor its square


class Allocation(Form):
    """Best expert–attention ratio r* (Li et al. 2026, arXiv 2603.10379): r* = A (1−S)^p C^(B (1−S)^q).

    r expert_attention_ratio (FLOPs of expert layers / FLOPs of attention layers), S sparsity with shared experts
    counted, C flops of the whole training. Its rows are minima over r, one for each budget and sparsity.
    """

    name = "allocation"
    equation = "r* = A (1-S)^p C^(B (1-S)^q)"
    source = "Li et al. 2026, arXiv 2603.10379"
    columns = ("flops", "sparsity")
    coefficients = (Parameter(name="A", meaning="ratio at 1 FLOP and S = 0"),)
    exponents = (
        Parameter(name="p", meaning="exponent of 1 − S", lower=-5.0, upper=5.0, starts=(-2.0, -1.0, 0.0, 1.0)),
        Parameter(name="B", meaning="exponent of C at S = 0", lower=-2.0, upper=2.0, starts=(-0.2, 0.1, 0.2, 0.4)),
        Parameter(
            name="q",
            meaning="exponent of 1 − S within the exponent of C",
            lower=-2.0,
            upper=2.0,
            starts=(-0.2, 0.2, 0.6),
        ),
    )
    target = "expert_attention_ratio"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """(1−S)^p C^(B (1−S)^q)."""
        used = x["sparsity"]
        log_ratio = theta["p"] * used + theta["B"] * np.exp(theta["q"] * used) * x["flops"]
        return {"A": np.exp(np.clip(log_ratio, -_LARGEST, _LARGEST))}

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Of the exponential of a polynomial in ln(1 − S) and ln C."""
        used, value = x["sparsity"], terms["A"]
        power = np.exp(theta["q"] * used)
        return {
            ("p", "A"): value * used,
            ("B", "A"): value * power * x["flops"],
            ("q", "A"): value * theta["B"] * power * used * x["flops"],
        }


class AllocationLoss(Form):
    """Loss with a valley in the expert–attention ratio, after Li et al. 2026 (arXiv 2603.10379).

    L = e + a/N^alpha + b/D^beta + c (1−S)^gamma / N^lambda + v (ln r − ln r*)², ln r* = rho + sigma ln(C / 1e20).
    Their printed form has d·r/(r+1) in place of the valley, which has no interior optimum, and a constant above
    ln(vocabulary): its constants predict nothing. The square is the leading term of any valley around its floor.
    """

    name = "allocation-loss"
    equation = "L = e + a/N^alpha + b/D^beta + c (1-S)^gamma/N^lambda + v (ln r - rho - sigma ln(C/1e20))²"
    source = "after Li et al. 2026, arXiv 2603.10379"
    columns = ("params_active", "tokens", "sparsity", "expert_attention_ratio", "flops")
    coefficients = (
        Parameter(name="e", meaning="irreducible loss, nats per token"),
        Parameter(name="a", meaning="coefficient of size"),
        Parameter(name="b", meaning="coefficient of data"),
        Parameter(name="c", meaning="coefficient of sparsity with size"),
        Parameter(name="v", meaning="depth of the valley, nats per squared ln r"),
    )
    exponents = (
        Parameter(name="alpha", meaning="exponent of size", upper=2.0, starts=(0.1, 0.3, 0.7)),
        Parameter(name="beta", meaning="exponent of data", upper=2.0, starts=(0.1, 0.3, 0.7)),
        Parameter(name="gamma", meaning="exponent of 1 − S", lower=-2.0, upper=3.0, starts=(0.05, 0.4)),
        Parameter(name="lambda", meaning="exponent of size beside 1 − S", upper=2.0, starts=(0.1, 0.4)),
        Parameter(name="rho", meaning="ln r* at 1e20 FLOPs", lower=-7.0, upper=7.0, starts=(-1.0, 0.0, 1.0)),
        Parameter(name="sigma", meaning="exponent of C in r*", lower=-2.0, upper=2.0, starts=(0.0, 0.15)),
    )
    asymptote = "e"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, N^-alpha, D^-beta, (1−S)^gamma N^-lambda, (ln r − ln r*)²."""
        n = x["params_active"]
        return {
            "e": np.ones(()),
            "a": np.exp(-theta["alpha"] * n),
            "b": np.exp(-theta["beta"] * x["tokens"]),
            "c": np.exp(theta["gamma"] * x["sparsity"] - theta["lambda"] * n),
            "v": _from_best(x, theta) ** 2,
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm; the valley is a square."""
        n, off = x["params_active"], _from_best(x, theta)
        return {
            ("alpha", "a"): -n * terms["a"],
            ("beta", "b"): -x["tokens"] * terms["b"],
            ("gamma", "c"): x["sparsity"] * terms["c"],
            ("lambda", "c"): -n * terms["c"],
            ("rho", "v"): -2 * off,
            ("sigma", "v"): -2 * off * (x["flops"] - LOG_1E20),
        }


LOG_1E20 = 20 * np.log(10)
"""ln of the budget at which rho is ln r*."""


def _from_best(x: Columns, theta: Columns) -> np.ndarray:
    best = theta["rho"] + theta["sigma"] * (x["flops"] - LOG_1E20)
    return np.asarray(x["expert_attention_ratio"] - best)
