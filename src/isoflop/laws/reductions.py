"""Fewer rows: the last one of each run's log, the best one of each cell of a sweep."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.table import DONE, RunTable

_ORDERS: Final = ("step", "_step", "global_step", "summary._step", "tokens", "flops")


def last_of(table: RunTable, run: str, order: str | None = None) -> RunTable:
    """The final row of each run, for a table that logs every run several times; `notes` says by what it is final.

    Args:
        table: the rows.
        run: column that names the run.
        order: column that grows along a run. Default: step (or _step, global_step), tokens or flops, whichever comes
            first in this list.

    Raises:
        InputError: if a column is absent or nothing orders the rows.
    """
    if order is None:
        order = next((name for name in _ORDERS if name in table and name != run), None)
        if order is None:
            raise InputError(
                f"last_of is {run}, but {table.source} has no column step, tokens or flops that says which row is last."
            )
    at = table.numeric(order)
    if np.isnan(at).any():
        raise InputError(f"{table.source} {table.labels[int(np.argmax(np.isnan(at)))]}: {order} is missing.")
    chosen = _chosen(table, [run], -at)
    return chosen.with_columns({}, [f"of {len(table)} rows the last by {order} of each {run}: {len(chosen)}."])


def best_of(table: RunTable, cell: Sequence[str], by: str = "loss") -> RunTable:
    """The row with the lowest loss among those that agree in the columns of `cell`, as after a sweep of learning rates.

    Rows without a finite loss, and those whose status is not done, lose against every other; `notes` says how many
    cells there were.

    Raises:
        InputError: if a column is absent, or `cell` is empty.
    """
    if not cell:
        raise InputError("best_of is empty; name the columns that rows of one cell agree in.")
    loss = table.numeric(by)
    done = np.array([value in (DONE, None) for value in table["status"]]) if "status" in table else np.isfinite(loss)
    chosen = _chosen(table, cell, np.where(np.isfinite(loss) & done, loss, np.inf))
    note = f"of {len(table)} rows the lowest {by} where {', '.join(cell)} agree: {len(chosen)}."
    return chosen.with_columns({}, [note])


def _chosen(table: RunTable, columns: Sequence[str], score: np.ndarray) -> RunTable:
    """Of the rows that agree in the columns, the first with the lowest score; in the order of the table."""
    best: dict[tuple[object, ...], int] = {}
    for index, key in enumerate(zip(*(table[name].tolist() for name in columns), strict=True)):
        if any(value is None or value != value for value in key):
            name = next(name for name, value in zip(columns, key, strict=True) if value is None or value != value)
            raise InputError(
                f"{table.source} {table.labels[index]}: {table.in_file(name)} is missing, so that the row belongs to "
                "nothing; fill it in, or leave the row out with --where."
            )
        if key not in best or score[index] < score[best[key]]:
            best[key] = index
    return table.take(sorted(best.values()))
