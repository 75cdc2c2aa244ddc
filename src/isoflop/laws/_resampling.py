"""Bootstrap: which rows a resample holds, and the fits to all of them side by side."""

from typing import Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._solver import Problem, minimise
from isoflop.laws.table import RunTable

GROUPS: Final = 2
"""That a bootstrap can tell apart, at least."""

_TOGETHER = 2_000_000  # resamples × rows whose weights are held in memory at once


class Resampler:
    """Draws how often each of n rows stands in a resample."""

    def __init__(self, n_rows: int, *, units: np.ndarray | None = None, strata: np.ndarray | None = None) -> None:
        """Say what is drawn.

        Args:
            n_rows: n.
            units: index [n] of the unit that a row belongs to, from 0; units are drawn as wholes. Default: rows.
            strata: index [units], in ascending order; a unit is replaced by one of its own stratum. Default: any.
        """
        self.unit_of_row = np.arange(n_rows) if units is None else units
        self.n_units = int(self.unit_of_row.max()) + 1
        strata = np.zeros(self.n_units, dtype=int) if strata is None else strata
        sizes = np.bincount(strata)
        self.size = sizes[strata]
        self.start = (np.cumsum(sizes) - sizes)[strata]

    def weights(self, count: int, distinct: int, rng: np.random.Generator) -> np.ndarray:
        """Counts [count, n]; a resample with fewer than `distinct` different rows is drawn again.

        Raises:
            InputError: if hardly any resample has that many.
        """
        weights = np.empty((count, len(self.unit_of_row)))
        todo = np.arange(count)
        for _ in range(100):
            picked = self.start + (rng.random((len(todo), self.n_units)) * self.size).astype(int)
            offset = np.arange(len(todo))[:, None] * self.n_units
            counts = np.bincount((picked + offset).ravel(), minlength=len(todo) * self.n_units)
            weights[todo] = counts.reshape(len(todo), self.n_units)[:, self.unit_of_row]
            todo = todo[np.count_nonzero(weights[todo], axis=1) < distinct]
            if not len(todo):
                return weights
        raise InputError(
            f"bootstrap needs resamples with {distinct} different rows, which {self.n_units} units with "
            f"{len(self.unit_of_row)} rows almost never give; add runs, use smaller groups, or fit without it."
        )


def resampler(table: RunTable, groups: str | None) -> Resampler:
    """Resample rows, or the values of one column as wholes."""
    if groups is None:
        return Resampler(len(table))
    labels = {value: index for index, value in enumerate(dict.fromkeys(table[groups].tolist()))}
    if len(labels) < GROUPS:
        raise InputError(f"groups is {groups}, which has one value; a bootstrap needs at least two groups.")
    return Resampler(len(table), units=np.array([labels[value] for value in table[groups].tolist()]))


def bootstrap_draws(
    problem: Problem, best: np.ndarray, resample: Resampler, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Coordinates [count, p] of fits to resamples, each started at the fit to all rows [1, p]."""
    size = max(1, _TOGETHER // len(resample.unit_of_row))
    parts = []
    distinct = problem.size
    if problem.penalty is not None:
        distinct -= int(np.isfinite(problem.penalty.sd).sum())
    for low in range(0, count, size):
        weights = resample.weights(min(size, count - low), distinct, rng)
        drawn = problem
        if problem.penalty is not None:
            drawn = problem.penalised(problem.penalty.drawn(len(weights), rng))
        parts.append(minimise(drawn, np.repeat(best, len(weights), axis=0), weights).coordinates)
    return np.concatenate(parts)
