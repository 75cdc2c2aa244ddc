"""From many starts to minima: wide Huber first, and with many rows on some of the rows first."""

from copy import copy

import numpy as np

from isoflop.laws._solver import Problem, Solution, minimise

_ROWS = 4000  # rows that tell the minima apart
_SAME = 1e-4  # coordinates that differ relatively by less lead to one minimum
_WIDEST = 0.05  # delta of the first stage: residuals of most starts are inside, where the objective is smooth
_NARROWING = 5.0  # from one stage to the next
_STAGE = 30  # iterations of a stage that only prepares the next
_CRAWLERS = 4  # of the lowest minima are followed to the end where the kinks of a small delta slow them down
_LONG = 3000
_SETTLED = 1e-7


def minimise_from(problem: Problem, start: np.ndarray) -> Solution:
    """Minimise from every row of `start` [B, p].

    With many rows the starts are first minimised on a fixed random part of them. Those that end at one place there
    would take one way on all rows, and take it once; the solution holds it for each of them.
    """
    n_rows = len(problem.log_loss)
    if n_rows <= 2 * _ROWS:
        return _narrowing(problem, start)
    rows = np.sort(np.random.default_rng(0).choice(n_rows, size=_ROWS, replace=False))
    part = problem.on_rows(rows)
    rough = _narrowing(part, problem.moved(start, part)).coordinates
    scale = np.maximum(np.abs(rough), 1e-12)
    near = np.all(np.abs(rough[:, None] - rough[None]) <= _SAME * scale[None], axis=2)
    first = np.argmax(near, axis=1)
    distinct, place = np.unique(first, return_inverse=True)
    found = minimise(problem, part.moved(rough[distinct], problem))
    return Solution(
        coordinates=found.coordinates[place], objective=found.objective[place], decrement=found.decrement[place]
    )


def _narrowing(problem: Problem, start: np.ndarray) -> Solution:
    """Minimise under ever narrower deltas, down to the problem's own.

    A small delta makes the objective a polyhedron with rounded edges, on which starts crawl; a wide one is smooth and
    brings them to the right faces.
    """
    stage = copy(problem)
    stage.delta = _WIDEST
    while stage.delta > 1.5 * problem.delta:
        start = minimise(stage, start, max_iterations=_STAGE).coordinates
        stage.delta /= _NARROWING
    found = minimise(problem, start)
    lowest = np.argsort(found.objective)[:_CRAWLERS]
    unsettled = lowest[found.decrement[lowest] > _SETTLED * found.objective[lowest]]
    if len(unsettled) and (found.objective <= found.objective[lowest[0]] * (1 + 1e-6)).sum() < _CRAWLERS:
        further = minimise(problem, found.coordinates[unsettled], max_iterations=_LONG)
        found.coordinates[unsettled] = further.coordinates
        found.objective[unsettled] = further.objective
        found.decrement[unsettled] = further.decrement
    return found
