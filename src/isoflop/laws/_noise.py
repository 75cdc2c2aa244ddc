"""The noise of ln L as residuals show it, and what an objective is worth in units of log likelihood.

A fit minimises Σ ρ(r), ψ = ρ'. Under normal noise σ its estimate has the variance E[ψ²] / E[ψ']² · (JᵀJ)⁻¹ and its
objective the curvature E[ψ'] · JᵀJ (Huber 1964, Ann. Math. Stat. 35:73), so that objective · E[ψ'] / E[ψ²] curves like
a negative log likelihood: for least squares it is the objective / σ².
"""

import math

import numpy as np

from isoflop.laws._diagnosis import noise_scale

_CUT = 1.5  # residuals beyond this many standard deviations count as this many
_TINY = 1e-300


def worth(noise: float, delta: float | None) -> float:
    """E[ψ²] / E[ψ']: the objective that stands for one nat of log likelihood."""
    if delta is None:
        return noise**2
    squared, inside = _moments(delta / noise)
    return noise**2 * squared / inside


def spread(residuals: np.ndarray, n_parameters: int, delta: float | None) -> float:
    """Standard deviation of ln L about a fitted law [n residuals, p parameters]; NaN without rows to spare.

    Huber's proposal 2 (1964): outliers count as if they lay 1.5 standard deviations out. Efficient where noise_scale is
    simple: it has half of that one's error. What the fit itself takes from the residuals is p rows for least squares
    and p (2 - π/2) for absolute errors, to first order. Least squares: the plain root mean square.
    """
    n = len(residuals)
    if n <= n_parameters:
        return float("nan")
    size = np.abs(residuals)
    if delta is None:
        return float(np.sqrt(np.sum(size**2) / (n - n_parameters)))
    share = _moments(_CUT)[0]
    scale = noise_scale(residuals, n_parameters)
    for _ in range(50):
        if scale <= _TINY:
            return 0.0
        squared, inside = _moments(delta / scale)
        left = n - n_parameters * (2 - squared / inside**2)
        before, scale = scale, float(np.sqrt(np.sum(np.minimum(size, _CUT * scale) ** 2) / (share * left)))
        if abs(scale - before) <= 1e-9 * before:
            break
    return scale


def log_likelihood(objective: float, n_rows: int, delta: float | None) -> float:
    """Log likelihood of n rows at the best scale, under the noise whose maximum likelihood the objective's minimum is.

    Density exp(-ρ(r)/s) / Z(s): normal where delta is None, Laplace as delta → 0, normal with Laplace tails between.
    """
    mean = max(objective / n_rows, _TINY)
    if delta is None:
        return -0.5 * n_rows * (math.log(2 * math.pi * 2 * mean) + 1)

    from scipy.optimize import minimize_scalar  # scipy is slow to import, and a fit alone does without

    def cost(log_scale: float) -> float:
        s = math.exp(log_scale)
        middle = math.sqrt(2 * math.pi * s) * math.erf(delta / math.sqrt(2 * s))
        return math.log(middle + 2 * s / delta * math.exp(-(delta**2) / (2 * s))) + mean / s

    centre = math.log(mean)
    found = minimize_scalar(cost, bounds=(centre - 5, centre + 5), method="bounded", options={"xatol": 1e-9})
    return -n_rows * float(found.fun)


def _moments(k: float) -> tuple[float, float]:
    """E[ψ²] and E[ψ'] for standard normal noise and delta k."""
    inside = math.erf(k / math.sqrt(2))
    density = math.exp(-0.5 * k * k) / math.sqrt(2 * math.pi)
    return inside - 2 * k * density + k * k * (1 - inside), inside
