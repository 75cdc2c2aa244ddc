"""How sure the best size is: the optimum under every bootstrap draw of a fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from isoflop.planner.families import Family
from isoflop.planner.losses import drawn_losses, knows_uncertainty
from isoflop.planner.problem import Problem
from isoflop.planner.result import PlanRow

_COARSE, _FINE = 97, 257
"""Sizes among which the optima of all draws are found, and then told more exactly."""

_SLACK: Final = 1e-6

_ARCHITECTURES: Final = 12
"""Most architectures, best first, whose best sizes get an interval."""


def with_size_intervals(families: Sequence[Family], rows: Sequence[PlanRow], problem: Problem) -> list[PlanRow]:
    """The rows, the best one of each architecture with the interval of its architecture's best size and tokens.

    None where a limit holds all draws at one size and the row is a model of another aspect, beside it.
    """
    known = {family.name: family for family in families}
    found: list[PlanRow] = []
    seen: set[str] = set()
    for row in rows:
        if row.architecture not in seen and len(seen) < _ARCHITECTURES:
            seen.add(row.architecture)
            optima = optima_of_draws(known[row.architecture], problem, row.params_active)
            if optima is not None:
                tail = (1 - problem.level) / 2
                sizes, tokens = (tuple(map(float, np.quantile(each, [tail, 1 - tail]))) for each in optima)
                point = sizes[1] <= sizes[0] * (1 + _SLACK)
                if not point or abs(row.params_active / sizes[0] - 1) <= 0.01:
                    row = replace(row, params_active_interval=sizes, tokens_interval=tokens)  # type: ignore[arg-type]
        found.append(row)
    return found


def optima_of_draws(family: Family, problem: Problem, best: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Active parameters [B] and tokens [B] that would be best within the limits, were each draw the law.

    Sizes lie on a grid in log space, which is laid out twice: over all sizes, then over the optima of the middle 99% of
    the draws and `best`, the size that is best for the law itself. None for a law without draws, or where the limits
    leave no size.
    """
    if not knows_uncertainty(family.law):
        return None
    bounds = family.bounds(problem)
    if bounds is None:
        return None
    sizes = np.geomspace(*bounds, _COARSE)
    at = _best(family, sizes, problem)[0]
    if not len(at):
        return None
    first, last = np.quantile(at, [0.005, 0.995], method="nearest").astype(int)
    fine = np.geomspace(sizes[max(0, first - 1)], sizes[min(_COARSE - 1, last + 1)], _FINE)
    fine = np.sort(np.append(fine, best))
    at, tokens = _best(family, fine, problem)
    return (fine[at], tokens[at]) if len(at) else None


def _best(family: Family, sizes: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Index [B'] of the best of the sizes under each draw that has one, and the tokens [S] of every size."""
    assert knows_uncertainty(family.law)
    columns, allowed = family.sized_within(sizes, problem)
    with np.errstate(all="ignore"):
        loss = np.where(allowed, drawn_losses(family.law, columns), np.inf)
    loss = np.where(np.isfinite(loss), loss, np.inf)
    return np.argmin(loss, axis=1)[np.isfinite(loss).any(axis=1)], columns["tokens"]
