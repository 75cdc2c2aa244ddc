"""Fewer rows: the last one of each run's log, the best one of each cell of a sweep."""

from collections.abc import Sequence

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.table import RunTable


def last_of(table: RunTable, run: str, order: str | None = None) -> RunTable:
    """The final row of each run, for a table that logs every run several times.

    Args:
        table: the rows.
        run: column that names the run.
        order: column that grows along a run. Default: step, tokens or flops, whichever comes first in this list.

    Raises:
        InputError: if a column is absent or nothing orders the rows.
    """
    if order is None:
        order = next((name for name in ("step", "tokens", "flops") if name in table), None)
        if order is None:
            raise InputError(
                f"last_of is {run}, but {table.source} has no column step, tokens or flops that says which row is last."
            )
    at = table.numeric(order)
    if np.isnan(at).any():
        raise InputError(f"{table.source} {table.labels[int(np.argmax(np.isnan(at)))]}: {order} is missing.")
    return _chosen(table, [run], -at)


def best_of(table: RunTable, cell: Sequence[str], by: str = "loss") -> RunTable:
    """The row with the lowest loss among those that agree in the columns of `cell`, as after a sweep of learning rates.

    Rows without a finite loss lose against every other.

    Raises:
        InputError: if a column is absent, or `cell` is empty.
    """
    if not cell:
        raise InputError("best_of is empty; name the columns that rows of one cell agree in.")
    loss = table.numeric(by)
    return _chosen(table, cell, np.where(np.isfinite(loss), loss, np.inf))


def _chosen(table: RunTable, columns: Sequence[str], score: np.ndarray) -> RunTable:
    """Of the rows that agree in the columns, the first with the lowest score; in the order of the table."""
    best: dict[tuple[object, ...], int] = {}
    for index, key in enumerate(zip(*(table[name].tolist() for name in columns), strict=True)):
        if key not in best or score[index] < score[best[key]]:
            best[key] = index
    return table.take(sorted(best.values()))
