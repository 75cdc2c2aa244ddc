"""Where a fit starts: a grid over the exponents, with the best non-negative coefficients at each point."""

import math
from itertools import combinations, product

import numpy as np

from isoflop.laws._solver import Problem

_COMBINATIONS = 1500  # points of the grid at most
_ROWS = 400  # rows that the grid looks at
_SPREAD = 2  # one start of every so many is drawn from the whole grid, the others are its best points


def starts(problem: Problem, restarts: int, rng: np.random.Generator) -> np.ndarray:
    """Coordinates [restarts, p] of distinct starting points, the most promising first."""
    grid = _grid(problem, rng)
    rows = np.linspace(0, len(problem.log_loss) - 1, min(_ROWS, len(problem.log_loss))).round().astype(int)
    whole, problem = problem, problem.on_rows(rows)
    coefficients = np.zeros((len(grid), len(problem.coefficients)))
    z = np.concatenate([coefficients, grid], axis=1)
    point = problem.evaluate(z)
    loss = np.exp(problem.log_loss)
    shape = (len(grid), len(rows))

    def relative(value: np.ndarray) -> np.ndarray:
        return np.asarray(np.broadcast_to(value, shape) / loss)

    free = {p.name for p in problem.coefficients}
    known = sum(
        (relative(point.coefficients[name] * term) for name, term in point.terms.items() if name not in free),
        np.zeros(shape),
    )
    scaled = [relative(point.terms[p.name] / point.scales[p.name]) for p in problem.coefficients]
    if scaled:
        z[:, : len(scaled)] = _non_negative(np.stack(scaled, axis=1), 1.0 - known)
    residuals = problem.evaluate(z).residuals
    each = problem.huber(residuals) if problem.weights is None else problem.huber(residuals) * problem.weights
    order = np.argsort(np.sum(each, axis=1))
    if not problem.exponents:  # one point: the others are about it
        return problem.moved(z * rng.uniform(0.5, 1.5, (restarts, 1)), whole)
    best = order[: restarts - restarts // _SPREAD]
    rest = order[len(best) :]
    others = rng.choice(rest, size=min(restarts - len(best), len(rest)), replace=False)
    return problem.moved(z[np.concatenate([best, others])], whole)


def _grid(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Exponents' coordinates [_, exponents]: every combination of their starts, or many drawn ones if that is too many.

    Drawn ones lie anywhere between a start and the next, so that no two fits begin alike.
    """
    exponents = problem.exponents
    if math.prod(len(p.starts) for p in exponents) <= _COMBINATIONS:
        grid = np.array(list(product(*(p.starts for p in exponents))), dtype=float)
        grid = grid.reshape(-1 if exponents else 1, len(exponents))
        return np.asarray(np.where([p.log for p in exponents], np.log(np.where(grid > 0, grid, 1.0)), grid))
    columns = []
    for p in exponents:
        starts = np.sort(np.log(p.starts) if p.log else np.array(p.starts))
        columns.append(np.interp(rng.uniform(0, 1, _COMBINATIONS), np.linspace(0, 1, len(starts)), starts))
    return np.stack(columns, axis=1)


def _non_negative(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with coefficients >= 0 for B problems: terms [B, q, n], target [B, n] -> [B, q].

    Every subset of the few terms is solved, and the best one whose coefficients are positive is taken.
    """
    scale = 1.0 / np.maximum(np.linalg.norm(terms, axis=2), 1e-300)
    terms = terms * scale[:, :, None]
    gram = np.matmul(terms, terms.swapaxes(1, 2))
    right = np.matmul(terms, target[..., None])[..., 0]
    best = np.zeros_like(right)
    gain = np.zeros(len(right))
    for count in range(1, right.shape[1] + 1):
        for subset in combinations(range(right.shape[1]), count):
            index = list(subset)
            matrix = gram[:, index][:, :, index] + 1e-12 * np.eye(count)
            solution = np.linalg.solve(matrix, right[:, index, None])[..., 0]
            explained = np.sum(solution * right[:, index], axis=1)
            take = (solution > 0).all(axis=1) & (explained > gain)
            gain[take] = explained[take]
            filled = np.zeros_like(best)
            filled[:, index] = solution
            best[take] = filled[take]
    return np.asarray(best * scale)
