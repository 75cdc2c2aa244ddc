"""Many starts on many rows: what they lead to is found on some of the rows, and polished on all."""

import numpy as np

from isoflop.laws._solver import Problem, Solution, minimise

_ROWS = 4000  # rows that tell the minima apart
_SAME = 1e-4  # coordinates that differ relatively by less lead to one minimum


def minimise_from(problem: Problem, start: np.ndarray) -> Solution:
    """Minimise from every row of `start` [B, p].

    With many rows the starts are first minimised on a fixed random part of them. Those that end at one place there
    would take one way on all rows, and take it once; the solution holds it for each of them.
    """
    n_rows = len(problem.log_loss)
    if n_rows <= 2 * _ROWS:
        return minimise(problem, start)
    rows = np.sort(np.random.default_rng(0).choice(n_rows, size=_ROWS, replace=False))
    rough = minimise(problem.on_rows(rows), start).coordinates
    scale = np.maximum(np.abs(rough), 1e-12)
    near = np.all(np.abs(rough[:, None] - rough[None]) <= _SAME * scale[None], axis=2)
    first = np.argmax(near, axis=1)
    distinct, place = np.unique(first, return_inverse=True)
    found = minimise(problem, rough[distinct])
    return Solution(
        coordinates=found.coordinates[place], objective=found.objective[place], decrement=found.decrement[place]
    )
