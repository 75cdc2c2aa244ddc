"""Whether a fit is to be trusted, judged by its restarts, its gradient and its Hessian, not by an optimiser's flag."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.laws._solver import Problem, Solution

Status = Literal["converged", "bound_hit", "not_identified", "failed"]

_SAME = 1e-6  # objectives that differ relatively by less are one minimum
_FLAT = 1e-7  # singular values of the scaled Jacobian below this share of the largest are directions without data
_FACTOR = 5.0  # a scale whose interval spans this factor is not known
_PART = 0.03  # a parameter with this share of a flat direction belongs to it


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Judgement of a fit."""

    status: Status
    message: str
    condition: float
    """Condition number of the scaled Jacobian; its square is the Hessian's."""


def diagnose(problem: Problem, solution: Solution) -> Diagnosis:
    """Judge the lowest of the restarts."""
    best = solution.best()
    objective = solution.objective[best]
    z = solution.coordinates[[best]]
    floor = 1e-26 * len(problem.log_loss)
    same = solution.objective <= objective * (1 + _SAME) + floor
    count = f"{int(same.sum())} of {len(same)} restarts ended at this objective"
    point = problem.evaluate(z)
    residuals = point.residuals[0] if problem.weights is None else point.residuals[0] * np.sqrt(problem.weights)
    jacobian = _informative(problem, problem.jacobian(point)[0])
    norms = np.linalg.norm(jacobian, axis=1)
    at_bound = _at_bound(problem, z[0])
    idle = norms < 1e-12 * max(1.0, float(norms.max()))
    scaled = jacobian[~idle] / norms[~idle, None]
    _, singular, directions = np.linalg.svd(scaled.T, full_matrices=False)
    condition = float(singular[0] / max(singular[-1], 1e-300))
    names = np.array(problem.names)
    flat = directions[singular < _FLAT * singular[0]]
    loose = set(names[~idle][np.any(np.abs(flat) > _PART, axis=0)]) if len(flat) else set()
    loose |= set(names[idle])  # also the exponent of a term whose coefficient is zero
    loose |= _elsewhere(problem, solution, same)
    loose |= _unbounded(problem, residuals, scaled, norms, idle)
    known = 0 if problem.penalty is None else int(np.isfinite(problem.penalty.sd).sum())
    bound = f"{_and(at_bound)} {'is' if len(at_bound) == 1 else 'are'} at a bound" if at_bound else ""
    if len(residuals) + known <= problem.size:
        message = f"{len(residuals)} rows for {problem.size} free parameters leave no row to spare: any law of so many "
        message += "parameters passes through them, right or wrong; add runs, or pin what is known"
        return Diagnosis(status="not_identified", message=message, condition=condition)
    if loose:
        listed = _and([name for name in problem.names if name in loose])
        message = f"the rows do not identify {listed}; vary the columns more, or pin what is known"
        return Diagnosis(
            status="not_identified", message=f"{message}; {bound}" if bound else message, condition=condition
        )
    if not np.isfinite(objective) or solution.decrement[best] > 1e-7 * objective + floor:
        message = f"no restart reached a minimum (objective {objective:.6g}); check the units of the columns"
        return Diagnosis(status="failed", message=message, condition=condition)
    if at_bound:
        return Diagnosis(status="bound_hit", message=f"{bound}; {count}", condition=condition)
    if same.sum() < 2:
        message = f"only one of {len(same)} restarts reached the lowest objective; raise restarts"
        return Diagnosis(status="failed", message=message, condition=condition)
    return Diagnosis(status="converged", message=f"{count}, gradient zero", condition=condition)


def noise_scale(residuals: np.ndarray, n_parameters: int) -> float:
    """Standard deviation of ln L about the law, robust to outliers and corrected for p fitted parameters.

    1.4826 times the median of the n - p largest absolute residuals: a fit of p parameters in the manner of L1 passes
    through p rows, which say nothing about the noise (Maronna et al. 2006, Robust Statistics, eq. 4.44).
    """
    size = np.sort(np.abs(residuals))[n_parameters:]
    return float(1.4826 * np.median(size)) if len(size) else float("nan")


def _informative(problem: Problem, jacobian: np.ndarray) -> np.ndarray:
    """The Jacobian [p, n] with its rows' weights, and one more row for every prior."""
    if problem.weights is not None:
        jacobian = jacobian * np.sqrt(problem.weights)
    if problem.penalty is None:
        return jacobian
    return np.concatenate([jacobian, np.diag(problem.penalty.noise / problem.penalty.sd)], axis=1)


def _at_bound(problem: Problem, z: np.ndarray) -> list[str]:
    """Parameters that ended at a bound, at coordinates [p]."""
    first = len(problem.coefficients)
    names = []
    for j, (name, *ends) in enumerate(zip(problem.names, *problem.bounds, strict=True)):
        for end in ends:
            slack = 1e-9 * (ends[1] - ends[0]) if j >= first else 1e-12 + 1e-9 * abs(end)
            if np.isfinite(end) and abs(z[j] - end) <= slack:
                names.append(name)
    return names


def _elsewhere(problem: Problem, solution: Solution, same: np.ndarray) -> set[str]:
    """Exponents on which restarts with the same objective disagree by more than 2% of their range."""
    first = len(problem.coefficients)
    spread = np.ptp(solution.coordinates[same], axis=0)
    ranges = np.subtract(*problem.exponent_bounds[::-1])
    return {p.name for k, p in enumerate(problem.exponents) if spread[first + k] > 0.02 * ranges[k]}


def _unbounded(
    problem: Problem, residuals: np.ndarray, scaled: np.ndarray, norms: np.ndarray, idle: np.ndarray
) -> set[str]:
    """Exponents whose two standard errors either way cover all that is allowed, or for a scale a factor of five."""
    if len(residuals) <= problem.size:
        return set()
    noise = noise_scale(residuals, problem.size)
    inverse = np.linalg.pinv(scaled @ scaled.T, hermitian=True)
    errors = np.full(problem.size, 0.0)
    errors[~idle] = noise * np.sqrt(np.maximum(np.diag(inverse), 0)) / norms[~idle]
    first = len(problem.coefficients)
    ranges = np.subtract(*problem.exponent_bounds[::-1])
    widest = np.where([p.log for p in problem.exponents], np.minimum(ranges, np.log(_FACTOR)), ranges)
    return {p.name for k, p in enumerate(problem.exponents) if 4 * errors[first + k] > widest[k]}


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
