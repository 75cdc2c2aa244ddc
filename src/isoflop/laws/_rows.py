"""Which rows a fit may use, and one clear sentence about the first that it may not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._experts import check_experts, unknown_flops
from isoflop.laws._units import check_units, doubts
from isoflop.laws.forms import Form, domain, in_domain
from isoflop.laws.reading import derive, derive_sparsity
from isoflop.laws.table import RunTable

Runs = RunTable | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A run table, columns by name, or a list of rows."""


def as_table(runs: Runs) -> RunTable:
    """Runs as a table."""
    if isinstance(runs, RunTable):
        return runs
    if isinstance(runs, Mapping):
        arrays = dict(zip(runs, np.broadcast_arrays(*(np.atleast_1d(value) for value in runs.values())), strict=True))
        length = len(next(iter(arrays.values()))) if arrays else 0
        return RunTable({name: values[i].item() for name, values in arrays.items()} for i in range(length))
    return RunTable(runs)


CONVENTION: Final = "flops_convention"
"""Column that says how the flops were counted."""


def fit_rows(runs: Runs, form: Form, *, several_of: str | None = None) -> tuple[RunTable, int]:
    """The finished rows, checked, and how many were left out because they did not finish.

    Args:
        runs: the runs.
        form: the law.
        several_of: column whose values may have several rows; where it is run_id, that does not make them twins.

    Raises:
        InputError: naming row, column and remedy, if a value is missing, not positive or infinite, a run is there
            twice, a column is absent, columns contradict each other, a column that the law does not know varies, or it
            reads flops that were counted in several ways.
    """
    table = as_table(runs)
    if not len(table):
        raise InputError(f"{table.source} has no rows; a fit needs finished runs.")
    done = derive(table.usable())
    if not len(done):
        raise InputError(f"none of the {len(table)} rows of {table.source} has status done; a fit needs finished runs.")
    done = derive_sparsity(done, form.columns)
    unknown_flops(done, form.columns)
    absent = [name for name in form.optional if name not in done]
    done = done.with_columns({name: form.optional[name].value for name in absent})
    for column in (*form.columns, form.target):
        check_values(done, column)
    check_experts(done)
    unsure = check_rows(done, form.columns, target=form.target, by_id=several_of != "run_id")
    for column in form.fixed:
        if column in done:
            values = np.unique(done.numeric(column))
            if len(values) > 1:
                raise InputError(
                    f"law {form.name} holds for one {column}, but {done.source} has {_listed(values)}; keep one, as "
                    f'with --where "{column}={values[-1]:g}".'
                )
    notes = [*unsure, *_check_convention(done, form)]
    return done.with_columns({}, notes), len(table) - len(done)


def check_values(table: RunTable, column: str) -> None:
    """Raise InputError at the first row whose value in this column is missing or outside of what a law can read."""
    values = table.numeric(column)
    bad = np.flatnonzero(~in_domain(column, values))
    if not len(bad):
        return
    row = int(bad[0])
    value = values[row]
    more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
    problem = "is missing" if np.isnan(value) else f"is {value:g}; it must be {domain(column)}"
    raise InputError(
        f"{table.source} {table.labels[row]}: {table.in_file(column)} {problem}{more}; fill in its value, or give the "
        "run the status failed to leave it out of fits."
    )


def check_rows(table: RunTable, columns: Sequence[str], *, target: str, by_id: bool = True) -> list[str]:
    """What of the finished rows may be in another unit.

    Args:
        table: the rows.
        columns: columns in which twins agree, beside the target.
        target: what is predicted.
        by_id: whether rows of one run_id are twins.

    Raises:
        InputError: if a row gives away another unit (see `check_units`), or is there twice.
    """
    check_units(table, target=target)
    _check_twins(table, (*columns, target), by_id=by_id)
    return doubts(table, target=target)


def _check_convention(table: RunTable, form: Form) -> list[str]:
    """What is assumed of how flops were counted; InputError where the law reads them and they were in several ways."""
    if "flops" not in table:
        return []
    if CONVENTION not in table:
        return [f"{CONVENTION} is absent: flops are taken as 6ND."]
    counted = dict.fromkeys(table[CONVENTION].tolist())
    if len(counted) > 1 and "flops" in form.columns:
        raise InputError(
            f"law {form.name} reads flops, and the rows of {table.source} count them by "
            f"{' and '.join(str(value or 'nothing that is said') for value in counted)}; count all of them one way, or "
            f'keep one with --where "{CONVENTION}={next(value for value in counted if value)}".'
        )
    return []


def _check_twins(table: RunTable, columns: Sequence[str], *, by_id: bool) -> None:
    """Raise InputError at the first row that is there twice; `columns` are numbers in which twins agree."""
    by_id = by_id and "run_id" in table and all(value is not None for value in table["run_id"])
    suspects: Iterable[int] = range(len(table))
    if not by_id:
        values = np.stack([table.numeric(name) for name in columns], axis=1)
        _, place, times = np.unique(values, axis=0, return_inverse=True, return_counts=True)
        suspects = np.flatnonzero(times[place.reshape(-1)] > 1).tolist()
    seen: dict[Any, int] = {}
    for index in suspects:
        row = table.rows[index]
        key = row["run_id"] if by_id else tuple(sorted((name, repr(value)) for name, value in row.items()))
        if key in seen:
            remedy = "or keep each run's final row with --last-of run_id" if by_id else "or give repeats their own seed"
            what = f"run_id {key} is" if by_id else "every column is"
            raise InputError(
                f"{table.source} {table.labels[index]}: {what} the same as in {table.labels[seen[key]]}; delete one of "
                f"the two, {remedy}."
            )
        seen[key] = index


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
